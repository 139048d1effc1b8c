"""Where the images of a preset come from: the kind of data follows from the option that is used."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields

import tyro

from shuffle_jax.data import DataConfig, DigitsConfig, FolderConfig, TfdsConfig
from shuffle_jax.models import NetworkConfig

ROOT, NAME = "--data.root", "--data.name"
"""The options that name a folder of images, and a set of tensorflow-datasets."""

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
    for word, after in zip(words, [*words[1:], ""], strict=True):
        option, equals, value = word.partition("=")
        if option == FAMILY:
            return config.of_family(value if equals else after)
    return config


def _options(data: DataConfig) -> set[str]:
    return {f"--data.{field.name.replace('_', '-')}" for field in fields(data)}
