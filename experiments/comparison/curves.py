"""The curves of a comparison: how each variant learns, over all of its seeds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from experiments.comparison.runs import Point
from experiments.comparison.table import Results
from shuffle_jax.analysis.drawing import BLUE, ORANGE, blank, dress, log_if_wide

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = (BLUE, ORANGE, "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#000000", "#6600cc", "#663300", "#003366")
"""Told apart by every kind of colour vision: the set of Okabe and Ito without its yellow, and three darker ones."""

STROKES = ("-", "--", ":")
"""Of the first variants, as many as there are colours, of the next ones, and so on."""


def has_curves(results: Results) -> bool:
    """Whether a run of the comparison has curves; those of earlier versions have none."""
    return any("curves" in run for variant in results["variants"] for run in variant["runs"])


def curves(results: Results) -> Figure:
    """Training loss and accuracy over the epochs, a colour for each variant, in their order.

    Lines are means over the seeds, at the epochs that all of them have, with their range as a band. A dot is one
    evaluation of one seed. A loss is the mean within the epoch at whose end it is drawn.

    Args:
        results: see :mod:`experiments.comparison.table`.

    Returns:
        A figure of two panels.

    Raises:
        ValueError: no run has curves.
    """
    from matplotlib.ticker import MaxNLocator

    if not has_curves(results):
        raise ValueError("no curves to draw: no run of the comparison has any; make the results from its runs again")
    drawing = blank(10.0, 4.6 + 0.2 * -(-len(results["variants"]) // 3))  # three variants a line in the legend
    loss, accuracy = drawing.subplots(1, 2, sharex=True, gridspec_kw={"wspace": 0.08})
    for number, variant in enumerate(results["variants"]):
        runs, found = variant["runs"], [run["curves"] for run in variant["runs"] if "curves" in run]
        if found:
            colour, stroke = COLOURS[number % len(COLOURS)], STROKES[number // len(COLOURS) % len(STROKES)]
            seeds = len(results.get("seeds", runs))
            few = f" ({len(found)} of {seeds} seeds)" if len(found) < seeds else ""
            _draw_seeds(loss, [one["train_loss"] for one in found], 1.0, colour, stroke, variant["label"] + few)
            top1 = [one["top1"] for one in found]
            _draw_seeds(accuracy, top1, 100.0, colour, stroke, variant["label"] + few)
            dots = np.array([(epoch, 100.0 * float(value)) for one in top1 for epoch, value in one]).reshape(-1, 2)
            accuracy.plot(*dots.T, "o", color=colour, markersize=3.0, alpha=0.6, markeredgewidth=0.0)
    log_if_wide(loss)
    dress(loss, "Training loss", "epoch", "cross-entropy, mean of each epoch")
    kind = results.get("measured", "test")
    dress(accuracy, f"{kind.capitalize()} accuracy", "epoch", "top-1 accuracy (%)")
    loss.xaxis.set_major_locator(MaxNLocator(steps=[1, 2, 5, 10], integer=True))
    drawing.suptitle(f"{results['title']}\n(line: mean over the seeds, band: their range, dot: one evaluation)")
    handles, labels = loss.get_legend_handles_labels()
    drawing.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    return drawing


def _draw_seeds(
    axes: Axes, seeds: Sequence[Sequence[Point]], factor: float, colour: str, stroke: str, label: str
) -> None:
    """The mean over the seeds as a line, and their range as a band."""
    by_epoch = [{epoch: factor * float(value) for epoch, value in seed} for seed in seeds]
    epochs = sorted(set.intersection(*map(set, by_epoch)))
    values = np.array([[seed[epoch] for epoch in epochs] for seed in by_epoch])
    axes.fill_between(epochs, values.min(axis=0), values.max(axis=0), color=colour, alpha=0.15, linewidth=0)
    line = axes.plot(epochs, values.mean(axis=0), color=colour, linestyle=stroke, linewidth=1.6, label=label)[0]
    if len(epochs) == 1:
        line.set_marker("_")  # A line of one point would not be seen.
