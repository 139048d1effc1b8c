"""What is compared: the recipe of dynamic layers, each of its parts left out, and layers of other kinds."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Literal, NamedTuple

import flax.linen as nn

from shuffle_jax.nn import (
    ChannelShuffle,
    DynamicShuffle,
    FactorGenerator,
    HardDynamicShuffle,
    Identity,
    StaticDynamicShuffle,
)

Mixer = Callable[..., nn.Module]


class Method(NamedTuple):
    """One row of the table.

    Attributes:
        make: gives the factory of the mixers for c channels in G groups.
        text: what it is.
        per_group: a pair of factors for each group, in the orders too.
        oracle: every image comes in the same order.
    """

    make: Callable[[int, int], Mixer]
    text: str
    per_group: bool = False
    oracle: bool = False


def dynamic(binarize_from: float | None = None, per_group: bool = False, **head: Any) -> Callable[[int, int], Mixer]:
    """Dynamic shuffles with other values than the defaults, of the layer and of its head."""
    own: dict[str, Any] = {"per_group": True} if per_group else {}
    if binarize_from is not None:
        own["binarize_from"] = binarize_from
    if head:
        own["generator"] = partial(FactorGenerator, **head)
    return lambda channels, groups: partial(DynamicShuffle, groups, **own)


def static_dynamic(static: Literal["kronecker", "grouped"]) -> Callable[[int, int], Mixer]:
    """Static-dynamic layers with as many channels out as in."""
    return lambda channels, groups: partial(StaticDynamicShuffle, channels, blocks=groups, static=static)


METHODS = {
    "dynamic": Method(dynamic(), "dynamic shuffles as they are"),
    "no-norm": Method(dynamic(pooled_norm=False), "without the norm of the pooled vector"),
    "row-softmax": Method(dynamic(normalization="rows"), "a softmax of rows in place of Sinkhorn's iteration"),
    "hard-logit": Method(dynamic(start_logit=2.0), "a start four times as far from uniform"),
    "constant-temperature": Method(dynamic(end_temperature=None), "one temperature throughout"),
    "slow-head": Method(
        dynamic(start_logit=1.0, temperature=1.0, end_temperature=0.1), "twice the temperature, of the same start"
    ),
    "narrow-head": Method(dynamic(hidden=4), "four hidden units"),
    "early-binarization": Method(dynamic(binarize_from=0.0), "straight-through from the start"),
    "early-regulariser": Method(dynamic(regularize_from=0.0, regularize_fully=0.0), "regularised from the start"),
    "late-regulariser": Method(dynamic(regularize_from=0.5), "not regularised before the middle"),
    "straight-through-0.3": Method(dynamic(binarize_from=0.3), "straight-through from three tenths on"),
    "straight-through-0.5": Method(dynamic(binarize_from=0.5), "straight-through from the middle on"),
    "soft": Method(dynamic(binarize_from=1.0), "binarized in evaluation only"),
    "no-regulariser": Method(dynamic(regularize_from=1.0, regularize_fully=1.0), "without the regulariser"),
    "information": Method(dynamic(information=1.0), "with mutual information in the loss"),
    "random-start": Method(dynamic(start="random"), "a random start"),
    "per-group": Method(dynamic(per_group=True), "a pair of factors for each group", per_group=True),
    "static-dynamic": Method(static_dynamic("kronecker"), "static-dynamic layers, a Kronecker product"),
    "static-dynamic-grouped": Method(static_dynamic("grouped"), "static-dynamic layers, a grouped convolution"),
    "hard": Method(lambda channels, groups: partial(HardDynamicShuffle, groups), "the recipe of before"),
    "factors": Method(dynamic(dynamic=False), "one permutation, learned for all images"),
    "static": Method(lambda channels, groups: partial(ChannelShuffle, groups), "the fixed shuffle"),
    "oracle": Method(lambda channels, groups: Identity, "every image in the same order, no mixer", oracle=True),
}
"""By name, in the order of the table."""
