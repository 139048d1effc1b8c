"""The catalogue holds every published network once."""

from __future__ import annotations

from dataclasses import replace
from typing import get_args

from shuffle_jax.models import shufflenet_v1, shufflenet_v2
from shuffle_jax.models.catalogue import VARIANTS, catalogue
from shuffle_jax.models.config import Family


def configs_of(family, stem):
    return [config for config, *_ in catalogue().values() if (config.family, config.stem) == (family, stem)]


def test_every_entry_is_another_network():
    configs = [entry.config for entry in catalogue().values()]
    assert len(set(configs)) == len(configs)
    assert {config.family for config in configs} == set(get_args(Family))


def test_every_network_has_every_variant():
    entries = catalogue()
    plain = {name for name in entries if name.startswith("shufflenet")}
    assert set(entries) == {f"{prefix}{name}" for name in plain for prefix in VARIANTS}
    for name in plain:
        for prefix, (mixer, pointwise) in VARIANTS.items():
            config, *rest = entries[f"{prefix}{name}"]
            assert (config.mixer, config.pointwise, rest) == (mixer, pointwise, list(entries[name][1:]))
            dynamic = entries[name].config.dynamic
            if config.family == "shufflenet_v1" and pointwise == "static_dynamic":
                dynamic = replace(dynamic, replaced="all")
            assert config == replace(entries[name].config, mixer=mixer, pointwise=pointwise, dynamic=dynamic)


def test_v1_has_every_group_at_width_1_and_every_width_at_3_and_8_groups():
    found = {(config.groups, config.width) for config in configs_of("shufflenet_v1", "imagenet")}
    assert {(groups, 1.0) for groups in shufflenet_v1.CHANNELS} < found
    assert found == {(g, w) for g in shufflenet_v1.CHANNELS for w in shufflenet_v1.WIDTHS if w == 1 or g in (3, 8)}


def test_v2_has_every_width_for_both_stems():
    for stem in ("imagenet", "small"):
        assert {config.width for config in configs_of("shufflenet_v2", stem)} == set(shufflenet_v2.WIDTHS)


def test_names_say_what_is_behind_them():
    for name, (config, image_shape, classes) in catalogue().items():
        small = name.endswith("_32")
        assert (config.stem == "small", image_shape[0] == 32, classes == 10) == (small,) * 3
        groups = f"_g{config.groups}" if config.family == "shufflenet_v1" else ""
        prefix = next(p for p in sorted(VARIANTS, key=len, reverse=True) if name.startswith(p))
        assert name.removeprefix(prefix).removesuffix("_32") == f"{config.family}{groups}_{config.width}x"
