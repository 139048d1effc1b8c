"""From a configuration to the parts that training and evaluation are made of."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from shuffle_jax.data import AugmentConfig, Batch, Batches, Dataset, Preprocessing, load, normalize
from shuffle_jax.data.order import epoch_order
from shuffle_jax.data.pipelines import InputConfig, make_batches
from shuffle_jax.deploy.freeze import Frozen, freeze
from shuffle_jax.deploy.harden import Hardened, harden, recalibrate
from shuffle_jax.distributed import same
from shuffle_jax.models import build
from shuffle_jax.nn.dynamic_shuffle import Evaluation
from shuffle_jax.sharding import data_mesh, first_devices, replicated
from shuffle_jax.train.checkpoint import Checkpoints
from shuffle_jax.train.config import TrainConfig, penalty_weight
from shuffle_jax.train.optimizer import in_float, learning_rate, make_optimizer
from shuffle_jax.train.run import Run
from shuffle_jax.train.state import TrainState, init_state
from shuffle_jax.train.step import Metrics, Pixels, make_eval_step, make_train_step
from shuffle_jax.typing import Images, PyTree

FREEZE_IMAGES = 1024
"""Training images over which dynamic layers are averaged when they are frozen."""


@dataclass(frozen=True)
class Experiment:
    """The parts of one run, each made from the configuration alone; use :func:`prepare`.

    Attributes:
        config: what was asked for.
        dataset: the images and class names.
        mesh: the devices.
        batches: training and test batches on the devices.
        network: from images to logits.
        kept: mean and standard deviation that a run keeps; None for those of the training pixels.
    """

    config: TrainConfig
    dataset: Dataset
    mesh: Mesh
    batches: Batches
    network: nn.Module
    kept: Pixels | None = None

    @property
    def steps(self) -> int:
        """Optimiser steps of the whole training."""
        return self.config.epochs * self.batches.steps_per_epoch

    @cached_property
    def pixels(self) -> Pixels:
        """Mean and standard deviation per channel, in units of [0, 1]: those of the training pixels, unless kept."""
        if self.kept is not None:
            return self.kept
        return tuple(self.dataset.mean.tolist()), tuple(self.dataset.std.tolist())

    @property
    def preprocessing(self) -> Preprocessing:
        """What a picture goes through before the network sees it."""
        height, _, channels = self.dataset.image_shape
        return Preprocessing(height, channels, *self.pixels, crop=getattr(self.config.data, "crop", 1.0))

    @cached_property
    def learning_rate(self) -> optax.Schedule:
        """The learning rate at each step."""
        return learning_rate(self.config.optimizer, self.steps, self.batches.steps_per_epoch)

    @cached_property
    def penalty_weight(self) -> optax.Schedule:
        """The weight of the penalties at each step."""
        return penalty_weight(self.config.penalty, self.steps)

    @cached_property
    def optimizer(self) -> optax.GradientTransformation:
        """The optimiser chain."""
        return make_optimizer(self.config.optimizer, self.learning_rate)

    def init(self) -> TrainState:
        """The state before the first step, on all devices."""
        return jax.jit(self._init, out_shardings=replicated(self.mesh))()

    def state_shapes(self) -> TrainState:
        """Types, shapes and shardings of the state, without computing one."""
        return state_shapes(self.config, self.network, self.dataset.image_shape, self.mesh)

    def _init(self) -> TrainState:
        return _init(self.config, self.network, self.dataset.image_shape, self.optimizer)

    def train_step(self) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
        """The jitted training step."""
        return make_train_step(
            self.network,
            self.optimizer,
            self.penalty_weight,
            self.mesh,
            classes=len(self.dataset.classes),
            pixels=self.pixels,
            augmentation=self._augmentation,
            label_smoothing=self.config.label_smoothing,
            accumulate=self.config.accumulate,
            average_decay=self.config.average_decay,
            progress=in_float(lambda step: (step + 1) / self.steps),
            steps_per_epoch=self.batches.steps_per_epoch,
        )

    def harden(self, variables: dict[str, PyTree]) -> Hardened:
        """Hardens the network as the configuration says: with statistics re-estimated on training images, or not."""
        hard = harden(variables)
        if not self.config.recalibrate or not hard.permutations:
            return hard
        return hard._replace(
            variables=recalibrate(self.network, hard.variables, self._first_images(self.config.recalibrate))
        )

    def freeze(self, variables: dict[str, PyTree]) -> Frozen:
        """Freezes dynamic layers to the mean over ``FREEZE_IMAGES`` training images, see shuffle_jax.deploy.freeze."""
        return freeze(self.network, variables, self._first_images(-(-FREEZE_IMAGES // self.config.batch_size)))

    def _first_images(self, batches: int) -> Iterator[Images]:
        """Normalised training images of the first batches, not cropped at random, whole on this process alone."""
        size, per_epoch = self.config.batch_size, self.batches.steps_per_epoch
        for step in range(batches):
            epoch, index = divmod(step, per_epoch)
            rows = epoch_order(self.config.seed, epoch, len(self.dataset.train))[index * size : (index + 1) * size]
            images, _ = self.dataset.train.take(np.asarray(rows))
            yield normalize(jnp.asarray(images), *self.pixels)

    @property
    def _augmentation(self) -> AugmentConfig:
        """What is left to do to the training images on the devices."""
        config = self.config.augment
        return dataclasses.replace(config, resized_crop=0.0) if self.batches.crops else config

    def with_evaluation(self, evaluation: Evaluation) -> Experiment:
        """The same with dynamic layers that evaluate otherwise: "hard", "soft" or "repaired"."""
        network = self.config.network
        changed = dataclasses.replace(network, dynamic=dataclasses.replace(network.dynamic, evaluation=evaluation))
        return dataclasses.replace(self, network=build(changed, len(self.dataset.classes)))

    @cached_property
    def eval_step(self) -> Callable[[dict[str, PyTree], Batch], Metrics]:
        """The jitted evaluation step."""
        return make_eval_step(self.network, self.mesh, pixels=self.pixels)


def prepare(
    config: TrainConfig,
    devices: int | None = None,
    classes: Sequence[str] | None = None,
    input: InputConfig | None = None,
) -> Experiment:
    """Makes the way from the data to the devices and builds the network.

    Args:
        config: the run.
        devices: how many of the local devices of each process to use; all by default.
        classes: the class names in the order of their labels, as a finished run keeps them.
        input: the way; by default as the size of the data says.

    Returns:
        The parts of the run.

    Raises:
        ValueError: the data cannot be read, or a number does not fit another; the message says which.
    """
    available = jax.local_device_count()
    if devices is not None and not 1 <= devices <= available:
        raise ValueError(f"{devices} devices were asked for, this machine has {available}: lower --devices")
    mesh = data_mesh(first_devices(devices))
    dataset = load(config.data, classes)
    splits = len(dataset.train), len(dataset.test)
    same("the data", (dataset.name, dataset.classes, splits, dataset.image_shape))
    if config.batch_size // config.accumulate % mesh.size:
        raise ValueError(
            f"a batch of {config.batch_size} in {config.accumulate} parts cannot be split over {mesh.size} devices: "
            f"make batch_size a multiple of {config.accumulate * mesh.size}, or lower --devices"
        )
    crop = config.augment.resized_crop
    batches = make_batches(dataset, config.batch_size, mesh, config.seed, input or InputConfig(), crop)
    return Experiment(config, batches.dataset, mesh, batches, build(config.network, len(dataset.classes)))


def restore(
    path: Path, checkpoint: str = "last", devices: int | None = None
) -> tuple[Experiment, dict[str, PyTree], int]:
    """The parts of a finished run, the variables of one of its checkpoints, and the step of that checkpoint.

    Args:
        path: folder of the run.
        checkpoint: "last", "best" or a step.
        devices: how many local devices to use; all by default.

    Raises:
        ValueError: there is no run in the folder, or the checkpoint's name is not one of these.
        FileNotFoundError: there is no such checkpoint.
    """
    run = Run(path)
    check_name(checkpoint)
    experiment = as_kept(prepare(run.config(), devices, run.classes()), run)
    state = read_state(run, checkpoint, experiment.state_shapes())
    return experiment, state.variables(), int(state.step)


def as_kept(experiment: Experiment, run: Run) -> Experiment:
    """The same with the mean and deviation of a run: the pixels that are there now need not be those of its start."""
    if not run.keeps_preprocessing():
        return experiment
    kept = run.preprocessing()
    return dataclasses.replace(experiment, kept=(kept.mean, kept.std))


def check_name(checkpoint: str) -> None:
    """Raises ValueError unless the text names a checkpoint: "last", "best" or a step."""
    if checkpoint not in ("last", "best") and not checkpoint.isdigit():
        raise ValueError(f"the checkpoint {checkpoint!r} is none: give last, best or a step")


def read_state(run: Run, checkpoint: str, like: TrainState) -> TrainState:
    """A state of a run.

    Args:
        run: the folder, which is left as it is.
        checkpoint: "last", "best" or a step.
        like: types, shapes and shardings, as :func:`state_shapes` gives them.

    Raises:
        ValueError: the checkpoint's name is none, or it is damaged or of another network.
        FileNotFoundError: there is no such checkpoint.
    """
    check_name(checkpoint)
    with Checkpoints(run.checkpoints, read_only=True) as checkpoints:
        step = checkpoints.best() if checkpoint == "best" else None
        return checkpoints.restore(like, int(checkpoint) if checkpoint.isdigit() else step)


def state_shapes(config: TrainConfig, network: nn.Module, image_shape: tuple[int, int, int], mesh: Mesh) -> TrainState:
    """Types, shapes and shardings of the state of a run, from its configuration alone."""
    optimizer = make_optimizer(config.optimizer, optax.constant_schedule(0.0))
    shapes = jax.eval_shape(partial(_init, config, network, image_shape, optimizer))
    everywhere = replicated(mesh)
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=everywhere), shapes)


def _init(
    config: TrainConfig,
    network: nn.Module,
    image_shape: tuple[int, int, int],
    optimizer: optax.GradientTransformation,
) -> TrainState:
    key, images = jax.random.key(config.seed), jnp.zeros((1, *image_shape))
    return init_state(key, network, images, optimizer, average=config.average_decay > 0)
