"""A finished run as a network that is ready for use, without the data that it was trained on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp

from shuffle_jax.data.preprocessing import Preprocessing
from shuffle_jax.deploy.freeze import freeze
from shuffle_jax.deploy.harden import harden
from shuffle_jax.models import build
from shuffle_jax.sharding import data_mesh
from shuffle_jax.train.config import TrainConfig
from shuffle_jax.train.experiment import read_state, restore, state_shapes
from shuffle_jax.train.run import Run
from shuffle_jax.typing import Array, Float, Images, PyTree


@dataclass(frozen=True)
class Trained:
    """A trained and hardened network.

    Attributes:
        network: from normalised images to logits.
        variables: hardened ones, with batch statistics re-estimated if the run's configuration asks for it.
        preprocessing: from pictures to normalised images.
        classes: the class names in the order of the logits.
        config: of the run.
        step: of the checkpoint.
    """

    network: nn.Module
    variables: dict[str, PyTree]
    preprocessing: Preprocessing
    classes: tuple[str, ...]
    config: TrainConfig
    step: int

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
    config = run.config()
    if config.recalibrate:
        experiment, variables, step = restore(path, checkpoint, devices=1)
        variables = experiment.harden(variables).variables
        return Trained(experiment.network, variables, experiment.preprocessing, run.classes(), config, step)
    classes, preprocessing = run.classes(), run.preprocessing()
    network = build(config.network, len(classes))
    shapes = state_shapes(config, network, preprocessing.shape, data_mesh(jax.devices()[:1]))
    state = read_state(run, checkpoint, shapes)
    variables = harden(state.variables()).variables
    if config.network.mixer == "factors":  # The same whatever the images: freezing is hardening.
        variables = freeze(network, variables, [jnp.zeros((1, *preprocessing.shape))]).variables
    return Trained(network, variables, preprocessing, classes, config, int(state.step))
