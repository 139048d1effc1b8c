"""Comparing variants of a training over several seeds: what their records say, as a table and as a figure.

Results are plain dictionaries, as JSON holds them, so that a table or a figure can be made again without a run::

    {"name", "title", "text", "command", "each_seed", "seeds", "versions", "devices", "date", "variants": [
        {"label", "command", "runs": [{"seed", "relaxed", "hardened", "certified", "permutations"}, ...]}, ...]}

``relaxed`` and ``hardened`` hold ``top1`` and ``loss``; a run that failed holds ``seed`` and ``failed``, a message.
"""

from __future__ import annotations

import math
import statistics
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from shuffle_jax.analysis.drawing import BLUE, GREY, ORANGE, blank, dress
from shuffle_jax.analysis.records import Records

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Results = Mapping[str, Any]

KEPT = ("top1", "loss")
"""What is kept of each evaluation."""

COLUMNS = ("variant", "as trained", "hardened", "change by hardening", "certified")

TICKS = (0, 50, 80, 90, 95, 98, 99, 99.5, 100)
"""Accuracies named on a stretched axis, where they are in its range."""


@dataclass(frozen=True)
class Spread:
    """Numbers of several seeds, at least one."""

    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Their mean."""
        return statistics.fmean(self.values)

    @property
    def deviation(self) -> float | None:
        """Their sample standard deviation (divisor n - 1); None of a single number."""
        return statistics.stdev(self.values) if len(self.values) > 1 else None


@dataclass(frozen=True)
class Row:
    """What the seeds of one variant say together.

    Attributes:
        label: of the variant.
        relaxed: top-1 accuracy as trained, in per cent; None if every run failed.
        hardened: the same with index vectors; None also for a network without learned permutations.
        change: hardened less relaxed of the same seed, in points.
        certified: learned permutations that are certified, over all seeds.
        permutations: learned permutations, over all seeds.
        failed: the message of each failed run by its seed.
    """

    label: str
    relaxed: Spread | None
    hardened: Spread | None
    change: Spread | None
    certified: int
    permutations: int
    failed: dict[int, str]


def run_result(records: Records) -> dict[str, Any] | None:
    """What a finished run says in the end.

    Args:
        records: those of a run.

    Returns:
        ``relaxed``, ``hardened`` (None without learned permutations), ``certified`` and ``permutations``; or None if
        the run is not finished: a result, or that of the hardened network, is missing.
    """
    evaluated = {r["network"]: r for r in records if r["kind"] == "result"}
    if "relaxed" not in evaluated:
        return None
    step = evaluated["relaxed"]["step"]
    layers = [r["certified"] for r in records if r["kind"] == "permutation" and r["step"] == step]
    if layers and "hardened" not in evaluated:
        return None
    numbers = {network: {key: _plain(record[key]) for key in KEPT} for network, record in evaluated.items()}
    hardened = numbers.get("hardened")
    return {"relaxed": numbers["relaxed"], "hardened": hardened, "certified": sum(layers), "permutations": len(layers)}


def rows(results: Results) -> list[Row]:
    """One row for each variant, in their order."""
    found = []
    for variant in results["variants"]:
        done = [run for run in variant["runs"] if "failed" not in run]
        hardened = [run for run in done if run["hardened"] is not None]
        found.append(
            Row(
                label=variant["label"],
                relaxed=_spread([_percent(run["relaxed"]) for run in done]),
                hardened=_spread([_percent(run["hardened"]) for run in hardened]),
                change=_spread([_percent(run["hardened"]) - _percent(run["relaxed"]) for run in hardened]),
                certified=sum(run["certified"] for run in done),
                permutations=sum(run["permutations"] for run in done),
                failed={run["seed"]: run["failed"] for run in variant["runs"] if "failed" in run},
            )
        )
    return found


def table(results: Results) -> str:
    """The comparison in Markdown, one row a variant.

    Accuracies are in per cent, as mean and sample standard deviation with minimum and maximum over the seeds; the
    change by hardening is in points, seed by seed. Failed runs are left out of the numbers and named below.

    Args:
        results: see above.

    Returns:
        Lines of at most five cells, and one for each failed run.
    """
    lines = [_cells(COLUMNS), _cells(["---"] * len(COLUMNS))]
    failures = []
    for row in rows(results):
        done = len(row.relaxed.values) if row.relaxed else 0
        label = row.label if not row.failed else f"{row.label} ({done} of {done + len(row.failed)} seeds)"
        certified = f"{row.certified} of {row.permutations}" if row.permutations else ""
        trained = _accuracy(row.relaxed) if row.relaxed else "failed"
        lines.append(_cells([label, trained, _accuracy(row.hardened), _change(row.change), certified]))
        failures += [f"Failed: {row.label}, seed {seed}: {message}" for seed, message in row.failed.items()]
    return "\n".join([*lines, *(line for failure in failures for line in ("", failure))]) + "\n"


def block(results: Results) -> str:
    """The comparison as a part of a document: the text, the table, and how to repeat it.

    Args:
        results: see above.

    Returns:
        Markdown without a heading, ending with a newline.
    """
    seeds = ", ".join(map(str, results["seeds"]))
    versions = ", ".join(f"{name} {text}" for name, text in results["versions"].items())
    legend = (
        f"Test accuracy in per cent: mean ± sample standard deviation (minimum to maximum) over seeds {seeds}; the "
        "change by hardening in points, seed by seed: mean (minimum to maximum)."
    )
    variants = [f"- {v['label']}: `{v['command']}`" for v in results["variants"]]
    made = f"Each variant is `python -m experiments.train` with `{results['each_seed']}` and"
    where = f"{results['date']}; {'; '.join(results['devices'])}; {versions}."
    parts = [
        results["text"],
        textwrap.fill(legend, 120),
        table(results),
        f"    {results['command']}",
        made,
        "\n".join(variants),
        where,
    ]
    return "\n\n".join(part.strip("\n") for part in parts) + "\n"


def figure(results: Results) -> Figure:
    """Test accuracies, one row a variant: every seed as a dot, with mean and sample standard deviation.

    The upper dots are the networks as trained, the lower ones the same networks hardened, a seed above its own. If the
    errors span more than a factor of 20 the axis goes with the logarithm of the error.

    Args:
        results: see above.

    Returns:
        A figure of one panel.

    Raises:
        ValueError: no run is finished.
    """
    found = rows(results)
    drawn = [value for row in found for spread in (row.relaxed, row.hardened) if spread for value in spread.values]
    if not drawn:
        raise ValueError("no accuracies to draw: every run of the comparison failed")
    drawing = blank(8.0, 1.5 + 0.75 * len(found))
    axes = drawing.subplots()
    for y, row in enumerate(found):
        if y % 2 == 0:
            axes.axhspan(y - 0.5, y + 0.5, color="#f6f6f6", linewidth=0, zorder=0)
        below = 0.21 if row.hardened else 0.0
        if row.relaxed:
            _draw_spread(axes, y - below, row.relaxed, BLUE, "as trained")
        else:
            axes.annotate(
                "every run failed", (1.02, y), xycoords=axes.get_yaxis_transform(), va="center", color=GREY, fontsize=9
            )
        if row.hardened:
            _draw_spread(axes, y + below, row.hardened, ORANGE, "hardened")
    stretched = _stretch(axes, drawn)
    dress(axes, results["title"], f"test accuracy (%{', stretched towards 100' if stretched else ''})", "")
    axes.grid(visible=False, axis="y")
    axes.set(ylim=(len(found) - 0.5, -0.5))
    axes.set_yticks(range(len(found)), labels=[row.label for row in found])
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    labels = dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    drawing.legend(labels.values(), labels, loc="outside lower center", ncols=2, frameon=False, fontsize=9)
    return drawing


def _draw_spread(axes: Axes, y: float, spread: Spread, colour: str, label: str) -> None:
    """Dots one below the other, so that equal ones are all seen; mean, deviation, and both in words at the right."""
    count = len(spread.values)
    offsets = 0.26 * (np.arange(count) - (count - 1) / 2) / max(count - 1, 1)
    dots = axes.plot(spread.values, y + offsets, "o", color=colour, label=label)[0]
    dots.set(markersize=5.5, alpha=0.75, markeredgecolor="white", markeredgewidth=0.6, clip_on=False, zorder=3)
    deviation = spread.deviation
    if deviation is not None:
        low, high = spread.mean - deviation, min(spread.mean + deviation, 100.0)
        axes.plot([low, high], [y, y], color=colour, linewidth=1.4)
    axes.plot(spread.mean, y, "|", color=colour, markersize=17, markeredgewidth=1.6)
    words = f"{spread.mean:.1f}" if deviation is None else f"{spread.mean:.1f} ± {deviation:.1f}"
    place = axes.get_yaxis_transform()
    axes.annotate(words, (1.02, y), xycoords=place, va="center", fontsize=9, color=colour, annotation_clip=False)


def _stretch(axes: Axes, accuracies: Sequence[float]) -> bool:
    """An axis that goes with the logarithm of the error if the errors span more than a factor of 20."""
    errors = 100.0 - np.asarray(accuracies)
    # The half of the smallest error stands for none: an error of 0 has no logarithm.
    least = max(errors[errors > 1e-9].min(initial=100.0) / 2, 1e-3)
    if errors.max() <= 20 * max(errors.min(), least):
        return False

    def forward(accuracy: np.ndarray) -> np.ndarray:
        return -np.log(np.maximum(100.0 - accuracy, 0.0) + least)

    def inverse(position: np.ndarray) -> np.ndarray:
        return 100.0 + least - np.exp(-position)

    axes.set_xscale("function", functions=(forward, inverse))
    low = max((tick for tick in TICKS if tick <= min(accuracies)), default=0)
    high = min(tick for tick in TICKS if tick >= max(accuracies))
    shown = [tick for tick in TICKS if low <= tick <= high]
    axes.set_xlim(low, high)
    axes.set_xticks(shown, labels=[f"{tick:g}" for tick in shown])
    return True


def _spread(values: Sequence[float]) -> Spread | None:
    return Spread(tuple(values)) if values else None


def _percent(numbers: Mapping[str, float]) -> float:
    return 100.0 * numbers["top1"]


def _accuracy(spread: Spread | None) -> str:
    if spread is None:
        return ""
    deviation = "" if spread.deviation is None else f" ± {spread.deviation:.1f}"
    return f"{spread.mean:.1f}{deviation} ({min(spread.values):.1f} to {max(spread.values):.1f})"


def _change(spread: Spread | None) -> str:
    if spread is None:
        return ""
    # Adding 0 turns the -0.0 of a rounding into 0.0.
    mean, low, high = (round(x, 2) + 0.0 for x in (spread.mean, min(spread.values), max(spread.values)))
    return f"{mean:.2f} ({low:.2f} to {high:.2f})"


def _cells(cells: Sequence[str]) -> str:
    return "|" + "|".join(f" {cell} " if cell != "---" else cell for cell in cells) + "|"


def _plain(value: float) -> float | str:
    """A number as JSON can hold it: one that is not finite is spelt out."""
    return value if math.isfinite(value) else str(value)
