"""The command that trains what a run trained: a preset, and the options in which it differs."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from typing import Any

from experiments.cli.source import NAME, ROOT
from experiments.presets import PRESETS
from experiments.train import PROG, adapted, parse
from shuffle_jax.data import FolderConfig, TfdsConfig
from shuffle_jax.train.config import TrainConfig, to_json

PICTURES = "PICTURES"
"""What stands for the folder of pictures, which is another one on every machine."""


def command(config: TrainConfig) -> str | None:
    """What one types to train with a configuration; None if no preset with options gives it.

    The shortest of all presets; that it gives the same configuration is made sure by reading it.
    """
    data: list[str] = []
    if isinstance(config.data, FolderConfig):
        data = [ROOT, str(config.data.root)]
    elif isinstance(config.data, TfdsConfig):
        data = [NAME, config.data.name]
    family = ["--network.family", str(config.network.family)]
    found = []
    for name, preset in PRESETS.items():
        try:
            base = adapted(preset(), [*data, *family])
        except ValueError:
            continue
        found.append((len(words := list(_words(to_json(base), to_json(config)))), name, words))
    for _, name, options in sorted(found, key=lambda one: one[0])[:3]:
        fixed = data + (family if PRESETS[name]().network.family != config.network.family else [])
        words = [name, *fixed, *options]
        try:
            same = parse(words).config == config
        except (ValueError, SystemExit):
            continue
        if same:
            shown = [PICTURES if before == ROOT else word for before, word in zip(["", *words], words, strict=False)]
            return f"{PROG} {shlex.join(shown)}"
    return None


def _words(old: Any, new: Any, prefix: str = "") -> Iterator[str]:
    """The options that lead from one value of a configuration to another."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for name in new:
            if name in old:
                yield from _words(old[name], new[name], f"{prefix}.{name}" if prefix else name)
        return
    if old == new:
        return
    place, _, name = prefix.replace("_", "-").rpartition(".")
    lead = f"--{place}." if place else "--"
    if isinstance(new, bool):
        yield f"{lead}{name}" if new else f"{lead}no-{name}"
        return
    yield f"{lead}{name}"
    yield from map(str, new if isinstance(new, list) else [new])
