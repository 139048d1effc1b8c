"""How the benchmark measures: candidates in turn, round after round, as ratios to the first."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypedDict

import jax

from experiments.benchmark.cases import Case, Cases
from experiments.benchmark.startup import Times

SHORTEST = 0.05
"""Seconds that a case takes at least in a round: shorter ones are repeated."""

PAUSE = 0.02
"""Seconds of rest before a case: threads of the case before it may still spin, and torch's take ours their cores."""


class Program(NamedTuple):
    """A candidate whose bytes are looked at as well.

    Attributes:
        case: what runs.
        accessed: bytes that it reads and writes, as the compiler counts them; None if it does not.
        moved: bytes that it must read and write more than the first candidate; of a copy all that it does.
    """

    case: Case
    accessed: float | None
    moved: int


class Cost(TypedDict):
    """What a program took: the seconds of each round, and its bytes."""

    seconds: list[float]
    accessed: float | None
    moved: int


Costs = dict[str, Cost]


@dataclass(frozen=True)
class Table:
    """One table.

    Attributes:
        title: its heading.
        measure: from the rounds to the seconds of each candidate in each round, or to the bytes that it needs for one
            image and for a batch, or to both its seconds and its bytes.
        images: how many images each candidate takes, or are a batch; None where that means nothing.
        unit: of what is measured.
    """

    title: str
    measure: Callable[[int], Times | Costs]
    images: int | None = None
    unit: Literal["seconds", "bytes", "costs"] = "seconds"


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


def measure_costs(programs: dict[str, Program], rounds: int) -> Costs:
    """Seconds of each program in each round, as :func:`measure` takes them, and its bytes."""
    times = measure({name: program.case for name, program in programs.items()}, rounds)
    return {
        name: {"seconds": times[name], "accessed": program.accessed, "moved": program.moved}
        for name, program in programs.items()
    }


def in_columns(table: Table, values: Any) -> tuple[list[str], list[list[str | int]]]:
    """The headings and rows of a table, from what its ``measure`` gave."""
    match table.unit:
        case "seconds":
            return columns(values, table.images)
        case "bytes":
            return memory_columns(values, table.images or 1)
        case "costs":
            return added_columns(values)


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
        spread = _spread([value / base for value, base in zip(values, first, strict=True)])
        speed = [round(images / median)] if images else []
        rows.append([name, _ms(median), *speed, *(f"{ratio:.2f}" for ratio in spread)])
    return headings, rows


def added_columns(costs: Costs) -> tuple[list[str], list[list[str | int]]]:
    """The headings, and a row for each program: its time and its bytes, and what both are more than the first's.

    The last program is a copy. What it reads and writes in a second is the bandwidth, and the last column the time
    that a program would take more than the first if it moved no more than it must, and that at this bandwidth.
    """
    spreads = [f"{kind}_{part}" for kind in ("added_ms", "ratio") for part in ("min", "median", "max")]
    headings = ["", "median_ms", *spreads, "added_MiB", "limit_ms"]
    first, *_, copy = costs.values()
    bandwidth = copy["moved"] / statistics.median(copy["seconds"])
    rows: list[list[str | int]] = []
    for name, cost in costs.items():
        median = _ms(statistics.median(cost["seconds"]))
        if cost is copy:
            rows.append([f"{name}, {bandwidth / 1e9:.3g} GB/s", median, *[""] * (len(headings) - 2)])
            continue
        pairs = list(zip(cost["seconds"], first["seconds"], strict=True))
        added = [_ms(seconds) for seconds in _spread([value - least for value, least in pairs])]
        ratios = [f"{ratio:.2f}" for ratio in _spread([value / least for value, least in pairs])]
        accessed, base = cost["accessed"], first["accessed"]
        more = "unknown" if accessed is None or base is None else _short((accessed - base) / 2**20)
        rows.append([name, median, *added, *ratios, more, _ms(cost["moved"] / bandwidth)])
    return headings, rows


def _spread(values: list[float]) -> tuple[float, float, float]:
    return min(values), statistics.median(values), max(values)


def _ms(seconds: float) -> str:
    return _short(1e3 * seconds)


def _short(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"
