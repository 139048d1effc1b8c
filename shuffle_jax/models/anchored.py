"""Deep anchored networks (Huang, Dwivedi and Roig, 2019): one 3x3 kernel for all layers of a width, each with its norm.

The memory for kernels falls, the arithmetic does not. Kernels that are all the same are regularised apart: by a 1x1
convolution in each unit, as the paper has it, by a rotation of the channels, as its code has it, or by any mixer.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import field
from functools import partial
from typing import Any, Literal

import flax.linen as nn
import jax.numpy as jnp

from shuffle_jax.models.classifier import classify
from shuffle_jax.models.stem import Stem
from shuffle_jax.nn import BatchNorm, Conv, Identity, PointwiseConv, Use
from shuffle_jax.nn.convolution import fan_out_init
from shuffle_jax.nn.dense import Dense
from shuffle_jax.ops.pooling import largest_2x2
from shuffle_jax.ops.residual import relu_of_sum
from shuffle_jax.typing import Array, Float, Images, Outputs

UNITS = {
    # depth of the form with shortcuts: units of stage 1, 2, 3, 4
    10: (1, 1, 1, 1),
    18: (2, 2, 2, 2),
    34: (3, 4, 6, 3),
}
LAYERS = 14
"""The depth without shortcuts, which has the layers of VGG."""
PLAIN, MIX = 128, (64, 128, 256, 512)
"""Channels: of all stages, or of stages 1, 2, 3, 4; without shortcuts the last stage is there twice."""
PLAIN_STAGES = ("u", "uu", "uuu", "uuu", "uuu")
"""The layers of each stage without shortcuts, behind the stem: u is a use of the kernel that is shared."""
MIX_STAGES = ("o", "oo", "ouu", "ouu", "buu")
"""The same with a kernel for each width: o is a layer with a kernel of its own, b a use with no norm and no ReLU."""
CHOICES = {"kernels": ("one", "each_width"), "regulator": ("none", "pointwise"), "mixing": ("branch", "stream")}

conv = partial(Conv, kernel_init=fan_out_init)
pointwise_conv = partial(PointwiseConv, kernel_init=fan_out_init)


class AnchoredNet(nn.Module):
    """A network whose 3x3 convolutions share their kernels, with exchangeable regulators.

    Its images are those of 32 x 32 pixels. Any other size is this project's own: maps are averaged at the end, which at
    32 x 32 is what the paper has, and a side of one pixel is not halved again.

    Attributes:
        classes: number of classes.
        depth: 14 without shortcuts, as VGG; 18 or 34 with those of ResNet; 10 is this project's own, one unit a stage.
        width: multiplies all channels, this project's own; ``128 width`` of one kernel, or ``64 width`` of one for each
            width, is a whole number.
        kernels: "one" for the whole network, which is the paper's plain form, or one for "each_width", its mix form.
        shared: share them; without, each layer has a kernel of its own, which is the control.
        regulator: "pointwise" for a 1x1 convolution of its own in each unit, behind its last norm; or "none".
        mixing: where the mixer stands: on the "branch", behind the last norm and the 1x1 convolution of each unit; or
            on the "stream", behind each norm of it, and as often on the shortcut, as the rotations of the paper's code.
            Without shortcuts both are behind the norm of each use.
        pointwise: factory of the regulators, called as ``pointwise(features=..., groups=1, dtype=..., name=...)``.
        head: factory of the classifier, called as ``head(features=classes, name="head")``, of the mean over positions
            in float32.
        dropout: share of the classifier's inputs that training sets to 0, by the random stream "dropout".
        dtype: type of the computation, float32 by default; parameters and statistics are float32 always.
        mixer: factory of the mixers, called as ``mixer(name=...)``; none by default.
    """

    classes: int
    depth: int = 18
    width: float = 1.0
    kernels: Literal["one", "each_width"] = "one"
    shared: bool = True
    regulator: Literal["none", "pointwise"] = "none"
    mixing: Literal["branch", "stream"] = "branch"
    pointwise: Callable[..., nn.Module] = pointwise_conv
    head: Callable[..., nn.Module] = field(default_factory=lambda: Dense)
    dropout: float = 0.0
    dtype: jnp.dtype | None = None
    mixer: Callable[..., nn.Module] = Identity

    @property
    def mixing_groups(self) -> int:
        """Between how many groups a fixed shuffle as the regulator mixes: this project's own, the layers have none."""
        return 2

    @nn.compact
    def __call__(self, x: Images, train: bool = False) -> Float[Array, "n classes"]:
        """Maps images ``(n, h, w, 3)`` (or any number of channels) to float32 logits ``(n, classes)``.

        Raises:
            ValueError: there is no such depth or choice, the width makes no whole number of channels, layers are given
                for regulators that are none, or the dropout is out of range.
        """
        if self.depth != LAYERS and self.depth not in UNITS:
            raise ValueError(f"AnchoredNet has no depth {self.depth}: choose one of {[*UNITS, LAYERS]}")
        for name, choices in CHOICES.items():
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} must be one of {', '.join(choices)}, got {getattr(self, name)!r}")
        if self.regulator == "none" and self.pointwise is not pointwise_conv:
            raise ValueError(
                "AnchoredNet has 1x1 layers for regulators alone, got others with the regulator none: choose the "
                "regulator pointwise, or leave them"
            )
        x = self._without_shortcuts(x, train) if self.depth == LAYERS else self._with_shortcuts(x, train)
        return classify(x, self.classes, self.head, self.dropout, train)

    def _channels(self) -> list[int]:
        """Of each stage."""
        base = [PLAIN] * 4 if self.kernels == "one" else list(MIX)
        found = [int(channels * self.width) for channels in base]
        if found[0] < 1 or found[0] != base[0] * self.width:
            raise ValueError(
                f"AnchoredNet of width {self.width} has {base[0] * self.width:g} channels: give a multiple of "
                f"1/{base[0]} above 0"
            )
        return found

    def _anchors(self, channels: list[int], use_bias: bool) -> list[nn.Module]:
        """What is shared, for each stage: one convolution for all of them, or one for each width."""
        make = partial(conv, use_bias=use_bias, dtype=self.dtype)
        if self.kernels == "one":
            return [make(channels[0], name="anchor")] * len(channels)
        return [make(width, name=f"anchor{stage}") for stage, width in enumerate(channels, start=1)]

    def _parts(self) -> dict[str, Any]:
        """What all units and layers are given."""
        regulator = self.pointwise if self.regulator == "pointwise" else None
        return {"own": not self.shared, "regulator": regulator, "mixer": self.mixer, "dtype": self.dtype}

    def _with_shortcuts(self, x: Images, train: bool) -> Outputs:
        """The form of ResNet: a stem, and four stages of units, with a pooling behind each."""
        channels, units = self._channels(), UNITS[self.depth]
        anchors = self._anchors(channels, use_bias=self.kernels == "each_width")
        unit: Callable[..., nn.Module] = partial(Unit, stream=self.mixing == "stream", **self._parts())
        x = Stem(channels[0], "small", self.dtype, kernel_init=fan_out_init, name="stem")(x, train)
        for stage, (count, features, anchor) in enumerate(zip(units, channels, anchors, strict=False), start=1):
            for i in range(count):
                x = unit(features, anchor, pool=i == count - 1, name=f"stage{stage}_{i}")(x, train)
        return x

    def _without_shortcuts(self, x: Images, train: bool) -> Outputs:
        """The form of VGG: layers one behind the other, five stages with a pooling behind each."""
        plain, channels = self.kernels == "one", self._channels()
        channels = [*channels, channels[-1]]
        anchors = self._anchors(channels[:4], use_bias=True)
        stages = PLAIN_STAGES if plain else MIX_STAGES
        layer: Callable[..., nn.Module] = partial(Layer, norm_first=not plain, **self._parts())
        x = layer(channels[0], None, name="stem")(x, train)
        for stage, (kinds, features) in enumerate(zip(stages, channels, strict=False), start=1):
            for i, kind in enumerate(kinds):
                anchor = None if kind == "o" else anchors[min(stage, len(anchors)) - 1]
                pool = i == len(kinds) - 1
                x = layer(features, anchor, bare=kind == "b", pool=pool, name=f"stage{stage}_{i}")(x, train)
        return x


class Unit(nn.Module):
    """Two uses of the shared convolution, added to the shortcut: ``relu(x + mixer(R norm(conv(relu(norm(conv x))))))``.

    Where it gets another number of channels the first is a convolution of its own, and the shortcut a 1x1 one.

    Attributes:
        features: output channels.
        anchor: the shared convolution.
        own: use copies of it, see :class:`shuffle_jax.nn.shared.Use`.
        pool: take the largest of 2 x 2 values at the end.
        stream: mix behind each norm and as often on the shortcut, ``relu(Q (R norm(conv P u) + P x))``, where P and Q
            are the mixers and u is behind the first ReLU. P acts on u and x side by side: it is the same for both, also
            if it depends on the image.
        regulator: factory of R, a 1x1 convolution behind the last norm; None for none.
        mixer: factory of the mixers.
        dtype: type of the computation.
    """

    features: int
    anchor: nn.Module
    own: bool
    pool: bool
    stream: bool
    regulator: Callable[..., nn.Module] | None
    mixer: Callable[..., nn.Module]
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, x: Images, train: bool = False) -> Outputs:
        """Maps ``(n, h, w, c)`` to ``(n, h, w, features)``, halved if it pools."""
        norm = partial(BatchNorm, self.dtype)
        grows = x.shape[-1] != self.features

        first = conv(self.features, use_bias=True, dtype=self.dtype, name="conv1") if grows else self._use("conv1")
        y = nn.relu(norm(name="norm1")(first(x, train=train), train))
        if grows:
            x = pointwise_conv(self.features, dtype=self.dtype, name="downsample")(x)
            x = norm(name="downsample_norm")(x, train)
        if self.stream:
            both = self.mixer(name="mixer1")(jnp.concatenate([y, x], axis=1), train=train)
            y, x = jnp.split(both, 2, axis=1)
        y = norm(name="norm2")(self._use("conv2")(y, train=train), train)
        y = _regulated(y, self.regulator, self.dtype, train)
        if self.stream:
            y = nn.relu(self.mixer(name="mixer2")(x + y, train=train))
        else:
            y = relu_of_sum(x, self.mixer(name="mixer")(y, train=train))
        return _pooled(y, self.pool)

    def _use(self, name: str) -> Use:
        return Use(self.anchor, self.own, name=name)


class Layer(nn.Module):
    """One convolution with its ReLU and its norm, in either order, and behind the norm of a shared one its regulators.

    Attributes:
        features: output channels.
        anchor: the shared convolution; None for one of its own, which is not regulated.
        norm_first: the norm before the ReLU.
        own: use a copy of the shared convolution.
        regulator: factory of a 1x1 convolution; None for none.
        mixer: factory of the mixer.
        dtype: type of the computation.
        bare: neither norm nor ReLU nor regulators.
        pool: take the largest of 2 x 2 values at the end.
    """

    features: int
    anchor: nn.Module | None
    norm_first: bool
    own: bool
    regulator: Callable[..., nn.Module] | None
    mixer: Callable[..., nn.Module]
    dtype: jnp.dtype | None = None
    bare: bool = False
    pool: bool = False

    @nn.compact
    def __call__(self, x: Images, train: bool = False) -> Outputs:
        """Maps ``(n, h, w, c)`` to ``(n, h, w, features)``, halved if it pools."""
        if self.anchor is None:
            x = conv(self.features, use_bias=True, dtype=self.dtype, name="conv")(x, train=train)
        else:
            x = Use(self.anchor, self.own, name="conv")(x, train=train)
        if self.bare:
            return x
        x = x if self.norm_first else nn.relu(x)
        x = BatchNorm(self.dtype, name="norm")(x, train)
        if self.anchor is not None:
            x = self.mixer(name="mixer")(_regulated(x, self.regulator, self.dtype, train), train=train)
        return _pooled(nn.relu(x) if self.norm_first else x, self.pool)


def _regulated(x: Images, regulator: Callable[..., nn.Module] | None, dtype: jnp.dtype | None, train: bool) -> Outputs:
    """The 1x1 convolution of a unit, if it has one, inside the calling module."""
    if regulator is None:
        return x
    y: Images = regulator(features=x.shape[-1], groups=1, dtype=dtype, name="regulator")(x, train=train)
    return y


def _pooled(x: Images, pool: bool) -> Outputs:
    return largest_2x2(x) if pool else x
