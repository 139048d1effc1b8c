"""The figure of the two-layer network: how often its permutation is recovered and certified, by width and method."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from shuffle_jax.analysis.drawing import STYLES, blank, dress
from shuffle_jax.typing import Bool

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Hits = Mapping[str, Mapping[int, Bool[np.ndarray, "teachers starts"]]]
"""By method and width, whether something is so of each start of each teacher."""


def two_layer_figure(recovered: Hits, certified: Hits) -> Figure:
    """What is found against the width of the network, one line a method, in two panels.

    On the left are the teachers of whom at least one start recovers the permutation, with Wilson's intervals of 95 %:
    whether a method finds it. On the right is the share of all starts that end at a matrix certified to be near a
    permutation, whichever it is: whether rounding is safe. Methods stand beside each other at a width, so that none is
    hidden.

    Args:
        recovered: whether a start found the teacher's permutation; at most as many methods as
            :data:`~shuffle_jax.analysis.drawing.STYLES`.
        certified: whether its matrix is certified, of the same methods and widths.

    Returns:
        A figure with the panels side by side.

    Raises:
        ValueError: there is nothing to draw, there are too many methods, or the two are not of the same ones.
    """
    if not recovered or not all(some and all(np.size(found) for found in some.values()) for some in recovered.values()):
        raise ValueError("no recovery to draw: give each method at least one width with one teacher and one start")
    if len(recovered) > len(STYLES):
        raise ValueError(f"at most {len(STYLES)} methods can be drawn in one figure, got {len(recovered)}")
    drawn, proved = ({name: set(found) for name, found in hits.items()} for hits in (recovered, certified))
    if drawn != proved:
        raise ValueError("recovered and certified must be of the same methods and widths")
    figure = blank(10, 4.6)
    left, right = figure.subplots(1, 2, sharey=True)
    for place, (name, found) in enumerate(recovered.items()):
        widths = sorted(found)
        apart = 2 ** (0.09 * (place - (len(recovered) - 1) / 2))
        x = [width * apart for width in widths]
        reached = [np.asarray(found[width]).any(1) for width in widths]
        _line(left, place, name, x, [(hit.mean(), *binomial_interval(int(hit.sum()), hit.size)) for hit in reached])
        shares = [float(np.mean(certified[name][width])) for width in widths]
        _line(right, place, name, x, [(share, share, share) for share in shares])
    ticks = sorted({width for found in recovered.values() for width in found})
    dress(left, "permutation recovered by the best start", "hidden units", "networks (%), 95 % intervals")
    dress(right, "certified to be near a permutation, before rounding", "hidden units", "starts (%)")
    for axes in (left, right):
        axes.set_xscale("log", base=2)
        axes.set_xticks(ticks, labels=list(map(str, ticks)))
        axes.minorticks_off()
        axes.set_ylim(-3, 103)
    handles, labels = left.get_legend_handles_labels()
    figure.legend(
        handles, labels, frameon=False, loc="outside lower center", ncols=min(len(labels), 3), handlelength=3.2
    )
    return figure


def binomial_interval(successes: int, trials: int, deviations: float = 1.96) -> tuple[float, float]:
    """Wilson's interval for a probability of which some trials succeeded; inside [0, 1], also at no or all successes.

    ``(p + z^2/2n -+ z sqrt(p (1 - p)/n + z^2/4n^2)) / (1 + z^2/n)``, p the share, n the trials

    Args:
        successes: from 0 to ``trials``.
        trials: n, at least 1.
        deviations: z; 1.96 for 95 %.

    Returns:
        The lower and the upper end.

    >>> [round(end, 3) for end in binomial_interval(8, 8)]
    [0.676, 1.0]

    Source: Wilson, 1927.
    """
    share, square = successes / trials, deviations**2 / trials
    middle = share + square / 2
    half = deviations * math.sqrt(share * (1 - share) / trials + square / (4 * trials))
    # Rounding must not put the share outside of its own interval.
    return min(share, (middle - half) / (1 + square)), max(share, (middle + half) / (1 + square))


def _line(axes: Axes, place: int, name: str, x: list[float], points: list[tuple[float, float, float]]) -> None:
    """Per cent with bars from the second to the third number of each point."""
    colour, marker, dashes, size = STYLES[place]
    middle, low, high = 100 * np.array(points).T
    errors = [(middle - low).tolist(), (high - middle).tolist()]  # of arrays with one number NumPy before 2.4 warns
    line = axes.errorbar(x, middle, errors, label=name, zorder=3, clip_on=False)
    data, _, bars = line.lines
    data.set(color=colour, linestyle=dashes, marker=marker, markersize=size, linewidth=1.6)
    data.set(markerfacecolor="white", markeredgewidth=1.4)
    bars[0].set(color=colour, linewidth=1.0, alpha=0.6)
