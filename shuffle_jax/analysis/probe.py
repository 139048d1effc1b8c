"""What dynamic layers do to a sample of images: numbers by layer, and the permutations themselves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict

from shuffle_jax.data.augment import normalize
from shuffle_jax.data.dataset import Examples, spread
from shuffle_jax.nn.collections import DIAGNOSTICS, FACTORS, one_by_one
from shuffle_jax.ops.rounding import argmax
from shuffle_jax.typing import Array, Images, PyTree

SAMPLE = 512
"""Images that are looked at, evenly spread: data sets lie class by class."""


@dataclass(frozen=True)
class Probe:
    """Looks at the dynamic layers of a network.

    Args:
        network: called as ``network(images, train=False)``.
        examples: the images and labels of which a sample is looked at.
        mean: per channel, for the normalisation.
        std: per channel.
    """

    network: nn.Module
    examples: Examples
    mean: Sequence[float]
    std: Sequence[float]

    def numbers(self, variables: dict[str, PyTree]) -> dict[str, dict[str, float]]:
        """Regulariser, invalid and distinct permutations and entropy by layer; see shuffle_jax.nn.factors."""
        found: dict[str, dict[str, float]] = {}
        for (*module, name), value in flatten_dict(jax.device_get(self._look(variables)[0])).items():
            for layer, own in one_by_one({tuple(module[:-1]): value}, 0).items():
                found.setdefault(layer, {})[name] = float(own)
        return found

    def permutations(self, variables: dict[str, PyTree]) -> dict[str, np.ndarray]:
        """The permutations of each image, and the mean factors, as a run keeps them.

        Returns:
            ``labels`` (n,), and for each layer the row-argmax ``LAYER/outer`` (n, k, p) and ``LAYER/inner`` (n, k, q),
            int16, and ``LAYER/outer_mean`` (k, p, p) and ``LAYER/inner_mean`` (k, q, q).
        """
        arrays = {"labels": self._sample[1]}
        for (*module, name), (chosen, mean) in flatten_dict(jax.device_get(self._look(variables)[1])).items():
            for layer, own in one_by_one({tuple(module[:-1]): chosen}, 3).items():
                arrays[f"{layer}/{name}"] = np.broadcast_to(own, (len(self._sample[1]), *own.shape[1:]))
            arrays |= {f"{layer}/{name}_mean": own for layer, own in one_by_one({tuple(module[:-1]): mean}, 3).items()}
        return arrays

    @cached_property
    def _sample(self) -> tuple[Array, np.ndarray]:
        images, labels = self.examples.take(spread(len(self.examples), SAMPLE))
        return jnp.asarray(images), labels

    def _look(self, variables: dict[str, PyTree]) -> tuple[PyTree, PyTree]:
        return self._step(variables, self._sample[0])

    @cached_property
    def _step(self) -> PyTree:
        @jax.jit
        def look(variables: dict[str, PyTree], images: Images) -> tuple[PyTree, PyTree]:
            apply = partial(self.network.apply, train=False, mutable=[DIAGNOSTICS, FACTORS])
            _, sown = apply(variables, normalize(images, self.mean, self.std))
            small = jax.tree.map(lambda factor: (argmax(factor).astype(jnp.int16), factor.mean(-4)), sown[FACTORS])
            return sown[DIAGNOSTICS], small

        return look
