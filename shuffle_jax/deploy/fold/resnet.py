"""Folding ResNet: every batch norm goes into the convolution before it, those of shortcuts as well."""

from __future__ import annotations

from functools import partial

import flax.linen as nn

from shuffle_jax.deploy.fold.dynamic import fold_classifier, fold_convolution
from shuffle_jax.deploy.fold.layers import Folded, activated, chain, fold_stem, inside
from shuffle_jax.models import ResNet, resnet
from shuffle_jax.models.resnet import BOTTLENECK, BOTTLENECK_FROM, STEM, static_conv
from shuffle_jax.typing import PyTree


def fold_resnet(network: ResNet, variables: dict[str, PyTree]) -> Folded:
    """See :func:`shuffle_jax.deploy.fold.fold`."""
    parts = {"stem": fold_stem(variables, network.stem, network.dtype)}
    features = int(STEM * network.width)
    for stage, units in enumerate(resnet.UNITS[network.depth], start=1):
        for i in range(units):
            name, stride = f"stage{stage}_{i}", 2 if i == 0 and stage > 1 else 1
            parts[name] = _unit(network, inside(variables, name), features, stride)
        features *= 2
    parts["head"] = fold_classifier(network.head(features=network.classes), inside(variables, "head"))
    return chain(parts)


def _unit(network: ResNet, variables: dict[str, PyTree], features: int, stride: int) -> Folded:
    conv = partial(network.conv, features=features, kernel_size=3, dtype=network.dtype)
    pointwise = partial(network.pointwise, groups=1, dtype=network.dtype)
    if network.depth < BOTTLENECK_FROM:
        layers = {"conv1": conv(stride=stride), "conv2": conv(stride=1)}
    else:
        features, between = BOTTLENECK * features, features
        layers = {
            "conv1": pointwise(features=between),
            "conv2": conv(stride=stride),
            "conv3": pointwise(features=features),
        }
    folded = {
        name: fold_convolution(layer, variables, name, f"norm{i}")
        for i, (name, layer) in enumerate(layers.items(), start=1)
    }
    *before, last = folded
    branch = chain({name: activated(folded[name], nn.relu) for name in before} | {last: folded[last]})
    if "downsample" not in variables["params"]:
        return Folded(lambda params, x: nn.relu(x + branch.apply(params, x)), branch.params)
    downsample = static_conv(features, kernel_size=1, stride=stride, dtype=network.dtype)
    shortcut = fold_convolution(downsample, variables, "downsample", "downsample_norm")
    return Folded(
        lambda params, x: nn.relu(shortcut.apply(params["downsample"], x) + branch.apply(params, x)),
        {**branch.params, "downsample": shortcut.params},
    )
