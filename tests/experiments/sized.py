"""A network whose sizes are chosen one by one, small enough to compile in a second."""

from __future__ import annotations

import flax.linen as fnn

from shuffle_jax import nn
from shuffle_jax.models.sizes import Node


class Sized(fnn.Module):
    """Two 1x1 convolutions."""

    classes: int
    sizes: tuple[int, ...] = ()

    @fnn.nowrap
    def nodes(self):
        """The channels of the first, which are inputs of the second, and of the second."""
        first, second = self.sizes or (8, 8)
        return (
            Node("first", first, 1, (("one", "out"), ("two", "in"))),
            Node("second", second, 1, (("two", "out"),)),
        )

    @fnn.compact
    def __call__(self, x, train=False):
        for name, features in zip(("one", "two"), self.sizes or (8, 8), strict=True):
            x = fnn.relu(nn.BatchNorm(name=f"{name}_norm")(nn.PointwiseConv(features, name=name)(x), train))
        return fnn.Dense(self.classes, name="head")(x.mean((1, 2)))
