"""What dynamic layers do to a sample of the test images: numbers at every evaluation, permutations at three moments."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, partial

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict

from shuffle_jax.data import normalize
from shuffle_jax.data.dataset import spread
from shuffle_jax.deploy.freeze import layer_name
from shuffle_jax.nn.collections import DIAGNOSTICS, FACTORS
from shuffle_jax.ops.rounding import argmax
from shuffle_jax.train.experiment import Experiment
from shuffle_jax.typing import Array, Images, PyTree

SAMPLE = 512
"""Test images that are looked at, evenly spread: data sets lie class by class."""


@dataclass(frozen=True)
class Probe:
    """Looks at the dynamic layers of an experiment."""

    experiment: Experiment

    def numbers(self, variables: dict[str, PyTree]) -> dict[str, dict[str, float]]:
        """Regulariser, invalid share, distinct share and entropy by layer; see shuffle_jax.nn.factors."""
        found: dict[str, dict[str, float]] = {}
        for (*module, name), value in flatten_dict(jax.device_get(self._look(variables)[0])).items():
            found.setdefault(layer_name(module), {})[name] = float(value)
        return found

    def permutations(self, variables: dict[str, PyTree]) -> dict[str, np.ndarray]:
        """The permutations of each image, and the mean factors, as a run keeps them.

        Returns:
            ``labels`` (n,), and for each layer the row-argmax ``LAYER/outer`` (n, k, p) and ``LAYER/inner`` (n, k, q),
            int16, and ``LAYER/outer_mean`` (k, p, p) and ``LAYER/inner_mean`` (k, q, q).
        """
        arrays = {"labels": self._sample[1]}
        for (*module, name), (chosen, mean) in flatten_dict(jax.device_get(self._look(variables)[1])).items():
            layer = layer_name(module)
            arrays[f"{layer}/{name}"] = np.broadcast_to(chosen, (len(self._sample[1]), *chosen.shape[1:]))
            arrays[f"{layer}/{name}_mean"] = mean
        return arrays

    @cached_property
    def _sample(self) -> tuple[Array, np.ndarray]:
        test = self.experiment.dataset.test
        images, labels = test.take(spread(len(test), SAMPLE))
        return jnp.asarray(images), labels

    def _look(self, variables: dict[str, PyTree]) -> tuple[PyTree, PyTree]:
        return self._step(variables, self._sample[0])

    @cached_property
    def _step(self) -> PyTree:
        @jax.jit
        def look(variables: dict[str, PyTree], images: Images) -> tuple[PyTree, PyTree]:
            apply = partial(self.experiment.network.apply, train=False, mutable=[DIAGNOSTICS, FACTORS])
            _, sown = apply(variables, normalize(images, *self.experiment.pixels))
            small = jax.tree.map(lambda factor: (argmax(factor).astype(jnp.int16), factor.mean(0)), sown[FACTORS])
            return sown[DIAGNOSTICS], small

        return look
