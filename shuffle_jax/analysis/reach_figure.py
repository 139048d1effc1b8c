"""The figure of the receptive field over channels: how soon each mixer connects all channels of a network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from shuffle_jax.analysis.channel_reach import Reach, units_to_full
from shuffle_jax.analysis.drawing import STYLES, blank, dress

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def reach_figure(panels: Mapping[str, Mapping[str, Sequence[Reach]]]) -> Figure:
    """The share of connected channels over the units, one line a mixer and one panel a network.

    A line begins before the first unit, where each channel has reached itself alone.

    Args:
        panels: by the title of a panel and the name of a mixer, what :func:`~shuffle_jax.analysis.channel_reach.reach`
            returns; at most as many mixers as :data:`~shuffle_jax.analysis.drawing.STYLES`.

    Returns:
        A figure with the panels side by side.

    Raises:
        ValueError: there is nothing to draw, or there are too many mixers.
    """
    from matplotlib.ticker import MaxNLocator

    if not panels or not all(lines and all(lines.values()) for lines in panels.values()):
        raise ValueError("no reach to draw: give each panel at least one mixer, and each mixer at least one unit")
    names = list(dict.fromkeys(name for lines in panels.values() for name in lines))
    if len(names) > len(STYLES):
        raise ValueError(f"at most {len(STYLES)} mixers can be drawn in one figure, got {len(names)}")
    figure = blank(max(4.8 * len(panels), 6.4), 5.2)
    row = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for axes, (title, lines) in zip(row, panels.items(), strict=True):
        for name, reaches in lines.items():
            colour, marker, dashes, size = STYLES[names.index(name)]
            shares = [100 / reaches[0].channels_in, *(100 * found.share for found in reaches)]
            line = axes.plot(range(len(shares)), shares, label=f"{name}: {_when(reaches)}", zorder=3, clip_on=False)[0]
            line.set(color=colour, linestyle=dashes, marker=marker, markersize=size, linewidth=1.6)
            line.set(markerfacecolor="white", markeredgewidth=1.4)
        dress(axes, title, "units", "connected pairs of channels (%)" if axes is row[0] else "")
        axes.set(xlim=(0, None), ylim=(0, 103))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.legend(frameon=False, fontsize=9, loc="upper left", bbox_to_anchor=(-0.02, -0.15), handlelength=3.2)
    return figure


def _when(reaches: Sequence[Reach]) -> str:
    """After how many units all is connected, or how much at the end."""
    units = units_to_full(reaches)
    if units is None:
        return f"{100 * reaches[-1].share:.3g} % after {len(reaches)} unit{'s' if len(reaches) > 1 else ''}"
    return f"all after {units} unit{'s' if units > 1 else ''}"
