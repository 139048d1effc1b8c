"""Figures of a training run: its curves, its relaxed matrices and the permutations they became.

Every function takes data and returns a ``matplotlib.figure.Figure`` that no global state knows of. It needs
no display; ``figure.savefig(path)`` writes it. ``run_figures.save_run_figures`` draws them all from a run's folder.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from shuffle_jax.analysis.drawing import (
    BLUE,
    GREY,
    ORANGE,
    blank,
    by_depth,
    dress,
    layer_bar,
    log_if_wide,
    short_names,
)
from shuffle_jax.analysis.records import Records, clock, series
from shuffle_jax.typing import Float, Int

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ROUNDING = 2.0**-24
"""Half a unit in the last place of 1 in float32: smaller residuals cannot be told from 0."""

MAX_ROWS = 6
"""More layers than these are not drawn as heat maps."""

MAX_CELLS = 96
"""More cells a side than these would be too small to see in a heat map."""


def learning_curves(records: Records) -> Figure:
    """Loss and accuracy on training batches and on the images that are measured on, over the epochs.

    Args:
        records: those of a run; the kinds train, test and result are drawn.

    Returns:
        A figure of two panels.
    """
    figure = blank(10.0, 4.9)
    loss, accuracy = figure.subplots(1, 2, gridspec_kw={"wspace": 0.08})
    scale, unit = clock(records)
    hardened = [r for r in records if r["kind"] == "result" and r["network"] == "hardened"]
    measured = next((r["split"] for r in records if "split" in r), "test")  # earlier versions measured on nothing else
    for axes, on_train, on_test, factor, written in (
        (loss, "loss", "loss", 1.0, "{:.3g}"),
        (accuracy, "accuracy", "top1", 100.0, "{:.1f} %"),
    ):
        times, values = series(records, "train", on_train, scale)
        axes.plot(times, factor * values, color=BLUE, linewidth=1.0, alpha=0.8, label="training batches")
        times, values = series(records, "test", on_test, scale)
        last = f", last {written.format(factor * values[-1])}" if len(values) else ""
        axes.plot(times, factor * values, "o-", color=ORANGE, markersize=3.5, label=f"{measured} images{last}")
        times, values = series(hardened[-1:], "result", on_test, scale)
        if len(values):
            label = f"{measured} images, hardened network {written.format(factor * values[0])}"
            diamond = axes.plot(times, factor * values, "D", label=label, zorder=3)[0]
            diamond.set(markerfacecolor="none", markeredgecolor="black", markersize=7)
    log_if_wide(loss)
    dress(loss, "Loss", unit, "cross-entropy")
    dress(accuracy, "Accuracy", unit, "top-1 accuracy (%)")
    for axes in (loss, accuracy):  # below, where no curve can be
        axes.legend(frameon=False, fontsize=9, loc="upper left", bbox_to_anchor=(-0.02, -0.14))
    return figure


def penalty_curves(records: Records) -> Figure:
    """How the learned permutations close in: penalty, its weight in the loss, and residual over the epochs.

    A dot marks from where on a layer stays certified: its row-wise argmax is a permutation.

    Args:
        records: those of a run; the kinds permutation and train are drawn.

    Returns:
        A figure of three panels, one line a layer in the upper and the lower one.

    Raises:
        ValueError: no record is of a permutation.
    """
    from matplotlib import colormaps

    scale, unit = clock(records)
    layers = by_depth({r["layer"] for r in records if r["kind"] == "permutation"})
    if not layers:
        raise ValueError("no penalties to draw: none of the records is of the kind 'permutation'")
    figure = blank(10.0, 7.2)
    penalty, weight, residual = figure.subplots(3, 1, sharex=True, height_ratios=[5, 1, 3])
    colours = colormaps["viridis"](np.linspace(0.0, 0.93, len(layers)))
    dots = 0
    for layer, colour in zip(layers, colours, strict=True):
        own = [r for r in records if r["kind"] == "permutation" and r["layer"] == layer]
        times, values = series(own, "permutation", "penalty", scale)
        penalty.plot(times, values, color=colour, linewidth=1.4)
        failures = [i for i, r in enumerate(own) if not r["certified"]]
        start = failures[-1] + 1 if failures else 0
        if start < len(own):
            dots += 1
            dot = penalty.plot(times[start], values[start], "o", color=colour)[0]
            dot.set(markersize=6, markeredgecolor="black")
        times, values = series(own, "permutation", "residual", scale)
        residual.plot(times, np.maximum(values, ROUNDING), color=colour, linewidth=1.4)
    times, values = series(records, "train", "penalty_weight", scale)
    weight.fill_between(times, values, color=GREY, alpha=0.35, linewidth=0)
    weight.set_yticks([0.0, values.max()] if len(values) and values.max() > 0 else [0.0])
    penalty.set_ylim(0.0, 1.03)
    if np.isfinite(series(records, "permutation", "residual")[1]).any():  # A log axis needs numbers.
        residual.set_yscale("log")
    title = f"Penalty of each matrix; {dots} of {len(layers)} certified at the end (dot: from here on)"
    dress(penalty, title, "", "P / P$_{max}$\n(0: permutation, 1: uniform)")
    dress(weight, "Weight of the penalty in the loss", "", "")
    title = "Residual: largest distance of a row or column sum from 1"
    dress(residual, title, unit, "residual (drawn $\\geq$ 6e-8)")
    layer_bar(figure, [penalty, weight, residual], layers, colours)
    return figure


def matrices(snapshots: Sequence[tuple[int | str, Mapping[str, Float[np.ndarray, "c c"]]]]) -> Figure:
    """The relaxed matrices as heat maps: one row a layer, one column a moment.

    Colours go with the cube root of an entry, so that entries near 1/c are seen as well as zeros and ones.

    Args:
        snapshots: for each moment its name, or its step, and the nonnegative matrices by layer.

    Returns:
        A figure of at most ``MAX_ROWS`` layers, spread evenly in depth.

    Raises:
        ValueError: there are no snapshots, or they have no layer in common.
    """
    from matplotlib.colors import PowerNorm

    layers = by_depth(set.intersection(*(set(by_layer) for _, by_layer in snapshots))) if snapshots else []
    if not layers:
        raise ValueError("no matrices to draw: pass one snapshot or more, with at least one layer in all of them")
    shown = spread(layers)
    figure = blank(max(2.5 * len(snapshots) + 1.6, 5.0), 2.5 * len(shown) + 1.0)
    panels = figure.subplots(len(shown), len(snapshots), squeeze=False)
    for row, (layer, name) in enumerate(zip(shown, short_names(shown), strict=True)):
        for column, (moment, by_layer) in enumerate(snapshots):
            axes, matrix = panels[row, column], np.asarray(by_layer[layer])
            c = len(matrix)
            cells, side = pooled(matrix)
            norm = PowerNorm(1 / 3, 0.0, 1.0)
            image = axes.imshow(cells, cmap="Blues", norm=norm, extent=(0, side, side, 0), interpolation="none")
            axes.set(xlim=(0, c), ylim=(c, 0))
            axes.set_xticks([0, c // 2, c], labels=[])
            axes.set_yticks([0, c // 2, c], labels=["0", str(c // 2), str(c)] if column == 0 else [])
            axes.tick_params(labelsize=8, length=2)
            below = "\ninput channel" if row == len(shown) - 1 else ""
            axes.set_xlabel(f"mean of row maxima {matrix.max(axis=1).mean():.2g}{below}", fontsize=9)
            if column == 0:
                axes.set_ylabel(f"{name}\noutput channel", fontsize=9)
            if row == 0:
                axes.set_title(moment if isinstance(moment, str) else f"step {moment}", fontsize=10)
    ticks = [0, 0.001, 0.01, 0.05, 0.2, 0.5, 1]
    figure.colorbar(
        image, ax=panels, label="entry", ticks=ticks, format="%g", shrink=max(0.6, 1 / len(shown)), aspect=30
    )
    title = f"Relaxed matrices of {len(shown)} of {len(layers)} layers"
    figure.suptitle(f"{title}\n(colour goes with the cube root of the entry)")
    if any(len(snapshots[0][1][layer]) > MAX_CELLS for layer in shown):
        note = f"Above {MAX_CELLS} channels a cell shows the largest entry of a square block."
        figure.supxlabel(note, fontsize=9, color=GREY)
    return figure


def permutations(index_vectors: Mapping[str, Int[np.ndarray, " c"]]) -> Figure:
    """The permutations as dots (i, p[i]), the fixed channel shuffle of two groups as lines behind them.

    Args:
        index_vectors: ``p`` by layer, with ``y[..., i] = x[..., p[i]]``.

    Returns:
        A figure of one panel a layer.

    Raises:
        ValueError: there is nothing to draw.
    """
    layers = by_depth(index_vectors)
    if not layers:
        raise ValueError("no permutations to draw: pass at least one index vector")
    columns = min(4, len(layers))
    rows = -(-len(layers) // columns)
    figure = blank(max(2.5 * columns + 0.5, 7.0), 2.6 * rows + 1.0)
    panels = figure.subplots(rows, columns, squeeze=False)
    for k, (axes, layer, name) in enumerate(zip(panels.flat, layers, short_names(layers), strict=False)):
        _draw_permutation(axes, np.asarray(index_vectors[layer]), name)
        if k % columns == 0:
            axes.set_ylabel("input channel p[i]", fontsize=9)
        if k + columns >= len(layers):
            axes.set_xlabel("output channel i", fontsize=9)
    for axes in panels.flat[len(layers) :]:
        axes.remove()
    figure.suptitle("Hardened permutations: output channel i takes input channel p[i]")
    entries = [zip(*axes.get_legend_handles_labels(), strict=True) for axes in panels.flat[: len(layers)]]
    labels = {label: handle for panel in entries for handle, label in panel}
    figure.legend(labels.values(), labels, loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    return figure


def _draw_permutation(axes: Axes, p: np.ndarray, name: str) -> None:
    c, half = len(p), len(p) / 2
    i = np.arange(c)
    axes.axhspan(-0.5, half - 0.5, color=BLUE, alpha=0.07, linewidth=0)
    axes.axhspan(half - 0.5, c - 0.5, color=ORANGE, alpha=0.07, linewidth=0)
    axes.axvline(half - 0.5, color="white", linewidth=1.5)
    if c % 2 == 0:  # Two groups need an even number of channels.
        fixed = i % 2 * (c // 2) + i // 2
        for group in (slice(0, None, 2), slice(1, None, 2)):
            axes.plot(i[group], fixed[group], color="#c4c4c4", linewidth=2, label="fixed shuffle, 2 groups")
    first = p < half
    for source, colour, which in ((first, BLUE, "first"), (~first, ORANGE, "second")):
        if not source.any():  # An unclipped line without points would spoil the layout.
            continue
        dots = axes.plot(i[source], p[source], ".", color=colour, label=f"taken from the {which} half")
        dots[0].set(markersize=5 if c <= 64 else 4, clip_on=False)
    axes.set_title(f"{name}: {np.mean(first != (i < half)):.0%} change halves", fontsize=9)
    axes.set(xlim=(-0.5, c - 0.5), ylim=(-0.5, c - 0.5), aspect="equal")
    axes.set_xticks(sorted({0, c // 2, c - 1}))
    axes.set_yticks(sorted({0, c // 2, c - 1}))
    axes.tick_params(labelsize=8, length=2)
    axes.spines[:].set_visible(False)


def spread(layers: Sequence[str]) -> list[str]:
    """At most ``MAX_ROWS`` of the layers, the first and the last among them, spread evenly."""
    return [layers[i] for i in sorted({round(i) for i in np.linspace(0, len(layers) - 1, MAX_ROWS)})]


def pooled(matrix: Float[np.ndarray, "c c"]) -> tuple[Float[np.ndarray, "b b"], int]:
    """The largest entries of the square blocks of a matrix with more than ``MAX_CELLS`` a side, else itself.

    Returned with the side that the blocks cover: that of the matrix, rounded up to whole blocks.
    """
    block = -(-len(matrix) // MAX_CELLS)
    pad = -len(matrix) % block
    side = len(matrix) + pad
    return np.pad(matrix, (0, pad)).reshape(side // block, block, -1, block).max(axis=(1, 3)), side
