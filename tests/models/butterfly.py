"""Parts from outside the library: a mixer, and a network with a place for one."""

from __future__ import annotations

from collections.abc import Callable

import flax.linen as nn
import jax.numpy as jnp

from shuffle_jax.nn import BatchNorm, PointwiseConv


class Butterfly(nn.Module):
    """Learned 2 x 2 matrices of neighbouring channels, with a perfect shuffle behind each level.

    Attributes:
        levels: the logarithm of how many channels reach each other.
    """

    levels: int = 1

    @nn.compact
    def __call__(self, x, train=False):
        for level in range(self.levels):
            pairs = x.reshape(*x.shape[:-1], -1, 2)
            matrices = self.param(f"level{level}", nn.initializers.lecun_normal(), (pairs.shape[-2], 2, 2))
            mixed = jnp.einsum("nhwki,kij->nhwjk", pairs, matrices.astype(x.dtype))
            x = mixed.reshape(x.shape)
        return x

    def multiply_adds(self, x, y):
        return 2 * self.levels * y[0].size


class Unit(nn.Module):
    """A grouped 1x1 layer and a mixer."""

    mixer: Callable[..., nn.Module]

    @nn.compact
    def __call__(self, x, train=False):
        x = BatchNorm(name="norm")(PointwiseConv(x.shape[-1], 4, name="pointwise")(x), train)
        return self.mixer(name="mixer")(nn.relu(x), train=train)


class Tiny(nn.Module):
    """Three units of 16 channels."""

    classes: int
    mixer: Callable[..., nn.Module]
    width: float = 1.0

    @nn.compact
    def __call__(self, x, train=False):
        x = PointwiseConv(int(16 * self.width), name="stem")(x)
        for unit in range(3):
            x = Unit(self.mixer, name=f"stage3_{unit}")(x, train)
        return nn.Dense(self.classes, name="head")(x.mean((1, 2)))


def without_mixer(classes):
    """A network that is a function of its classes alone."""
    return Tiny(classes, Butterfly)
