"""A network in which nothing but its mixers and its 1x1 layers leads from one group of channels to another."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import flax.linen as nn

from shuffle_jax.models import shufflenet_v1
from shuffle_jax.models.stem import Stem
from shuffle_jax.nn import BatchNorm, Conv, Dense, Identity, PointwiseConv
from shuffle_jax.ops.pooling import halve
from shuffle_jax.typing import Array, Float, Images

STAGES = (1, 2, 3)


class GroupsApart(nn.Module):
    """Units of ShuffleNetV1 with the same channels throughout: unlike there, the borders of groups never move.

    A stem, three stages of units, from the second on behind a pooling that halves the image, and a classifier of the
    mean over positions. Without a mixer, grouped 1x1 layers never show a channel of one group to one of another. With
    ``phases`` above 1 the stem is in groups as well: of every square of so many pixels a side a group sees one.

    Attributes:
        classes: number of classes.
        groups: of the 1x1 layers; a multiple of ``phases ** 2``, so that none of them sees two phases.
        phases: how far apart the pixels of a group are; 1 shows all of them to every group.
        mixer: factory of the mixers, called as ``mixer(name=...)`` between the 1x1 layers of each unit.
        pointwise: factory of the 1x1 layers.
        features: channels of all units.
        units: of each stage.
        reduction: how many times fewer channels are between the 1x1 layers of a unit, where the mixer is.
    """

    classes: int
    groups: int = 8
    mixer: Callable[..., nn.Module] = Identity
    pointwise: Callable[..., nn.Module] = PointwiseConv
    features: int = 64
    units: int = 2
    phases: int = 1
    reduction: int = 4

    @property
    def mixing_groups(self) -> int:
        """Channel groups of the layers on both sides of a mixer."""
        return self.groups

    @nn.compact
    def __call__(self, x: Images, train: bool = False) -> Float[Array, "n classes"]:
        """Maps images ``(n, h, w, c)`` to float32 logits ``(n, classes)``.

        Raises:
            ValueError: the phases do not divide the sides of the image, or squared the groups.
        """
        unit = partial(Unit, self.features, self.groups, self.mixer, self.pointwise, self.reduction)
        if self.phases == 1:
            x = Stem(self.features, "small", name="stem")(x, train)
        else:
            if self.groups % self.phases**2:
                raise ValueError(
                    f"groups must be a multiple of {self.phases**2}, one for each phase, got {self.groups}"
                )
            x = Conv(self.features, groups=self.phases**2, name="stem")(phases_apart(x, self.phases))
            x = nn.relu(BatchNorm(name="norm")(x, train))
        for stage in STAGES:
            for i in range(self.units):
                x = unit(halves=stage > 1 and i == 0, name=f"stage{stage}_{i}")(x, train)
        return Dense(self.classes, name="head")(x.mean((1, 2)))


def phases_apart(x: Images, phases: int) -> Images:
    """Image ``(n, h, w, c)`` as ``(n, h / phases, w / phases, phases^2 c)``, the channels of a phase side by side.

    Channel ``(phases a + b) c + k`` at ``(i, j)`` is channel k of the pixel ``(phases i + a, phases j + b)``.

    Raises:
        ValueError: the phases do not divide the height and the width.
    """
    n, h, w, c = x.shape
    if h % phases or w % phases:
        raise ValueError(f"height and width must be multiples of {phases}, got {h} x {w}")
    squares = x.reshape(n, h // phases, phases, w // phases, phases, c)
    return squares.transpose(0, 1, 3, 2, 4, 5).reshape(n, h // phases, w // phases, phases**2 * c)


class Unit(nn.Module):
    """The residual unit of ShuffleNetV1, perhaps behind a pooling.

    Attributes:
        features: channels in and out.
        groups: of the 1x1 layers.
        mixer: factory of the mixer.
        pointwise: factory of the 1x1 layers.
        reduction: how many times fewer channels are between them.
        halves: average 3 x 3 pixels with stride 2 first.
    """

    features: int
    groups: int
    mixer: Callable[..., nn.Module]
    pointwise: Callable[..., nn.Module]
    reduction: int
    halves: bool

    @nn.compact
    def __call__(self, x: Images, train: bool = False) -> Images:
        """Maps ``(n, h, w, features)`` to the same, or to half of the height and width."""
        unit = partial(shufflenet_v1.Unit, self.features, stride=1, groups=self.groups, reduction=self.reduction)
        return unit(mixer=self.mixer, pointwise=self.pointwise, name="unit")(halve(x) if self.halves else x, train)
