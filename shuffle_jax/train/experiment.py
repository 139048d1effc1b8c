"""From a configuration to the parts that training and evaluation are made of."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from shuffle_jax.data import Batch, Dataset, ResidentBatches, load
from shuffle_jax.models import build
from shuffle_jax.sharding import data_mesh, replicated
from shuffle_jax.train.checkpoint import Checkpoints
from shuffle_jax.train.config import TrainConfig, penalty_weight
from shuffle_jax.train.optimizer import learning_rate, make_optimizer
from shuffle_jax.train.run import Run
from shuffle_jax.train.state import TrainState, init_state
from shuffle_jax.train.step import Metrics, Pixels, make_eval_step, make_train_step
from shuffle_jax.typing import PyTree


@dataclass(frozen=True)
class Experiment:
    """The parts of one run, each made from the configuration alone; use :func:`prepare`.

    Attributes:
        config: what was asked for.
        dataset: the images and class names.
        mesh: the devices.
        batches: training and test batches on the devices.
        network: from images to logits.
    """

    config: TrainConfig
    dataset: Dataset
    mesh: Mesh
    batches: ResidentBatches
    network: nn.Module

    @property
    def steps(self) -> int:
        """Optimiser steps of the whole training."""
        return self.config.epochs * self.batches.steps_per_epoch

    @cached_property
    def pixels(self) -> Pixels:
        """Mean and standard deviation of the training pixels per channel, in units of [0, 1]."""
        return tuple(self.dataset.mean.tolist()), tuple(self.dataset.std.tolist())

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
        everywhere = replicated(self.mesh)
        return jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=everywhere), jax.eval_shape(self._init)
        )

    def _init(self) -> TrainState:
        images = jnp.zeros((1, *self.dataset.image_shape))
        key = jax.random.key(self.config.seed)
        return init_state(key, self.network, images, self.optimizer, average=self.config.average_decay > 0)

    def train_step(self) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
        """The jitted training step."""
        return make_train_step(
            self.network,
            self.optimizer,
            self.penalty_weight,
            self.mesh,
            classes=len(self.dataset.classes),
            pixels=self.pixels,
            augmentation=self.config.augment,
            label_smoothing=self.config.label_smoothing,
            accumulate=self.config.accumulate,
            average_decay=self.config.average_decay,
        )

    @cached_property
    def eval_step(self) -> Callable[[dict[str, PyTree], Batch], Metrics]:
        """The jitted evaluation step."""
        return make_eval_step(self.network, self.mesh, pixels=self.pixels)


def prepare(config: TrainConfig, devices: int | None = None, classes: Sequence[str] | None = None) -> Experiment:
    """Loads the data onto the devices and builds the network.

    Args:
        config: the run.
        devices: how many of the local devices to use; all by default.
        classes: the class names in the order of their labels, as a finished run keeps them.

    Returns:
        The parts of the run.

    Raises:
        ValueError: the data cannot be read, or a number does not fit another; the message says which.
    """
    available = jax.devices()
    if devices is not None and not 1 <= devices <= len(available):
        raise ValueError(f"{devices} devices were asked for, this machine has {len(available)}: lower --devices")
    mesh = data_mesh(available[:devices])
    dataset = load(config.data, classes)
    if config.batch_size // config.accumulate % mesh.size:
        raise ValueError(
            f"a batch of {config.batch_size} in {config.accumulate} parts cannot be split over {mesh.size} devices: "
            f"make batch_size a multiple of {config.accumulate * mesh.size}, or lower --devices"
        )
    batches = ResidentBatches(dataset, config.batch_size, mesh, seed=config.seed)
    return Experiment(config, dataset, mesh, batches, build(config.network, len(dataset.classes)))


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
    folder = Run(path)
    config = folder.config()
    if checkpoint not in ("last", "best") and not checkpoint.isdigit():
        raise ValueError(f"the checkpoint {checkpoint!r} is none: give last, best or a step")
    experiment = prepare(config, devices, folder.classes())
    with Checkpoints(folder.checkpoints, config.keep, read_only=True) as checkpoints:
        step = checkpoints.best() if checkpoint == "best" else None
        step = int(checkpoint) if checkpoint.isdigit() else step
        state = checkpoints.restore(experiment.state_shapes(), step)
    return experiment, state.variables(), int(state.step)
