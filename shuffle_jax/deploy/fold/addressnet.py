"""Folding AddressNet: every batch norm goes into the 1x1 convolution before it; the channel shift is in the next one.

Another permutation in its place stays a gather: the address shift by pointer reads neighbouring channels, so that their
order cannot be left to the kernels.
"""

from __future__ import annotations

import math
from functools import partial

import flax.linen as nn
import jax.numpy as jnp

from shuffle_jax.deploy.fold.dynamic import fold_convolution
from shuffle_jax.deploy.fold.layers import (
    Folded,
    absorb,
    apply_affine,
    chain,
    check_pointwise,
    fold_head,
    fold_stem,
    index_vector,
    inside,
)
from shuffle_jax.models import AddressNet
from shuffle_jax.models.addressnet import new_features, stages_of
from shuffle_jax.nn import PointwiseConv
from shuffle_jax.ops import mixing
from shuffle_jax.ops.permutation import half_group
from shuffle_jax.ops.pooling import halve
from shuffle_jax.ops.shift import shortcut_shift
from shuffle_jax.ops.shifted_pointwise import shifted_pointwise
from shuffle_jax.typing import Images, PyTree


def fold_addressnet(network: AddressNet, variables: dict[str, PyTree]) -> Folded:
    """See :func:`shuffle_jax.deploy.fold.fold`."""
    check_pointwise(network.pointwise or PointwiseConv)
    channels, stages = stages_of(network.stem, network.depth)
    parts = {"stem": fold_stem(variables, network.stem, network.dtype, pool=False)}
    for number, stage in enumerate(stages, start=1):
        for i, expansion in enumerate(stage.expansions):
            name, stride = f"stage{number}_{i}", stage.stride if i == 0 else 1
            out = new_features(channels, stage.channels, stride, network.shortcut)
            parts[name] = _unit(network, variables, name, expansion * channels, out, stride)
            channels = stage.channels
    parts["head"] = fold_head(variables)
    return chain(parts)


def _unit(network: AddressNet, variables: dict[str, PyTree], name: str, inner: int, out: int, stride: int) -> Folded:
    own, dtype = inside(variables, name), network.dtype
    groups, rotation, index = math.gcd(network.groups, out), 0, None
    if network.mixer is None:
        rotation = half_group(inner, groups)
    else:
        index = jnp.asarray(index_vector(network.mixer(), variables, f"{name}/step", inner))
    first = fold_convolution(PointwiseConv(inner, network.groups, dtype=dtype), own, "pointwise1", "norm1")
    second = absorb(own["params"]["step"], own["params"]["norm2"], own["batch_stats"]["norm2"]).finished()
    step = partial(
        shifted_pointwise,
        groups=groups,
        rotation=rotation,
        offsets=network.offsets,
        boundary=network.boundary,
        form=network.form,
    )

    def apply(params: PyTree, x: Images) -> Images:
        y = nn.relu(first.apply(params["pointwise1"], x[:, ::stride, ::stride]))
        if index is not None:
            y = mixing.permute(y, index)
        y = apply_affine(step, y, params["step"], dtype)
        if stride > 1:
            return nn.relu(jnp.concatenate([halve(x), y], axis=-1))
        return shortcut_shift(x, nn.relu(y)) if network.shortcut == "shift" else nn.relu(x + y)

    return Folded(apply, {"pointwise1": first.params, "step": second})
