"""What the docstrings of the presets say: their parts, their commands, and every number in them that can be counted."""

from __future__ import annotations

import inspect
import math
import re
import shlex

import jax
import jax.numpy as jnp
import pytest

from experiments import train
from experiments.presets import PRESETS
from shuffle_jax.analysis.count import count
from shuffle_jax.data import DigitsConfig
from shuffle_jax.models import build
from shuffle_jax.models.config import NetworkConfig
from shuffle_jax.nn.collections import RELAXED

SETS = {
    "cifar10": (50_000, 32, 10),
    "cifar100": (50_000, 32, 100),
    "tiny-imagenet": (100_000, 64, 200),
    "imagenet": (1_281_167, 224, 1000),
}
"""Training images, side and classes of the known sets."""
NETWORKS = ["auto", "auto-v1", "dynamic", "static-dynamic", "mobilenet", "resnet", "addressnet", "shift-resnet"]
KNOWN = [f"{data}-{network}" for data in SETS for network in NETWORKS if f"{data}-{network}" != "imagenet-shift-resnet"]
PUBLISHED = {
    "imagenet-auto": 2_278_604,
    "imagenet-auto-v1": 1_865_728,
    "imagenet-mobilenet": 5_720_028,
    "imagenet-resnet": 29_835_056,
    "imagenet-addressnet": 3_703_688,
    "cifar100-addressnet": 139_096,
    "cifar10-shift-resnet": 95_642,
}
"""Parameters of networks as they are known from elsewhere."""
PARTS = ["Data", "Expected", "Cost", "Command"]


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


def test_every_known_set_has_every_network():
    others = [name for name in PRESETS if name.partition("-")[0] not in ("digits", "folder")]
    assert others == KNOWN


@pytest.mark.parametrize("name", PRESETS)
def test_a_docstring_has_its_parts_in_order_and_speaks_of_presets_that_there_are(name):
    starts = [text.partition(":")[0] for text in paragraphs(name)]
    assert [start for start in starts if start in PARTS] == PARTS
    assert starts[-1] == "Command"
    for mentioned in re.findall(r":func:`(\w+)`", inspect.getdoc(PRESETS[name])):
        assert mentioned.replace("_", "-") in PRESETS and mentioned.replace("_", "-") != name


@pytest.mark.parametrize("name", PRESETS)
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


@pytest.mark.parametrize("name", KNOWN)
def test_the_data_are_those_of_the_name(name):
    _, side, _ = about(name)
    config = PRESETS[name]()
    assert f" at {side} x {side}." in paragraphs(name)[0] and config.data.image_size == side
    if name.startswith("tiny-"):
        return
    named = {"imagenet": "imagenet2012"}.get(name.partition("-")[0], name.partition("-")[0])
    assert config.data.name == named
    text = part(f"{name.partition('-')[0]}-auto", "Data")
    assert f"``{named}`` of" in text and f"``python -m experiments.prepare {named}``" in text


@pytest.mark.parametrize("name", KNOWN)
def test_the_steps_that_a_preset_states_are_those_it_takes(name):
    images, _, _ = about(name)
    config = PRESETS[name]()
    (stated,) = re.findall(r"([\d,]+) steps of (\d+) images, ", part(name, "Cost"))
    assert (number(stated[0]), int(stated[1])) == (config.epochs * (images // config.batch_size), config.batch_size)


@pytest.mark.parametrize("name", KNOWN)
def test_the_size_that_a_preset_states_is_that_of_its_network(name):
    _, side, classes = about(name)
    found = count(build(PRESETS[name]().network, classes), (side, side, 3))
    cost = part(name, "Cost")
    (stated,) = re.findall(r"([\d,]+) parameters(?: and ([\d,]+) more in training)?, ([\d,]+) multiply-adds an", cost)
    assert found.parameters == PUBLISHED.get(name, found.parameters)
    assert [number(text or "0") for text in stated] == [
        found.parameters,
        found.training_only_parameters,
        found.multiply_adds,
    ]


@pytest.mark.parametrize("name", [name for name in PRESETS if name not in KNOWN])
def test_the_other_presets_build_too(name):
    config = PRESETS[name]()
    shape = (1, 8, 8, 1) if isinstance(config.data, DigitsConfig) else (1, *[config.data.image_size] * 2, 3)
    network = build(config.network, 7)
    logits = jax.eval_shape(lambda: network.init_with_output(jax.random.key(0), jnp.zeros(shape), train=False)[0])
    assert logits.shape == (1, 7)


def parameters(network: NetworkConfig, side, classes):
    """How many parameters a network is trained with, those of relaxed permutations left out: they become indices."""
    module = build(network, classes)
    shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), jnp.zeros((1, side, side, 3)), train=False))
    leaves = jax.tree.leaves_with_path(shapes["params"])
    return sum(math.prod(leaf.shape) for path, leaf in leaves if path[-1].key != RELAXED)


@pytest.mark.parametrize(
    ("command", "published"),
    [
        ("imagenet-auto --network.mixer shuffle", 2_278_604),
        ("imagenet-auto --network.width 0.5", 1_366_792),
        ("imagenet-auto-v1 --network.groups 8", 2_434_768),
        ("imagenet-mobilenet --network.width 0.5", 2_664_300),
        ("cifar100-addressnet --network.depth 20", 81_640),
        ("cifar100-addressnet --network.depth 44", 196_552),
    ],
)
def test_other_networks_of_the_papers_are_an_option_away(command, published):
    words = command.split()
    _, side, classes = about(words[0])
    assert parameters(train.parse(words).config.network, side, classes) == published
