"""From a configuration to a network: the one place where names become modules."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import flax.linen as nn
import jax.numpy as jnp

from shuffle_jax.models import mobilenet_v2, resnet
from shuffle_jax.models.addressnet import GROUPS, AddressNet
from shuffle_jax.models.config import DynamicConfig, NetworkConfig
from shuffle_jax.models.mobilenet_v2 import MobileNetV2
from shuffle_jax.models.resnet import ResNet
from shuffle_jax.models.shift_resnet import ShiftResNet
from shuffle_jax.models.shufflenet_v1 import ShuffleNetV1
from shuffle_jax.models.shufflenet_v2 import ShuffleNetV2
from shuffle_jax.nn import (
    AddressShift,
    AutoShuffle,
    ChannelShift,
    ChannelShuffle,
    CondConv,
    DYConv,
    DynamicConv,
    DynamicDense,
    DynamicShuffle,
    FactorGenerator,
    FixedPermutation,
    Identity,
    PointwiseConv,
    SqueezeExcitation,
    StaticDynamicShuffle,
)
from shuffle_jax.nn.dense import Dense
from shuffle_jax.nn.dynamic_conv import Kind

MIXING = ("shufflenet_v1", "shufflenet_v2", "addressnet")
"""Families with a place for a mixer."""
HEADED = ("mobilenet_v2", "resnet")
"""Families with an exchangeable classifier."""
Factory = Callable[..., nn.Module]


def build(config: NetworkConfig, classes: int) -> nn.Module:
    """Builds a network.

    Args:
        config: which one.
        classes: number of logits.

    Returns:
        A module ``(images, train) -> logits``.

    Raises:
        ValueError: the configuration asks for something that the family has not.
    """
    _check(config)
    dtype, pointwise = jnp.dtype(config.dtype), pointwise_factory(config)
    match config.family:
        case "shufflenet_v1":
            mixer = mixer_factory(config, config.groups)
            return ShuffleNetV1(classes, config.groups, config.width, config.stem, mixer, pointwise, dtype=dtype)
        case "shufflenet_v2":
            mixer = mixer_factory(config, groups=2)
            return ShuffleNetV2(classes, config.width, config.stem, mixer, pointwise, dtype)
        case "mobilenet_v2":
            shift = partial(AddressShift, boundary=config.shift.boundary) if config.spatial == "address" else None
            head = head_factory(config)
            return MobileNetV2(classes, config.width, config.stem, pointwise, head, config.dropout, dtype, shift)
        case "resnet":
            conv, head = conv_factory(config), head_factory(config)
            return ResNet(
                classes, config.depth, config.width, config.stem, conv, pointwise, head, config.dropout, dtype
            )
        case "addressnet":
            # None stands for the channel shift and the plain convolution that are fused.
            return AddressNet(
                classes,
                config.depth,
                config.stem,
                config.shift.shortcut,
                mixer=None if config.mixer == "shift" else mixer_factory(config, GROUPS),
                pointwise=None if config.pointwise == "plain" else pointwise,
                boundary=config.shift.boundary,
                dtype=dtype,
            )
        case "shift_resnet":
            return ShiftResNet(classes, config.depth, config.shift.expansion, pointwise=pointwise, dtype=dtype)


def _check(config: NetworkConfig) -> None:
    if config.family not in MIXING and config.mixer != "identity":
        raise ValueError(f"{config.family} has no shuffle for --network.mixer {config.mixer}: choose identity")
    if config.family not in HEADED and (config.head != "plain" or config.dropout != 0):
        raise ValueError(f"{config.family} has a plain classifier without dropout: leave --network.head and .dropout")
    if config.family != "mobilenet_v2" and config.spatial != "depthwise":
        raise ValueError(f"{config.family} has no place for --network.spatial {config.spatial}: leave it at depthwise")
    if config.family == "shift_resnet" and config.stem != "small":
        raise ValueError("shift_resnet is for small images: choose --network.stem small")
    if config.pointwise != "static_dynamic" or config.dynamic.replaced == "all":
        return
    if config.family in ("shufflenet_v1", "mobilenet_v2", "addressnet", "shift_resnet"):
        raise ValueError(
            f"no 1x1 layer of {config.family} has as many channels out as in: choose --network.dynamic.replaced all"
        )
    if config.family == "resnet" and config.depth < resnet.BOTTLENECK_FROM:
        raise ValueError(f"a ResNet of depth {config.depth} has no 1x1 layers: choose a depth of 50 or more")


def is_dynamic(config: NetworkConfig) -> bool:
    """Whether the network has layers with factors, of :class:`shuffle_jax.nn.FactorGenerator`."""
    return config.mixer in ("dynamic", "factors") or config.pointwise == "static_dynamic"


def mixer_factory(config: NetworkConfig, groups: int) -> Factory:
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
        case "shift":
            return partial(ChannelShift, groups=groups)
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


def pointwise_factory(config: NetworkConfig) -> Factory:
    """The factory of the configured 1x1 layers."""
    if config.pointwise == "plain":
        return mobilenet_v2.static_pointwise if config.family in HEADED else PointwiseConv
    if config.pointwise != "static_dynamic":
        return _dynamic_conv(config)
    options = config.dynamic
    return partial(
        StaticDynamicShuffle,
        blocks=options.pointwise_groups,
        static=options.static,
        replaced=options.replaced,
        generator=_generator(options, dynamic=True),
        binarize_from=options.binarize_from,
        evaluation=options.evaluation,
    )


def conv_factory(config: NetworkConfig) -> Factory:
    """The factory of the configured k x k layers of ResNet."""
    return resnet.static_conv if config.pointwise in ("plain", "static_dynamic") else _dynamic_conv(config)


def head_factory(config: NetworkConfig) -> Factory:
    """The factory of the configured classifier of MobileNetV2 and ResNet."""
    mobile = config.family == "mobilenet_v2"
    if config.head == "plain":
        return mobilenet_v2.small_normal_dense if mobile else Dense
    init = _dense_init(config)
    return partial(DynamicDense, kernel_init=init, head_init=init)


def _dynamic_conv(config: NetworkConfig) -> Factory:
    """Convolutions that depend on the image, of any kernel size."""
    attention, count = config.attention, config.attention.kernels
    match config.pointwise:
        case "condconv":
            return partial(CondConv, count=count or CondConv.count, form=attention.form)
        case "dyconv":
            return partial(
                DYConv,
                count=count or DYConv.count,
                temperature=attention.temperature,
                end_temperature=attention.end_temperature,
                annealing=attention.annealing,
                form=attention.form,
            )
        case _:
            options, kind = config.dcd, _kind(config)
            return partial(
                DynamicConv,
                kind=kind,
                squeeze=options.squeeze,
                latent=options.latent,
                blocks=options.blocks,
                elements=options.elements,
                form=options.form,
                head_init=_dense_init(config),
            )


def _kind(config: NetworkConfig) -> Kind:
    if config.family != "resnet":
        return "mobilenet"
    return "bottleneck" if config.depth >= resnet.BOTTLENECK_FROM else "basic"


def _dense_init(config: NetworkConfig) -> nn.initializers.Initializer:
    """As the published networks start theirs: N(0, 0.01), in ResNet U(-1, 1) / sqrt(inputs)."""
    if config.family == "resnet":
        return nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
    return nn.initializers.normal(0.01)


def _generator(options: DynamicConfig, dynamic: bool) -> Factory:
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
