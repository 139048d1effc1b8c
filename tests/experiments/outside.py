"""Networks that are none of the library's, which compile at once: found by commands under their import path."""

from __future__ import annotations

from collections.abc import Callable

import flax.linen as nn

HERE = "tests.experiments.outside"
"""Under what they are imported."""


class Mixed(nn.Module):
    """One 1x1 convolution, one mixer of two groups."""

    classes: int
    mixer: Callable[..., nn.Module]

    @property
    def mixing_groups(self) -> int:
        return 2

    @nn.compact
    def __call__(self, x, train=False):
        x = self.mixer(name="mixer")(nn.Dense(4)(x))
        return nn.Dense(self.classes)(x.mean((1, 2)))


class TwoLayers(nn.Module):
    """Two dense layers of a size that the configuration sets, with a file of some 60 kB."""

    classes: int
    width: float = 1.0

    @nn.compact
    def __call__(self, x, train=False):
        x = x.reshape(len(x), -1)
        return nn.Dense(self.classes)(nn.relu(nn.Dense(int(256 * self.width))(x)))


class Linear(nn.Module):
    """One dense layer on the mean over the image."""

    classes: int

    @nn.compact
    def __call__(self, x, train=False):
        return nn.Dense(self.classes)(x.mean((1, 2)))
