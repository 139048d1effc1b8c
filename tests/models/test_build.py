"""Every choice and every option of a configuration reaches its network, and what a network has not is refused."""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Literal, get_args, get_origin

import jax
import jax.numpy as jnp
import pytest

from shuffle_jax.models import NetworkConfig, build
from shuffle_jax.models.build import factory
from shuffle_jax.models.config import GROUPS
from shuffle_jax.models.options import module_of, options
from shuffle_jax.models.parts import KINDS, MIXERS, NETWORKS
from shuffle_jax.nn import (
    AutoShuffle,
    ChannelShift,
    ChannelShuffle,
    DynamicConv,
    DynamicDense,
    FactorGenerator,
    HardFactorGenerator,
    StaticDynamicShuffle,
)

CALLED = {"mixer": {}, "pointwise": {"features": 4}, "spatial": {"stride": 1}, "sampling": {}, "head": {"features": 2}}
"""What a network gives a part when it makes it."""
WITH_OPTIONS = [
    (kind, name)
    for kind, table in KINDS.items()
    for name, part in table.items()
    if part.make is not None and options(kind, part.make)
]


def other(option):
    """A value that is not the default."""
    kind = next((one for one in get_args(option.kind) if one is not type(None)), option.kind)
    if get_origin(option.kind) is Literal:
        return next(choice for choice in get_args(option.kind) if choice != option.default)
    return not option.default if kind is bool else kind(0.125 if kind is float else 13)


@pytest.mark.parametrize(("kind", "name"), WITH_OPTIONS)
def test_every_option_reaches_its_module(kind, name):
    make, _, group = KINDS[kind][name]
    chosen = {option.name: other(option) for option in options(kind, make).values()}
    config = NetworkConfig(**{"family": "shufflenet_v2", kind: name, (group or name): chosen})
    made = build(config, 5) if kind == "family" else factory(config, kind)(**CALLED[kind])
    assert isinstance(made, module_of(make))
    inner = made.generator(sizes=(2, 3)) if "start_logit" in chosen else made
    for option, value in chosen.items():
        assert getattr(made if hasattr(made, option) else inner, option) == value, option
    if (soft := name.removesuffix("_hard")) in ("dynamic", "factors", "static_dynamic"):
        assert type(inner) is (FactorGenerator if name == soft else HardFactorGenerator)
        assert inner.dynamic == (soft != "factors")
    assert {option.name for option in dataclasses.fields(GROUPS[group or name])} >= set(chosen)


@pytest.mark.parametrize("family", NETWORKS)
def test_every_network_has_the_common_options(family):
    values = {"width": 0.5, "depth": 50, "groups": 8, "stem": "imagenet", "dropout": 0.25, "dtype": "bfloat16"}
    values |= {"sizes": (8, 9)}
    names = {field.name for field in dataclasses.fields(NETWORKS[family].make)}
    has = {name: value for name, value in values.items() if name in names}
    network = build(NetworkConfig(family, **has), 7)
    assert type(network) is NETWORKS[family].make
    assert network.classes == 7
    assert {name: getattr(network, name) for name in has} == has
    assert set(values) - set(has) == {
        "shufflenet_v1": {"depth", "sizes"},
        "shufflenet_v2": {"depth", "groups"},
        "mobilenet_v2": {"depth"},
        "resnet": set(),
        "addressnet": {"width", "sizes"},
        "shift_resnet": {"width", "stem", "sizes"},
        "anchored": {"groups", "stem", "sizes"},
        "coresnet": {"sizes"},
    }[family]  # fmt: skip
    for name in set(values) - set(has):
        with pytest.raises(ValueError, match=f"{family} has no {name}, got .*: leave --network.{name} at .*it has "):
            build(NetworkConfig(family, **{name: values[name]}), 7)


@pytest.mark.parametrize("family", NETWORKS)
def test_every_network_takes_every_mixer_in_its_groups_or_others(family):
    own = build(NetworkConfig(family), 2).mixing_groups
    for mixer, (make, _, group) in MIXERS.items():
        found = build(NetworkConfig(family, mixer=mixer), 2).mixer()
        assert isinstance(found, module_of(make))
        if "groups" in options("mixer", make):
            assert found.groups == own
            assert build(NetworkConfig(family, mixer=mixer, **{group or mixer: {"groups": 6}}), 2).mixer().groups == 6
    assert type(build(NetworkConfig(family), 2).mixer()) is AutoShuffle


def test_dense_networks_have_no_groups_and_others_those_of_their_papers():
    groups = {family: build(NetworkConfig(family), 2).mixing_groups for family in NETWORKS}
    assert groups == {"shufflenet_v1": 3, "shufflenet_v2": 2, "addressnet": 4, "anchored": 2} | dict.fromkeys(
        ("mobilenet_v2", "resnet", "shift_resnet", "coresnet"), 1
    )
    assert build(NetworkConfig("addressnet", mixer="shift"), 2).mixer() == ChannelShift(groups=4)


def test_layers_of_any_size_are_those_of_resnet_and_1x1_layers_are_not():
    for pointwise in ("dcd", "condconv", "dyconv"):
        network = build(NetworkConfig("resnet", pointwise=pointwise), 2)
        assert network.conv(features=4) == network.pointwise(features=4)
    layers = build(NetworkConfig("resnet", pointwise="static_dynamic", dynamic={"replaced": "all"}), 2)
    plain = build(NetworkConfig("resnet"), 2)
    assert layers.conv == plain.conv
    assert isinstance(layers.pointwise(features=4), StaticDynamicShuffle)
    assert (plain.pointwise, plain.head) == (type(plain)(2).pointwise, type(plain)(2).head)


def test_layers_start_from_what_their_network_says_and_from_what_is_chosen():
    network = build(NetworkConfig("resnet", depth=50, pointwise="dcd", head="dcd", dcd={"latent": 6}), 2)
    own = network.layer_defaults()
    layer, head = network.conv(features=4), network.head(features=2)
    assert (layer.rule, layer.head_init, layer.latent) == (own[DynamicConv]["rule"], own[DynamicConv]["head_init"], 6)
    assert (head.kernel_init, head.latent) == (own[DynamicDense]["kernel_init"], 32)
    assert layer.rule is not build(NetworkConfig("resnet", pointwise="dcd"), 2).conv(features=4).rule


def test_kernels_are_as_many_as_in_their_papers():
    kinds = ("condconv", "dyconv")
    assert [factory(NetworkConfig(pointwise=kind), "pointwise")(features=4).count for kind in kinds] == [8, 4]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"mixer": "shufle"}, "--network.mixer has no choice 'shufle'; near: shuffle, .*or your own as module:Name"),
        ({"family": "addressnet", "spatial": "address"}, "no place for --network.spatial address: choose depthwise"),
        (
            {"family": "addressnet", "shift": {"expansion": 2}},
            "no option expansion: leave .* at 3 .it has boundary",
        ),
        (
            {"mixer": "squeeze", "dynamic": {"blocks": 2}},
            "no option blocks: leave --network.dynamic.blocks at None",
        ),
        ({"pointwise": "condconv", "attention": {"annealing": 0.5}}, "condconv has no option annealing: leave"),
        ({"family": "shufflenet_v1", "pointwise": "static_dynamic"}, "choose --network.dynamic.replaced all"),
        ({"family": "resnet", "pointwise": "static_dynamic"}, "no 1x1 layer of resnet has as many channels out as in"),
    ],
)
def test_what_a_network_has_not_is_refused(config, message):
    with pytest.raises(ValueError, match=message):
        build(NetworkConfig(**config), classes=2)


def test_options_of_parts_that_are_not_chosen_are_not_read():
    """So that a preset with options for its mixer is one of every mixer."""
    preset = NetworkConfig(auto={"candidates": 4}, dcd={"squeeze": 8})
    assert build(dataclasses.replace(preset, mixer="shuffle"), 2).mixer() == ChannelShuffle(groups=2)


@pytest.mark.parametrize(
    ("kind", "name", "wrong"),
    [
        ("mixer", "auto", {"start": "shuffle", "noise": 0.0}),
        *(("mixer", "dynamic", wrong) for wrong in ({"groups": 0}, {"start_logit": 0.0}, {"binarize_from": 1.5})),
        *(("mixer", "factors", wrong) for wrong in ({"temperature": 0.0}, {"end_temperature": -1.0})),
        *(("mixer", name, {"hidden": 0}) for name in ("dynamic", "squeeze")),
        ("pointwise", "static_dynamic", {"replaced": "all", "blocks": 0}),
        *(("pointwise", "dcd", wrong) for wrong in ({"squeeze": 0}, {"latent": 0}, {"elements": -1}, {"blocks": 0})),
        *(("pointwise", "dyconv", wrong) for wrong in ({"count": 0}, {"temperature": 0.0}, {"annealing": 0.0})),
        *(("pointwise", "rolling", wrong) for wrong in ({"default_groups": 0}, {"default_groups": 2, "overlap": 1.0})),
        ("family", "shift_resnet", {"expansion": 0}),
    ],
)
def test_values_out_of_range_are_refused_by_the_part_itself(kind, name, wrong):
    config = NetworkConfig(**{kind: name, (KINDS[kind][name].group or name): wrong})
    made = build(config, 2) if kind == "family" else factory(config, kind)(**CALLED[kind])
    apply = partial(made.init, jax.random.key(0))
    with pytest.raises(ValueError, match=r".") as error:
        jax.eval_shape(apply, jnp.zeros((1, 8, 8, 12)))
    option = list(wrong)[-1]
    assert str(wrong[option]) in str(error.value)
    assert "\n" not in str(error.value)
