"""Every field of a configuration reaches its network."""

from __future__ import annotations

from dataclasses import replace
from typing import get_args

import jax.numpy as jnp
import pytest

from shuffle_jax.models import NetworkConfig, ShuffleNetV1, ShuffleNetV2, build
from shuffle_jax.models.config import (
    AttentionConfig,
    DecompositionConfig,
    DynamicConfig,
    Family,
    MixerKind,
    ShiftConfig,
)
from shuffle_jax.models.decomposition import basic_sizes
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
    SqueezeExcitation,
    StaticDynamicShuffle,
)
from shuffle_jax.nn.dynamic_conv import default_sizes


def test_v1():
    config = NetworkConfig("shufflenet_v1", width=1.5, groups=8, stem="imagenet", dtype="bfloat16")
    network = build(config, classes=7)
    assert isinstance(network, ShuffleNetV1)
    assert (network.classes, network.groups, network.width, network.stem) == (7, 8, 1.5, "imagenet")
    assert network.dtype == jnp.bfloat16
    assert network.head_bias


def test_v2():
    network = build(NetworkConfig("shufflenet_v2", width=2.0, groups=8), classes=7)
    assert isinstance(network, ShuffleNetV2)
    assert (network.classes, network.width, network.stem, network.dtype) == (7, 2.0, "small", jnp.float32)


MIXERS = {
    "auto": lambda groups: AutoShuffle(start="shuffle", noise=0.25, groups=groups),
    "shuffle": lambda groups: ChannelShuffle(groups=groups),
    "shift": lambda groups: ChannelShift(groups=groups),
    "random": lambda groups: FixedPermutation(seed=9),
    "identity": lambda groups: Identity(),
    "squeeze": lambda groups: SqueezeExcitation(groups=groups, hidden=5),
}
OPTIONS = DynamicConfig(
    per_group=True,
    hidden=5,
    start="random",
    start_logit=2.5,
    normalization="sinkhorn",
    temperature=2.0,
    end_temperature=0.5,
    binarize_from=0.25,
    evaluation="repaired",
    pointwise_groups=7,
    static="grouped",
    replaced="all",
)


@pytest.mark.parametrize("mixer", MIXERS)
@pytest.mark.parametrize(("family", "groups"), [("shufflenet_v1", 4), ("shufflenet_v2", 2), ("addressnet", 4)])
def test_mixers_have_their_options_and_the_groups_of_the_family(family, groups, mixer):
    options = {"auto_start": "shuffle", "auto_noise": 0.25, "dynamic": OPTIONS}
    config = NetworkConfig(family, groups=4, mixer=mixer, mixer_seed=9, **options)
    found = build(config, classes=2).mixer
    if (family, mixer) == ("addressnet", "shift"):
        assert found is None  # It is fused with what follows it.
    else:
        assert found() == MIXERS[mixer](groups)


def test_addressnet_has_its_options():
    shift = ShiftConfig(boundary="wrap", shortcut="shift")
    network = build(NetworkConfig("addressnet", depth=44, mixer="shift", shift=shift, dtype="bfloat16"), classes=7)
    assert (network.classes, network.depth, network.stem) == (7, 44, "small")
    assert (network.shortcut, network.boundary, network.pointwise, network.dtype) == ("shift", "wrap", None, "bfloat16")


def test_shift_resnet_has_its_options():
    network = build(
        NetworkConfig("shift_resnet", depth=56, mixer="identity", shift=ShiftConfig(expansion=6)), classes=7
    )
    assert (network.classes, network.depth, network.expansion) == (7, 56, 6)


def test_mobilenet_takes_address_shifts_for_its_depthwise_convolutions():
    config = NetworkConfig("mobilenet_v2", mixer="identity", spatial="address", shift=ShiftConfig(boundary="zero"))
    assert build(config, classes=2).shift(stride=2) == AddressShift(boundary="zero", stride=2)
    assert build(replace(config, spatial="depthwise"), classes=2).shift is None


@pytest.mark.parametrize("mixer", ["dynamic", "factors"])
@pytest.mark.parametrize(("family", "groups"), [("shufflenet_v1", 4), ("shufflenet_v2", 2)])
@pytest.mark.parametrize("own_groups", [None, 12])
def test_dynamic_mixers_have_their_options(family, groups, mixer, own_groups):
    options = replace(OPTIONS, groups=own_groups)
    found = build(NetworkConfig(family, groups=4, mixer=mixer, dynamic=options), classes=2).mixer()
    assert isinstance(found, DynamicShuffle)
    assert (found.groups, found.per_group) == (own_groups or groups, True)
    assert (found.binarize_from, found.evaluation) == (0.25, "repaired")
    assert found.generator(sizes=(2, 3)) == generator(dynamic=mixer == "dynamic")


def generator(dynamic):
    starts = {"start": "random", "start_logit": 2.5}
    options = {"normalization": "sinkhorn", "temperature": 2.0, "end_temperature": 0.5}
    return FactorGenerator((2, 3), dynamic=dynamic, hidden=5, **starts, **options)


@pytest.mark.parametrize("family", get_args(Family))
def test_static_dynamic_layers_have_their_options(family):
    config = NetworkConfig(family, mixer="identity", pointwise="static_dynamic", dynamic=OPTIONS)
    found = build(config, classes=2).pointwise(features=14)
    assert isinstance(found, StaticDynamicShuffle)
    assert (found.blocks, found.static, found.replaced) == (7, "grouped", "all")
    assert (found.binarize_from, found.evaluation) == (0.25, "repaired")
    assert found.generator(sizes=(2, 3)) == generator(dynamic=True)


def test_every_kind_of_mixer_is_built():
    assert {*MIXERS, "dynamic", "factors"} == set(get_args(MixerKind))


def test_shufflenet_v1_has_no_square_layers_to_replace():
    with pytest.raises(ValueError, match=r"as many channels out as in: choose --network\.dynamic\.replaced all"):
        build(NetworkConfig("shufflenet_v1", pointwise="static_dynamic"), classes=2)


@pytest.mark.parametrize("family", ["shufflenet_v1", "shufflenet_v2"])
def test_by_default_permutations_are_learned_in_a_network_for_small_images(family):
    network = build(NetworkConfig(family), classes=2)
    assert isinstance(network.mixer(), AutoShuffle)
    assert network.stem == "small"


DYNAMIC = {
    "dcd": DynamicConv(14, squeeze=8, latent=6, blocks=2, elements=3, form="kernels"),
    "condconv": CondConv(14, count=5, form="features"),
    "dyconv": DYConv(14, count=5, temperature=9.0, end_temperature=2.0, form="features"),
}


@pytest.mark.parametrize("kind", DYNAMIC)
@pytest.mark.parametrize("family", get_args(Family))
def test_dynamic_convolutions_have_their_options(family, kind):
    dcd = DecompositionConfig(squeeze=8, latent=6, blocks=2, elements=3, form="kernels")
    attention = AttentionConfig(kernels=5, temperature=9.0, end_temperature=2.0, form="features")
    network = build(NetworkConfig(family, mixer="identity", pointwise=kind, dcd=dcd, attention=attention), classes=2)
    found = [network.pointwise(features=14)] + ([network.conv(features=14)] if family == "resnet" else [])
    for layer in found:
        expected = DYNAMIC[kind]
        if kind == "dcd":  # Start and rule are those of the family.
            expected = expected.clone(
                rule=basic_sizes if family == "resnet" else default_sizes, head_init=layer.head_init
            )
        assert layer == expected


def test_kernels_are_as_many_as_in_their_papers():
    counts = [
        build(NetworkConfig("mobilenet_v2", mixer="identity", pointwise=kind), classes=2).pointwise(features=4).count
        for kind in ("condconv", "dyconv")
    ]
    assert counts == [8, 4]


def test_sizes_of_deep_resnets_are_those_of_bottlenecks():
    config = NetworkConfig("resnet", depth=50, mixer="identity", pointwise="dcd", head="dcd")
    network = build(config, classes=2)
    assert network.conv(features=4).kind == network.pointwise(features=4).kind == "bottleneck"
    assert isinstance(network.head(features=2), DynamicDense)


@pytest.mark.parametrize(
    "config, message",
    [
        (NetworkConfig("resnet"), "resnet has no shuffle for --network.mixer auto: choose identity"),
        (NetworkConfig("shufflenet_v2", head="dcd"), "has a plain classifier without dropout"),
        (NetworkConfig("addressnet", head="dcd"), "has a plain classifier without dropout"),
        (NetworkConfig("addressnet", mixer="shift", pointwise="static_dynamic"), "replaced all"),
        (NetworkConfig("resnet", mixer="identity", spatial="address"), "no place for --network.spatial address"),
        (NetworkConfig("shift_resnet", mixer="identity", stem="imagenet"), "choose --network.stem small"),
        (NetworkConfig("shift_resnet", mixer="shift"), "has no shuffle for --network.mixer shift"),
        (NetworkConfig("shufflenet_v1", dropout=0.5), "has a plain classifier without dropout"),
        (NetworkConfig("mobilenet_v2", mixer="identity", pointwise="static_dynamic"), "replaced all"),
        (NetworkConfig("resnet", mixer="identity", pointwise="static_dynamic"), "depth of 50 or more"),
    ],
)
def test_what_a_family_has_not_is_refused(config, message):
    with pytest.raises(ValueError, match=message):
        build(config, classes=2)


@pytest.mark.parametrize(
    "make",
    [
        lambda: ShiftConfig(expansion=0),
        lambda: DecompositionConfig(squeeze=0),
        lambda: DecompositionConfig(elements=-1),
        lambda: AttentionConfig(0),
    ],
)
def test_options_below_their_range_are_refused(make):
    with pytest.raises(ValueError, match="give"):
        make()
