"""How the benchmark measures: candidates in turn, round after round, as ratios to the first."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import jax

from experiments.benchmark_cases import Cases
from experiments.startup import Times

SHORTEST = 0.05
"""Seconds that a case takes at least in a round: shorter ones are repeated."""

PAUSE = 0.02
"""Seconds of rest before a case: threads of the case before it may still spin, and torch's take ours their cores."""


@dataclass(frozen=True)
class Table:
    """One table.

    Attributes:
        title: its heading.
        measure: from the rounds to the seconds of each candidate in each round, or to the bytes that it needs for one
            image and for a batch.
        images: how many images each candidate takes, or are a batch; None where that means nothing.
        unit: of what is measured.
    """

    title: str
    measure: Callable[[int], Times]
    images: int | None = None
    unit: Literal["seconds", "bytes"] = "seconds"


def measure(cases: Cases, rounds: int) -> Times:
    """Seconds of each case in each round, the cases in turn, after one run of each that compiles.

    A case shorter than ``SHORTEST`` runs several times in a round, one run after the other; its time is their average.
    """
    repeats = {}
    for name, case in cases.items():
        jax.block_until_ready(case())
        started = time.perf_counter()
        jax.block_until_ready(case())
        repeats[name] = max(1, math.ceil(SHORTEST / (time.perf_counter() - started)))
    times: Times = {name: [] for name in cases}
    for _ in range(rounds):
        for name, case in cases.items():
            time.sleep(PAUSE)
            started = time.perf_counter()
            for _ in range(repeats[name]):
                jax.block_until_ready(case())
            times[name].append((time.perf_counter() - started) / repeats[name])
    return times


def in_columns(table: Table, values: Times) -> tuple[list[str], list[list[str | int]]]:
    """The headings and rows of a table."""
    return columns(values, table.images) if table.unit == "seconds" else memory_columns(values, table.images or 1)


def memory_columns(needed: Times, images: int) -> tuple[list[str], list[list[str | int]]]:
    """The headings, and a row for each case: for one image, for a batch, for each image more, ratio to the first."""
    first = next(iter(needed.values()))
    rows: list[list[str | int]] = []
    for name, (one, batch) in needed.items():
        growth = (batch - one) / max(images - 1, 1)
        rows.append([name, *(f"{size / 2**20:.3g}" for size in (one, batch, growth)), f"{batch / first[1]:.2f}"])
    return ["", "1_image_MiB", f"{images}_images_MiB", "each_MiB", "ratio"], rows


def columns(times: Times, images: int | None) -> tuple[list[str], list[list[str | int]]]:
    """The table's headings, and a row for each case: median time, images per second, ratio to the first case."""
    headings = ["", "median_ms", *(["images/s"] if images else []), "ratio_min", "ratio_median", "ratio_max"]
    first = next(iter(times.values()))
    rows: list[list[str | int]] = []
    for name, values in times.items():
        median = statistics.median(values)
        ratios = [value / base for value, base in zip(values, first, strict=True)]
        spread = (min(ratios), statistics.median(ratios), max(ratios))
        speed = [round(images / median)] if images else []
        time_ms = f"{1e3 * median:.0f}" if median >= 0.1 else f"{1e3 * median:.3g}"
        rows.append([name, time_ms, *speed, *(f"{ratio:.2f}" for ratio in spread)])
    return headings, rows
