"""MobileNetV2 (Sandler, Howard, Zhu, Zhmoginov and Chen, 2018)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import field
from functools import partial
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from shuffle_jax.models.classifier import classify
from shuffle_jax.models.sampling import Halving, Sampling, check_sizes
from shuffle_jax.models.sizes import Node, Side, multiple_of, sizes_of
from shuffle_jax.models.stem import Stem, StemKind
from shuffle_jax.nn import BatchNorm, ContextualDepthwise, DepthwiseConv, Identity, PointwiseConv
from shuffle_jax.nn.convolution import fan_out_init
from shuffle_jax.nn.dense import Dense
from shuffle_jax.typing import Array, Float, Images, Outputs

WIDTHS = (0.35, 0.5, 0.75, 1.0)
TABLE = (
    # t, c, n, s: expansion, channels at width 1.0, units, stride of the first unit
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)
STEM = 32
LAST = 1280

static_depthwise = partial(DepthwiseConv, kernel_init=fan_out_init)
static_pointwise = partial(PointwiseConv, kernel_init=fan_out_init)
small_normal_dense = partial(Dense, kernel_init=nn.initializers.normal(0.01))


def scale(channels: int, width: float) -> int:
    """``width * channels`` rounded to a multiple of 8, halves up, that is not below 0.9 of it.

    >>> scale(32, 0.75), scale(32, 0.35)
    (24, 16)
    """
    wanted = width * channels
    rounded = max(8, int(wanted + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * wanted else rounded


class MobileNetV2(nn.Module):
    """MobileNetV2 with exchangeable 1x1 convolutions, an exchangeable classifier, and groups and mixers on request.

    The stem "small" keeps the size, and so does the first stage that otherwise halves it: 32 x 32 becomes 4 x 4. This
    is a widespread convention for images of that size and no paper's.

    Attributes:
        classes: number of classes.
        width: 0.35, 0.5, 0.75 or 1.0; the last 1x1 convolution has 1280 channels at each of them.
        stem: "imagenet", or "small" for images of 32 x 32 and below.
        pointwise: factory of the 1x1 convolutions, called as
            ``pointwise(features=..., groups=..., dtype=..., name=...)`` for the two of each unit that expands.
            The unit that does not and the last 1x1 convolution are always static.
        head: factory of the classifier, called as ``head(features=classes, name="head")``, of the mean over positions
            in float32.
        dropout: share of the classifier's inputs that training sets to 0, by the random stream "dropout".
        dtype: type of the computation, float32 by default; parameters and statistics are float32 always.
        shift: factory of a shift in place of each depthwise convolution with its norm, called as
            ``shift(stride=..., name="shift")``; None for the depthwise convolutions.
        groups: of the exchangeable 1x1 convolutions; this project's own, the paper has none.
        mixer: factory of the mixers, called as ``mixer(name=...)`` after the first 1x1 convolution of each unit that
            expands; none by default.
        sampling: factory of what samples in place of strides, :class:`shuffle_jax.models.sampling.Halving`, as
            :class:`shuffle_jax.nn.polyphase.PolyphaseSampling` does; every convolution then wraps. None for strides.
        depthwise: factory of the depthwise convolutions, called as
            ``depthwise(stride=..., padding=..., dtype=..., name=...)``.
        sizes: channels one by one, in place of ``width``: of the stem; for each stage those of its output, and those
            that each of its units expands to, of which the first stage's has none; of the last 1x1 convolution.
    """

    classes: int
    width: float = 1.0
    stem: StemKind = "imagenet"
    pointwise: Callable[..., nn.Module] = static_pointwise
    head: Callable[..., nn.Module] = field(default_factory=lambda: small_normal_dense)
    dropout: float = 0.0
    dtype: jnp.dtype | None = None
    shift: Callable[..., nn.Module] | None = None
    groups: int = 1
    mixer: Callable[..., nn.Module] = Identity
    sampling: Sampling | None = None
    depthwise: Callable[..., nn.Module] = field(default_factory=lambda: static_depthwise)
    sizes: tuple[int, ...] = ()

    @property
    def mixing_groups(self) -> int:
        """Channel groups of the layers on both sides of a mixer."""
        return self.groups

    def layer_defaults(self) -> dict[type, dict[str, Any]]:
        """What layers of a class start from in this network, where that is not what the class says."""
        return {ContextualDepthwise: {"kernel_init": fan_out_init}}

    @nn.nowrap
    def all_sizes(self) -> tuple[int, ...]:
        """The sizes given, or those of the width, in the order of ``sizes``.

        Raises:
            ValueError: the width is not one of the four, or the sizes do not fit.
        """
        if self.width not in WIDTHS:
            raise ValueError(f"MobileNetV2 has no width {self.width}: choose one of {list(WIDTHS)}")
        features = scale(STEM, self.width)
        own = [features]
        for expansion, channels, units, _ in TABLE:
            before, features = features, scale(channels, self.width)
            own += [features, *(() if expansion == 1 else (expansion * before, *(units - 1) * (expansion * features,)))]
        return sizes_of("MobileNetV2", self.sizes, (*own, LAST), self.width)

    @nn.nowrap
    def nodes(self) -> tuple[Node, ...]:
        """The sizes with the sides of 1x1 convolutions and stem that have them."""
        sizes, ends = iter(self.all_sizes()), len(TABLE)
        outer = math.lcm(self.groups, multiple_of(self.pointwise(features=1, groups=self.groups)))
        inner = math.lcm(outer, multiple_of(self.mixer()))
        found = [Node("stem", next(sizes), 1, (("stem/conv", "out"), ("stage1_0/project", "in")))]
        for stage, (expansion, _, units, _) in enumerate(TABLE, start=1):
            paths = [f"stage{stage}_{i}" for i in range(units)]
            after = "last" if stage == ends else f"stage{stage + 1}_0/expand"
            sides: list[Side] = [(f"{path}/project", "out") for path in paths]
            sides += [*((f"{path}/expand", "in") for path in paths[1:]), (after, "in")]
            found.append(Node(f"stage{stage}", next(sizes), outer, tuple(sides)))
            for path in paths if expansion != 1 else ():
                found.append(Node(path, next(sizes), inner, ((f"{path}/expand", "out"), (f"{path}/project", "in"))))
        return (*found, Node("last", next(sizes), 1, (("last", "out"),)))

    @nn.compact
    def __call__(self, x: Images, train: bool = False) -> Float[Array, "n classes"]:
        """Maps images ``(n, h, w, 3)`` (or any number of channels) to float32 logits ``(n, classes)``.

        Raises:
            ValueError: the width is not one of the four, the groups do not divide the channels, the dropout is out of
                range, or the image cannot be sampled.
        """
        check_sizes(x, self.sampling, sum(row[-1] > 1 for row in TABLE) + (-1 if self.stem == "small" else 1))
        first, *inner, last = self.all_sizes()
        sizes = iter(inner)
        stem = partial(Stem, pool=False, activation=nn.relu6, kernel_init=fan_out_init, sampling=self.sampling)

        x = stem(first, self.stem, self.dtype, name="stem")(x, train)
        for stage, (expansion, _, units, stride) in enumerate(TABLE, start=1):
            unit = partial(
                InvertedResidual,
                next(sizes),
                expansion=expansion,
                groups=1 if expansion == 1 else self.groups,
                mixer=self.mixer,
                pointwise=static_pointwise if expansion == 1 else self.pointwise,
                shift=self.shift,
                depthwise=self.depthwise,
                dtype=self.dtype,
                sampling=self.sampling,
            )
            for i in range(units):
                keeps_size = i > 0 or (self.stem == "small" and stage == 2)
                inside = None if expansion == 1 else next(sizes)
                x = unit(stride=1 if keeps_size else stride, inside=inside, name=f"stage{stage}_{i}")(x, train)
        x = static_pointwise(features=last, dtype=self.dtype, name="last")(x)
        x = nn.relu6(BatchNorm(self.dtype, name="last_norm")(x, train))
        return classify(x, self.classes, self.head, self.dropout, train)


class InvertedResidual(nn.Module):
    """One unit: a 1x1 convolution to t times the channels, a mixer, a depthwise 3x3, and a linear 1x1 to few channels.

    With stride 1 and as many channels out as in, the result is added to the input.

    Attributes:
        features: output channels.
        stride: 1 or 2.
        expansion: t; with 1 there is no first 1x1 and no mixer.
        groups: of the 1x1 convolutions.
        mixer: factory of the mixer behind the first 1x1.
        pointwise: factory of the 1x1 convolutions.
        shift: factory of what replaces the depthwise convolution, if anything does.
        dtype: type of the computation.
        inside: channels to which the first 1x1 expands, t times those of the input by default.
        sampling: factory of what samples in place of the stride, if anything does.
        depthwise: factory of the depthwise convolution.
    """

    features: int
    stride: int
    expansion: int
    groups: int
    mixer: Callable[..., nn.Module]
    pointwise: Callable[..., nn.Module]
    shift: Callable[..., nn.Module] | None = None
    dtype: jnp.dtype | None = None
    inside: int | None = None
    sampling: Sampling | None = None
    depthwise: Callable[..., nn.Module] = field(default_factory=lambda: static_depthwise)

    @nn.compact
    def __call__(self, x: Images, train: bool = False) -> Outputs:
        """Maps ``(n, h, w, c)`` to ``(n, ceil(h / stride), ceil(w / stride), features)``."""
        channels = x.shape[-1]
        pointwise = partial(self.pointwise, groups=self.groups, dtype=self.dtype)
        norm = partial(BatchNorm, dtype=self.dtype)

        y = x
        if self.expansion != 1:
            inside = self.expansion * channels if self.inside is None else self.inside
            y = pointwise(features=inside, name="expand")(y, train=train)
            y = nn.relu6(norm(name="norm1")(y, train))
            y = self.mixer(name="mixer")(y, train=train)
        halving = Halving(self.stride, self.sampling)
        if self.shift is None:
            depthwise = partial(self.depthwise, stride=halving.stride, padding=halving.padding, dtype=self.dtype)
            y = nn.relu6(norm(name="norm2")(depthwise(name="depthwise")(y, train=train), train))
        else:
            y = self.shift(stride=halving.stride, name="shift")(y, train=train)
        (y,) = halving(y)
        y = norm(name="norm3")(pointwise(features=self.features, name="project")(y, train=train), train)
        return x + y if self.stride == 1 and self.features == channels else y
