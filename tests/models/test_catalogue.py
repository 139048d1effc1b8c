"""The catalogue holds every published network once."""

from __future__ import annotations

from dataclasses import replace

import pytest

from shuffle_jax.analysis.count import Known, count
from shuffle_jax.models import (
    addressnet,
    anchored,
    build,
    mobilenet_v2,
    resnet,
    shift_resnet,
    shufflenet_v1,
    shufflenet_v2,
)
from shuffle_jax.models.catalogue import (
    ADDRESSNETS,
    ANCHORED,
    CORESNETS,
    MOBILENETS,
    RESNETS,
    SHIFT_RESNETS,
    SHUFFLENETS,
    SHUFFLENETS_V1,
    catalogue,
)
from shuffle_jax.models.parts import NETWORKS


@pytest.fixture(scope="module")
def known():
    found: Known = {}
    return found


def configs_of(family, stem):
    return [config for config, *_ in catalogue().values() if (config.family, config.stem) == (family, stem)]


def test_every_entry_is_another_network():
    configs = [entry.config for entry in catalogue().values()]
    assert len(set(configs)) == len(configs)
    assert {config.family for config in configs} == set(NETWORKS)


VARIANTS = {
    "shufflenet_v1": SHUFFLENETS_V1,
    "shufflenet_v2": SHUFFLENETS,
    "mobilenet_v2": MOBILENETS,
    "resnet": RESNETS,
    "addressnet": ADDRESSNETS,
    "shift_resnet": SHIFT_RESNETS,
    "anchored": ANCHORED,
    "coresnet": CORESNETS,
}


def test_every_network_has_every_variant_of_its_family():
    entries = catalogue()
    plain = {name: entry for name, entry in entries.items() if name.startswith(tuple(VARIANTS))}
    for name, (config, *rest) in plain.items():
        for prefix, variant in VARIANTS[config.family].items():
            assert entries.pop(f"{prefix}{name}") == (replace(config, **variant), *rest)
    assert entries == {}


def test_v1_has_every_group_at_width_1_and_every_width_at_3_and_8_groups():
    found = {(config.groups, config.width) for config in configs_of("shufflenet_v1", "imagenet")}
    assert {(groups, 1.0) for groups in shufflenet_v1.CHANNELS} < found
    assert found == {(g, w) for g in shufflenet_v1.CHANNELS for w in shufflenet_v1.WIDTHS if w == 1 or g in (3, 8)}


def test_v2_has_every_width_for_both_stems():
    for stem in ("imagenet", "small"):
        assert {config.width for config in configs_of("shufflenet_v2", stem)} == set(shufflenet_v2.WIDTHS)


def test_mobilenet_has_every_width_and_resnet_every_depth_for_both_stems():
    for stem in ("imagenet", "small"):
        assert {config.width for config in configs_of("mobilenet_v2", stem)} == set(mobilenet_v2.WIDTHS)
        assert {config.depth for config in configs_of("resnet", stem)} == set(resnet.UNITS)


def test_addressnet_has_one_depth_for_imagenet_and_networks_for_small_images_none():
    assert len(configs_of("addressnet", "imagenet")) == len(ADDRESSNETS)
    assert {config.depth for config in configs_of("addressnet", "small")} == set(addressnet.DEPTHS)
    assert configs_of("shift_resnet", "imagenet") == []
    assert {config.depth for config in configs_of("shift_resnet", "small")} == set(shift_resnet.DEPTHS)
    assert configs_of("anchored", "imagenet") == []
    assert {config.depth for config in configs_of("anchored", "small")} == {anchored.LAYERS, *anchored.UNITS}


def test_names_say_what_is_behind_them():
    families = ("shufflenet", "mobilenet", "resnet", "addressnet", "shift_resnet", "anchored", "coresnet")
    prefixes = sorted({*SHUFFLENETS, *MOBILENETS, *ADDRESSNETS, *ANCHORED}, key=len, reverse=True)
    for name, (config, image_shape, classes) in catalogue().items():
        small = name.endswith("_32")
        assert (config.stem == "small", image_shape[0] == 32, classes == 10) == (small,) * 3
        rests = [name.removeprefix(p) for p in prefixes if name.startswith(p)]
        plain = next(rest for rest in rests if rest.startswith(families)).removesuffix("_32")
        groups = f"_g{config.groups}" if config.family == "shufflenet_v1" else ""
        deep = config.family in ("resnet", "addressnet", "shift_resnet", "anchored", "coresnet")
        own = f"{config.depth}" if deep else f"{groups}_{config.width}x"
        if (config.family, small) == ("addressnet", False):
            own = ""  # The only one for ImageNet.
        assert plain == f"{config.family}{own}"


@pytest.mark.parametrize(
    "name, squeeze, head, parameters",
    [
        ("mobilenet_v2_0.35x", 8, "dcd", 2_267_932),
        ("mobilenet_v2_0.35x", 16, "dcd", 2_099_323),
        ("mobilenet_v2_0.35x", 8, "plain", 2_088_092),
        pytest.param("mobilenet_v2_0.5x", 8, "dcd", 3_056_616, marks=pytest.mark.slow),
        pytest.param("mobilenet_v2_0.5x", 16, "dcd", 2_664_300, marks=pytest.mark.slow),
        pytest.param("mobilenet_v2_0.75x", 8, "dcd", 5_122_650, marks=pytest.mark.slow),
        pytest.param("mobilenet_v2_0.75x", 16, "dcd", 4_081_621, marks=pytest.mark.slow),
        pytest.param("mobilenet_v2_1.0x", 8, "dcd", 7_452_088, marks=pytest.mark.slow),
        ("mobilenet_v2_1.0x", 16, "dcd", 5_720_028),
        ("mobilenet_v2_1.0x", 16, "plain", 5_540_188),
        ("resnet10", 16, "dcd", 6_688_844),
        ("resnet18", 16, "dcd", 14_703_332),
        ("resnet18", 16, "plain", 14_572_644),
        ("resnet34", 16, "dcd", 27_649_068),
        ("resnet50", 16, "dcd", 29_835_056),
        ("resnet50", 16, "plain", 29_606_064),
        ("resnet101", 16, "dcd", 53_227_056),
        ("resnet152", 16, "dcd", 72_516_656),
    ],
)
@pytest.mark.slow
def test_decomposed_networks_have_the_published_parameters(name, squeeze, head, parameters, known):
    config, shape, classes = catalogue()[f"dcd_{name}"]
    config = replace(config, head=head, dcd=replace(config.dcd, squeeze=squeeze))
    assert count(build(config, classes), shape, known=known).parameters == parameters


@pytest.mark.parametrize(
    "name, coded, cheaper, digits",
    [
        ("dcd8_mobilenet_v2_0.35x", 81_105_240, 62.9e6, 0.1e6),
        pytest.param("dcd8_mobilenet_v2_0.5x", 134_259_336, 104.4e6, 0.1e6, marks=pytest.mark.slow),
        pytest.param("dcd_mobilenet_v2_0.75x", 288_718_586, 224.6e6, 0.1e6, marks=pytest.mark.slow),
        ("dcd_mobilenet_v2_1.0x", 402_100_540, 326.3e6, 0.1e6),
        ("dcd_resnet18", 1_884_551_811, 1.838e9, 0.001e9),
        ("dcd_resnet50", 4_381_437_986, 4.218e9, 0.001e9),
    ],
)
def test_decomposed_networks_have_the_published_multiply_adds(name, coded, cheaper, digits, known):
    config, shape, classes = catalogue()[name]
    added = replace(config, dcd=replace(config.dcd, form="features"))
    assert count(build(added, classes), shape, known=known).multiply_adds == coded
    assert abs(count(build(config, classes), shape, known=known).multiply_adds - cheaper) <= digits / 2
