"""CoResNet (Duta, Georgescu and Ionescu, 2021): ResNet of bottlenecks whose 3x3 convolutions are contextual."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import field
from functools import partial
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from shuffle_jax.models.classifier import classify
from shuffle_jax.models.resnet import UNITS as RESNET_UNITS
from shuffle_jax.models.resnet import Bottleneck, static_pointwise
from shuffle_jax.models.sampling import Sampling, check_sizes
from shuffle_jax.models.stem import Stem, StemKind
from shuffle_jax.nn import ContextualConv, Identity
from shuffle_jax.nn.convolution import fan_out_init
from shuffle_jax.nn.dense import Dense
from shuffle_jax.typing import Array, Float, Images

UNITS = {depth: RESNET_UNITS[depth] for depth in (50, 101, 152)}
"""By depth, the units of stages 1 to 4."""

STEM = 64
CHANNELS = (64, 128, 256, 512)
"""Of stages 1 to 4, between the 1x1 convolutions of a bottleneck."""


class CoResNet(nn.Module):
    """CoResNet with exchangeable 1x1 convolutions, an exchangeable classifier, and groups and mixers on request.

    It has the parameters and multiply-adds of the ResNet of its depth. In the last unit of each stage the last
    normalisation is behind the addition. The outputs of a contextual convolution are in the order of their dilations,
    so that the groups of a 1x1 convolution behind one see one or two dilations each.

    Attributes:
        classes: number of classes.
        depth: 50, 101 or 152.
        width: multiplies all channels, for small machines and this project's own; ``64 width`` is a whole number.
        stem: "imagenet", 7x7 with stride 2 and pooled, or "small" for images of 32 x 32 and below, 3x3.
        levels: of the contextual convolutions of each stage, a digit from 1 to 5 for each; 1 is a plain 3x3.
        pointwise: factory of the 1x1 convolutions, called as
            ``pointwise(features=..., groups=..., dtype=..., name=...)``.
        head: factory of the classifier, called as ``head(features=classes, name="head")``, of the mean over positions
            in float32.
        dropout: share of the classifier's inputs that training sets to 0, by the random stream "dropout".
        dtype: type of the computation, float32 by default; parameters and statistics are float32 always.
        groups: of all convolutions of the units; this project's own, the paper has none.
        mixer: factory of the mixers, called as ``mixer(name=...)`` after the first convolution of each unit; none by
            default.
        sampling: factory of what samples in place of strides, as in :class:`shuffle_jax.models.resnet.ResNet`; None for
            strides.
    """

    classes: int
    depth: int = 50
    width: float = 1.0
    stem: StemKind = "imagenet"
    levels: str = "4321"
    pointwise: Callable[..., nn.Module] = static_pointwise
    head: Callable[..., nn.Module] = field(default_factory=lambda: Dense)
    dropout: float = 0.0
    dtype: jnp.dtype | None = None
    groups: int = 1
    mixer: Callable[..., nn.Module] = Identity
    sampling: Sampling | None = None

    @property
    def mixing_groups(self) -> int:
        """Channel groups of the layers on both sides of a mixer."""
        return self.groups

    @nn.compact
    def __call__(self, x: Images, train: bool = False) -> Float[Array, "n classes"]:
        """Maps images ``(n, h, w, 3)`` (or any number of channels) to float32 logits ``(n, classes)``.

        Raises:
            ValueError: there is no such depth, the width makes no whole number of channels, the levels or groups do not
                divide them, the dropout is out of range, or the image cannot be sampled.
        """
        if self.depth not in UNITS:
            raise ValueError(f"CoResNet has no depth {self.depth}: choose one of {list(UNITS)}")
        if len(self.levels) != len(CHANNELS) or not set(self.levels) <= set("12345"):
            raise ValueError(
                f"levels must be {len(CHANNELS)} digits from 1 to 5, one a stage, such as 4321, got {self.levels}"
            )
        stem, *channels = (int(c * self.width) for c in (STEM, *CHANNELS))
        if stem < 1 or stem != STEM * self.width:
            raise ValueError(f"width must be a multiple of 1/{STEM} above 0, got {self.width}")
        small = self.stem == "small"
        check_sizes(x, self.sampling, len(CHANNELS) + (-1 if small else 1))
        parts: dict[str, Any] = {"mixer": self.mixer, "pointwise": self.pointwise, "sampling": self.sampling}

        first = partial(Stem, kernel_size=3 if small else 7, kernel_init=fan_out_init, sampling=self.sampling)
        x = first(stem, self.stem, self.dtype, name="stem")(x, train)
        table = zip(channels, UNITS[self.depth], self.levels, strict=True)
        for stage, (features, units, levels) in enumerate(table, start=1):
            conv = partial(ContextualConv, levels=int(levels), kernel_init=fan_out_init)
            unit = partial(Bottleneck, features, groups=self.groups, conv=conv, dtype=self.dtype, **parts)
            for i in range(units):
                stride, ends = 2 if i == 0 and stage > 1 else 1, i == units - 1
                x = unit(stride=stride, norm_sum=ends, name=f"stage{stage}_{i}")(x, train)
        return classify(x, self.classes, self.head, self.dropout, train)
