"""The receptive field in three dimensions: the worked table, closed forms, and networks against their gradients."""

from __future__ import annotations

from functools import partial

import flax.linen as fnn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from shuffle_jax import nn
from shuffle_jax.analysis.receptive_field import layer_fields, receptive_field

IMAGE = (8, 8, 3)


class Stack(fnn.Module):
    """Layers in a row, each a unit."""

    channels: int
    layers: tuple

    @fnn.compact
    def __call__(self, x, train=False):
        x = fnn.Dense(self.channels)(x)
        for i, layer in enumerate(self.layers):
            x = layer(name=f"stage1_{i}")(x)
        return x


class Dilated(fnn.Module):
    """3x3 convolutions side by side, of so many outputs by dilation; depthwise ones if they are as many as channels."""

    outputs: dict
    depthwise: bool = False

    @fnn.compact
    def __call__(self, x, train=False):
        groups = x.shape[-1] if self.depthwise else 1
        each = [
            fnn.Conv(features, (3, 3), kernel_dilation=d, feature_group_count=groups, name=f"dilation{d}")
            for d, features in self.outputs.items()
        ]
        return jnp.concatenate([layer(x) for layer in each], axis=-1)


def gpw(groups, features):
    return partial(nn.PointwiseConv, features, groups)


def rpw(groups, overlap, features=8):
    return partial(nn.RollingPointwise, features, groups, overlap)


DW, DW2 = nn.DepthwiseConv, partial(nn.DepthwiseConv, stride=2)
GPW4, SHIFT4, SHUFFLE4 = gpw(4, 8), partial(nn.ChannelShift, 4), partial(nn.ChannelShuffle, 4)
SHUFFLE2, HALF, QUARTER = partial(nn.ChannelShuffle, 2), rpw(2, 0.5), rpw(2, 0.25)
CONTEXT = partial(Dilated, fnn.FrozenDict({1: 4, 2: 2, 3: 2}))

TABLE = {  # channels, layers, rows and columns, reach, exact
    "dense 3x3": (4, [partial(nn.Conv, 4)], 3, 4, 36),
    "depthwise and grouped": (4, [DW, gpw(2, 4)], 3, 2, 18),
    "the same twice": (4, [DW, gpw(2, 4)] * 2, 5, 2, 50),
    "with a shuffle between": (4, [DW, gpw(2, 4), SHUFFLE2, DW, gpw(2, 4)], 5, 4, 100),
    "two grouped, one channel shift": (8, [GPW4, SHIFT4, GPW4], 1, 4, 4),
    "three grouped, two channel shifts": (8, [GPW4, SHIFT4, GPW4, SHIFT4, GPW4], 1, 6, 6),
    "three grouped, two shuffles": (8, [GPW4, SHUFFLE4, GPW4, SHUFFLE4, GPW4], 1, 8, 8),
    "one rolling, g = 4": (8, [rpw(4, 0.5)], 1, 2, 2),
    "two rolling, g = 4": (8, [rpw(4, 0.5)] * 2, 1, 3, 3),
    "four rolling, g = 4": (8, [rpw(4, 0.5)] * 4, 1, 5, 5),
    "two rolling, g = 2": (8, [HALF] * 2, 1, 6, 6),
    "three rolling, g = 2": (8, [HALF] * 3, 1, 8, 8),
    "two rolling, overlap 1/4": (8, [QUARTER] * 2, 1, 8, 8),
    "depthwise and rolling, twice": (8, [DW, HALF] * 2, 5, 6, 150),
    "strided, with a shuffle": (8, [DW2, gpw(2, 8), SHUFFLE2, DW2, gpw(2, 8)], 7, 8, 392),
    "dilated depthwise": (4, [partial(Dilated, fnn.FrozenDict({2: 4}), depthwise=True), gpw(1, 4)], 5, 4, 36),
    "context": (8, [CONTEXT], 7, 8, 72),
    "context, dense": (8, [CONTEXT, gpw(1, 8)], 7, 8, 200),
    "roll, address shift, grouped": (
        8,
        [nn.ChannelRotation, partial(nn.AddressShift, boundary="wrap"), GPW4],
        3,
        2,
        2,
    ),
}


@pytest.mark.parametrize("row", TABLE)
def test_the_worked_table(row):
    channels, layers, side, reach, exact = TABLE[row]
    found = receptive_field(Stack(channels, tuple(layers)), {}, IMAGE)[-1]
    assert (found.rows, found.columns, found.reach, found.exact) == (side, side, reach, exact)
    assert found.box == side * side * reach
    assert found.fill == exact / found.box
