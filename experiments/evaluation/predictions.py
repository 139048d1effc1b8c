"""What a network says of every test image: by class, which for which, and where it is surest and wrong."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from shuffle_jax.data import Dataset, normalize
from shuffle_jax.sharding import replicate, replicated
from shuffle_jax.train.experiment import Experiment
from shuffle_jax.typing import Array, Float, Images, Int, PyTree

WIDEST = 12
"""Classes of which the whole confusion matrix is printed; of more, the most frequent confusions are."""

FREQUENT = 10


@dataclass(frozen=True)
class Predictions:
    """Of every test image, in the order of the split.

    Attributes:
        classes: the names of the classes, different ones.
        labels: the classes that they are of, (n,).
        said: the classes that the network finds most probable, (n,).
        probability: how probable it finds those, (n,).
    """

    classes: tuple[str, ...]
    labels: Int[np.ndarray, "n"]
    said: Int[np.ndarray, "n"]
    probability: Float[np.ndarray, "n"]

    @property
    def confusion(self) -> Int[np.ndarray, "k k"]:
        """How many images of class i are said to be of class j."""
        counts = np.zeros((len(self.classes), len(self.classes)), np.int64)
        np.add.at(counts, (self.labels, self.said), 1)
        return counts

    def wrong(self, most: int) -> Int[np.ndarray, "m"]:
        """The positions of the images that are wrong, those first where the network is surest; so many at most."""
        (found,) = np.nonzero(self.said != self.labels)
        return found[np.argsort(-self.probability[found], kind="stable")][:most]


def predictions(experiment: Experiment, variables: dict[str, PyTree], classes: Sequence[str]) -> Predictions:
    """Runs a network over the test split.

    Args:
        experiment: the parts of the run.
        variables: of its network, in the form to look at.
        classes: the names of the classes, different ones.
    """
    network, mean_std = experiment.network, experiment.mean_std

    def step(variables: dict[str, PyTree], images: Images) -> tuple[Array, Array]:
        logits = jnp.asarray(network.apply(variables, normalize(images, *mean_std), train=False), jnp.float32)
        probabilities = jax.nn.softmax(logits)
        return probabilities.argmax(-1), probabilities.max(-1)

    jitted = jax.jit(step, out_shardings=replicated(experiment.mesh))
    on_devices = replicate(jax.device_get(variables), experiment.mesh)
    parts = []
    for batch in experiment.batches.test():
        said, probability = jitted(on_devices, batch.images)
        kept = np.asarray(batch.weight) > 0
        parts.append([np.asarray(values)[kept] for values in (batch.labels, said, probability)])
    labels, found, sure = (np.concatenate(column) for column in zip(*parts, strict=True))
    return Predictions(tuple(classes), labels, found, sure)


def picture_name(dataset: Dataset, position: int) -> str:
    """What an image of the test or validation split is called: its file, where it is one."""
    records = getattr(dataset.test, "records", None)
    return f"{dataset.measured} image {position}" if records is None else records[position].name


def class_rows(found: Predictions) -> list[list[object]]:
    """Of each class its name, images and accuracy, and the class that it is most often taken for; the worst first."""
    rows: list[list[object]] = []
    for label, counts in enumerate(found.confusion):
        if not (images := int(counts.sum())):
            continue
        others = counts.copy()
        others[label] = 0
        worst = int(others.argmax())
        taken = f"{found.classes[worst]} ({others[worst]})" if others[worst] else ""
        rows.append([found.classes[label], images, float(counts[label] / images), taken])
    return sorted(rows, key=lambda row: row[2])  # type: ignore[arg-type, return-value]


def confusion_table(found: Predictions) -> tuple[str, list[str], list[list[object]]]:
    """Title, headings and rows: of few classes the whole matrix, else the most frequent confusions."""
    matrix, names = found.confusion, found.classes
    if len(names) <= WIDEST:
        rows = [[name, *counts.tolist()] for name, counts in zip(names, matrix, strict=True)]
        return "images of each class (row) said to be of each (column)", ["class", *names], rows
    off = matrix * (1 - np.eye(len(names), dtype=matrix.dtype))
    most = [divmod(int(i), len(names)) for i in np.argsort(-off, axis=None, kind="stable")[:FREQUENT]]
    pairs: list[list[object]] = [[names[i], names[j], int(off[i, j])] for i, j in most if off[i, j]]
    return "most frequent confusions", ["class", "said to be", "images"], pairs


def wrong_rows(found: Predictions, dataset: Dataset, most: int) -> list[list[object]]:
    """Of the surest of the wrong images its name, its class, what it is said to be, and how probable that is."""
    names, labels, said = found.classes, found.labels, found.said
    return [
        [picture_name(dataset, int(i)), names[labels[i]], names[said[i]], float(found.probability[i])]
        for i in found.wrong(most)
    ]


def plain(found: Predictions, wrong: list[list[object]]) -> dict[str, Any]:
    """The same as plain values."""
    return {
        "classes": {str(name): {"images": images, "top1": top1} for name, images, top1, _ in class_rows(found)},
        "confusion": {"classes": list(found.classes), "images": found.confusion.tolist()},
        "wrong": [dict(zip(("picture", "class", "said", "probability"), row, strict=True)) for row in wrong],
    }
