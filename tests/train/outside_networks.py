"""Networks that the library does not know, small enough to compile in a second."""

from __future__ import annotations

from functools import partial
from typing import Any

import flax.linen as fnn
import jax.numpy as jnp

from shuffle_jax import nn
from shuffle_jax.nn.collections import COLLECTIONS


class Small(fnn.Module):
    """The parts of a ShuffleNet, few of each, and a collection of its own."""

    classes: int
    dtype: Any = None

    @fnn.compact
    def __call__(self, x, train=False):
        seen = self.variable("memory", "seen", jnp.zeros, (), jnp.float32)
        if train:
            seen.value += 1
        x = nn.Conv(12, dtype=self.dtype)(x)
        for i in range(2):
            x = nn.PointwiseConv(12, groups=3, dtype=self.dtype)(x)
            x = fnn.relu(nn.BatchNorm(self.dtype)(x, train))
            x = nn.AutoShuffle(candidates=3, name=f"stage{i}_mixer")(x)
            x = nn.DepthwiseConv(dtype=self.dtype)(x)
        return fnn.Dense(self.classes)(x.mean((1, 2), dtype=jnp.float32))


class Tuned(fnn.Module):
    """Two 1x1 convolutions with their norms and a classifier, named as in the library's networks."""

    classes: int

    @fnn.compact
    def __call__(self, x, train=False):
        for name in ("stem", "stage2"):
            x = nn.PointwiseConv(8, name=f"{name}_conv")(x)
            x = fnn.relu(nn.BatchNorm(name=f"{name}_norm")(x, train))
        return fnn.Dense(self.classes, name="head")(x.mean((1, 2)))


class Plain(fnn.Module):
    """Two layers of Flax alone, with dropout, a collection of its own and one that it only tells."""

    classes: int
    hidden: int = 16
    rate: float = 0.5

    @fnn.compact
    def __call__(self, x, train=False):
        seen = self.variable("memory", "seen", jnp.zeros, (), jnp.int32)
        if train:
            seen.value += 1
        x = fnn.relu(fnn.Dense(self.hidden)(x.mean(-1).reshape(x.shape[0], -1)))
        self.sow("told", "units", x)
        return fnn.Dense(self.classes)(fnn.Dropout(self.rate, deterministic=not train)(x))


class Unit(fnn.Module):
    """A 1x1 convolution and a mixer."""

    mixer: Any

    @fnn.compact
    def __call__(self, x, train=False):
        return self.mixer(name="mixer")(fnn.relu(nn.PointwiseConv(12)(x)), train=train)


class Mixing(fnn.Module):
    """Two units with a place for any mixer."""

    classes: int
    mixer: Any = nn.Identity
    mixing_groups = 2

    @fnn.compact
    def __call__(self, x, train=False):
        x = Unit(self.mixer, name="second")(Unit(self.mixer, name="first")(x, train), train)
        return fnn.Dense(self.classes)(x.mean((1, 2)))


class Shuffled(fnn.Module):
    """A dynamic shuffle with a pair of factors for each group, to be stacked."""

    train: bool

    @fnn.compact
    def __call__(self, x, _=None):
        generator = partial(nn.FactorGenerator, start="random")
        return nn.DynamicShuffle(2, per_group=True, generator=generator, name="mix")(x, self.train), None


class ByHand(fnn.Module):
    """Two stacked dynamic shuffles and a learned one, where no option of the library says so."""

    classes: int

    @fnn.compact
    def __call__(self, x, train=False):
        x = fnn.relu(nn.PointwiseConv(12)(x))
        axes = dict.fromkeys(COLLECTIONS, 0)
        x, _ = fnn.scan(Shuffled, variable_axes=axes, split_rngs={"params": True}, length=2)(train, name="stack")(
            x, None
        )
        learned = partial(nn.FactorGenerator, dynamic=False)
        x = nn.DynamicShuffle(generator=learned, name="learned")(x, train)
        return fnn.Dense(self.classes)(x.mean((1, 2)))


def make_plain(classes):
    """A network from a function."""
    return Plain(classes, hidden=8)


class Deterministic(fnn.Module):
    """It is called otherwise than the library calls networks."""

    classes: int

    @fnn.compact
    def __call__(self, x, deterministic=True):
        return fnn.Dense(self.classes)(x.reshape(x.shape[0], -1))


class Maps(fnn.Module):
    """It gives no logits."""

    classes: int

    @fnn.compact
    def __call__(self, x, train=False):
        return fnn.Dense(self.classes)(x)
