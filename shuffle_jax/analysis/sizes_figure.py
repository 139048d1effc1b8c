"""The figure of a search of sizes: how the channels of a network and their ranks change over the trials."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from shuffle_jax.analysis.drawing import blank, dress, layer_bar

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Trial(NamedTuple):
    """One network of a search.

    Attributes:
        sizes: its channels.
        ranks: of each size at the end of each epoch.
        conditions: of each size at the end.
        top1: its accuracy.
    """

    sizes: tuple[int, ...]
    ranks: tuple[tuple[float, ...], ...]
    conditions: tuple[float, ...]
    top1: float


def sizes_figure(names: Sequence[str], trials: Sequence[Trial]) -> Figure:
    """Sizes, the ranks of their layers at the end, and accuracies over the trials, one line a size.

    Args:
        names: of the sizes, from the input to the output.
        trials: at least one.

    Returns:
        A figure with three panels side by side.

    Raises:
        ValueError: there is no trial.
    """
    from matplotlib import colormaps
    from matplotlib.ticker import MaxNLocator

    if not trials:
        raise ValueError("no trial to draw: a search must have trained one")
    figure = blank(12.8, 4.4)
    panels = list(figure.subplots(1, 3))
    colours = colormaps["viridis"](np.linspace(0, 0.92, len(names)))
    at = range(1, len(trials) + 1)
    for i, colour in enumerate(colours):
        panels[0].plot(at, [trial.sizes[i] for trial in trials], color=colour, marker="o", markersize=3)
        panels[1].plot(at, [100 * trial.ranks[i][-1] for trial in trials], color=colour, marker="o", markersize=3)
    panels[2].plot(at, [100 * trial.top1 for trial in trials], color="black", marker="o", markersize=4)
    dress(panels[0], "sizes", "trial", "channels")
    dress(panels[1], "ranks at the end of a trial", "trial", "share of the channels (%)")
    dress(panels[2], "accuracy", "trial", "top-1 (%)")
    for axes in panels:
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    layer_bar(figure, panels, list(names), colours)
    return figure
