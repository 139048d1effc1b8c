"""From a configuration to a network: the one place where names become modules."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

import flax.linen as nn
import jax.numpy as jnp

from shuffle_jax.models.shufflenet_v1 import ShuffleNetV1
from shuffle_jax.models.shufflenet_v2 import ShuffleNetV2
from shuffle_jax.models.stem import StemKind
from shuffle_jax.nn import (
    AutoShuffle,
    ChannelShuffle,
    DynamicShuffle,
    FactorGenerator,
    FixedPermutation,
    Identity,
    PointwiseConv,
    SqueezeExcitation,
    StaticDynamicShuffle,
)
from shuffle_jax.nn.dynamic_shuffle import Evaluation

Family = Literal["shufflenet_v1", "shufflenet_v2"]
MixerKind = Literal["auto", "shuffle", "random", "identity", "dynamic", "factors", "squeeze"]
PointwiseKind = Literal["plain", "static_dynamic"]


@dataclass(frozen=True)
class DynamicConfig:
    """Layers that depend on the image: mixers "dynamic", "factors" and "squeeze", 1x1 layers "static_dynamic"."""

    groups: int | None = None
    """Groups of the Kronecker product and of the shuffle behind it; those of the network's own shuffle by default. More
    groups have smaller factors and a smaller head."""

    per_group: bool = False
    """A pair of factors for each group, and not one that all share. Mixers only."""

    hidden: int | None = None
    """Hidden units of each head; the larger of 4 and a sixteenth of the channels by default."""

    start: Literal["identity", "random"] = "identity"
    """Start of the factors: identities, with which mixers are the fixed shuffle, or random."""

    start_logit: float = 4.0
    """How far the start "identity" is from the next permutation: the logits on the diagonals, above 0."""

    normalization: Literal["rows", "sinkhorn"] = "rows"
    """Of the factors: the softmax of every row, or of rows and columns in turn."""

    temperature: float = 1.0
    """Of the softmax of the factors at the start."""

    end_temperature: float | None = None
    """At the end of the training, approached geometrically; None for no change."""

    binarize_from: float = 0.0
    """Share of the training from which factors are binarized, with straight-through gradients; 1 for in evaluation
    only."""

    evaluation: Evaluation = "hard"
    """Factors in evaluation: "hard", "soft", or "repaired" (by assignment where the hard ones are no permutations)."""

    pointwise_groups: int | None = None
    """Groups of the Kronecker product of 1x1 layers; those of the convolution they replace by default."""

    static: Literal["kronecker", "grouped"] = "kronecker"
    """Static part of 1x1 layers: factors added to the dynamic ones, or a grouped convolution before a shuffle."""

    replaced: Literal["square", "all"] = "square"
    """Which 1x1 layers become static-dynamic: those with as many channels out as in, or all."""

    def __post_init__(self) -> None:
        for name in ("groups", "pointwise_groups", "hidden"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} of dynamic layers is {value}: give 1 or more, or None for the default")
        for name in ("temperature", "end_temperature", "start_logit"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise ValueError(f"{name} of dynamic layers is {value}: give a number above 0")
        if not 0 <= self.binarize_from <= 1:
            raise ValueError(f"binarize_from is {self.binarize_from}: give a share of the training, from 0 to 1")


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
    """"auto": learned permutations; "shuffle": the fixed one of the paper; "random": fixed random ones; "identity";
    "dynamic": made for each image; "factors": the same, learned once for all images; "squeeze": squeeze-excitation."""

    mixer_seed: int = 0
    """Seed of the random permutations. mixer = random only."""

    auto_start: Literal["random", "shuffle"] = "random"
    """Start of the learned permutations: random, or the fixed shuffle blended with it. mixer = auto only."""

    auto_candidates: int | None = None
    """Inputs that each output of a learned permutation averages at the start; None for all. mixer = auto only."""

    auto_noise: float = 0.5
    """Share of noise in the start "shuffle", above 0 and at most 1. mixer = auto only."""

    pointwise: PointwiseKind = "plain"
    """1x1 layers: "plain" convolutions, or "static_dynamic" shuffles."""

    dynamic: DynamicConfig = field(default_factory=DynamicConfig)
    """Options of dynamic mixers and 1x1 layers."""

    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of the computation. Parameters, statistics and penalties are float32 in either case."""


def build(config: NetworkConfig, classes: int) -> nn.Module:
    """Builds a network.

    Args:
        config: which one.
        classes: number of logits.

    Returns:
        A module ``(images, train) -> logits``.

    Raises:
        ValueError: the configuration asks for 1x1 layers that the family has not.
    """
    dtype = jnp.dtype(config.dtype)
    match config.family:
        case "shufflenet_v1":
            mixer = mixer_factory(config, config.groups)
            pointwise = pointwise_factory(config)
            return ShuffleNetV1(classes, config.groups, config.width, config.stem, mixer, pointwise, dtype=dtype)
        case "shufflenet_v2":
            mixer = mixer_factory(config, groups=2)
            return ShuffleNetV2(classes, config.width, config.stem, mixer, pointwise_factory(config), dtype)


def is_dynamic(config: NetworkConfig) -> bool:
    """Whether the network has layers with factors, of :class:`shuffle_jax.nn.FactorGenerator`."""
    return config.mixer in ("dynamic", "factors") or config.pointwise == "static_dynamic"


def mixer_factory(config: NetworkConfig, groups: int) -> Callable[..., nn.Module]:
    """The factory of the configured mixer for a network that mixes across ``groups`` channel groups."""
    options = config.dynamic
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
        case "dynamic" | "factors":
            return partial(
                DynamicShuffle,
                groups=groups if options.groups is None else options.groups,
                per_group=options.per_group,
                generator=_generator(options, dynamic=config.mixer == "dynamic"),
                binarize_from=options.binarize_from,
                evaluation=options.evaluation,
            )
        case "squeeze":
            return partial(SqueezeExcitation, groups=groups, hidden=options.hidden)


def pointwise_factory(config: NetworkConfig) -> Callable[..., nn.Module]:
    """The factory of the configured 1x1 layers."""
    if config.pointwise == "plain":
        return PointwiseConv
    options = config.dynamic
    if config.family == "shufflenet_v1" and options.replaced == "square":
        raise ValueError(
            "no 1x1 layer of ShuffleNetV1 has as many channels out as in: choose --network.dynamic.replaced all"
        )
    return partial(
        StaticDynamicShuffle,
        blocks=options.pointwise_groups,
        static=options.static,
        replaced=options.replaced,
        generator=_generator(options, dynamic=True),
        binarize_from=options.binarize_from,
        evaluation=options.evaluation,
    )


def _generator(options: DynamicConfig, dynamic: bool) -> Callable[..., nn.Module]:
    return partial(
        FactorGenerator,
        dynamic=dynamic,
        hidden=options.hidden,
        start=options.start,
        start_logit=options.start_logit,
        normalization=options.normalization,
        temperature=options.temperature,
        end_temperature=options.end_temperature,
    )
