"""The figure of the alignment: permutations in use and images aligned over the steps, a line a method."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from experiments.aligning.training import Record
from shuffle_jax.analysis.drawing import STYLES, blank, dress

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def alignment_figure(methods: Mapping[str, Mapping[int, Sequence[Record]]], orders: int) -> Figure:
    """Distinct permutations, images aligned and images with a permutation over the steps.

    A line is the mean of the seeds; their spread is in the table.

    Args:
        methods: by name, at most as many as :data:`~shuffle_jax.analysis.drawing.STYLES`, the records of each seed.
        orders: K, at which the first panel has a line.

    Raises:
        ValueError: there is nothing to draw, or there are too many methods.
    """
    if not 0 < len(methods) <= len(STYLES):
        raise ValueError(f"a figure has from 1 to {len(STYLES)} methods, got {len(methods)}")
    figure = blank(12, 4.2)
    panels = figure.subplots(1, 3)
    names = ("distinct", "aligned", "valid")
    for (method, seeds), (colour, marker, dashes, size) in zip(methods.items(), STYLES, strict=False):
        steps = [record.step for record in next(iter(seeds.values()))]
        for axes, name in zip(panels, names, strict=True):
            values = np.array([[getattr(record, name) for record in records] for records in seeds.values()], float)
            values *= 1 if name == "distinct" else 100
            style = {"color": colour, "marker": marker, "linestyle": dashes, "markersize": size * 0.7}
            axes.plot(steps, values.mean(0), label=method, **style)
    first, *shares = panels
    dress(first, "different permutations", "steps", "among the test images")
    first.axhline(orders, color="#6b6b6b", linewidth=0.8, linestyle=":")
    first.set_yscale("log", base=2)
    first.yaxis.set_major_formatter("{x:g}")
    dress(shares[0], "aligned into one order", "steps", "test images (%)")
    dress(shares[1], "row-argmax is a permutation", "steps", "test images (%)")
    for axes in shares:
        axes.set_ylim(-3, 103)
    handles, labels = first.get_legend_handles_labels()
    figure.legend(handles, labels, frameon=False, loc="outside lower center", ncols=len(labels), handlelength=3.2)
    return figure
