"""What training leaves: the network hardened in one way for all who use it, evaluated, its figures, and the table."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict

from shuffle_jax.analysis.dynamic_use import DynamicUse, dynamic_use
from shuffle_jax.analysis.run_figures import save_run_figures
from shuffle_jax.console import duration
from shuffle_jax.data import Preprocessing, load
from shuffle_jax.data.inventory import inventory
from shuffle_jax.deploy.freezing import dynamic_layers, freeze
from shuffle_jax.deploy.hardening import Diagnosis, Hardened, harden
from shuffle_jax.deploy.recalibration import recalibrate
from shuffle_jax.distributed import is_lead
from shuffle_jax.files import naming
from shuffle_jax.models import build
from shuffle_jax.models.options import chosen_options
from shuffle_jax.nn.collections import STATIC, one_by_one
from shuffle_jax.run import Run
from shuffle_jax.sharding import data_mesh
from shuffle_jax.train.advice import after
from shuffle_jax.train.checkpoint import check_name
from shuffle_jax.train.config import TrainConfig, read_config
from shuffle_jax.train.early import with_matrices
from shuffle_jax.train.experiment import Experiment, build_network, read_state, state_shapes
from shuffle_jax.train.frozen import with_frozen_norms
from shuffle_jax.train.images import statistics_batches, training_images
from shuffle_jax.train.metrics import MetricWriter
from shuffle_jax.train.state import TrainState
from shuffle_jax.typing import Array, Float, Images, PyTree

FREEZE_IMAGES = 1024
"""Training images over which dynamic layers are averaged when they are frozen."""


@dataclass(frozen=True)
class Trained:
    """A trained and hardened network, ready for use without the data that it was trained on.

    Attributes:
        network: from normalised images to logits.
        variables: hardened ones, with batch statistics re-estimated if the run's configuration asks for it.
        preprocessing: from pictures to normalised images.
        classes: the class names in the order of the logits.
        config: of the run.
        step: of the checkpoint.
        diagnoses: of each learned permutation by layer, see :func:`shuffle_jax.deploy.hardening.harden`.
    """

    network: nn.Module
    variables: dict[str, PyTree]
    preprocessing: Preprocessing
    classes: tuple[str, ...]
    config: TrainConfig
    step: int
    diagnoses: dict[str, Diagnosis] = field(default_factory=dict)

    @cached_property
    def logits(self) -> Callable[[Images], Float[Array, "n k"]]:
        """From normalised images to logits, jitted."""
        return partial(jax.jit(self.apply), self.variables)

    def apply(self, variables: dict[str, PyTree], images: Images) -> Float[Array, "n k"]:
        """The network in evaluation, as a function of its variables."""
        logits: Float[Array, "n k"] = self.network.apply(variables, images, train=False)  # type: ignore[assignment]
        return logits


def load_trained(path: Path, checkpoint: str = "last") -> Trained:
    """Loads and hardens the network of a run.

    The training images are read only where the configuration wants statistics re-estimated from them.

    Args:
        path: folder of the run.
        checkpoint: "last", "best" or a step.

    Raises:
        ValueError: there is no run in the folder, its parts do not fit, or the checkpoint's name is none.
        FileNotFoundError: there is no such checkpoint.
    """
    run = Run(path)
    check_name(checkpoint)
    config, classes, preprocessing = read_config(run), run.classes(), run.preprocessing()
    network = build_network(config.network, preprocessing.shape, len(classes))
    state = read_state(
        run, checkpoint, state_shapes(config, network, preprocessing.shape, data_mesh(jax.devices()[:1]))
    )

    def images(batches: int) -> Iterator[Images]:
        dataset = load(config.data, classes)
        run.check_data(inventory(dataset), changed=True)
        return training_images(config, dataset, preprocessing, batches, augmented=config.augmented_statistics)

    variables = state.variables()
    if state.lacks_stats:
        try:
            variables = recalibrate(
                with_frozen_norms(network, config.optimizer.freeze), variables, images(statistics_batches(config))
            )
        except (ValueError, OSError, ImportError) as error:
            print(
                f"warning: {path} has averaged weights without batch statistics of their own, as an earlier version "
                f"left them, and no training images to estimate them from ({error}): those of the last step are used",
                file=sys.stderr,
            )
    hard = hardened(config, network, variables, preprocessing.shape, images)
    return Trained(network, hard.variables, preprocessing, classes, config, int(state.step), hard.diagnoses)


def hardened(
    config: TrainConfig,
    network: nn.Module,
    variables: dict[str, PyTree],
    image_shape: tuple[int, int, int],
    images: Callable[[int], Iterable[Images]],
) -> Hardened:
    """The network as it leaves training, for the end of a run, its evaluation, predictions and exports alike.

    Relaxed permutations become index vectors, and so do factors that are learned once for all images: they are their
    own mean, whatever the image. Then batch statistics are re-estimated, if the configuration says so, also where there
    was nothing to harden.

    Args:
        config: of the run.
        network: of the run.
        variables: as trained.
        image_shape: (h, w, c).
        images: gives the first batches of normalised training images, as many as it is asked for.
    """
    if config.penalty.settle:  # what was hardened before the end is told of like the rest
        image = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
        shapes = jax.eval_shape(partial(network.init, train=False), jax.random.key(0), image)
        variables = with_matrices(variables, shapes["params"])
    hard = harden(variables)
    params = flatten_dict(hard.variables.get("params", {}))
    static = one_by_one({path[: path.index(STATIC) - 1]: leaf for path, leaf in params.items() if STATIC in path}, 1)
    if static and set(static) == set(dynamic_layers(network, hard.variables, image_shape)):
        blank = jnp.zeros((1, *image_shape), jnp.float32)
        hard = hard._replace(variables=freeze(network, hard.variables, [blank]).variables)
    if config.recalibrate:
        hard = hard._replace(
            variables=recalibrate(
                with_frozen_norms(network, config.optimizer.freeze), hard.variables, images(config.recalibrate)
            )
        )
    return hard


def hardened_experiment(experiment: Experiment, variables: dict[str, PyTree]) -> Hardened:
    """:func:`hardened`, of a run whose data is there."""
    config, shape = experiment.config, experiment.dataset.image_shape
    images = partial(
        training_images,
        config,
        experiment.dataset,
        experiment.preprocessing,
        augmented=config.augmented_statistics,
    )
    return hardened(config, experiment.network, variables, shape, images)


def forms(
    experiment: Experiment, variables: dict[str, PyTree], hard: Hardened
) -> Iterator[tuple[str, dict[str, float]]]:
    """``loss``, ``top1`` and ``top5`` on the test split of each form that a network has.

    Args:
        experiment: the parts of the run.
        variables: as trained.
        hard: the same hardened.

    Yields:
        "relaxed", as trained; with learned permutations "hardened", or without any "recalibrated", if the configuration
        asks for it; with dynamic layers that it configures those of "hard", "soft" and "repaired" that "relaxed" is
        not; and with any "frozen": one permutation for all images, the nearest to the mean over ``FREEZE_IMAGES``
        training images.
    """
    yield "relaxed", experiment.evaluate(variables)
    if hard.permutations:
        yield "hardened", experiment.evaluate(hard.variables)
    elif experiment.config.recalibrate and "batch_stats" in variables:
        yield "recalibrated", experiment.evaluate(hard.variables)
    if experiment.probe is None:
        return
    config = experiment.config.network
    if "dynamic" in chosen_options(config.parts()):  # else its dynamic layers are the network's own
        for evaluation in (name for name in ("hard", "soft", "repaired") if name != config.dynamic.evaluation):
            changed = replace(config, dynamic=replace(config.dynamic, evaluation=evaluation))
            network = build(changed, len(experiment.dataset.classes))
            yield evaluation, replace(experiment, network=network).evaluate(variables)
    batches = -(-FREEZE_IMAGES // experiment.config.batch_size)
    images = training_images(experiment.config, experiment.dataset, experiment.preprocessing, batches)
    yield "frozen", experiment.evaluate(freeze(experiment.network, variables, images).variables)


@dataclass(frozen=True)
class Outcome:
    """What a finished run reports.

    Attributes:
        results: ``loss``, ``top1`` and ``top5`` on the test split of each form, see :func:`forms`.
        certified: learned permutations whose row-argmax is proved to be one.
        permutations: learned permutations.
        seconds: that the run took, each of its processes in turn from its first step.
        dynamic: what its dynamic layers do for single images; None of a network without any.
    """

    results: dict[str, dict[str, float]]
    certified: int
    permutations: int
    seconds: float
    dynamic: DynamicUse | None = None


def finish(experiment: Experiment, run: Run, state: TrainState, metrics: MetricWriter) -> Outcome:
    """Hardens the trained network, evaluates every form, saves index vectors and figures, prints the table."""
    # From here on every process has the variables for itself; what they evaluate together is put on all devices.
    variables = jax.device_get(state.variables())
    metrics.console.message("the training is done: evaluating each form of the network")
    hard = hardened_experiment(experiment, variables)
    if hard.permutations and is_lead():
        run.save_permutations(hard.permutations)
    about = {"kind": "result", "split": experiment.dataset.measured, "step": experiment.steps}
    results = {}
    for name, result in forms(experiment, variables, hard):
        results[name] = result
        metrics.write({**about, "network": name, **result})
    metrics.console.message("drawing the figures")
    figures = []
    if is_lead():
        with naming(run.figures):
            figures = save_run_figures(run.path)
    certified = int(np.sum([d.certified for d in hard.diagnoses.values()]))
    use = dynamic_use(experiment.probe.numbers(variables)) if experiment.probe is not None else None
    outcome = Outcome(results, certified, len(hard.permutations), metrics.seconds, use)
    _print(outcome, experiment, run, len(figures), metrics)
    for line in after(experiment.config, hard.diagnoses, results, use):
        metrics.console.message(line)
    return outcome


def _print(outcome: Outcome, experiment: Experiment, run: Run, figures: int, metrics: MetricWriter) -> None:
    """Prints the table that ends a run."""
    results, use = outcome.results, outcome.dynamic
    certified = {"certified": f"{outcome.certified}/{outcome.permutations}"} if outcome.permutations else {}
    dynamic = use.cells(results) if use is not None else {}
    hard = "hard" if "hard" in results else "relaxed"
    rows = []
    for name, result in results.items():
        shown = "as trained" if name == "relaxed" and not outcome.permutations else name
        told = (certified if name == "hardened" else {}) | (dynamic if name == hard else {})
        further = [told.get(column, "") for column in (*certified, *dynamic)]
        rows.append([shown, result["top1"], result["top5"], result["loss"], *further])
    images = len(experiment.dataset.test)
    title = f"{images} {experiment.dataset.measured} images of {experiment.dataset.name}, {experiment.steps} steps"
    metrics.console.table(title, ["network", "top-1", "top-5", "loss", *certified, *dynamic], rows)
    if use is not None:
        metrics.console.message(use.text(results, images))
    took = f"{duration(outcome.seconds)} from the first step"
    if metrics.resumed:  # where records of an earlier version do not say what was before, this process alone
        here, known = duration(metrics.seconds_here), outcome.seconds > metrics.seconds_here + 1
        took = f"{took}, {here} of them since it was resumed" if known else f"{here} since it was resumed"
    metrics.console.message(f"{took}; {figures} figure{'' if figures == 1 else 's'} in {run.figures}")
