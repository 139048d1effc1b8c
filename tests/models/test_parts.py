"""A part from outside the library is as good as one inside."""

from __future__ import annotations

import dataclasses
import re
import shutil
import sys
from functools import partial
from pathlib import Path

import flax.linen as nn
import jax
import numpy as np
import pytest
from PIL import Image

from shuffle_jax import nn as layers
from shuffle_jax.models import NetworkConfig, ShuffleNetV2, build
from shuffle_jax.models.build import factory
from shuffle_jax.models.config import GROUPS, RENAMED, upgraded
from shuffle_jax.models.options import groups, module_of, with_options
from shuffle_jax.models.parts import KINDS, Part, load_part, part, spec
from shuffle_jax.nn.factors import HardFactorGenerator


@pytest.fixture(autouse=True)
def butterfly(monkeypatch):
    """A module in the current folder, from which ``python -m`` imports."""
    monkeypatch.syspath_prepend(Path(__file__).parent)
    import butterfly

    yield butterfly
    del sys.modules["butterfly"]


def test_a_part_is_found_again_by_its_text(butterfly):
    for thing, text in [
        (butterfly.Butterfly, "butterfly:Butterfly"),
        (partial(butterfly.Butterfly, levels=2), "butterfly:Butterfly(levels=2)"),
        (butterfly.Butterfly(levels=2, name="mixer"), "butterfly:Butterfly(levels=2)"),
        (butterfly.without_mixer, "butterfly:without_mixer"),
        ("butterfly:Butterfly( levels = 2 )", "butterfly:Butterfly(levels=2)"),
        (
            partial(ShuffleNetV2, width=0.5, stem="small"),
            f"{ShuffleNetV2.__module__}:ShuffleNetV2(width=0.5, stem='small')",
        ),
    ]:
        assert spec(thing) == text
        assert spec(load_part(text)) == text
    assert load_part("butterfly:Butterfly(levels=2)")() == butterfly.Butterfly(2)


@pytest.mark.parametrize(
    ("thing", "message"),
    [
        (lambda n: layers.Dense(2 * n), "<lambda> .* cannot be imported again: put it at the top level of a module"),
        (type("Local", (nn.Module,), {"__module__": "__main__"}), "Local of __main__ cannot be imported again"),
        (type("Hidden", (nn.Module,), {"__module__": "butterfly"}), "butterfly has no Hidden"),
        (type("Unit", (nn.Module,), {"__module__": "butterfly"}), "gives another object than the one handed over"),
        (partial(layers.ChannelShuffle, 3), "has positional values"),
        (ShuffleNetV2(3, mixer=layers.Identity), "mixer of ShuffleNetV2 must be .* hand over a function"),
        (3, "must be a class, a function, a partial of one or a linen module, got 3"),
        ("butterfly", "give module:Name"),
        ("butterfly:Butterfly(2)", "options need their names"),
        ("butterfly:Butterfly(levels=two)", "with plain values"),
        ("butterfly:Buterfly", "butterfly has no Buterfly; near: Butterfly"),
        ("no_such_module:Name", "cannot import no_such_module .*; start in the folder that holds the module"),
        ("butterfly:__name__", "must name a class or a function"),
    ],
)  # fmt: skip
def test_what_cannot_be_found_again_is_refused_in_one_line(thing, message):
    with pytest.raises(ValueError, match=message) as error:
        spec(thing)
    assert "\n" not in str(error.value)


def test_a_configuration_keeps_what_is_handed_over_as_its_text(butterfly):
    config = NetworkConfig(family=butterfly.Tiny, mixer=partial(butterfly.Butterfly, levels=2))
    assert (config.family, config.mixer) == ("butterfly:Tiny", "butterfly:Butterfly(levels=2)")
    assert config == NetworkConfig("butterfly:Tiny", mixer="butterfly:Butterfly(levels=2)")
    network = build(config, 5)
    assert isinstance(network, butterfly.Tiny)
    assert network.mixer() == butterfly.Butterfly(levels=2)
    assert build(NetworkConfig("butterfly:Tiny", width=0.5, mixer="shuffle"), 5).width == 0.5
    assert build(NetworkConfig(mixer="butterfly:Butterfly"), 5).mixer() == butterfly.Butterfly()


def test_a_network_may_be_a_function_of_its_classes(butterfly):
    config = NetworkConfig(butterfly.without_mixer, mixer="identity")
    assert build(config, 5) == butterfly.Tiny(5, butterfly.Butterfly)
    with pytest.raises(ValueError, match=r"no place for --network.mixer auto: choose identity, or a network of"):
        build(NetworkConfig("butterfly:without_mixer"), 5)
    with pytest.raises(ValueError, match=r"without_mixer has no width, got 0.5: leave --network.width at 1.0$"):
        build(dataclasses.replace(config, width=0.5), 5)
    with pytest.raises(ValueError, match="has 4 classes, but 5 are needed: leave them out"):
        build(NetworkConfig("butterfly:Tiny(classes=4)"), 5)
    with pytest.raises(ValueError, match="must make a linen module, got "):
        build(NetworkConfig("jax.numpy:zeros", mixer="identity"), 5)


def test_outside_layers_have_their_place_too():
    text = "shuffle_jax.nn:PointwiseConv(use_bias=True)"
    network = build(NetworkConfig("resnet", pointwise=text, head="shuffle_jax.nn.dense:Dense(use_bias=False)"), 5)
    assert network.pointwise(features=3) == layers.PointwiseConv(3, use_bias=True)
    assert network.conv == build(NetworkConfig("resnet"), 5).conv  # It is of 1x1 alone.
    assert not network.head(features=5).use_bias
    shift = build(NetworkConfig("mobilenet_v2", spatial="shuffle_jax.nn:AddressShift(boundary='wrap')"), 5).shift
    assert shift(stride=2) == layers.AddressShift(boundary="wrap", stride=2)
    conv = build(NetworkConfig("resnet", pointwise="shuffle_jax.nn:DYConv(count=3)"), 5).conv
    assert conv(features=3).count == 3


OLD = {
    "type": "NetworkConfig",
    "family": "shufflenet_v1",
    "width": 0.5,
    "groups": 8,
    "stem": "small",
    "mixer": "auto",
    "mixer_seed": 7,
    "auto_start": "shuffle",
    "auto_candidates": 4,
    "auto_noise": 0.25,
    "dtype": "float32",
}
"""As the first version wrote it."""


def test_configurations_of_the_first_version_are_upgraded():
    found = upgraded(OLD)
    del found["type"]
    config = NetworkConfig(**{n: GROUPS[n](**v) if n in GROUPS else v for n, v in without_types(found).items()})
    auto = {"start": "shuffle", "candidates": 4, "noise": 0.25, "unit_rows": False}
    assert config == NetworkConfig("shufflenet_v1", 0.5, groups=8, auto=auto, random={"seed": 7})
    assert upgraded(upgraded(OLD)) == upgraded(OLD)
    by_class = {"mixer": "shuffle_jax.nn.auto_shuffle:AutoShuffle(candidates=4)"}  # no option of a group reaches it
    assert upgraded(by_class)["mixer"] == "shuffle_jax.nn.auto_shuffle:AutoShuffle(candidates=4, unit_rows=False)"
    assert upgraded(upgraded(by_class)) == upgraded(by_class)
    assert upgraded(by_class | {"auto": {"unit_rows": True}})["mixer"] == by_class["mixer"]


def test_dynamic_layers_of_earlier_runs_are_hard_from_the_start():
    own = {"start_logit": 3.0, "normalization": "rows", "temperature": 1.0, "end_temperature": None}
    for kind, name in (("mixer", "dynamic"), ("mixer", "factors"), ("pointwise", "static_dynamic")):
        found = upgraded({kind: name, "dynamic": own})
        assert found[kind] == f"{name}_hard"
        assert upgraded(found) == found
        now = upgraded({kind: name, "dynamic": own | {"pooled_norm": None}})
        assert now[kind] == name
        config = NetworkConfig(**{kind: found[kind]}, dynamic=without_types(found)["dynamic"])
        generator = factory(config, kind)(**({"features": 8} if kind == "pointwise" else {})).generator((2, 2))
        assert generator == HardFactorGenerator((2, 2), dynamic=name != "factors", start_logit=3.0)
    layer = "shuffle_jax.nn.dynamic_shuffle:{}DynamicShuffle{}".format
    for kind, name, options in (("mixer", "", ""), ("mixer", "", "(per_group=True)"), ("pointwise", "Static", "")):
        by_class = {kind: layer(name, options)}
        assert upgraded(by_class)[kind] == layer(f"Hard{name}", options)
        assert upgraded(upgraded(by_class)) == upgraded(by_class)
        assert upgraded({kind: layer(name, options).replace(".dynamic_shuffle", "")})[kind].startswith(
            "shuffle_jax.nn:H"
        )
        assert issubclass(module_of(part(kind, upgraded(by_class)[kind])), module_of(part(kind, by_class[kind])))


def without_types(found):
    return {
        name: {key: item for key, item in value.items() if key != "type"} if isinstance(value, dict) else value
        for name, value in found.items()
    }


def test_what_earlier_versions_wrote_and_did_not_use_is_gone():
    for family, depth, count in [("resnet", 18, None), ("addressnet", 18, None), ("shufflenet_v2", None, None)]:
        found = upgraded(OLD | {"family": family, "depth": 18, "mixer": "squeeze", "dynamic": {"per_group": True}})
        assert (found["depth"], found["groups"]) == (depth, count)
        assert not found["dynamic"]["per_group"]  # Squeeze-excitation has no such option.
        build(NetworkConfig(**{k: v for k, v in without_types(found).items() if k != "type"}), 5)
    kept = upgraded(OLD | {"dynamic": {"pointwise_groups": 3, "hidden": 2}, "attention": {"kernels": 5}})
    assert (kept["dynamic"]["blocks"], kept["dynamic"]["hidden"], kept["attention"]["count"]) == (3, 2, 5)


def test_the_table_of_renamed_fields_names_fields():
    for name in RENAMED.values():
        group, field = name.split(".")
        assert field in {one.name for one in dataclasses.fields(GROUPS[group])}


def test_flags_of_earlier_versions_are_read():
    from experiments.train import parse

    words = "digits --network.mixer-seed 7 --network.auto-start=shuffle --network.auto_candidates None "
    words += "--network.auto-noise 0.25 --network.dynamic.pointwise-groups 3 --network.attention.kernels 5"
    network = parse(words.split()).config.network
    assert network.auto == GROUPS["auto"]("shuffle", None, 0.25)
    assert (network.random.seed, network.dynamic.blocks, network.attention.count) == (7, 3, 5)
    assert len(re.findall("--", words)) == len(RENAMED)
    assert parse(["digits", "--network.family", "addressnet"]).config.network.width == 1.0


def test_another_family_leaves_numbers_that_it_has_not():
    config = NetworkConfig("resnet", 0.5, depth=34, groups=2).of_family("shufflenet_v2")
    assert config == NetworkConfig("shufflenet_v2", 0.5)
    assert config.of_family("addressnet") == NetworkConfig("addressnet")


def test_numbers_that_a_network_decides_can_be_asked_for():
    resolved = [NetworkConfig(family).resolved() for family in ("resnet", "shufflenet_v1", "shufflenet_v2")]
    assert [(one.depth, one.groups) for one in resolved] == [(18, 1), (None, 3), (None, None)]
    assert NetworkConfig("resnet", depth=34).resolved().depth == 34


def test_every_option_has_help_and_a_configuration_is_a_key():
    for group in GROUPS.values():
        for field in dataclasses.fields(group):
            assert f"    {field.name}: " in group.__doc__
    for table in KINDS.values():
        assert all(part.text in NetworkConfig.__doc__ for part in table.values())
    assert len({NetworkConfig(), NetworkConfig(), NetworkConfig(auto={"candidates": 4})}) == 2


def test_a_line_in_the_table_makes_options_and_their_help_of_the_fields(butterfly, monkeypatch):
    monkeypatch.setitem(KINDS["mixer"], "butterfly", Part(butterfly.Butterfly, "a toy"))
    group = groups()["butterfly"]
    assert group() == group(levels=1)
    assert group.__doc__ == (
        "Options of butterfly.\n\nAttributes:\n    levels: The logarithm of how many channels reach each other.\n"
    )
    assert load_part(spec(with_options("mixer", butterfly.Butterfly, {"levels": 3})))() == butterfly.Butterfly(3)


@pytest.mark.slow
def test_the_commands_take_parts_from_outside(butterfly, tmp_path, capsys):
    """Trained, resumed, evaluated, exported, read again and drawn, by text and by class."""
    from experiments import evaluate, export, predict, reach
    from experiments import train as command
    from shuffle_jax.run import Run
    from shuffle_jax.train.config import read_config
    from shuffle_jax.train.experiment import restore
    from shuffle_jax.train.loop import train

    path = tmp_path / "run"
    words = "digits --network.family butterfly:Tiny --network.mixer butterfly:Butterfly(levels=2) --network.width 1 "
    words += "--data.test-fraction 0.9 --batch-size 60 --epochs 2 --evaluate-every 1 --optimizer.warmup-epochs 1"
    command.run([*words.split(), "--run", str(path)])
    config = read_config(Run(path))
    handed = NetworkConfig(butterfly.Tiny, mixer=partial(butterfly.Butterfly, levels=2), auto={"candidates": 4})
    assert config.network == handed

    _, whole, step = restore(path)
    assert set(whole["params"]["stage3_0"]["mixer"]) == {"level0", "level1"}
    shutil.rmtree(path / "checkpoints" / str(step))
    train(dataclasses.replace(config, network=handed), path, resume=True)
    assert all(map(np.array_equal, *map(jax.tree.leaves, (whole, restore(path)[1]))))

    evaluate.run([str(path)])
    export.run([str(path), str(tmp_path / "network.jax"), "--platforms", "cpu"])
    image = tmp_path / "image.png"
    Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8)).save(image)
    predict.run([str(tmp_path / "network.jax"), str(image)])
    reach.run(["--run", str(path), "--figure", str(tmp_path / "reach.png")])
    assert (tmp_path / "reach.png").stat().st_size > 0
    told = capsys.readouterr().out
    assert "as trained" in told
    assert "butterfly:Butterfly(levels=2)" in told
