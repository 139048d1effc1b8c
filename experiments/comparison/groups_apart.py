"""A network in which nothing but its mixers and its 1x1 layers leads from one group of channels to another."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import flax.linen as nn

from shuffle_jax.models import shufflenet_v1
from shuffle_jax.models.stem import Stem
from shuffle_jax.nn import Dense, Identity, PointwiseConv
from shuffle_jax.ops.pooling import halve
from shuffle_jax.typing import Array, Float, Images

STAGES = (1, 2, 3)


class GroupsApart(nn.Module):
    """Units of ShuffleNetV1 with the same channels throughout: unlike there, the borders of groups never move.

    A stem, three stages of units, from the second on behind a pooling that halves the image, and a classifier of the
    mean over positions. Without a mixer, grouped 1x1 layers never show a channel of one group to one of another.

    Attributes:
        classes: number of classes.
        groups: of the 1x1 layers.
        mixer: factory of the mixers, called as ``mixer(name=...)`` between the 1x1 layers of each unit.
        pointwise: factory of the 1x1 layers.
        features: channels of all units; a quarter of them between the 1x1 layers.
        units: of each stage.
    """

    classes: int
    groups: int = 8
    mixer: Callable[..., nn.Module] = Identity
    pointwise: Callable[..., nn.Module] = PointwiseConv
    features: int = 64
    units: int = 2

    @property
    def mixing_groups(self) -> int:
        """Channel groups of the layers on both sides of a mixer."""
        return self.groups

    @nn.compact
    def __call__(self, x: Images, train: bool = False) -> Float[Array, "n classes"]:
        """Maps images ``(n, h, w, c)`` to float32 logits ``(n, classes)``."""
        unit = partial(Unit, self.features, self.groups, self.mixer, self.pointwise)
        x = Stem(self.features, "small", name="stem")(x, train)
        for stage in STAGES:
            for i in range(self.units):
                x = unit(halves=stage > 1 and i == 0, name=f"stage{stage}_{i}")(x, train)
        return Dense(self.classes, name="head")(x.mean((1, 2)))


class Unit(nn.Module):
    """The residual unit of ShuffleNetV1, perhaps behind a pooling.

    Attributes:
        features: channels in and out.
        groups: of the 1x1 layers.
        mixer: factory of the mixer.
        pointwise: factory of the 1x1 layers.
        halves: average 3 x 3 pixels with stride 2 first.
    """

    features: int
    groups: int
    mixer: Callable[..., nn.Module]
    pointwise: Callable[..., nn.Module]
    halves: bool

    @nn.compact
    def __call__(self, x: Images, train: bool = False) -> Images:
        """Maps ``(n, h, w, features)`` to the same, or to half of the height and width."""
        unit = partial(shufflenet_v1.Unit, self.features, stride=1, groups=self.groups)
        return unit(mixer=self.mixer, pointwise=self.pointwise, name="unit")(halve(x) if self.halves else x, train)
