"""What experiments.compare is to do: the file of a comparison, and every variant of it with every seed."""

from __future__ import annotations

import dataclasses
import inspect
import re
import shlex
import textwrap
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from experiments.cli import nearest
from experiments.train import parse
from shuffle_jax.data import InputConfig
from shuffle_jax.distributed import DistributedConfig
from shuffle_jax.train.config import TrainConfig


@dataclass(frozen=True)
class Comparison:
    """A comparison as its file states it, but for its name, which is that of the file.

    Attributes:
        title: stands above the table and the figures.
        text: what is compared and why, in Markdown; stands in the document of --into.
        seeds: a list of different whole numbers; every variant is trained with each of them.
        each_seed: options that every run gets, in which {seed} stands for its seed; "--seed {seed}" by default, and
            "--seed {seed} --data.seed {seed}" gives every seed a split of its own.
        variants: a table from labels to a preset and options, as experiments.train takes them, {seed} as above.
    """

    name: str
    title: str
    text: str
    seeds: tuple[int, ...]
    each_seed: str
    variants: dict[str, str]


EXAMPLE = """\
title = "Mixers of a ShuffleNetV2 0.5x on the digits"
text = "The preset `digits` with two mixers."
seeds = [1, 2, 3]
each_seed = "--seed {seed} --data.seed {seed}"

[variants]
"fixed shuffle" = "digits --network.mixer shuffle"
"learned" = "digits"
"""
"""A file that compares two variants over three seeds and splits."""


@dataclass(frozen=True)
class Planned:
    """One variant with one seed."""

    label: str
    seed: int
    path: Path
    config: TrainConfig
    devices: int | None


def about_files() -> str:
    """What the file of a comparison holds, with an example, for --help."""
    keys = inspect.cleandoc(Comparison.__doc__ or "").partition("Attributes:\n")[2]
    keys, example = (textwrap.indent(text, "  ") for text in (textwrap.dedent(keys), EXAMPLE))
    return f"Keys of the file:\n\n{keys}\n\nExample:\n\n{example}"


def read(path: Path) -> Comparison:
    """Reads a comparison.

    Raises:
        ValueError: the file is not TOML, or a field of it is unknown, missing or of another type.
    """
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{path} is not TOML: {error}") from error
    given = {"each_seed": "--seed {seed}", **content}
    known = [field.name for field in dataclasses.fields(Comparison) if field.name != "name"]
    for key in given:
        if key not in known:
            raise ValueError(f"{path} has an unknown field {key!r}; near: {nearest(key, known)}")
    for key in known:
        if key not in given:
            raise ValueError(f"{path} has no field {key!r}: give {', '.join(known)}")
    for key in ("title", "text", "each_seed"):
        if not isinstance(given[key], str):
            raise ValueError(f"{path}: {key} must be a text, got {given[key]!r}")
    seeds, variants = given["seeds"], given["variants"]
    if not isinstance(seeds, list) or not seeds or any(type(s) is not int for s in seeds) or len({*seeds}) < len(seeds):
        raise ValueError(f"{path}: seeds must be a list of different whole numbers, got {seeds!r}")
    if not isinstance(variants, dict) or not variants or not all(isinstance(v, str) for v in variants.values()):
        raise ValueError(f"{path}: variants must be a table from labels to command lines, got {variants!r}")
    return Comparison(path.stem, given["title"], given["text"], tuple(seeds), given["each_seed"], variants)


def plan(comparison: Comparison, out: Path) -> list[Planned]:
    """Every variant with every seed, variant by variant, as experiments.train understands them.

    Raises:
        ValueError: a command line is not one of experiments.train, or two of the runs would be the same.
    """
    planned: list[Planned] = []
    for label, command in comparison.variants.items():
        for seed in comparison.seeds:
            path = out / f"{re.sub(r'[^a-z0-9]+', '-', label.lower()).strip('-')}-{seed}"
            with naming(label):
                words = shlex.split(f"{command} {comparison.each_seed}".replace("{seed}", str(seed)))
                try:
                    options = parse(words)
                except SystemExit:  # The words ask for help.
                    raise ValueError(f"experiments.train does not take {shlex.join(words)!r}") from None
                if options.run is not None or options.resume:
                    raise ValueError("leave out --run and --resume, they are chosen here")
                if (options.input, options.distributed, options.profile) != (InputConfig(), DistributedConfig(), None):
                    raise ValueError("leave out --input, --distributed and --profile: a comparison is of results")
            for other in planned:
                if path == other.path:
                    raise ValueError(f"variants {other.label!r} and {label!r} share the folder {path}: rename one")
                if options.config == other.config:
                    first, second = f"{other.label!r} with seed {other.seed}", f"{label!r} with seed {seed}"
                    remedy = "leave one out, or write {seed} where the seed goes"
                    raise ValueError(f"{first} and {second} are the same run: {remedy}")
            planned.append(Planned(label, seed, path, options.config, options.devices))
    return planned


@contextmanager
def naming(label: str) -> Iterator[None]:
    """Says which variant an error is about."""
    try:
        yield
    except (ValueError, FileNotFoundError) as error:
        raise ValueError(f"variant {label!r}: {error}") from None
