"""What the docstrings of the presets say: their parts, their commands, and every number in them that can be counted."""

from __future__ import annotations

import dataclasses
import inspect
import re
import shlex

import pytest

from experiments import presets, train
from experiments.presets import PRESETS
from shuffle_jax.analysis.count import Known, count
from shuffle_jax.data import DigitsConfig
from shuffle_jax.models import build
from shuffle_jax.train import loop

SETS = {
    "cifar10": (50_000, 32, 10),
    "cifar100": (50_000, 32, 100),
    "tiny-imagenet": (100_000, 64, 200),
    "imagenet": (1_281_167, 224, 1000),
}
"""Training images, side and classes of the known sets."""
NETWORKS = [
    "auto",
    "auto-v1",
    "dynamic",
    "static-dynamic",
    "mobilenet",
    "resnet",
    "addressnet",
    "shift-resnet",
    "anchored",
    "coresnet",
    "polyphase",
    "rolling",
    "conet",
]
NONE = (
    *("imagenet-shift-resnet", "tiny-imagenet-anchored", "imagenet-anchored"),
    *("cifar100-coresnet", "tiny-imagenet-coresnet"),
    *("tiny-imagenet-conet", "imagenet-conet"),
    *("cifar100-polyphase", "tiny-imagenet-polyphase", "imagenet-polyphase"),
    *("cifar100-rolling", "tiny-imagenet-rolling", "imagenet-rolling"),
)
KNOWN = [f"{data}-{network}" for data in SETS for network in NETWORKS if f"{data}-{network}" not in NONE]
FIVE = ["", "-dynamic", "-mobilenet", "-resnet", "-addressnet", "-shift-resnet"]
PUBLISHED = {
    "imagenet-auto": 2_278_604,
    "imagenet-auto --network.mixer shuffle": 2_278_604,
    "imagenet-auto --network.width 0.5": 1_366_792,
    "imagenet-auto-v1": 1_865_728,
    "imagenet-auto-v1 --network.groups 8": 2_434_768,
    "imagenet-mobilenet": 5_720_028,
    "imagenet-mobilenet --network.width 0.5": 2_664_300,
    "imagenet-mobilenet --network.pointwise plain --network.head plain": 3_504_872,
    "imagenet-resnet": 29_835_056,
    "imagenet-resnet --network.pointwise plain --network.head plain": 25_557_032,
    "imagenet-addressnet": 3_703_688,
    "imagenet-coresnet": 25_557_032,
    "cifar100-addressnet": 139_096,
    "cifar100-addressnet --network.depth 20": 81_640,
    "cifar100-addressnet --network.depth 44": 196_552,
    "cifar10-shift-resnet": 95_642,
    "cifar100-anchored": 4_918_244,
    "cifar100-anchored --network.depth 34 --network.anchored.regulator pointwise": 6_183_140,
    "cifar100-anchored --network.anchored.kernels one --network.depth 14": 167_396,
}
"""Parameters of networks as they are known from elsewhere: of presets, and of what is an option away."""
TRACED: Known = {}
"""What one network has in common with another is traced once."""


def about(name):
    """Training images, side and classes of the set that a preset is for."""
    return next(numbers for data, numbers in SETS.items() if name.startswith(f"{data}-"))


def paragraphs(name):
    """Those of a docstring, each on one line."""
    return [" ".join(part.split()) for part in inspect.getdoc(PRESETS[name]).split("\n\n")]


def part(name, which):
    """The text of one part."""
    (text,) = (text for text in paragraphs(name) if text.startswith(f"{which}: "))
    return text.removeprefix(f"{which}: ")


def number(text):
    return int(text.replace(",", ""))


def counted(name, config):
    _, side, classes = about(name)
    return count(build(config.network, classes), (side, side, 3), known=TRACED)


def test_the_names_are_those_of_earlier_versions_and_functions_of_the_package():
    assert list(PRESETS) == [f"{data}{ending}" for data in ("digits", "folder") for ending in FIVE] + KNOWN
    for name, preset in PRESETS.items():
        assert preset.__name__ == name.replace("-", "_")
        assert getattr(presets, preset.__name__) is preset
    with pytest.raises(AttributeError, match="has no attribute 'digit'"):
        _ = presets.digit


@pytest.mark.parametrize("name", PRESETS)
def test_a_docstring_has_its_parts_in_order_and_options_that_there_are(name):
    starts = [text.partition(":")[0] for text in paragraphs(name)]
    assert [start for start in starts if start in ("Data", "Recipe", "Expected", "Cost", "Command")] == starts[2:]
    assert len(starts) == 7 and max(map(len, inspect.getdoc(PRESETS[name]).splitlines())) <= 120
    root = " --data.root ROOT" if name.startswith(("folder", "tiny-")) else ""
    assert part(name, "Command") == f"``python -m experiments.train {name}{root}``"
    for option, value in re.findall(r"``--network\.([\w.-]+) (\w+)", paragraphs(name)[1]):
        field, config = option.split("."), PRESETS[name]().network
        for step in field:
            config = getattr(config, step)
        assert value  # the field is there; what it takes is tested where it is read


@pytest.mark.parametrize("name", ["digits", "folder-dynamic", "cifar10-auto", "tiny-imagenet-addressnet"])
def test_the_command_of_a_docstring_gives_the_preset(name):
    (command,) = re.findall(r"``python -m experiments.train (.*)``", part(name, "Command"))
    words = shlex.split(command)
    read, config = train.parse(words), PRESETS[name]()
    assert read.preset == name
    if words[1:]:  # what the preset leaves open
        assert words[1:] == ["--data.root", "ROOT"]
        assert str(read.config.data.root) == "ROOT" and read.config.data != config.data
    else:
        assert read.config == config


def test_help_of_a_preset_shows_its_docstring(capsys):
    with pytest.raises(SystemExit):
        train.parse(["cifar10-dynamic", "--help"])
    shown = " ".join(capsys.readouterr().out.split())
    assert all(text in shown for text in paragraphs("cifar10-dynamic"))


def others_slow(names):
    """Networks differ in their sides and classes alone on the other sets, which the long run of the tests counts."""
    return [n if n.startswith("cifar10-") else pytest.param(n, marks=pytest.mark.slow) for n in names]


@pytest.mark.parametrize("name", others_slow(KNOWN))
@pytest.mark.fast_cases(3)
def test_data_steps_and_sizes_are_those_that_a_preset_states(name):
    images, side, _ = about(name)
    config = PRESETS[name]()
    assert paragraphs(name)[0].endswith(f" at {side} x {side}.") and config.data.image_size == side
    if not name.startswith("tiny-"):
        named = {"imagenet": "imagenet2012"}.get(name.partition("-")[0], name.partition("-")[0])
        text = part(name, "Data")
        assert config.data.name == named
        assert f"``{named}`` of" in text and f"``python -m experiments.prepare {named}``" in text
    pattern = (
        r"not measured; ([\d,]+) steps of (\d+) images, ([\d,]+) parameters(?: and ([\d,]+) more in training)?, "
        r"([\d,]+) multiply-adds an image."
    )
    stated = [number(text or "0") for text in re.fullmatch(pattern, part(name, "Cost")).groups()]
    found = counted(name, config)
    assert stated == [
        config.epochs * (images // config.batch_size),
        config.batch_size,
        found.parameters,
        found.training_only_parameters,
        found.multiply_adds,
    ]


@pytest.mark.parametrize("command", PUBLISHED)
@pytest.mark.fast_cases(5)
def test_networks_have_the_published_sizes(command):
    words = command.split()
    config = train.parse(words).config if words[1:] else PRESETS[command]()
    assert counted(words[0], config).parameters == PUBLISHED[command]


@pytest.mark.parametrize("name", [name for name in PRESETS if name not in KNOWN])
@pytest.mark.fast_cases(4)
def test_the_other_presets_build_too(name):
    config = PRESETS[name]()
    shape = (8, 8, 1) if isinstance(config.data, DigitsConfig) else (*[config.data.image_size] * 2, 3)
    assert count(build(config.network, 7), shape, known=TRACED).multiply_adds > 0


@pytest.mark.parametrize("name", ["cifar10-mobilenet", "cifar10-resnet"])
@pytest.mark.slow
def test_two_options_make_the_convolutions_of_a_preset_dynamic(name):
    sizes = [counted(name, PRESETS[name]()).parameters]
    for pointwise, head in (("dcd", "dcd"), ("condconv", "plain"), ("dyconv", "plain")):
        config = train.parse([name, "--network.pointwise", pointwise, "--network.head", head]).config
        assert (config.network.pointwise, config.network.head) == (pointwise, head)
        sizes.append(counted(name, config).parameters)
    static, dcd, condconv, dyconv = sizes
    assert static < dcd < dyconv < condconv  # 4 and 8 kernels in place of one


@pytest.mark.slow
def test_a_short_training_of_a_preset_ends_with_permutations(tmp_path, capsys):
    """A tenth of the preset's steps: every matrix arrives, rounding it costs next to nothing, and it has learned."""
    config = dataclasses.replace(PRESETS["digits"](), epochs=5, evaluate_every=5)
    outcome = loop.train(config, tmp_path / "run", devices=1)
    relaxed, hardened = (outcome.results[name]["top1"] for name in ("relaxed", "hardened"))
    assert (outcome.certified, outcome.permutations) == (16, 16)
    assert hardened >= relaxed - 0.02 and hardened > 0.25
    said = capsys.readouterr().out
    assert "the penalty's weight is 10 in place of 0.1" in said and "the warm-up takes 28 steps" in said
    assert "hardening loses" not in said and "not certified" not in said
