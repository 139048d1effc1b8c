"""How different the permutations are that a dynamic shuffle gives to images, as numbers.

A snapshot holds, for n images, ``labels`` (n,) and for each layer the row-wise argmax of its soft factors,
``LAYER/outer`` (n, k, p) and ``LAYER/inner`` (n, k, q), and the soft factors averaged over the images,
``LAYER/outer_mean`` (k, p, p) and ``LAYER/inner_mean`` (k, q, q). k is 1, a pair for all groups, or their number.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from shuffle_jax.analysis.drawing import by_depth
from shuffle_jax.typing import Bool, Float, Int

Snapshot = Mapping[str, np.ndarray]

ONE_HOT = 2048
"""About as many columns of a one-hot matrix are made at a time: four megabytes for 512 images."""


def pair_distances(outer: Int[np.ndarray, "n k p"], inner: Int[np.ndarray, "n k q"]) -> Float[np.ndarray, "n n"]:
    """The share of channels that the permutations of two images take from different places.

    ``d[a, b] = 1 - mean_k (share of equal entries of outer) (share of equal entries of inner)``: a Kronecker product
    takes channel (i, j) from (outer[i], inner[j]), so that two of them agree there where both factors agree.

    Args:
        outer: index vectors of p blocks, for each image and each of k groups.
        inner: index vectors of the q channels in a block.

    Returns:
        float32 in [0, 1], symmetric, 0 on the diagonal.

    Raises:
        ValueError: the shapes do not belong together, or an index is out of range.

    >>> pair_distances(np.array([[[0, 1]], [[1, 0]]]), np.array([[[0, 1, 2]], [[0, 1, 2]]])).tolist()
    [[0.0, 1.0], [1.0, 0.0]]
    """
    if outer.ndim != 3 or inner.ndim != 3 or outer.shape[:2] != inner.shape[:2] or not outer.size * inner.size:
        raise ValueError(
            f"factors of shapes {outer.shape} and {inner.shape} make no pairs: give (n, k, p) and (n, k, q)"
        )
    n, groups, p = outer.shape
    agreeing = np.zeros((n, n), np.float32)
    for g in range(groups):
        agreeing += _equal_entries(outer[:, g]) * _equal_entries(inner[:, g])
    return 1 - agreeing / np.float32(groups * p * inner.shape[2])


def between_classes(
    distances: Float[np.ndarray, "n n"], labels: Int[np.ndarray, " n"], classes: int
) -> Float[np.ndarray, "k k"]:
    """The mean distance of an image of one class and an image of another; on the diagonal, of two of the same class.

    Args:
        distances: of all pairs of images.
        labels: of the images, from 0 to ``classes - 1``.
        classes: k, how many there are.

    Returns:
        float64, symmetric; nan where the images make no such pair.

    >>> between_classes(np.array([[0, 0.5], [0.5, 0]]), np.array([0, 1]), 2).tolist()
    [[nan, 0.5], [0.5, nan]]
    """
    of = (labels[:, None] == np.arange(classes)).astype(np.float64)
    counts = of.sum(axis=0)
    pairs = np.outer(counts, counts) - np.diag(counts)  # No image makes a pair with itself.
    sums = of.T @ distances @ of - np.diag(np.diag(distances) @ of)
    return np.divide(sums, pairs, out=np.full_like(sums, np.nan), where=pairs > 0)


def within_and_between(means: Float[np.ndarray, "k k"]) -> tuple[float, float]:
    """The mean over classes, and over pairs of classes, of what :func:`between_classes` gives; nan where none is.

    >>> within_and_between(np.array([[0.25, 0.5], [0.5, np.nan]]))
    (0.25, 0.5)
    """
    diagonal = np.eye(len(means), dtype=bool)
    within, between = (part[np.isfinite(part)] for part in (means[diagonal], means[~diagonal]))
    return (
        float(within.mean()) if len(within) else float("nan"),
        float(between.mean()) if len(between) else float("nan"),
    )


def from_the_rest(distances: Float[np.ndarray, "n n"], chosen: Bool[np.ndarray, " n"]) -> float:
    """How far some images lie from the others: the distance of the two parts less the mean of those within them.

    For images drawn at random its expectation does not depend on their number, and it is 0 if both parts follow the
    same distribution: it estimates half the squared distance of their mean permutation matrices, per channel.

    Args:
        distances: of all pairs of images.
        chosen: which images.

    Returns:
        The difference, at most 1; nan if one part has fewer than two images.
    """
    means = between_classes(distances, chosen.astype(np.int32), 2)
    return float(means[0, 1] - (means[0, 0] + means[1, 1]) / 2)


def frequency(vectors: Int[np.ndarray, "n s"]) -> Float[np.ndarray, "s s"]:
    """How often entry i of the index vectors is j, as a share of the n vectors.

    >>> frequency(np.array([[0, 1], [1, 0], [0, 1], [0, 0]])).tolist()
    [[0.75, 0.25], [0.5, 0.5]]
    """
    n, size = vectors.shape
    cells = np.arange(size) * size + vectors
    return np.bincount(cells.ravel(), minlength=size * size).reshape(size, size) / n


def layers_of(snapshot: Snapshot) -> list[str]:
    """The layers of a snapshot in their order of depth."""
    return by_depth(key.removesuffix("/outer") for key in snapshot if key.endswith("/outer"))


def factors_of(snapshot: Snapshot, classes: Sequence[str]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """The outer and the inner index vectors of each layer, in their order of depth.

    Raises:
        ValueError: there are no layers or no images, or a class has no name.
    """
    labels = snapshot.get("labels", np.zeros(0, np.int32))
    layers = layers_of(snapshot)
    if not len(labels) or not layers:
        raise ValueError(
            f"no permutations to draw: the snapshot has {len(labels)} labels and {len(layers)} layers, give one of each"
        )
    if not 0 <= labels.min() <= labels.max() < len(classes):
        raise ValueError(
            f"labels from {labels.min()} to {labels.max()} do not fit {len(classes)} classes: name them all"
        )
    return {layer: (snapshot[f"{layer}/outer"], snapshot[f"{layer}/inner"]) for layer in layers}


def _equal_entries(vectors: Int[np.ndarray, "n s"]) -> Float[np.ndarray, "n n"]:
    """In how many places two index vectors agree, exactly: products of one-hot rows, some places at a time."""
    n, size = vectors.shape
    if not 0 <= vectors.min() <= vectors.max() < size:
        raise ValueError(
            f"indices from {vectors.min()} to {vectors.max()} do not fit {size} places: 0 to {size - 1} do"
        )
    equal = np.zeros((n, n), np.float32)
    step = max(1, ONE_HOT // size)
    for start in range(0, size, step):
        hot = (vectors[:, start : start + step, None] == np.arange(size)).reshape(n, -1).astype(np.float32)
        equal += hot @ hot.T
    return equal
