"""What experiments.compare is to do: the file of a comparison, and every variant of it with every seed."""

from __future__ import annotations

import dataclasses
import hashlib
import inspect
import json
import re
import shlex
import textwrap
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from experiments.cli import nearest
from experiments.comparison.questions import operand
from experiments.train import parse
from shuffle_jax.data import InputConfig
from shuffle_jax.distributed import DistributedConfig
from shuffle_jax.models.config import GROUPS
from shuffle_jax.models.options import chosen_options
from shuffle_jax.train.config import TrainConfig, to_json

LATER: dict[str, Any] = {"validation": 0.0, "settle": 0, "remat": False}
"""Fields that configurations did not have when digests began, each with the value of the runs before it: with that
value a digest leaves them out, so that it stays what it was."""


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
        margin: points below which a difference is said to be none; 1.0 by default.
        questions: a table from names to two labels, whose accuracies as trained are set against each other seed by
            seed; "LABEL: hardened" is the variant hardened, and "LABEL: FORM" another form that its runs evaluate
            (recalibrated, hard, soft, repaired, frozen). None by default. With questions the next run is the one that
            brings an answer nearest.
    """

    name: str
    title: str
    text: str
    seeds: tuple[int, ...]
    each_seed: str
    variants: dict[str, str]
    margin: float = 1.0
    questions: dict[str, tuple[str, str]] = field(default_factory=dict)


EXAMPLE = """\
title = "Mixers of a ShuffleNetV2 0.5x on the digits"
text = "The preset `digits` with two mixers."
seeds = [1, 2, 3]
each_seed = "--seed {seed} --data.seed {seed}"

[variants]
"fixed shuffle" = "digits --network.mixer shuffle"
"learned" = "digits"

[questions]
"learned against fixed" = ["learned", "fixed shuffle"]
"what hardening changes" = ["learned: hardened", "learned"]
"""
"""A file that compares two variants over three seeds and splits, and asks two questions."""


@dataclass(frozen=True)
class Planned:
    """One variant with one seed."""

    label: str
    seed: int
    path: Path
    config: TrainConfig
    devices: int | None

    @cached_property
    def digest(self) -> str:
        """Twelve hex digits of what the result depends on, by which it is known without its folder."""
        return digest(self.config)

    def __str__(self) -> str:
        return f"{self.label}, seed {self.seed}"


def about_files() -> str:
    """What the file of a comparison holds, with an example, for --help."""
    keys = inspect.cleandoc(Comparison.__doc__ or "").partition("Attributes:\n")[2]
    keys, example = (textwrap.indent(text, "  ") for text in (textwrap.dedent(keys), EXAMPLE))
    return f"Keys of the file:\n\n{keys}\n\nExample:\n\n{example}"


def read(path: Path) -> Comparison:
    """Reads a comparison.

    Raises:
        ValueError: the file is not TOML, a field of it is unknown, missing or of another type, or a question names no
            variant.
    """
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{path} is not TOML: {error}") from error
    given = {"each_seed": "--seed {seed}", "margin": 1.0, "questions": {}, **content}
    known = [each.name for each in dataclasses.fields(Comparison) if each.name != "name"]
    for key in given:
        if key not in known:
            raise ValueError(f"{path} has an unknown field {key!r}; near: {nearest(key, known)}")
    for key in known:
        if key not in given:
            raise ValueError(f"{path} has no field {key!r}: give {', '.join(known)}")
    for key in ("title", "text", "each_seed"):
        if not isinstance(given[key], str):
            raise ValueError(f"{path}: {key} must be a text, got {given[key]!r}")
    seeds, variants, margin = given["seeds"], given["variants"], given["margin"]
    if not isinstance(seeds, list) or not seeds or any(type(s) is not int for s in seeds) or len({*seeds}) < len(seeds):
        raise ValueError(f"{path}: seeds must be a list of different whole numbers, got {seeds!r}")
    if not isinstance(variants, dict) or not variants or not all(isinstance(v, str) for v in variants.values()):
        raise ValueError(f"{path}: variants must be a table from labels to command lines, got {variants!r}")
    if type(margin) not in (int, float) or not 0 < margin < 100:
        raise ValueError(f"{path}: margin must be points of accuracy between 0 and 100, got {margin!r}")
    questions = _questions(path, given["questions"], variants)
    every = (tuple(seeds), given["each_seed"], variants, float(margin), questions)
    return Comparison(path.stem, given["title"], given["text"], *every)


def _questions(path: Path, given: Any, labels: Mapping[str, str]) -> dict[str, tuple[str, str]]:
    """The table of questions, each of two different operands that there are."""
    found = {}
    for name, pair in (given if isinstance(given, dict) else {"questions": given}).items():
        if not isinstance(pair, list) or len(pair) != 2 or not all(isinstance(text, str) for text in pair):
            raise ValueError(f"{path}: question {name!r} must be a list of two labels, got {pair!r}")
        try:
            operands = {operand(text, labels) for text in pair}
        except ValueError as error:
            raise ValueError(f"{path}: question {name!r}: {error}") from None
        if len(operands) < 2:
            raise ValueError(f"{path}: question {name!r} must name two different things, got {pair[0]!r} twice")
        found[name] = (pair[0], pair[1])
    return found


def plan(comparison: Comparison, out: Path) -> list[Planned]:
    """Every variant with every seed, variant by variant, as experiments.train understands them.

    Raises:
        ValueError: a command line is not one of experiments.train, two of the runs would be the same, or they would be
            measured on images of different kinds.
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
    measured(planned)
    return planned


def measured(planned: Sequence[Planned]) -> str:
    """The kind of images that accuracies are of, "test" or "validation".

    Raises:
        ValueError: it is not the same for all variants.
    """
    by_kind = {"validation" if getattr(one.config.data, "validation", 0.0) > 0 else "test": one for one in planned}
    if len(by_kind) > 1:
        kinds = " and ".join(f"{one.label!r} on {kind} images" for kind, one in sorted(by_kind.items()))
        raise ValueError(f"{kinds} cannot be compared: give --data.validation to all variants or to none")
    return next(iter(by_kind))


def digest(config: TrainConfig) -> str:
    """Twelve hex digits that are the same for configurations of the same result, however they were typed.

    It leaves out what a result does not depend on: where the pictures are, but for the name of their folder, how many
    checkpoints are kept, and the options of parts that the network has not.
    """
    plain = to_json(dataclasses.replace(config, network=config.network.resolved()))
    chosen: dict[str, Any] = {}
    for group, parts in chosen_options(config.network.parts()).items():
        chosen[group] = {name: plain["network"][group][name] for name in sorted(set().union(*parts.values()))}
    plain["network"] = {name: value for name, value in plain["network"].items() if name not in GROUPS} | chosen
    plain["data"] |= {"root": Path(plain["data"].get("root", "")).name, "data_dir": None}
    del plain["keep"]

    def without_later(value: Any) -> Any:
        if not isinstance(value, Mapping):
            return value
        kept = {name: item for name, item in value.items() if name not in LATER or item != LATER[name]}
        return {name: without_later(item) for name, item in kept.items()}

    return hashlib.sha256(json.dumps(without_later(plain), sort_keys=True).encode()).hexdigest()[:12]


@contextmanager
def naming(label: str) -> Iterator[None]:
    """Says which variant an error is about."""
    try:
        yield
    except (ValueError, FileNotFoundError) as error:
        raise ValueError(f"variant {label!r}: {error}") from None
