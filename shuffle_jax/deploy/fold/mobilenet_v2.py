"""Folding MobileNetV2: every batch norm goes into the convolution before it.

The bias behind a depthwise convolution stays: ReLU6 stands between it and the pointwise convolution.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import flax.linen as nn
import jax.numpy as jnp

from shuffle_jax.deploy.fold.dynamic import fold_classifier, fold_convolution
from shuffle_jax.deploy.fold.layers import Folded, activated, chain, fold_shift, fold_stem, inside
from shuffle_jax.models import MobileNetV2, mobilenet_v2
from shuffle_jax.models.mobilenet_v2 import LAST, STEM, scale, static_pointwise
from shuffle_jax.nn import DepthwiseConv
from shuffle_jax.typing import PyTree


def fold_mobilenet_v2(network: MobileNetV2, variables: dict[str, PyTree]) -> Folded:
    """See :func:`shuffle_jax.deploy.fold.fold`."""
    kind, dtype = network.stem, network.dtype
    parts = {"stem": fold_stem(variables, kind, dtype, pool=False, activation=nn.relu6)}
    channels = scale(STEM, network.width)
    for stage, (expansion, base, units, first_stride) in enumerate(mobilenet_v2.TABLE, start=1):
        features = scale(base, network.width)
        pointwise = static_pointwise if expansion == 1 else network.pointwise
        for i in range(units):
            name, keeps_size = f"stage{stage}_{i}", i > 0 or (kind == "small" and stage == 2)
            stride = 1 if keeps_size else first_stride
            part = _unit(inside(variables, name), pointwise, network.shift, features, stride, dtype)
            parts[name] = _added_to_its_input(part) if stride == 1 and features == channels else part
            channels = features
    last = fold_convolution(static_pointwise(features=LAST, dtype=dtype), variables, "last", "last_norm")
    parts["last"] = activated(last, nn.relu6)
    parts["head"] = fold_classifier(network.head(features=network.classes), inside(variables, "head"))
    return chain(parts)


def _unit(
    variables: dict[str, PyTree],
    pointwise: Callable[..., nn.Module],
    shift: Callable[..., nn.Module] | None,
    features: int,
    stride: int,
    dtype: jnp.dtype | None,
) -> Folded:
    """An inverted residual, without what is added to it."""
    pointwise, params = partial(pointwise, groups=1, dtype=dtype), variables["params"]
    parts = {}
    if "expand" in params:
        expand = pointwise(features=params["norm1"]["scale"].shape[0])
        parts["expand"] = activated(fold_convolution(expand, variables, "expand", "norm1"), nn.relu6)
    if shift is None:
        depthwise = fold_convolution(DepthwiseConv(stride=stride, dtype=dtype), variables, "depthwise", "norm2")
        parts["depthwise"] = activated(depthwise, nn.relu6)
    else:
        parts["shift"] = fold_shift(shift(stride=stride), 1)
    parts["project"] = fold_convolution(pointwise(features=features), variables, "project", "norm3")
    return chain(parts)


def _added_to_its_input(unit: Folded) -> Folded:
    return Folded(lambda params, x: x + unit.apply(params, x), unit.params)
