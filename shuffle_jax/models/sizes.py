"""The sizes of a network: the numbers of channels that may be chosen one by one, and which layers have each of them."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Literal, NamedTuple

import flax.linen as nn

Side = tuple[str, Literal["in", "out"]]
"""A convolution, by the path of its parameters as in ``"stage1_0/conv1"``, and its inputs or its outputs."""


class Node(NamedTuple):
    """A size of a network.

    Attributes:
        name: where it is.
        channels: how many there are now.
        multiple: of what they must be a multiple, for groups and mixers.
        sides: the sides of convolutions that have this size, or half of it, whose ranks say how much of it is used.
            Those of depthwise layers are left out: a kernel of one input has no rank.
    """

    name: str
    channels: int
    multiple: int
    sides: tuple[Side, ...]


def sizes_of(network: str, given: Iterable[int], own: Iterable[int], width: float = 1.0) -> tuple[int, ...]:
    """The sizes of a network: those given, or its own without any.

    Args:
        network: its name.
        given: by whoever chooses them one by one.
        own: as the paper has them, at its width.
        width: what multiplies the latter.

    Raises:
        ValueError: more or fewer are given than there are, one is none, or there is a width beside them.

    >>> sizes_of("ResNet", (), [64, 64]), sizes_of("ResNet", (8, 6), [64, 64])
    ((64, 64), (8, 6))
    """
    given, own = tuple(given), tuple(own)
    if not given:
        return own
    if len(given) != len(own):
        raise ValueError(f"sizes of this {network} must be {len(own)} numbers of channels, got {len(given)}")
    if any(size < 1 for size in given):
        raise ValueError(f"sizes must be at least 1, got {min(given)}")
    if width != 1:
        raise ValueError(f"width must be 1 beside sizes, which say every number of channels, got {width}")
    return given


def multiple_of(*layers: nn.Module) -> int:
    """The least number of channels of which all of these layers take every multiple, by their ``channel_multiple``.

    >>> from shuffle_jax.nn import ChannelShift, ChannelShuffle, Identity
    >>> multiple_of(ChannelShift(2), ChannelShuffle(3), Identity())
    12
    """
    return math.lcm(*(getattr(layer, "channel_multiple", 1) for layer in layers))
