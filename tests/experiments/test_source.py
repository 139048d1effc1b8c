"""The kind of data follows from the option that is used, for every preset, on the command line and in comparisons."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import pytest

from experiments import train
from experiments.cli.source import source
from experiments.comparison.plan import plan, read
from experiments.presets import PRESETS
from shuffle_jax.data import DigitsConfig, FolderConfig, TfdsConfig

COMPARISONS = Path(__file__).parents[2] / "experiments" / "comparisons"


def image_size(name, default):
    """What a preset asks of its pictures."""
    data = PRESETS[name]().data
    return default if isinstance(data, DigitsConfig) else data.image_size


def share(name):
    """How much of a test picture a preset keeps."""
    return 0.875 if name.startswith("imagenet-") else 1.0


SOME = ["digits", "folder-shift-resnet", "imagenet-resnet"]


@pytest.mark.parametrize("name", SOME)
@pytest.mark.parametrize("words", [["--data.root", "R"], ["--data.root=R"]])
def test_a_preset_reads_a_folder(name, words):
    expected = FolderConfig(root=Path("R"), image_size=image_size(name, 64), crop=share(name))
    assert train.parse([name, *words]).config == dataclasses.replace(PRESETS[name](), data=expected)


@pytest.mark.parametrize("name", SOME)
@pytest.mark.parametrize("words", [["--data.name", "mine"], ["--data.name=mine"]])
def test_a_preset_reads_a_set_by_name(name, words):
    expected = TfdsConfig(name="mine", image_size=image_size(name, None), crop=share(name))
    assert train.parse([name, *words]).config == dataclasses.replace(PRESETS[name](), data=expected)


def test_all_presets_read_either():
    for name, preset in PRESETS.items():
        data = preset().data
        folder, named = source(data, ["--data.root=R"]), source(data, ["--data.name", "N"])
        assert isinstance(folder, FolderConfig) and isinstance(named, TfdsConfig)
        assert (folder.image_size, folder.crop) == (image_size(name, 64), share(name))
        assert (named.image_size, named.crop) == (image_size(name, None), share(name))
        assert source(data, [name, "--data.seed", "1"]) is data


def test_other_options_follow_the_kind(monkeypatch):
    words = "cifar10-mobilenet --data.root R --data.per-class 500 --data.image-size 24 --epochs 3"
    monkeypatch.setattr(sys, "argv", ["train", *words.split()])
    config = train.parse().config
    assert config.data == FolderConfig(root=Path("R"), image_size=24, per_class=500) and config.epochs == 3
    words = "folder --data.test-split validation --data.name a/b:1.0.0 --data.label coarse"
    data = train.parse(words.split()).config.data
    assert data == TfdsConfig(name="a/b:1.0.0", image_size=64, test_split="validation", label="coarse")
    words = "--traceback cifar10-auto --data.train-split train[:10%] --data.data_dir=there --run digits"
    data = train.parse(words.split()).config.data
    assert data == TfdsConfig("cifar10", Path("there"), image_size=32, train_split="train[:10%]")
    words = "digits --data.test_fraction 0.5 --run cifar10-auto"
    assert train.parse(words.split()).config.data == DigitsConfig(test_fraction=0.5)


def test_an_option_of_another_kind_says_what_it_goes_with():
    root, name = ("goes with --data.root, a folder of images", "goes with --data.name, a set of tensorflow-datasets")
    for words, message in (
        ("cifar10-auto --data.per-class 9", f"--data.per-class {root}"),
        ("digits --data.broken=skip", f"--data.broken {root}"),
        ("digits --data.image_size 9", f"--data.image-size {root}"),
        ("cifar10-auto --data.root x --data.data-dir y", f"--data.data-dir {name}"),
        ("folder --data.train-split train", f"--data.train-split {name}"),
    ):
        with pytest.raises(ValueError, match=f"^{message}$"):
            train.parse(words.split())
    for words in ("digits --data.test-fraktion 0.5", "cifar10-auto --data.test-fraction 0.5"):
        with pytest.raises(ValueError, match=r"^there is no option --data\.test-fra.tion; near: "):
            train.parse(words.split())


@pytest.mark.parametrize(
    ("words", "shown", "hidden"),
    [
        ("cifar10-auto", "--data.train-split", "--data.per-class"),
        ("cifar10-auto --data.root R", "--data.per-class", "--data.train-split"),
        ("digits", "--data.test-fraction", "--data.root"),
        ("digits --data.name=N", "--data.train-split", "--data.test-fraction"),
    ],
)
def test_help_shows_the_options_of_the_kind(capsys, words, shown, hidden):
    with pytest.raises(SystemExit) as end:
        train.parse([*words.split(), "--help-all"])
    text = capsys.readouterr().out
    assert end.value.code == 0 and shown in text and hidden not in text.partition("─ data options")[2]


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("convolutions", 32),
        ("dynamic", 32),
        ("shifts", 16),
        ("polyphase", 32),
        ("dynamic_planes", 16),
        ("dynamic_pictures", 16),
        ("anchored", 16),
        ("contextual", 16),
        ("rolling", 16),
        ("sizes", 16),
    ],
)
@pytest.mark.fast_cases(1)
def test_the_comparisons_on_pictures_read_the_folder_that_they_name(name, size):
    comparison = read(COMPARISONS / f"{name}.toml")
    assert len(comparison.seeds) >= 3
    found = [one.config.data for one in plan(dataclasses.replace(comparison, seeds=(3,)), Path("out"))]
    assert {(type(data), str(data.root), data.per_class, data.test_per_class) for data in found} == {
        (FolderConfig, "cifar10-jpeg", 500, 500)
    }
    assert {(data.image_size, data.seed) for data in found} == {(size, 3)}
