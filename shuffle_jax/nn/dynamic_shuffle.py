"""Dynamic Shuffle, a mixer with a permutation for each image, and static-dynamic shuffle, a light 1x1 convolution.

No code of the method is public and its abstract alone is known to us: both are this project's reconstruction. What the
abstract leaves open is a field, its default our choice.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import field
from functools import partial
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from shuffle_jax.nn.collections import PERMUTATIONS, training_progress
from shuffle_jax.nn.convolution import PointwiseConv
from shuffle_jax.nn.factors import FactorGenerator, Factors, HardFactorGenerator
from shuffle_jax.nn.limits import check_fraction
from shuffle_jax.ops import kronecker, rounding
from shuffle_jax.ops.permutation import to_matrix
from shuffle_jax.typing import Array, Float, Images, Outputs

Evaluation = Literal["hard", "soft", "repaired"]
"""Factors in evaluation: the one-hot row-argmax, as they are, or the nearest permutations by assignment."""

LIGHT = partial(FactorGenerator, least_hidden=16)
"""The head of a static-dynamic layer."""


LEAST_FACTORS = (2, 2)
"""Into whose multiples a group of chosen channels can be factored; the larger factor of a prime would be the group."""


class DynamicShuffle(nn.Module):
    """A mixer whose permutation is made from each image, ``S_G (I_G kron A(x) kron B(x))``.

    A small head gives each image two row-stochastic factors (:class:`shuffle_jax.nn.factors.FactorGenerator`). In the
    last part of the training they are binarized by row-argmax, with the straight-through gradient; in evaluation the
    layer is one gather (:mod:`shuffle_jax.ops.kronecker`), at the start "identity" of the generator the fixed shuffle
    in G groups. :class:`HardDynamicShuffle` is that in training, too.

    How far the training is, its loop has to say; that of this library does. Elsewhere it is at its end, where the
    factors are sharp, unless you write it into the collection "progress" before every step:

        told = jax.tree.map(lambda old: jnp.full_like(old, step / steps), variables["progress"])
        y, updated = layer.apply(variables | {"progress": told}, x, train=True, mutable=["batch_stats", "penalties"])

    Attributes:
        groups: G, a divisor of the channels.
        factors: sizes (p, q) with ``p q = c / G``; those nearest to each other by default (None).
        per_group: a pair of factors for each group, and not one that all share.
        generator: factory of the head, called as ``generator(sizes=..., copies=..., name=...)``.
        binarize_from: share of the training from which the factors are binarized: 0 for always, 1 for in evaluation
            only. In between the training step must say how far it is, see :data:`shuffle_jax.nn.collections.PROGRESS`.
        evaluation: "hard" repeats and drops channels where a row-argmax is no permutation; "repaired" never does, at
            O(p^3 + q^3) for each image.

    Source: Gong, Yin, Li, Guo and Xu, Dynamic Shuffle, 2023.
    """

    groups: int = 2
    factors: tuple[int, int] | None = None
    per_group: bool = False
    generator: Callable[..., nn.Module] = field(default_factory=lambda: FactorGenerator)
    binarize_from: float = 0.8
    evaluation: Evaluation = "hard"

    @nn.compact
    def __call__(self, x: Float[Array, "n *space c"], train: bool = False) -> Float[Array, "n *space c"]:
        """Maps ``(n, h, w, c)`` to ``(n, h, w, c)``.

        Raises:
            ValueError: G does not divide the channels, the sizes do not make a group, or binarize_from is not from 0
                to 1.
        """
        check_fraction(binarize_from=self.binarize_from)
        sizes = kronecker.group_factors(x.shape[-1], self.groups, self.factors)
        copies = self.groups if self.per_group else 1
        factors = self.generator(sizes=sizes, copies=copies, name="generator")(x, train)
        outer, inner = factors.outer, factors.inner
        progress = binarization_progress(self, self.binarize_from)
        soft, straight_through = (partial(f, groups=self.groups) for f in (kronecker.mix, kronecker.straight_through))
        if factors.frozen or (not train and self.evaluation == "hard"):
            return kronecker.permute(x, factors.outer_index, factors.inner_index, self.groups)
        if not train and self.evaluation == "repaired":
            return kronecker.permute(x, rounding.assignment(outer), rounding.assignment(inner), self.groups)
        if not train:
            return soft(x, outer, inner)
        if progress is not None:
            return jax.lax.cond(progress >= self.binarize_from, straight_through, soft, x, outer, inner)
        return (straight_through if self.binarize_from <= 0 else soft)(x, outer, inner)

    @property
    def channel_multiple(self) -> int:
        """Of what chosen channels are a multiple: G p q of the given factors, of two above 1 where none are given."""
        return self.groups * math.prod(self.factors or LEAST_FACTORS)

    def own_multiply_adds(self, x: Images, y: Images) -> int:
        """Multiply-adds of one image beside those of the generator: none for a gather, two contractions if soft."""
        if self.evaluation != "soft" or "generator" in self.variables.get(PERMUTATIONS, {}):
            return 0
        p, q = kronecker.group_factors(x.shape[-1], self.groups, self.factors)
        return math.prod(x.shape[1:-1]) * kronecker.multiply_adds(self.groups, (p, p), (q, q))


class HardDynamicShuffle(DynamicShuffle):
    """A dynamic shuffle that is binarized from the start, where it is the fixed shuffle in G groups exactly."""

    generator: Callable[..., nn.Module] = field(default_factory=lambda: HardFactorGenerator)
    binarize_from: float = 0.0


class StaticDynamicShuffle(nn.Module):
    """A 1x1 layer made of two learned static factors and two dynamic ones.

    ``y = S_G (I_G kron (A_s + A_d(x)) kron (B_s + B_d(x))) x``

    The static factors are ``(p', p)`` and ``(q', q)`` with ``G p q`` channels in and ``G p' q'`` out; the dynamic ones
    are square, in their upper left corner. With ``static = "grouped"`` it is a grouped 1x1 convolution with
    :class:`DynamicShuffle` behind it. It takes the place of :class:`shuffle_jax.nn.convolution.PointwiseConv` in every
    network, which normalises behind it.

    Attributes:
        features: output channels.
        groups: those of the convolution in whose place this stands.
        blocks: G, the groups of the Kronecker product, a divisor of the channels in and out; ``groups`` by
            default (None).
        static: the static part: "kronecker", factors added to the dynamic ones, or "grouped", a grouped convolution
            before a shuffle.
        replaced: which layers: "all", or "square": a layer that changes the number of channels is a plain convolution.
        generator: as in :class:`DynamicShuffle`, by default with a hidden layer of half the least width: wider ones
            would have more parameters than the convolution.
        binarize_from: as in :class:`DynamicShuffle`, of the dynamic factors.
        evaluation: as in :class:`DynamicShuffle`, of the dynamic factors.
        dtype: type of the computation; that of the input by default. Parameters and softmax are float32.

    Source: Gong, Yin, Li, Guo and Xu, Dynamic Shuffle, 2023.
    """

    features: int
    groups: int = 1
    blocks: int | None = None
    static: Literal["kronecker", "grouped"] = "kronecker"
    replaced: Literal["all", "square"] = "all"
    generator: Callable[..., nn.Module] = field(default_factory=lambda: LIGHT)
    binarize_from: float = 0.8
    evaluation: Evaluation = "hard"
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, x: Images, train: bool = False) -> Outputs:
        """Maps ``(n, h, w, c)`` to ``(n, h, w, features)``.

        Raises:
            ValueError: G does not divide the channels, or binarize_from is not from 0 to 1.
        """
        check_fraction(binarize_from=self.binarize_from)
        blocks = self._blocks
        if self.replaced == "square" and x.shape[-1] != self.features:
            return PointwiseConv(self.features, self.groups, dtype=self.dtype, name="conv")(x, train)
        if self.static == "grouped":
            x = PointwiseConv(self.features, blocks, dtype=self.dtype, name="conv")(x, train)
            shuffle = partial(DynamicShuffle, blocks, generator=self.generator, evaluation=self.evaluation)
            return shuffle(binarize_from=self.binarize_from, name="shuffle")(x, train)
        x = x.astype(self.dtype or x.dtype)
        shapes = self._shapes(x.shape[-1])
        sizes = min(shapes[0]), min(shapes[1])
        dynamic = self._rounded(self.generator(sizes=sizes, copies=1, name="generator")(x, train), train)
        names, init = ("static_outer", "static_inner"), nn.initializers.lecun_normal(in_axis=-1, out_axis=-2)
        static = [self.param(name, init, shape, jnp.float32) for name, shape in zip(names, shapes, strict=True)]
        outer, inner = (fixed[None, None] + _padded(own, fixed) for fixed, own in zip(static, dynamic, strict=True))
        return kronecker.mix(x, outer, inner, blocks)

    def _rounded(self, factors: Factors, train: bool) -> list[Float[Array, "m k s s"]]:
        """The dynamic factors as the layer uses them, in training with a straight-through gradient."""
        pair, indices = [factors.outer, factors.inner], [factors.outer_index, factors.inner_index]
        progress = binarization_progress(self, self.binarize_from)
        if factors.frozen or (self.evaluation == "soft" and not train):
            return pair
        if not train:
            return [
                to_matrix(i) for i in (map(rounding.assignment, pair) if self.evaluation == "repaired" else indices)
            ]
        hard = [rounding.straight_through(factor, index) for factor, index in zip(pair, indices, strict=True)]
        if progress is None:
            return hard if self.binarize_from <= 0 else pair
        return [jnp.where(progress >= self.binarize_from, one, other) for one, other in zip(hard, pair, strict=True)]

    def own_multiply_adds(self, x: Images, y: Images) -> int:
        """Multiply-adds of one image beside those of the layers inside."""
        square = x.shape[-1] == self.features
        if self.static == "grouped" or (self.replaced == "square" and not square):
            return 0
        return math.prod(x.shape[1:-1]) * kronecker.multiply_adds(self._blocks, *self._shapes(x.shape[-1]))

    @property
    def channel_multiple(self) -> int:
        """Of what chosen channels are a multiple: G p q of two factors above 1."""
        return self._blocks * math.prod(LEAST_FACTORS)

    @property
    def _blocks(self) -> int:
        return self.groups if self.blocks is None else self.blocks

    def _shapes(self, channels: int) -> tuple[tuple[int, int], tuple[int, int]]:
        """(p', p) and (q', q)."""
        p, q = kronecker.group_factors(channels, self._blocks)
        p_out, q_out = kronecker.group_factors(self.features, self._blocks)
        return (p_out, p), (q_out, q)


class HardStaticDynamicShuffle(StaticDynamicShuffle):
    """The same with dynamic factors that are binarized from the start, where they are the identity."""

    generator: Callable[..., nn.Module] = field(default_factory=lambda: HardFactorGenerator)
    binarize_from: float = 0.0


def binarization_progress(module: nn.Module, binarize_from: float) -> Float[Array, ""] | None:
    """How much of the training is done, for a module that binarizes from some time on; None for never or always."""
    return training_progress(module) if 0 < binarize_from < 1 else None


def _padded(factor: Float[Array, "m k s s"], like: Float[Array, "i a"]) -> Float[Array, "m k i a"]:
    """A square factor with zeros below and to the right of it."""
    missing = [(0, size - factor.shape[-1]) for size in like.shape]
    return jnp.pad(factor, ((0, 0), (0, 0), *missing))
