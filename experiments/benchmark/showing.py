"""What the benchmark shows of what it measured: spreads, ratios to the first candidate, aims, disturbed rounds."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from experiments.benchmark.effort import Effort, Times
from experiments.benchmark.measuring import Result

DISTURBED = 0.25
"""Of a core: a round in which others used more is disturbed."""

Rows = tuple[list[str], list[list[str | int]]]
"""Headings, and rows."""


class Goal(NamedTuple):
    """The most that a candidate may take.

    Attributes:
        limit: of the median of its ratio to the base.
        base: another candidate; None for the first of the table.
    """

    limit: float
    base: str | None = None


@dataclass(frozen=True)
class Table:
    """One table.

    Attributes:
        title: its heading.
        measure: gives what :attr:`show` takes; ArithmeticError refuses the table, and not the others.
        images: how many images each candidate takes, or are a batch; None where that means nothing.
        show: from this table and what was measured to headings and rows.
        goals: by candidate.
    """

    title: str
    measure: Callable[[Effort], Result]
    images: int | None = None
    show: Callable[[Table, Result], Rows] = field(default_factory=lambda: columns)
    goals: dict[str, tuple[Goal, ...]] = field(default_factory=dict)


def columns(table: Table, result: Result) -> Rows:
    """For each case its times and its ratio to the first case of each round, and the aims where there are any."""
    times: Times = result["seconds"]
    headings = ["", "median_ms", "min_ms", "max_ms", *(["images/s"] if table.images else [])]
    headings += ["ratio_min", "ratio_median", "ratio_max", *(["aim"] if table.goals else [])]
    first = next(iter(times.values()))
    rows: list[list[str | int]] = []
    for name, values in times.items():
        least, median, most = _spread(values)
        speed = [round(table.images / median)] if table.images else []
        ratios = [f"{ratio:.2f}" for ratio in _spread(_ratios(values, first))]
        aims = [aimed(times, name, table.goals.get(name, ()))] if table.goals else []
        rows.append([name, _ms(median), _ms(least), _ms(most), *speed, *ratios, *aims])
    return headings, rows


def aimed(times: Times, name: str, goals: Sequence[Goal]) -> str:
    """Each aim of a candidate, and whether the median of its ratios is within it."""
    found = []
    for limit, base in goals:
        against = next(iter(times)) if base is None else base
        if against not in times:
            continue
        ratio = statistics.median(_ratios(times[name], times[against]))
        of = "" if base is None else f" of {base} ({ratio:.2f})"
        found.append(f"{limit:.2f}{of}, {'met' if ratio <= limit else 'missed'}")
    return "; ".join(found)


def disturbances(result: Result) -> str | None:
    """How many rounds were disturbed, as a sentence; None where no rounds were watched."""
    others = result.get("others")
    if not others:
        return None
    if None in others:
        return "disturbed rounds: unknown, this system does not tell what other processes use"
    count = sum(cores > DISTURBED for cores in others)
    return (
        f"disturbed rounds: {count} of {len(others)} ({count / len(others):.0%}; others used more than {DISTURBED} "
        f"of a core, at most {max(others):.2g})"
    )


def sizes_for_images(table: Table, result: Result) -> Rows:
    """For each case its bytes for one image, for a batch, for each image more, and the ratio of the batch."""
    needed, images = result["bytes"], table.images or 1
    first = next(iter(needed.values()))
    rows: list[list[str | int]] = []
    for name, (one, batch) in needed.items():
        growth = (batch - one) / max(images - 1, 1)
        rows.append([name, *(f"{size / 2**20:.3g}" for size in (one, batch, growth)), f"{batch / first[1]:.2f}"])
    return ["", "1_image_MiB", f"{images}_images_MiB", "each_MiB", "ratio"], rows


def peaks(table: Table, result: Result) -> Rows:
    """For each engine the most that its steps held, and the most with all that came before them."""
    held = result["peaks"]
    first = next(iter(held.values()))
    rows: list[list[str | int]] = []
    for name, (steps, whole) in held.items():
        ratios = [f"{steps / first[0]:.2f}", f"{whole / first[1]:.2f}"]
        row = [name, _short(steps / 2**20), ratios[0], _short(whole / 2**20), ratios[1]]
        for limit, _ in table.goals.get(name, ()):
            row.append(f"{limit:.2f}, {'met' if steps / first[0] <= limit else 'missed'}")
        rows.append([*row, *[""] * (5 + bool(table.goals) - len(row))])
    aim = ["aim"] if table.goals else []
    return ["", "steps_MiB", "ratio", "whole_MiB", "whole_ratio", *aim], rows


def added_columns(table: Table, result: Result) -> Rows:
    """For each program its time and its bytes, and what both are more than the first's.

    The last program is a copy. What it reads and writes in a second is the bandwidth, and the last column the time
    that a program would take more than the first if it moved no more than it must, and that at this bandwidth.
    """
    times, accessed, moved = result["seconds"], result["accessed"], result["moved"]
    spreads = [f"{kind}_{part}" for kind in ("added_ms", "ratio") for part in ("min", "median", "max")]
    headings = ["", "median_ms", *spreads, "added_MiB", "limit_ms"]
    first, *_, copy = times
    bandwidth = moved[copy] / statistics.median(times[copy])
    rows: list[list[str | int]] = []
    for name, seconds in times.items():
        median = _ms(statistics.median(seconds))
        if name == copy:
            rows.append([f"{name}, {bandwidth / 1e9:.3g} GB/s", median, *[""] * (len(headings) - 2)])
            continue
        pairs = zip(seconds, times[first], strict=True)
        added = [_ms(more) for more in _spread([value - least for value, least in pairs])]
        ratios = [f"{ratio:.2f}" for ratio in _spread(_ratios(seconds, times[first]))]
        counted, base = accessed[name], accessed[first]
        more = "unknown" if counted is None or base is None else _short((counted - base) / 2**20)
        rows.append([name, median, *added, *ratios, more, _ms(moved[name] / bandwidth)])
    return headings, rows


def _ratios(values: list[float], base: list[float]) -> list[float]:
    return [value / least for value, least in zip(values, base, strict=True)]


def _spread(values: list[float]) -> tuple[float, float, float]:
    return min(values), statistics.median(values), max(values)


def _ms(seconds: float) -> str:
    return _short(1e3 * seconds)


def _short(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"
