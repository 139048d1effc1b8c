"""How the soft factors of dynamic shuffles become permutations over a training, and whether these differ: a figure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from shuffle_jax.analysis.drawing import blank, by_depth, dress, layer_bar, log_if_wide, log_scale
from shuffle_jax.analysis.records import Records, clock, series

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def sharpening(records: Records) -> Figure:
    """How the soft factors close in on permutations, and whether these differ, over the epochs.

    Args:
        records: those of a run; the kind dynamic is drawn.

    Returns:
        A figure of four panels, one line a layer in each.

    Raises:
        ValueError: no record is of a dynamic shuffle.
    """
    from matplotlib import colormaps

    scale, unit = clock(records)
    layers = by_depth({r["layer"] for r in records if r["kind"] == "dynamic"})
    if not layers:
        raise ValueError("no dynamic shuffles to draw: none of the records is of the kind 'dynamic'")
    figure = blank(11.0, 7.0)
    panels = list(figure.subplots(2, 2, sharex=True).flat)
    shades = colormaps["viridis"](np.linspace(0.0, 0.93, len(layers)))
    colours = dict(zip(layers, shades, strict=True))
    for axes, field, title, factor, label in (
        (panels[0], "entropy", "Entropy of the rows", 1.0, "entropy / its maximum\n(0: hard, 1: uniform)"),
        (panels[1], "regulariser", "Regulariser", 1.0, "regulariser"),
        (panels[2], "invalid", "Row-argmax is no permutation", 100.0, "share of the images (%)"),
    ):
        last = _lines(axes, records, colours, field, scale, factor)
        sign = " %" if factor > 1 else ""
        dress(axes, f"{title}: {np.mean(last):.3g}{sign} at the end", unit if axes is panels[2] else "", label)
    panels[0].set_ylim(0.0, 1.03)
    log_if_wide(panels[1])
    panels[2].set_ylim(-0.02 * max(5.0, panels[2].get_ylim()[1]), max(5.0, panels[2].get_ylim()[1]))
    _draw_distinct(panels[3], records, colours, scale, unit)
    figure.suptitle("Dynamic shuffles (single numbers in the titles: mean over the layers)")
    layer_bar(figure, panels, layers, shades)
    return figure


def _lines(
    axes: Axes, records: Records, colours: Mapping[str, np.ndarray], field: str, scale: float, factor: float
) -> list[float]:
    """One line a layer; the last number of each."""
    last: list[float] = []
    for layer, colour in colours.items():
        own = [r for r in records if r["kind"] == "dynamic" and r["layer"] == layer]
        times, values = series(own, "dynamic", field, scale)
        axes.plot(times, factor * values, "." if len(times) < 2 else "-", color=colour, linewidth=1.4)
        last.extend(factor * values[-1:])
    return last


def _draw_distinct(axes: Axes, records: Records, colours: Mapping[str, np.ndarray], scale: float, unit: str) -> None:
    """How many different permutations the images have; their share, where an early version did not count them."""
    images = max((r["images"] for r in records if r["kind"] == "dynamic" and "images" in r), default=0)
    last = _lines(axes, records, colours, "distinct", scale, images or 100.0)
    if not last:
        dress(axes, "Learned once for all images", unit, "")
        return
    if not images:
        dress(axes, f"Distinct permutations: {np.mean(last):.3g} % at the end", unit, "share of the images (%)")
        axes.set_ylim(0.0, 103.0)
        return
    fewest, most = (f"{number:.0f}" for number in (min(last), max(last)))
    several = fewest if fewest == most else f"{fewest} to {most}"
    dress(axes, f"Distinct permutations: {several} at the end", unit, f"of {images} images (1: static in effect)")
    log_scale(axes, 0.9, 1.15 * max(images, 2))
    axes.set_ylim(0.9, 1.15 * max(images, 2))
