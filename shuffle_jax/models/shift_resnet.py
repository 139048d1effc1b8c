"""ShiftResNet (Wu et al., 2018): ResNet for small images with a shift between two 1x1 convolutions for each 3x3."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import field
from functools import partial

import flax.linen as nn
import jax.numpy as jnp

from shuffle_jax.models.classifier import classify
from shuffle_jax.models.stem import Stem
from shuffle_jax.nn import BatchNorm, GridShift, Identity, PointwiseConv
from shuffle_jax.nn.dense import Dense
from shuffle_jax.nn.limits import check_positive
from shuffle_jax.ops.slicing import thinned
from shuffle_jax.typing import Array, Float, Images, Outputs

DEPTHS = (20, 56, 110)
STAGES = (16, 32, 64)
"""Channels of each."""


def units_of(depth: int) -> int:
    """Units of each stage, ``(depth - 2) / 6``.

    Raises:
        ValueError: the depth is not 6 n + 2.
    """
    units, odd = divmod(depth - 2, 6)
    if odd or units < 1:
        raise ValueError(f"ShiftResNet has no depth {depth}: choose 6 n + 2, such as {list(DEPTHS)}")
    return units


class ShiftResNet(nn.Module):
    """ShiftResNet with an exchangeable shift, exchangeable 1x1 convolutions, and groups and mixers on request.

    Attributes:
        classes: number of classes.
        depth: 20, 56, 110 or another 6 n + 2, by its ResNet: each unit has two layers with weights.
        expansion: inner channels of a unit over those of its output.
        shift: factory of what moves information over the image, called as ``shift(name=...)``.
        pointwise: factory of the 1x1 convolutions of the units, called as
            ``pointwise(features=..., groups=..., dtype=..., name=...)``.
        dtype: type of the computation, float32 by default; parameters and statistics are float32 always.
        head: factory of the classifier, called as ``head(features=classes, name="head")``, of the mean over positions
            in float32.
        dropout: share of the classifier's inputs that training sets to 0, by the random stream "dropout".
        groups: of the 1x1 convolutions of the units; this project's own, the paper has none.
        mixer: factory of the mixers, called as ``mixer(name=...)`` after the first 1x1 convolution of each unit; none
            by default.
    """

    classes: int
    depth: int = 20
    expansion: int = 3
    shift: Callable[..., nn.Module] = GridShift
    pointwise: Callable[..., nn.Module] = PointwiseConv
    dtype: jnp.dtype | None = None
    head: Callable[..., nn.Module] = field(default_factory=lambda: Dense)
    dropout: float = 0.0
    groups: int = 1
    mixer: Callable[..., nn.Module] = Identity

    @property
    def mixing_groups(self) -> int:
        """Channel groups of the layers on both sides of a mixer."""
        return self.groups

    @nn.compact
    def __call__(self, x: Images, train: bool = False) -> Float[Array, "n classes"]:
        """Maps images ``(n, h, w, 3)`` (or any number of channels) to float32 logits ``(n, classes)``.

        Raises:
            ValueError: there is no such depth or expansion, the groups do not divide the channels, or the dropout is
                out of range.
        """
        units = units_of(self.depth)
        check_positive(expansion=self.expansion)
        unit = partial(
            Unit,
            expansion=self.expansion,
            groups=self.groups,
            mixer=self.mixer,
            shift=self.shift,
            pointwise=self.pointwise,
            dtype=self.dtype,
        )

        x = Stem(STAGES[0], "small", self.dtype, name="stem")(x, train)
        for stage, features in enumerate(STAGES, start=1):
            for i in range(units):
                stride = 2 if stage > 1 and i == 0 else 1
                x = unit(features, stride, name=f"stage{stage}_{i}")(x, train)
        return classify(x, self.classes, self.head, self.dropout, train)


class Unit(nn.Module):
    """One unit: a 1x1 convolution to more channels, a mixer, a shift, and a 1x1 one to fewer, added to the shortcut.

    The ReLU is before the addition, and none behind it, as in the released code of the paper's time.

    Attributes:
        features: output channels.
        stride: 1 or 2, of the second 1x1 convolution.
        expansion: inner channels over the output's.
        groups: of the 1x1 convolutions.
        mixer: factory of the mixer.
        shift: factory of the shift.
        pointwise: factory of the 1x1 convolutions.
        dtype: type of the computation.
    """

    features: int
    stride: int
    expansion: int
    groups: int
    mixer: Callable[..., nn.Module]
    shift: Callable[..., nn.Module]
    pointwise: Callable[..., nn.Module]
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, x: Images, train: bool = False) -> Outputs:
        """Maps ``(n, h, w, c)`` to ``(n, ceil(h / stride), ceil(w / stride), features)``."""
        pointwise = partial(self.pointwise, groups=self.groups, dtype=self.dtype)
        norm = partial(BatchNorm, dtype=self.dtype)

        y = pointwise(features=self.expansion * self.features, name="pointwise1")(x, train=train)
        y = nn.relu(norm(name="norm1")(y, train))
        y = self.mixer(name="mixer")(y, train=train)
        y = thinned(self.shift(name="shift")(y, train=train), self.stride)
        y = nn.relu(norm(name="norm2")(pointwise(features=self.features, name="pointwise2")(y, train=train), train))
        if self.stride > 1 or x.shape[-1] != self.features:
            x = PointwiseConv(self.features, dtype=self.dtype, name="downsample")(thinned(x, self.stride))
            x = norm(name="downsample_norm")(x, train)
        return x + y
