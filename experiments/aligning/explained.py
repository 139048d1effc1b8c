"""The table of :mod:`experiments.aligning.theory`: each number under the recipe of before and under the one of now."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace

import numpy as np

from experiments.aligning.theory import Layers, Probe, cosine, train_and_probe

MIXERS = {"hard": "dynamic_hard", "dynamic": "dynamic"}
COLUMNS: tuple[str, ...] = ("number", "when", *MIXERS)
SHARES = {"pooled": "of the pooled vector", "read": "of what the head reads", "hidden": "of its hidden layer"}
PROBES = 7
Probes = list[tuple[Probe, Probe]]
"""At the start, in the training and at the end, of two batches."""


def explain(steps: int, seed: int) -> list[tuple[str, ...]]:
    """Trains the preset ``digits-dynamic`` with both recipes, in whole epochs, and gives the rows of the table."""
    from experiments.presets import PRESETS

    preset = PRESETS["digits-dynamic"]()
    found = {}
    for name, mixer in MIXERS.items():
        network = replace(preset.network, mixer=mixer)
        config = replace(preset, network=network, epochs=max(1, round(steps / 22)), seed=seed)
        found[name] = list(train_and_probe(config, PROBES))
    return rows(found)


def rows(found: Mapping[str, Probes]) -> list[tuple[str, ...]]:
    """The rows of the table, each with a cell for each recipe."""
    firsts = {name: [pair[0] for pair in probes] for name, probes in found.items()}
    table: list[tuple[str, ...]] = []

    def add(number: str, when: str, cells: Mapping[str, str]) -> None:
        table.append((number, when, *cells.values()))

    ends = {"start": 0, "end": -1}
    add("A_ij off the diagonal", "start", {n: ranged(p[0].factor.values()) for n, p in firsts.items()})
    lowest = {n: min(v for probe in p for v in probe.margin.values()) for n, p in firsts.items()}
    add("smallest lead of the start's permutation", "ever", {n: f"{value:.2f}" for n, value in lowest.items()})
    for field, text in SHARES.items():
        for when, i in ends.items():
            cells = {n: ", ".join(f"{v:.2f}" for v in by_stage(getattr(p[i], field))) for n, p in firsts.items()}
            add(f"share of the batch mean {text}, by stage", when, cells)
    for when, i in ends.items():
        add("coherence of the logits' gradients", when, {n: ranged(p[i].coherence.values()) for n, p in firsts.items()})
        cells = {n: ranged(agreement(*probes[i]).values()) for n, probes in found.items()}
        add("cosine of W2's gradient, two batches", when, cells)
        add("norm of the task's gradient", when, {n: f"{p[i].norm:.2f}" for n, p in firsts.items()})
        add("of this all heads", when, {n: f"{p[i].heads:.3f}" for n, p in firsts.items()})
        add("factor of the limit of 1", when, {n: f"{min(1.0, 1 / p[i].norm):.3f}" for n, p in firsts.items()})
    return table


def agreement(first: Probe, second: Probe) -> Layers:
    """The cosine of the gradients of each head's last kernel between two batches."""
    return {path: cosine(kernel, second.kernels[path]) for path, kernel in first.kernels.items()}


def by_stage(layers: Layers) -> list[float]:
    """Means over the heads of each stage, the first part of a path up to its last underscore.

    >>> by_stage({"stage2_0/mixer": 0.5, "stage2_1/mixer": 1.0, "stage3_0/mixer": 0.25})
    [0.75, 0.25]
    """
    stages: dict[str, list[float]] = {}
    for path, value in layers.items():
        stages.setdefault(path.split("/")[0].rpartition("_")[0], []).append(value)
    return [float(np.mean(values)) for _, values in sorted(stages.items())]


def ranged(values: Collection[float]) -> str:
    """The smallest and the largest over the layers.

    >>> ranged([0.5, 0.016])
    '0.016 to 0.5'
    """
    least, most = min(values), max(values)
    return f"{least:.2g} to {most:.2g}"
