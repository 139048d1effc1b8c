"""The figure of a comparison: every seed a dot, variant by variant."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from experiments.comparison.table import Results, Spread, rows
from shuffle_jax.analysis.drawing import BLUE, GREY, ORANGE, blank, dress

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TICKS = (0, 50, 80, 90, 95, 98, 99, 99.5, 100)
"""Accuracies named on a stretched axis, where they are in its range."""


def figure(results: Results) -> Figure:
    """Accuracies, one row a variant: every seed as a dot, with mean and sample standard deviation.

    The upper dots are the networks as trained, the lower ones the same networks hardened, a seed above its own. If the
    errors span more than a factor of 20 the axis goes with the logarithm of the error.

    Args:
        results: see :mod:`experiments.comparison.table`.

    Returns:
        A figure of one panel.

    Raises:
        ValueError: no run is finished.
    """
    found = rows(results)
    drawn = [value for row in found for spread in (row.relaxed, row.hardened) if spread for value in spread.values]
    if not drawn:
        raise ValueError("no accuracies to draw: no run of the comparison is finished")
    drawing = blank(8.0, 1.5 + 0.75 * len(found))
    axes = drawing.subplots()
    for y, row in enumerate(found):
        if y % 2 == 0:
            axes.axhspan(y - 0.5, y + 0.5, color="#f6f6f6", linewidth=0, zorder=0)
        below = 0.21 if row.hardened else 0.0
        if row.relaxed:
            _draw_spread(axes, y - below, row.relaxed, BLUE, "as trained")
        else:
            why = "no run is finished" if row.missing else "every run failed"
            place = axes.get_yaxis_transform()
            axes.annotate(why, (1.02, y), xycoords=place, va="center", color=GREY, fontsize=9)
        if row.hardened:
            _draw_spread(axes, y + below, row.hardened, ORANGE, "hardened")
    stretched = _stretch(axes, drawn)
    kind = results.get("measured", "test")
    drawing.suptitle(textwrap.fill(results["title"], 90), x=0.01, horizontalalignment="left", fontsize=11)
    dress(axes, "", f"{kind} accuracy (%{', stretched towards 100' if stretched else ''})", "")
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
