"""ShuffleNet, the first version (Zhang, Zhou, Lin and Sun, 2017)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import field
from functools import partial
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from shuffle_jax.models.classifier import classify
from shuffle_jax.models.sampling import Halving, Sampling, check_sizes
from shuffle_jax.models.stem import Stem, StemKind
from shuffle_jax.nn import BatchNorm, ChannelShuffle, DepthwiseConv, PointwiseConv
from shuffle_jax.nn.dense import Dense
from shuffle_jax.ops.polyphase import mean_around
from shuffle_jax.ops.pooling import halve
from shuffle_jax.ops.residual import relu_of_sum
from shuffle_jax.typing import Array, Float, Images, Outputs

CHANNELS = {1: 144, 2: 200, 3: 240, 4: 272, 8: 384}
"""Channels of stage 2 at width 1.0 by number of groups; each later stage has twice as many."""

WIDTHS = (0.25, 0.5, 1.0, 1.5, 2.0)
NARROW_STEMS = {0.25: {3: 6, 8: 8}, 0.5: {3: 12, 8: 16}}
UNITS = (4, 8, 4)


def stem_features(groups: int, width: float) -> int:
    """Channels of the stem: 24 at most widths, fewer at 0.25 and 0.5 for g = 3 and 8, 48 at 2.0."""
    return NARROW_STEMS.get(width, {}).get(groups, 48 if width == 2.0 else 24)


class ShuffleNetV1(nn.Module):
    """ShuffleNet with an exchangeable shuffle and exchangeable grouped 1x1 convolutions.

    Attributes:
        classes: number of classes.
        groups: 1, 2, 3, 4 or 8; fixes the channels, see :data:`CHANNELS`.
        width: 0.25, 0.5, 1.0, 1.5 or 2.0. At 0.25, 0.5 and 1.5 not every number of groups divides the channels.
        stem: "imagenet", or "small" for images of 32 x 32 and below.
        mixer: factory of the 16 mixers, called as ``mixer(name=...)`` after the first 1x1 convolution of each unit; the
            paper's shuffle in ``groups`` groups by default (None).
        pointwise: factory of the 1x1 convolutions, called as
            ``pointwise(features=..., groups=..., dtype=..., name=...)``.
        head_bias: whether the plain classifier has a bias; published counts exist with and without.
        dtype: type of the computation, float32 by default; parameters and statistics are float32 always.
        head: factory of the classifier, called as ``head(features=classes, name="head")``, of the mean over positions
            in float32; a dense layer by default (None).
        dropout: share of the classifier's inputs that training sets to 0, by the random stream "dropout".
        sampling: factory of what samples in place of strides, :class:`shuffle_jax.models.sampling.Halving`, as
            :class:`shuffle_jax.nn.polyphase.PolyphaseSampling` does; every convolution then wraps. None for strides.
        depthwise: factory of the depthwise convolutions, called as
            ``depthwise(stride=..., padding=..., dtype=..., name=...)``.
    """

    classes: int
    groups: int = 3
    width: float = 1.0
    stem: StemKind = "imagenet"
    mixer: Callable[..., nn.Module] | None = None
    pointwise: Callable[..., nn.Module] = PointwiseConv
    head_bias: bool = True
    dtype: jnp.dtype | None = None
    head: Callable[..., nn.Module] | None = None
    dropout: float = 0.0
    sampling: Sampling | None = None
    depthwise: Callable[..., nn.Module] = field(default_factory=lambda: DepthwiseConv)

    @property
    def mixing_groups(self) -> int:
        """Channel groups of the layers on both sides of a mixer."""
        return self.groups

    @nn.compact
    def __call__(self, x: Images, train: bool = False) -> Float[Array, "n classes"]:
        """Maps images ``(n, h, w, 3)`` (or any number of channels) to float32 logits ``(n, classes)``.

        Raises:
            ValueError: the number of groups or the width is not published, the groups do not divide the channels, the
                dropout is out of range, or the image cannot be sampled.
        """
        if self.groups not in CHANNELS:
            raise ValueError(f"ShuffleNetV1 has no {self.groups} groups: choose one of {list(CHANNELS)}")
        if self.width not in WIDTHS:
            raise ValueError(f"ShuffleNetV1 has no width {self.width}: choose one of {list(WIDTHS)}")
        features = int(CHANNELS[self.groups] * self.width)
        check_sizes(x, self.sampling, len(UNITS) + (0 if self.stem == "small" else 2))
        mixer = self.mixer or partial(ChannelShuffle, groups=self.groups)
        parts: dict[str, Any] = {"mixer": mixer, "pointwise": self.pointwise, "sampling": self.sampling}
        parts["depthwise"] = self.depthwise
        unit: Callable[..., nn.Module] = partial(Unit, groups=self.groups, dtype=self.dtype, **parts)

        stem = stem_features(self.groups, self.width)
        x = Stem(stem, self.stem, self.dtype, sampling=self.sampling, name="stem")(x, train)
        for stage, units in enumerate(UNITS, start=2):
            for i in range(units):
                first = stage == 2 and i == 0
                x = unit(features, stride=2 if i == 0 else 1, group_first=not first, name=f"stage{stage}_{i}")(x, train)
            features *= 2
        head = self.head or partial(Dense, use_bias=self.head_bias)
        return classify(x, self.classes, head, self.dropout, train)


class Unit(nn.Module):
    """One residual unit: grouped 1x1 to fewer channels, mixer, depthwise 3x3, grouped 1x1.

    With stride 1 the result is added to the input; with stride 2 it is concatenated to the average-pooled input.

    Attributes:
        features: output channels.
        stride: 1 or 2; with 1 the input must have ``features`` channels.
        groups: of both 1x1 convolutions.
        mixer: factory of the mixer between them.
        pointwise: factory of the 1x1 convolutions.
        group_first: False leaves the first 1x1 ungrouped, as the paper does where the input has few channels.
        dtype: type of the computation.
        sampling: factory of what samples in place of the stride, if anything does.
        depthwise: factory of the depthwise convolution.
        reduction: how many times fewer channels are between the 1x1 convolutions than come out.
    """

    features: int
    stride: int
    groups: int
    mixer: Callable[..., nn.Module]
    pointwise: Callable[..., nn.Module]
    group_first: bool = True
    dtype: jnp.dtype | None = None
    sampling: Sampling | None = None
    depthwise: Callable[..., nn.Module] = field(default_factory=lambda: DepthwiseConv)
    reduction: int = 4

    @nn.compact
    def __call__(self, x: Images, train: bool = False) -> Outputs:
        """Maps ``(n, h, w, c)`` to ``(n, ceil(h / stride), ceil(w / stride), features)``."""
        residual = self.stride == 1
        middle, out = self.features // self.reduction, self.features - (0 if residual else x.shape[-1])
        pointwise = partial(self.pointwise, dtype=self.dtype)
        norm = partial(BatchNorm, dtype=self.dtype)
        halving = Halving(self.stride, self.sampling)

        first_groups = self.groups if self.group_first else 1
        y = pointwise(features=middle, groups=first_groups, name="pointwise1")(x, train=train)
        y = nn.relu(norm(name="norm1")(y, train))
        y = self.mixer(name="mixer")(y, train=train)
        y = self.depthwise(stride=halving.stride, padding=halving.padding, dtype=self.dtype, name="depthwise")(y)
        y = norm(name="norm2")(y, train)
        if not residual:
            y, x = (y, halve(x)) if self.sampling is None else halving(y, mean_around(x))
        y = pointwise(features=out, groups=self.groups, name="pointwise2")(y, train=train)
        y = norm(name="norm3")(y, train)
        return relu_of_sum(x, y) if residual else nn.relu(jnp.concatenate([x, y], axis=-1))
