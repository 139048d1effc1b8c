"""From a configuration to a network: the one place where names become modules."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

import flax.linen as nn
import jax.numpy as jnp

from shuffle_jax.models.shufflenet_v1 import ShuffleNetV1
from shuffle_jax.models.shufflenet_v2 import ShuffleNetV2
from shuffle_jax.models.stem import StemKind
from shuffle_jax.nn import AutoShuffle, ChannelShuffle, FixedPermutation, Identity

Family = Literal["shufflenet_v1", "shufflenet_v2"]
MixerKind = Literal["auto", "shuffle", "random", "identity"]


@dataclass(frozen=True)
class NetworkConfig:
    """Which network, and what it mixes channels with."""

    family: Family = "shufflenet_v2"
    """The network family."""

    width: float = 1.0
    """Multiplies the channels: 0.5, 1.0, 1.5 or 2.0."""

    groups: int = 3
    """Groups of the 1x1 convolutions: 1, 2, 3, 4 or 8. ShuffleNetV1 only."""

    stem: StemKind = "small"
    """"imagenet" divides height and width by 4 before the first stage; "small" (up to 32 x 32) keeps them."""

    mixer: MixerKind = "auto"
    """"auto": learned permutations; "shuffle": the fixed one of the paper; "random": fixed random ones; "identity"."""

    mixer_seed: int = 0
    """Seed of the random permutations. mixer = random only."""

    auto_start: Literal["random", "shuffle"] = "random"
    """Start of the learned permutations: random, or the fixed shuffle blended with it. mixer = auto only."""

    auto_candidates: int | None = None
    """Inputs that each output of a learned permutation averages at the start; None for all. mixer = auto only."""

    auto_noise: float = 0.5
    """Share of noise in the start "shuffle", above 0 and at most 1. mixer = auto only."""

    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of the computation. Parameters, statistics and penalties are float32 in either case."""


def build(config: NetworkConfig, classes: int) -> nn.Module:
    """Builds a network.

    Args:
        config: which one.
        classes: number of logits.

    Returns:
        A module ``(images, train) -> logits``.
    """
    dtype = jnp.dtype(config.dtype)
    match config.family:
        case "shufflenet_v1":
            mixer = mixer_factory(config, config.groups)
            return ShuffleNetV1(classes, config.groups, config.width, config.stem, mixer, dtype=dtype)
        case "shufflenet_v2":
            mixer = mixer_factory(config, groups=2)
            return ShuffleNetV2(classes, config.width, config.stem, mixer, dtype=dtype)


def mixer_factory(config: NetworkConfig, groups: int) -> Callable[..., nn.Module]:
    """The factory of the configured mixer for a network that mixes across ``groups`` channel groups."""
    match config.mixer:
        case "auto":
            return partial(
                AutoShuffle,
                start=config.auto_start,
                candidates=config.auto_candidates,
                noise=config.auto_noise,
                groups=groups,
            )
        case "shuffle":
            return partial(ChannelShuffle, groups=groups)
        case "random":
            return partial(FixedPermutation, seed=config.mixer_seed)
        case "identity":
            return Identity
