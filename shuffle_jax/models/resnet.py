"""ResNet (He, Zhang, Ren and Sun, 2015), with the stride of bottlenecks on their 3x3 convolution."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import field
from functools import partial
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from shuffle_jax.models.classifier import classify
from shuffle_jax.models.decomposition import basic_sizes, bottleneck_sizes
from shuffle_jax.models.sampling import Halving, Sampling, check_sizes
from shuffle_jax.models.sizes import Node, Side, multiple_of, sizes_of
from shuffle_jax.models.stem import Stem, StemKind
from shuffle_jax.nn import BatchNorm, Conv, DynamicConv, DynamicDense, Identity, PointwiseConv
from shuffle_jax.nn.convolution import fan_out_init
from shuffle_jax.nn.dense import Dense
from shuffle_jax.ops.residual import relu_of_sum
from shuffle_jax.typing import Array, Float, Images, Outputs

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
dynamic_init = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
"""U(-1, 1) / sqrt(inputs), with which the published dynamic ResNets start their heads and classifiers."""


class ResNet(nn.Module):
    """ResNet with exchangeable convolutions, an exchangeable classifier, and groups and mixers on request.

    Stem and downsampling shortcuts are always static. Each residual branch starts at full scale: the scale of its last
    normalisation is 1, as in the paper.

    Attributes:
        classes: number of classes.
        depth: 10, 18 or 34 of basic units, 50, 101 or 152 of bottlenecks. The paper has no 10: one unit for each stage.
        width: multiplies all channels, for small machines and this project's own; ``64 width`` is a whole number.
        stem: "imagenet", 7x7 with stride 2 and pooled, or "small" for images of 32 x 32 and below, 3x3.
        conv: factory of the 3x3 convolutions of all units, called as
            ``conv(features=..., kernel_size=3, stride=..., groups=..., dtype=..., name=...)``.
        pointwise: factory of the 1x1 convolutions of bottlenecks, called as
            ``pointwise(features=..., groups=..., dtype=..., name=...)``.
        head: factory of the classifier, called as ``head(features=classes, name="head")``, of the mean over positions
            in float32.
        dropout: share of the classifier's inputs that training sets to 0, by the random stream "dropout".
        dtype: type of the computation, float32 by default; parameters and statistics are float32 always.
        groups: of all convolutions of the units; this project's own, the paper has none.
        mixer: factory of the mixers, called as ``mixer(name=...)`` after the first convolution of each unit; none by
            default.
        sampling: factory of what samples in place of strides, :class:`shuffle_jax.models.sampling.Halving`, as
            :class:`shuffle_jax.nn.polyphase.PolyphaseSampling` does; every convolution then wraps
            (``conv`` is told ``padding="wrap"``). None for strides.
        sizes: channels one by one, in place of ``width``, of networks of basic units: for each stage those of its
            output, and those inside each of its units. The first is the stem's, too.
    """

    classes: int
    depth: int = 18
    width: float = 1.0
    stem: StemKind = "imagenet"
    conv: Callable[..., nn.Module] = static_conv
    pointwise: Callable[..., nn.Module] = static_pointwise
    head: Callable[..., nn.Module] = field(default_factory=lambda: Dense)
    dropout: float = 0.0
    dtype: jnp.dtype | None = None
    groups: int = 1
    mixer: Callable[..., nn.Module] = Identity
    sampling: Sampling | None = None
    sizes: tuple[int, ...] = ()

    @property
    def mixing_groups(self) -> int:
        """Channel groups of the layers on both sides of a mixer."""
        return self.groups

    def layer_defaults(self) -> dict[type, dict[str, Any]]:
        """What layers of a class start from in this network, where that is not what the class says."""
        rule = bottleneck_sizes if self.depth >= BOTTLENECK_FROM else basic_sizes
        return {
            DynamicConv: {"rule": rule, "head_init": dynamic_init},
            DynamicDense: {"kernel_init": dynamic_init, "head_init": dynamic_init},
        }

    @nn.nowrap
    def all_sizes(self) -> tuple[int, ...]:
        """The sizes given, or those of the width and depth, in the order of ``sizes``.

        Raises:
            ValueError: there is no such depth, the width makes no whole number of channels, or the sizes do not fit.
        """
        if self.depth not in UNITS:
            raise ValueError(f"ResNet has no depth {self.depth}: choose one of {list(UNITS)}")
        features = int(STEM * self.width)
        if features < 1 or features != STEM * self.width:
            raise ValueError(
                f"ResNet of width {self.width} has {STEM * self.width:g} channels: give a multiple of 1/{STEM} above 0"
            )
        if self.sizes and self.depth >= BOTTLENECK_FROM:
            raise ValueError(
                f"sizes must be of a ResNet of basic units, depth 10, 18 or 34, got depth {self.depth}: leave them out"
            )
        own = [features << stage for stage, units in enumerate(UNITS[self.depth]) for _ in range(1 + units)]
        return sizes_of(f"ResNet-{self.depth}", self.sizes, own, self.width)

    @nn.nowrap
    def nodes(self) -> tuple[Node, ...]:
        """The sizes with what is read of them, as in CONet: a stage's size by the sides of its units towards it.

        The first of those sides belongs to the size of the stage before; stem and shortcuts are left out.
        """
        if self.depth >= BOTTLENECK_FROM:
            raise ValueError(f"ResNet-{self.depth} has no sizes of its own: choose depth 10, 18 or 34")
        inner = math.lcm(self.groups, multiple_of(self.mixer()))
        sizes, found = iter(self.all_sizes()), []
        for stage, units in enumerate(UNITS[self.depth], start=1):
            paths = [f"stage{stage}_{i}" for i in range(units)]
            sides: list[Side] = []
            for path in paths:
                sides += [(f"{path}/conv1", "in"), (f"{path}/conv2", "out")]
            found.append(Node(f"stage{stage}", next(sizes), self.groups, tuple(sides)))
            for path in paths:
                found.append(Node(path, next(sizes), inner, ((f"{path}/conv1", "out"), (f"{path}/conv2", "in"))))
        return tuple(found)

    @nn.compact
    def __call__(self, x: Images, train: bool = False) -> Float[Array, "n classes"]:
        """Maps images ``(n, h, w, 3)`` (or any number of channels) to float32 logits ``(n, classes)``.

        Raises:
            ValueError: there is no such depth, the width makes no whole number of channels, the groups do not divide
                them, the dropout is out of range, or the image cannot be sampled.
        """
        sizes = self.all_sizes()
        small = self.stem == "small"
        check_sizes(x, self.sampling, len(UNITS[self.depth]) + (-1 if small else 1))
        stem = partial(Stem, kernel_size=3 if small else 7, kernel_init=fan_out_init, sampling=self.sampling)
        unit: Callable[..., nn.Module] = BasicUnit
        if self.depth >= BOTTLENECK_FROM:
            unit = partial(Bottleneck, pointwise=self.pointwise)
        parts: dict[str, Any] = {"mixer": self.mixer, "conv": self.conv, "sampling": self.sampling}
        unit = partial(unit, groups=self.groups, dtype=self.dtype, **parts)

        x = stem(sizes[0], self.stem, self.dtype, name="stem")(x, train)
        remaining = iter(sizes)
        for stage, units in enumerate(UNITS[self.depth], start=1):
            features = next(remaining)
            for i, inside in zip(range(units), remaining, strict=False):
                own = {} if self.depth >= BOTTLENECK_FROM else {"inside": inside}
                x = unit(features, stride=2 if i == 0 and stage > 1 else 1, name=f"stage{stage}_{i}", **own)(x, train)
        return classify(x, self.classes, self.head, self.dropout, train)


class BasicUnit(nn.Module):
    """Two 3x3 convolutions with a mixer between them, added to the shortcut.

    Attributes:
        features: output channels.
        stride: 1 or 2, of the first convolution.
        groups: of both convolutions.
        mixer: factory of the mixer.
        conv: factory of both convolutions.
        dtype: type of the computation.
        inside: channels between the convolutions, as many as ``features`` by default.
        sampling: factory of what samples in place of the stride, if anything does.
    """

    features: int
    stride: int
    groups: int
    mixer: Callable[..., nn.Module]
    conv: Callable[..., nn.Module]
    dtype: jnp.dtype | None = None
    inside: int | None = None
    sampling: Sampling | None = None

    @nn.compact
    def __call__(self, x: Images, train: bool = False) -> Outputs:
        """Maps ``(n, h, w, c)`` to ``(n, ceil(h / stride), ceil(w / stride), features)``."""
        halving = Halving(self.stride, self.sampling)
        conv = partial(self.conv, kernel_size=3, groups=self.groups, dtype=self.dtype, **halving.around)
        inside = self.features if self.inside is None else self.inside
        norm = partial(BatchNorm, dtype=self.dtype)

        y = conv(features=inside, stride=halving.stride, name="conv1")(x, train=train)
        y, x = halving(nn.relu(norm(name="norm1")(y, train)), x)
        y = self.mixer(name="mixer")(y, train=train)
        y = norm(name="norm2")(conv(features=self.features, stride=1, name="conv2")(y, train=train), train)
        return relu_of_sum(_shortcut(x, self.features, halving, self.dtype, train), y)


class Bottleneck(nn.Module):
    """A 1x1 convolution, a mixer, a 3x3 one, and a 1x1 one to four times the channels, added to the shortcut.

    Attributes:
        features: channels between the 1x1 convolutions; the output has four times as many.
        stride: 1 or 2, of the 3x3 convolution; the paper has it on the first.
        groups: of all three convolutions.
        mixer: factory of the mixer.
        conv: factory of the 3x3 convolution.
        pointwise: factory of the 1x1 convolutions.
        dtype: type of the computation.
        sampling: factory of what samples in place of the stride, if anything does.
        norm_sum: puts the last normalisation behind the addition, as the last units of CoResNet's stages do.
    """

    features: int
    stride: int
    groups: int
    mixer: Callable[..., nn.Module]
    conv: Callable[..., nn.Module]
    pointwise: Callable[..., nn.Module]
    dtype: jnp.dtype | None = None
    sampling: Sampling | None = None
    norm_sum: bool = False

    @nn.compact
    def __call__(self, x: Images, train: bool = False) -> Outputs:
        """Maps ``(n, h, w, c)`` to ``(n, ceil(h / stride), ceil(w / stride), 4 features)``."""
        out = BOTTLENECK * self.features
        grouped: dict[str, Any] = {"groups": self.groups, "dtype": self.dtype}
        halving = Halving(self.stride, self.sampling)
        conv = partial(self.conv, features=self.features, kernel_size=3, stride=halving.stride, **grouped)
        pointwise = partial(self.pointwise, **grouped)
        norm = partial(BatchNorm, dtype=self.dtype)

        y = pointwise(features=self.features, name="conv1")(x, train=train)
        y = nn.relu(norm(name="norm1")(y, train))
        y = self.mixer(name="mixer")(y, train=train)
        y = conv(name="conv2", **halving.around)(y, train=train)
        y, x = halving(nn.relu(norm(name="norm2")(y, train)), x)
        y, last = pointwise(features=out, name="conv3")(y, train=train), norm(name="norm3")
        x = _shortcut(x, out, halving, self.dtype, train)
        return nn.relu(last(x + y, train)) if self.norm_sum else relu_of_sum(x, last(y, train))


def _shortcut(x: Images, features: int, halving: Halving, dtype: jnp.dtype | None, train: bool) -> Outputs:
    """The input where the unit keeps its shape, else a 1x1 convolution with the stride, inside the calling module."""
    if halving.step == 1 and x.shape[-1] == features:
        return x
    x = static_conv(features, kernel_size=1, stride=halving.stride, dtype=dtype, name="downsample")(x)
    return BatchNorm(dtype, name="downsample_norm")(x, train)
