"""What methods did on instances, as tables for people and programs, and as figures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from experiments.cli import save_figure, write_csv
from experiments.matching.methods import Outcome

if TYPE_CHECKING:
    from shuffle_jax.problems.instance import Instance

Row = tuple[str | int, ...]
Results = dict[str, dict[str, Outcome]]
"""By instance and method."""

MATCHING: tuple[str, ...] = ("instance", "n", "method", "recovered", "starts", "by_argmax", "best_value", "seconds")
SUMMARY: tuple[str, ...] = ("method", "instances", "solved", "mean_gap_percent", "largest_gap_percent")
ASSIGNMENT: tuple[str, ...] = ("instance", "n", "method", "value", "best_known", "gap_percent", "starts", "seconds")


def table(results: Results, instances: Sequence[Instance]) -> list[Row]:
    """One line for each instance and method."""
    named = {instance.name: instance for instance in instances}
    return [row(named[name], method, one) for name, found in results.items() for method, one in found.items()]


def row(instance: Instance, method: str, outcome: Outcome) -> Row:
    """One line of the table of an instance and a method."""
    name, seconds = (instance.name, instance.size, method), f"{outcome.seconds:.2f}"
    if instance.goal == "matching":
        hits = ("-" if count is None else str(count) for count in (outcome.recovered, outcome.argmax))
        recovered, argmax = hits
        if outcome.recovered is None:
            recovered = "yes" if instance.recovered(outcome.permutation) else "no"
        return *name, recovered, outcome.starts, argmax, f"{outcome.value:g}", seconds
    best = "-" if instance.best is None else f"{instance.best:.15g}"
    gap = gap_percent(instance, outcome)
    shown = "-" if gap is None else f"{gap:.3f}"
    return *name, f"{outcome.value:.15g}", best, shown, outcome.starts, seconds


def gap_percent(instance: Instance, outcome: Outcome) -> float | None:
    """How far above the best value known, in per cent of it; None if none is known, or if it is 0 and not reached."""
    if instance.best is None:
        return None
    if outcome.value == instance.best:
        return 0.0
    return 100 * (outcome.value - instance.best) / abs(instance.best) if instance.best else None


def summary(results: Results, instances: Sequence[Instance]) -> list[Row]:
    """For each method, over the instances of which the best value is known and all methods have been run."""
    named = {instance.name: instance for instance in instances}
    methods = list(dict.fromkeys(method for found in results.values() for method in found))
    rows: list[Row] = []
    for method in methods:
        gaps = [
            gap
            for name, found in results.items()
            if len(found) == len(methods) and (gap := gap_percent(named[name], found[method])) is not None
        ]
        if gaps:
            solved = sum(bool(gap <= 0) for gap in gaps)
            rows.append((method, len(gaps), solved, f"{sum(gaps) / len(gaps):.3f}", f"{max(gaps):.3f}"))
    return rows


def save(folder: Path, columns: Sequence[str], rows: Sequence[Row], results: Results, goal: str) -> None:
    """Writes results.csv and the figures, each whole or not at all."""
    from experiments.matching.figures import descent_figure, recovery_figure
    from shuffle_jax.analysis.drawing import STYLES
    from shuffle_jax.files import replacing

    folder.mkdir(parents=True, exist_ok=True)
    with replacing(folder / "results.csv") as temporary, temporary.open("w", newline="") as file:
        write_csv(file, columns, rows)
    figures = {}
    for name, found in results.items():
        drawn = [method for method, one in found.items() if one.curves is not None][: len(STYLES)]
        curves = {method: one for method in drawn if (one := found[method].curves) is not None}
        if curves:
            safe = name.replace(" ", "-").replace("(", "").replace(")", "")
            figures[f"descent-{safe}.png"] = descent_figure(curves, name)
    counts = {
        name: {method: (one.recovered, one.starts) for method, one in found.items() if one.recovered is not None}
        for name, found in results.items()
    }
    if goal == "matching" and all(counts.values()):
        figures["recovery.png"] = recovery_figure(counts)
    for name, figure in figures.items():
        save_figure(figure, folder / name)
