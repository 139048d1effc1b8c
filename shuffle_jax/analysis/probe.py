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
from shuffle_jax.ops.penalty import mutual_information
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
        """What each layer does to the images, in numbers.

        Returns:
            By layer ``regulariser``, ``invalid`` and ``entropy``, see :class:`shuffle_jax.nn.factors.FactorGenerator`.
            Of a layer that makes its permutations from the images also ``images``, how many were looked at;
            ``permutations``, how many different ones they were given; ``distinct``, the share that these are; and
            ``information``, the mutual information of images and factors, averaged over rows
            (:func:`shuffle_jax.ops.penalty.mutual_information`).
        """
        told, chosen, _, information = self._step(variables, self._sample[0])
        told, information = jax.device_get((told, information))
        images = len(self._sample[1])
        found: dict[str, dict[str, float]] = {}
        for (*module, name), value in told.items():
            for layer, own in one_by_one({tuple(module): value}, 0).items():
                found.setdefault(layer, {})[name] = float(own)
        for path, value in information.items():
            made = chosen[*path, "outer"].shape[-3] == images  # else they are learned once for all images
            for layer, own in one_by_one({path: value}, 0).items():
                distinct = found[layer].pop("distinct")
                if made:
                    counted = {"distinct": distinct, "permutations": round(distinct * images), "images": images}
                    found[layer] |= {"information": float(own), **counted}
        return found

    def permutations(self, variables: dict[str, PyTree]) -> dict[str, np.ndarray]:
        """The permutations of each image, and the mean factors, as a run keeps them.

        Returns:
            ``labels`` (n,), and for each layer the row-argmax ``LAYER/outer`` (n, k, p) and ``LAYER/inner`` (n, k, q),
            int16, and ``LAYER/outer_mean`` (k, p, p) and ``LAYER/inner_mean`` (k, q, q).
        """
        _, chosen, means, _ = jax.device_get(self._step(variables, self._sample[0]))
        arrays = {"labels": self._sample[1]}
        for (*module, name), indices in chosen.items():
            for layer, own in one_by_one({tuple(module): indices}, 3).items():
                arrays[f"{layer}/{name}"] = np.broadcast_to(own, (len(self._sample[1]), *own.shape[1:]))
            mean = one_by_one({tuple(module): means[*module, name]}, 3)
            arrays |= {f"{layer}/{name}_mean": own for layer, own in mean.items()}
        return arrays

    @cached_property
    def _sample(self) -> tuple[Array, np.ndarray]:
        images, labels = self.examples.take(spread(len(self.examples), SAMPLE))
        return jnp.asarray(images), labels

    @cached_property
    def _step(self) -> PyTree:
        """What is told of images by the path of the layer: diagnostics, argmax, mean factors, mutual information."""

        @jax.jit
        def look(variables: dict[str, PyTree], images: Images) -> tuple[PyTree, PyTree, PyTree, PyTree]:
            apply = partial(self.network.apply, train=False, mutable=[DIAGNOSTICS, FACTORS])
            _, sown = apply(variables, normalize(images, self.mean, self.std))
            told, factors = (
                {(*path[:-2], path[-1]): leaf for path, leaf in flatten_dict(sown[name]).items()}  # less "generator"
                for name in (DIAGNOSTICS, FACTORS)
            )
            chosen = {path: argmax(factor).astype(jnp.int16) for path, factor in factors.items()}
            means = {path: factor.mean(-4) for path, factor in factors.items()}
            information = {}
            for path in {path[:-1]: None for path in factors}:
                pair = factors[*path, "outer"], factors[*path, "inner"]
                known = [f.shape[-1] * mutual_information(jnp.moveaxis(f, -4, 0)).mean(-1) for f in pair]
                # Rounding makes nothing a little less than it.
                information[path] = jnp.maximum(sum(known) / sum(f.shape[-1] for f in pair), 0)
            return told, chosen, means, information

        return look
