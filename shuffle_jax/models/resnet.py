"""ResNet (He, Zhang, Ren and Sun, 2015), with the stride of bottlenecks on their 3x3 convolution."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import flax.linen as nn
import jax.numpy as jnp

from shuffle_jax.models.stem import Stem, StemKind
from shuffle_jax.nn import BatchNorm, Conv, PointwiseConv
from shuffle_jax.nn.convolution import fan_out_init
from shuffle_jax.nn.dense import Dense
from shuffle_jax.typing import Array, Float, Images

UNITS = {
    # depth: units of stage 1, 2, 3, 4; bottlenecks from 50 on
    10: (1, 1, 1, 1),
    18: (2, 2, 2, 2),
    34: (3, 4, 6, 3),
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
}
STEM = 64
BOTTLENECK_FROM = 50
BOTTLENECK = 4
"""Output channels of a bottleneck over those between its 1x1 convolutions."""

static_conv = partial(Conv, kernel_init=fan_out_init)
static_pointwise = partial(PointwiseConv, kernel_init=fan_out_init)


class ResNet(nn.Module):
    """ResNet with exchangeable convolutions and an exchangeable classifier.

    Stem and downsampling shortcuts are always static. Each residual branch starts at full scale: the scale of its last
    normalisation is 1, as in the paper.

    Attributes:
        classes: number of classes.
        depth: 10, 18 or 34 of basic units, 50, 101 or 152 of bottlenecks. The paper has no 10: one unit for each stage.
        width: multiplies all channels, for small machines and this project's own; ``64 width`` is a whole number.
        stem: "imagenet", 7x7 with stride 2 and pooled, or "small" for images of 32 x 32 and below, 3x3.
        conv: factory of the 3x3 convolutions of all units, called as
            ``conv(features=..., kernel_size=3, stride=..., dtype=..., name=...)``.
        pointwise: factory of the 1x1 convolutions of bottlenecks, called as
            ``pointwise(features=..., groups=1, dtype=..., name=...)``.
        head: factory of the classifier, called as ``head(features=classes, name="head")``, of the mean over positions
            in float32.
        dropout: share of the classifier's inputs that training sets to 0, by the random stream "dropout".
        dtype: type of the computation, float32 by default; parameters and statistics are float32 always.
    """

    classes: int
    depth: int = 18
    width: float = 1.0
    stem: StemKind = "imagenet"
    conv: Callable[..., nn.Module] = static_conv
    pointwise: Callable[..., nn.Module] = static_pointwise
    head: Callable[..., nn.Module] = Dense
    dropout: float = 0.0
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, x: Images, train: bool = False) -> Float[Array, "n classes"]:
        """Maps images ``(n, h, w, 3)`` (or any number of channels) to float32 logits ``(n, classes)``.

        Raises:
            ValueError: there is no such depth, the width makes no whole number of channels, or the dropout is no share.
        """
        if self.depth not in UNITS:
            raise ValueError(f"ResNet has no depth {self.depth}: choose one of {list(UNITS)}")
        features = int(STEM * self.width)
        if features < 1 or features != STEM * self.width:
            raise ValueError(
                f"ResNet of width {self.width} has {STEM * self.width:g} channels: give a multiple of 1/{STEM} above 0"
            )
        if not 0 <= self.dropout < 1:
            raise ValueError(
                f"a dropout of {self.dropout} is none: give a share of the features, at least 0 and below 1"
            )
        stem = partial(Stem, kernel_size=3 if self.stem == "small" else 7, kernel_init=fan_out_init)
        unit: Callable[..., nn.Module] = partial(BasicUnit, conv=self.conv, dtype=self.dtype)
        if self.depth >= BOTTLENECK_FROM:
            unit = partial(Bottleneck, conv=self.conv, pointwise=self.pointwise, dtype=self.dtype)

        x = stem(features, self.stem, self.dtype, name="stem")(x, train)
        for stage, units in enumerate(UNITS[self.depth], start=1):
            for i in range(units):
                x = unit(features, stride=2 if i == 0 and stage > 1 else 1, name=f"stage{stage}_{i}")(x, train)
            features *= 2
        x = x.mean((1, 2), dtype=jnp.float32)
        if train and self.dropout > 0:
            x = nn.Dropout(self.dropout, deterministic=False, name="dropout")(x)
        return self.head(features=self.classes, name="head")(x, train=train)


class BasicUnit(nn.Module):
    """Two 3x3 convolutions, added to the shortcut.

    Attributes:
        features: output channels.
        stride: 1 or 2, of the first convolution.
        conv: factory of both.
        dtype: type of the computation.
    """

    features: int
    stride: int
    conv: Callable[..., nn.Module]
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, x: Images, train: bool = False) -> Images:
        """Maps ``(n, h, w, c)`` to ``(n, ceil(h / stride), ceil(w / stride), features)``."""
        conv = partial(self.conv, features=self.features, kernel_size=3, dtype=self.dtype)
        norm = partial(BatchNorm, dtype=self.dtype)

        y = nn.relu(norm(name="norm1")(conv(stride=self.stride, name="conv1")(x, train=train), train))
        y = norm(name="norm2")(conv(stride=1, name="conv2")(y, train=train), train)
        return nn.relu(_shortcut(x, self.features, self.stride, self.dtype, train) + y)


class Bottleneck(nn.Module):
    """A 1x1 convolution, a 3x3 one, and a 1x1 one to four times the channels, added to the shortcut.

    Attributes:
        features: channels between the 1x1 convolutions; the output has four times as many.
        stride: 1 or 2, of the 3x3 convolution; the paper has it on the first.
        conv: factory of the 3x3 convolution.
        pointwise: factory of the 1x1 convolutions.
        dtype: type of the computation.
    """

    features: int
    stride: int
    conv: Callable[..., nn.Module]
    pointwise: Callable[..., nn.Module]
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, x: Images, train: bool = False) -> Images:
        """Maps ``(n, h, w, c)`` to ``(n, ceil(h / stride), ceil(w / stride), 4 features)``."""
        out = BOTTLENECK * self.features
        conv = partial(self.conv, features=self.features, kernel_size=3, stride=self.stride, dtype=self.dtype)
        pointwise = partial(self.pointwise, groups=1, dtype=self.dtype)
        norm = partial(BatchNorm, dtype=self.dtype)

        y = pointwise(features=self.features, name="conv1")(x, train=train)
        y = nn.relu(norm(name="norm1")(y, train))
        y = nn.relu(norm(name="norm2")(conv(name="conv2")(y, train=train), train))
        y = norm(name="norm3")(pointwise(features=out, name="conv3")(y, train=train), train)
        return nn.relu(_shortcut(x, out, self.stride, self.dtype, train) + y)


def _shortcut(x: Images, features: int, stride: int, dtype: jnp.dtype | None, train: bool) -> Images:
    """The input where the unit keeps its shape, else a 1x1 convolution with the stride, inside the calling module."""
    if stride == 1 and x.shape[-1] == features:
        return x
    x = static_conv(features, kernel_size=1, stride=stride, dtype=dtype, name="downsample")(x)
    return BatchNorm(dtype, name="downsample_norm")(x, train)
