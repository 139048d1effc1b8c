"""The common look of the figures: size, colours, labels, and layers in their order of depth."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLUE, ORANGE, GREY = "#0072b2", "#d55e00", "#6b6b6b"
"""Two colours told apart by every kind of colour vision, and one for what is secondary."""

GREEN, PURPLE, BLACK = "#009e73", "#cc79a7", "#000000"
"""Three more that can be told apart from those."""

STYLES = (
    (BLUE, "o", "-", 9.0),
    (PURPLE, "D", "-.", 6.5),
    (GREEN, "s", "--", 4.5),
    (ORANGE, "^", "-", 6.0),
    (GREY, "v", ":", 6.0),
    (BLACK, "x", "-", 5.0),
)
"""Colour, marker, dashes and size of lines in their order: where lines meet, those behind can be seen."""


def blank(width: float, height: float) -> Figure:
    """An empty figure on white, its parts laid out so that nothing overlaps; sizes in inches."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained", facecolor="white", dpi=150)


def dress(axes: Axes, title: str, x: str, y: str) -> None:
    """Title, axis labels, a light grid behind the curves and no frame."""
    axes.set_title(title, loc="left", fontsize=11)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(color="#e6e6e6", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def log_if_wide(axes: Axes) -> None:
    """A logarithmic scale when what is drawn is positive and spans more than a factor of 20."""
    values = np.concatenate([np.asarray(line.get_ydata(), float) for line in axes.lines])
    values = values[np.isfinite(values)]
    if len(values) and 0 < 20 * values.min() < values.max():
        log_scale(axes, values.min(), values.max())


def log_scale(axes: Axes, low: float, high: float) -> None:
    """A logarithmic scale for values from ``low`` to ``high``; over more than three decades only these have ticks."""
    from matplotlib.ticker import FormatStrFormatter, LogLocator, NullLocator

    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0,) if high > 1000 * low else (1.0, 2.0, 5.0)))
    axes.yaxis.set_major_formatter(FormatStrFormatter("%g"))
    axes.yaxis.set_minor_locator(NullLocator())


def layer_bar(figure: Figure, panels: list[Axes], layers: list[str], colours: np.ndarray) -> None:
    """A colour bar that names the layers, from the input at the top to the output."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import BoundaryNorm, ListedColormap

    norm = BoundaryNorm(np.arange(len(layers) + 1) - 0.5, len(layers))
    bar = figure.colorbar(ScalarMappable(norm, ListedColormap(colours)), ax=panels, aspect=40)
    every = -(-len(layers) // 32)
    bar.set_ticks(range(0, len(layers), every), labels=short_names(layers)[::every])
    bar.ax.tick_params(length=0, labelsize=9)
    bar.ax.minorticks_off()
    bar.ax.invert_yaxis()
    bar.outline.set_visible(False)


def by_depth(layers: Iterable[str]) -> list[str]:
    """Layer names with their numbers in numerical order, so that ``stage2_10`` follows ``stage2_9``."""
    return sorted(
        layers, key=lambda name: [(int(n), "") if n else (-1, t) for n, t in re.findall(r"(\d+)|(\D+)", name)]
    )


def short_names(layers: Sequence[str]) -> list[str]:
    """The names without the last parts, such as ``/mixer``, that all of them share."""
    parts = [name.split("/") for name in layers]
    while len({part[-1] for part in parts}) == 1 and min(map(len, parts)) > 1:
        parts = [part[:-1] for part in parts]
    return ["/".join(part) for part in parts]
