"""Where the images of a preset come from: the kind of data follows from the option that is used."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path

import tyro

from shuffle_jax.data import DataConfig, DigitsConfig, FolderConfig, TfdsConfig
from shuffle_jax.models import NetworkConfig
from shuffle_jax.run import Run
from shuffle_jax.train.config import TrainConfig, read_config

ROOT, NAME = "--data.root", "--data.name"
"""The options that name a folder of images, and a set of tensorflow-datasets."""

START = "--start-from"
"""The option that names the run from whose weights training starts."""

RESUME, FOLDER = "--resume", "--run"
"""The options that go on with a run, and name its folder."""

FAMILY = "--network.family"
"""The option that names another network than that of the preset."""


def source(data: DataConfig, words: Sequence[str]) -> DataConfig:
    """The data of a preset, of the kind that the words of a command line name.

    Args:
        data: what the preset reads.
        words: of the command line.

    Returns:
        ``data`` where neither option is among the words or it is of their kind. Else a folder or a set still to be
        named, with the image size and the crop of the preset; those of the digits, which are scans of 8 x 8 pixels, are
        left at their defaults.

    Raises:
        ValueError: the words name both a folder and a set, or hold an option of a kind that they do not name.
    """
    used = {word.partition("=")[0].replace("_", "-") for word in words if word.startswith("--data.")}
    if {ROOT, NAME} <= used:
        raise ValueError(f"{ROOT} names a folder of images, {NAME} a set of tensorflow-datasets: give one of them")
    match data:
        case DigitsConfig():
            folder, named = FolderConfig(root=tyro.MISSING), TfdsConfig(name=tyro.MISSING)
        case FolderConfig(image_size=size, crop=crop):
            folder, named = data, TfdsConfig(name=tyro.MISSING, image_size=size, crop=crop)
        case TfdsConfig(image_size=size, crop=crop):
            size = FolderConfig.image_size if size is None else size
            folder, named = FolderConfig(root=tyro.MISSING, image_size=size, crop=crop), data
    chosen = folder if ROOT in used else named if NAME in used else data
    for other, what in ((folder, f"{ROOT}, a folder of images"), (named, f"{NAME}, a set of tensorflow-datasets")):
        for option in sorted(used & (_options(other) - _options(chosen) - {ROOT, NAME})):
            raise ValueError(f"{option} goes with {what}")
    return chosen


def network(config: NetworkConfig, words: Sequence[str]) -> NetworkConfig:
    """The network of a preset, of the family that the words of a command line name."""
    family = value_of(FAMILY, words)
    return config if family is None else config.of_family(family)


def started(config: TrainConfig, run: Run, words: Sequence[str]) -> TrainConfig:
    """The configuration of a preset for the weights of another run: its network, and images of their size.

    Args:
        config: of the preset.
        run: from whose weights training starts.
        words: of the command line.

    Raises:
        ValueError: there is no run in the folder.
    """
    if not run.exists():
        raise ValueError(
            f"{START} must name the folder of a run, got {run.path}; python -m experiments.convert makes one of weights"
        )
    data = source(config.data, words)
    if not isinstance(data, DigitsConfig):
        images = run.preprocessing()
        data = replace(data, image_size=images.size, crop=images.crop)
    return replace(config, data=data, network=read_config(run).network)


def resumed(words: Sequence[str]) -> tuple[list[str], Path | None]:
    """The run that the words of a command line resume, if they name one.

    Args:
        words: with ``--resume RUN``, or ``--resume`` and ``--run RUN``.

    Returns:
        The words in the second form, and RUN. None if there is no ``--resume`` among the words, or only a preset says
        which run is meant.

    Raises:
        ValueError: two runs are named, or none and no preset.
    """
    changed = list(words)
    for i, word in enumerate(words):
        option, equals, value = word.partition("=")
        if option != RESUME:
            continue
        follows = not equals and i + 1 < len(words) and not words[i + 1].startswith("-")
        value = words[i + 1] if follows else value
        named = value_of(FOLDER, words)
        if value and named is not None and Path(named) != Path(value):
            raise ValueError(f"{RESUME} names the run {value}, {FOLDER} the run {named}: give one of them")
        if value:
            changed[i : i + 1 + follows] = [RESUME] if named is not None else [RESUME, FOLDER, value]
        run = value or named
        if run is None and (words[0].startswith("-") or equals):
            raise ValueError(f"{RESUME} needs the folder of a run, such as {RESUME} runs/digits")
        return changed, None if run is None else Path(run)
    return changed, None


def value_of(option: str, words: Sequence[str]) -> str | None:
    """What stands behind an option on a command line; None if it is not there."""
    for word, after in zip(words, [*words[1:], ""], strict=True):
        name, equals, value = word.partition("=")
        if name == option:
            return value if equals else after
    return None


def _options(data: DataConfig) -> set[str]:
    return {f"--data.{field.name.replace('_', '-')}" for field in fields(data)}
