"""Contextual convolutions beside plain ones of the same parameters and multiply-adds: the layer, and the network."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import NamedTuple

import jax

from experiments.benchmark.cases import Cases, Workload, normal, squared_gradient
from shuffle_jax.models import NetworkConfig
from shuffle_jax.ops import contextual, convolution
from shuffle_jax.typing import Array


class Shape(NamedTuple):
    """A layer of as many channels out as in, its stride and levels, and the height and width of its input.

    Depthwise ones are of a ShuffleNetV2 1.0x, the others of a CoResNet-50, the narrow ones of a quarter of its width.
    """

    channels: int
    stride: int
    levels: int
    side: int
    depthwise: bool = False


SHAPES = {
    "64": Shape(64, 1, 4, 32),
    "128-strided": Shape(128, 2, 3, 32),
    "128": Shape(128, 1, 3, 16),
    "256": Shape(256, 1, 2, 8),
    "narrow-16": Shape(16, 1, 4, 32),
    "narrow-32": Shape(32, 1, 3, 16),
    "narrow-64": Shape(64, 1, 2, 8),
    "depthwise-58": Shape(58, 1, 4, 16, depthwise=True),
    "depthwise-116": Shape(116, 1, 4, 8, depthwise=True),
}


_RESNET = NetworkConfig("resnet", width=0.5, depth=50, mixer="identity")
NETWORKS = {"ResNet-50": _RESNET, "CoResNet-50": replace(_RESNET, family="coresnet")}


def layer(work: Workload, shape: Shape, backward: bool) -> Cases:
    """A plain 3x3 convolution and a contextual one, forward, or with both gradients."""
    channels, stride = shape.channels, shape.stride
    x = normal(work, work.batch_size, shape.side, shape.side, channels)
    kernel = normal(work, 3, 3, 1 if shape.depthwise else channels, channels)
    outputs = contextual.level_outputs(channels, shape.levels, rest=shape.depthwise)
    plain = partial(convolution.depthwise if shape.depthwise else convolution.convolution, stride=stride)
    if shape.depthwise:
        levels = partial(contextual.contextual_depthwise, channels=outputs, stride=stride)
    else:
        levels = partial(contextual.contextual, outputs=outputs, stride=stride)

    def case(form: partial[Array]) -> partial[object]:
        return partial(jax.jit(squared_gradient(form) if backward else form), x, kernel)

    return {"plain": case(plain), "contextual": case(levels)}
