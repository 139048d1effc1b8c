"""Folding ShiftResNet: every batch norm goes into the 1x1 convolution before it; shifts stay."""

from __future__ import annotations

from functools import partial

import flax.linen as nn

from shuffle_jax.deploy.fold.dynamic import fold_convolution
from shuffle_jax.deploy.fold.layers import Folded, activated, chain, fold_head, fold_shift, fold_stem, inside
from shuffle_jax.models import ShiftResNet
from shuffle_jax.models.shift_resnet import STAGES, units_of
from shuffle_jax.nn import PointwiseConv
from shuffle_jax.typing import Images, PyTree


def fold_shift_resnet(network: ShiftResNet, variables: dict[str, PyTree]) -> Folded:
    """See :func:`shuffle_jax.deploy.fold.fold`."""
    parts = {"stem": fold_stem(variables, "small", network.dtype)}
    for stage, features in enumerate(STAGES, start=1):
        for i in range(units_of(network.depth)):
            name, stride = f"stage{stage}_{i}", 2 if stage > 1 and i == 0 else 1
            parts[name] = _unit(network, inside(variables, name), features, stride)
    parts["head"] = fold_head(variables)
    return chain(parts)


def _unit(network: ShiftResNet, variables: dict[str, PyTree], features: int, stride: int) -> Folded:
    pointwise = partial(network.pointwise, groups=1, dtype=network.dtype)
    first = fold_convolution(pointwise(features=network.expansion * features), variables, "pointwise1", "norm1")
    second = fold_convolution(pointwise(features=features), variables, "pointwise2", "norm2")
    branch = chain(
        {
            "pointwise1": activated(first, nn.relu),
            "shift": fold_shift(network.shift(), stride),
            "pointwise2": activated(second, nn.relu),
        }
    )
    if "downsample" not in variables["params"]:
        return Folded(lambda params, x: x + branch.apply(params, x), branch.params)
    static = PointwiseConv(features, dtype=network.dtype)
    shortcut = fold_convolution(static, variables, "downsample", "downsample_norm")

    def apply(params: PyTree, x: Images) -> Images:
        past = shortcut.apply(params["downsample"], x[:, ::stride, ::stride])
        return past + branch.apply(params, x)

    return Folded(apply, {**branch.params, "downsample": shortcut.params})
