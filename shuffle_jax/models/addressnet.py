"""AddressNet and Enhanced AddressNet (He, Liu, Zhong and Ma, 2019), whose only operations with weights are 1x1."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import field
from functools import partial
from typing import Literal, NamedTuple

import flax.linen as nn
import jax.numpy as jnp

from shuffle_jax.models.classifier import classify
from shuffle_jax.models.sampling import Halving, Sampling, check_sizes
from shuffle_jax.models.stem import Stem, StemKind
from shuffle_jax.nn import BatchNorm, PointwiseConv, ShiftedPointwise
from shuffle_jax.nn.dense import Dense
from shuffle_jax.ops.polyphase import mean_around
from shuffle_jax.ops.pooling import halve
from shuffle_jax.ops.residual import relu_of_sum
from shuffle_jax.ops.shift import LEFT_UP_RIGHT_DOWN, Boundary, Offsets, shortcut_shift
from shuffle_jax.ops.shifted_pointwise import Form
from shuffle_jax.ops.slicing import thinned
from shuffle_jax.typing import Array, Float, Images, Outputs

GROUPS = 4
DEPTHS = (20, 32, 44)

Shortcut = Literal["add", "shift"]
"""What a unit of stride 1 does with its input: "add" it, or "shift" past it what is new."""


class Stage(NamedTuple):
    """Units that give the same channels.

    Attributes:
        channels: of the output.
        stride: of the first unit; the others have 1.
        expansions: of each unit: its inner channels over those of its input.
    """

    channels: int
    stride: int
    expansions: tuple[int, ...]


IMAGENET = (
    Stage(96, 2, (4, 3, 3, 3)),
    Stage(192, 2, (3, 2, 2, 2, 2)),
    Stage(384, 2, (2, 2, 2, 2, 2, 2)),
    Stage(768, 2, (2, 2, 2, 2)),
)
"""The paper's table, behind a stem of 32 channels."""


def small_stages(depth: int) -> tuple[Stage, ...]:
    """The stages for small images, of ``n = (depth - 2) / 6`` units each, behind a stem of 36 channels.

    Their widths are this project's choice: the paper has such networks of depth 20, 32 and 44 and no table of them.

    Raises:
        ValueError: the depth is not 6 n + 2.
    """
    units, odd = divmod(depth - 2, 6)
    if odd or units < 1:
        raise ValueError(f"AddressNet for small images has no depth {depth}: choose 6 n + 2, such as 20, 32 or 44")
    return Stage(36, 1, (2,) * units), Stage(72, 2, (2,) * units), Stage(144, 2, (2,) * units)


def stages_of(stem: StemKind, depth: int) -> tuple[int, tuple[Stage, ...]]:
    """Channels of the stem, and the stages behind it."""
    return (32, IMAGENET) if stem == "imagenet" else (36, small_stages(depth))


class AddressNet(nn.Module):
    """AddressNet with an exchangeable channel shift and exchangeable grouped 1x1 convolutions.

    Attributes:
        classes: number of classes.
        depth: 20, 32, 44 or another 6 n + 2. With the stem "imagenet" there is one network, and this is not used.
        stem: "imagenet", or "small" for images of 32 x 32 and below.
        shortcut: "add"; or "shift" in Enhanced AddressNet, whose units of stride 1 make half of their channels new.
        mixer: factory of the mixers, called as ``mixer(name=...)`` after the first 1x1 convolution of each unit; the
            channel shift in the groups of the convolution behind it by default (None).
        pointwise: factory of the 1x1 convolutions, called as
            ``pointwise(features=..., groups=..., dtype=..., name=...)``.
        groups: of the 1x1 convolutions, 4 in the paper.
        offsets: of the address shift; none leaves it out.
        boundary: of the address shift.
        form: of the fused step, :func:`shuffle_jax.ops.shifted_pointwise.shifted_pointwise`.
        dtype: type of the computation, float32 by default; parameters and statistics are float32 always.
        head: factory of the classifier, called as ``head(features=classes, name="head")``, of the mean over positions
            in float32.
        dropout: share of the classifier's inputs that training sets to 0, by the random stream "dropout".
        sampling: factory of what samples in place of strides, :class:`shuffle_jax.models.sampling.Halving`, as
            :class:`shuffle_jax.nn.polyphase.PolyphaseSampling` does; every convolution then wraps. None for strides.
            The images stay the same for every shift only where the boundary is "wrap" as well.
    """

    classes: int
    depth: int = 20
    stem: StemKind = "small"
    shortcut: Shortcut = "add"
    mixer: Callable[..., nn.Module] | None = None
    pointwise: Callable[..., nn.Module] = PointwiseConv
    groups: int = GROUPS
    offsets: Offsets = LEFT_UP_RIGHT_DOWN
    boundary: Boundary = "pointer"
    form: Form = "auto"
    dtype: jnp.dtype | None = None
    head: Callable[..., nn.Module] = field(default_factory=lambda: Dense)
    dropout: float = 0.0
    sampling: Sampling | None = None

    @property
    def mixing_groups(self) -> int:
        """Channel groups of the layers on both sides of a mixer."""
        return self.groups

    @nn.compact
    def __call__(self, x: Images, train: bool = False) -> Float[Array, "n classes"]:
        """Maps images ``(n, h, w, 3)`` (or any number of channels) to float32 logits ``(n, classes)``.

        Raises:
            ValueError: there is no such depth, a shift does not fit the channels, the dropout is out of range, or the
                image cannot be sampled.
        """
        first, stages = stages_of(self.stem, self.depth)
        check_sizes(x, self.sampling, sum(stage.stride > 1 for stage in stages) + (self.stem == "imagenet"))
        step = partial(ShiftedPointwise, offsets=self.offsets, boundary=self.boundary, form=self.form)
        unit = partial(
            Unit,
            groups=self.groups,
            shortcut=self.shortcut,
            step=partial(step, mixer=self.mixer, pointwise=self.pointwise),
            pointwise=self.pointwise,
            dtype=self.dtype,
            sampling=self.sampling,
        )

        x = Stem(first, self.stem, self.dtype, pool=False, sampling=self.sampling, name="stem")(x, train)
        for number, stage in enumerate(stages, start=1):
            for i, expansion in enumerate(stage.expansions):
                stride = stage.stride if i == 0 else 1
                x = unit(stage.channels, stride, expansion=expansion, name=f"stage{number}_{i}")(x, train)
        return classify(x, self.classes, self.head, self.dropout, train)


class Unit(nn.Module):
    """One unit: a grouped 1x1 convolution to more channels, then channel shift, address shift and another, to fewer.

    With stride 1 the result is added to the input, or follows its younger half; with stride 2 it is concatenated to the
    average-pooled input.

    Attributes:
        features: output channels.
        stride: 1 or 2; with 1 the input must have ``features`` channels.
        expansion: inner channels over those of the input.
        groups: of both 1x1 convolutions; where the last has too few channels, as many as divide them.
        shortcut: "add" or "shift".
        step: factory of the channel shift, the address shift and the last 1x1 convolution.
        pointwise: factory of the first 1x1 convolution.
        dtype: type of the computation.
        sampling: factory of what samples the input in place of the stride, if anything does.
    """

    features: int
    stride: int
    expansion: int
    groups: int
    shortcut: Shortcut
    step: Callable[..., nn.Module]
    pointwise: Callable[..., nn.Module]
    dtype: jnp.dtype | None = None
    sampling: Sampling | None = None

    @nn.compact
    def __call__(self, x: Images, train: bool = False) -> Outputs:
        """Maps ``(n, h, w, c)`` to ``(n, ceil(h / stride), ceil(w / stride), features)``."""
        channels = x.shape[-1]
        out = new_features(channels, self.features, self.stride, self.shortcut)
        norm = partial(BatchNorm, dtype=self.dtype)

        y = x
        if self.stride > 1 and self.sampling is None:
            y, x = thinned(x, 2), halve(x)
        elif self.stride > 1:
            y, x = Halving(self.stride, self.sampling)(x, mean_around(x))
        pointwise = self.pointwise(
            features=self.expansion * channels, groups=self.groups, dtype=self.dtype, name="pointwise1"
        )
        y = nn.relu(norm(name="norm1")(pointwise(y, train=train), train))
        step = self.step(features=out, groups=math.gcd(self.groups, out), dtype=self.dtype, name="step")
        y = norm(name="norm2")(step(y, train=train), train)
        if self.stride > 1:
            return nn.relu(jnp.concatenate([x, y], axis=-1))
        return shortcut_shift(x, nn.relu(y)) if self.shortcut == "shift" else relu_of_sum(x, y)


def new_features(channels: int, features: int, stride: int, shortcut: Shortcut) -> int:
    """Channels that a unit makes, beside those that come from its input."""
    if stride > 1:
        return features - channels
    return features // 2 if shortcut == "shift" else features
