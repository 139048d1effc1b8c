"""Figures of searches for a permutation: how each method descends, and how often it recovers the hidden one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from shuffle_jax.analysis.drawing import BLUE, GREY, STYLES, blank, dress
from shuffle_jax.typing import ArrayLike

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


PANELS = 5
"""Side by side at most."""


class Curves(NamedTuple):
    """What one method recorded.

    Attributes:
        steps: ``(records,)`` ascending numbers of steps.
        objective: ``(starts, records)``.
        penalty: ``(starts, records)``, as P / P_max.
    """

    steps: ArrayLike
    objective: ArrayLike
    penalty: ArrayLike


def descent_figure(methods: Mapping[str, Curves], title: str = "") -> Figure:
    """The objective and the penalty over the steps: the median of the starts as a line, all of them as a band.

    An objective that spans more than a factor of 20 is drawn logarithmically, and linearly below a thousandth of its
    largest value, so that 0 can be seen.

    Args:
        methods: what each recorded, by its name; at most as many as :data:`~shuffle_jax.analysis.drawing.STYLES`.
        title: of the problem.

    Returns:
        A figure with two panels.

    Raises:
        ValueError: there is nothing to draw, there are too many methods, or arrays do not fit or are not finite.
    """
    from matplotlib.ticker import FormatStrFormatter

    if not methods:
        raise ValueError("no descent to draw: give at least one method")
    if len(methods) > len(STYLES):
        raise ValueError(f"at most {len(STYLES)} methods can be drawn in one figure, got {len(methods)}")
    curves = {name: _checked(name, method) for name, method in methods.items()}
    figure = blank(9.6, 4.8)
    left, right = figure.subplots(1, 2)
    for (name, (steps, objective, penalty)), style in zip(curves.items(), STYLES, strict=False):
        _band(left, name, steps, objective, style)
        _band(right, name, steps, penalty, style)
    dress(left, title, "steps", "objective")
    dress(right, "", "steps", "P / P_max")
    values = np.concatenate([objective.ravel() for _, objective, _ in curves.values()])
    if 0 <= 20 * values.min() < values.max():
        left.set_yscale("symlog", linthresh=values.max() / 1000, linscale=0.3)
        left.set_ylim(0, 1.5 * values.max())
        left.yaxis.set_major_formatter(FormatStrFormatter("%g"))
    right.set_ylim(0, 1.03 * max(1.0, *(penalty.max() for _, _, penalty in curves.values())))
    everywhere = np.concatenate([steps for steps, _, _ in curves.values()])
    for axes in (left, right):
        axes.set_xlim(everywhere.min(), everywhere.max())
    handles, labels = left.get_legend_handles_labels()
    figure.legend(handles, labels, frameon=False, fontsize=9, loc="outside lower left", ncols=3, handlelength=3.2)
    return figure


def recovery_figure(instances: Mapping[str, Mapping[str, tuple[int, int]]]) -> Figure:
    """How many starts recovered the hidden permutation: one panel an instance, one bar a method.

    Args:
        instances: by the name of an instance and of a method, how many starts recovered it, of how many. A method that
            was not run on an instance has no bar there.

    Returns:
        A figure with the panels side by side, in rows of :data:`PANELS`.

    Raises:
        ValueError: there is nothing to draw, or a count is none of so many starts.
    """
    if not instances or not all(instances.values()):
        raise ValueError("no recovery to draw: give at least one instance, and each instance at least one method")
    for instance, counts in instances.items():
        for method, (recovered, starts) in counts.items():
            if not 0 <= recovered <= starts or starts < 1:
                raise ValueError(f"{method} must recover {instance} from 0 to {starts} times, got {recovered}")
    methods = list(dict.fromkeys(method for counts in instances.values() for method in counts))
    columns = min(len(instances), PANELS)
    rows = -(-len(instances) // PANELS)
    figure = blank(max(2.4 * columns + 2.0, 5.0), rows * (0.36 * len(methods) + 1.3))
    panels = figure.subplots(rows, columns, sharey=True, squeeze=False).ravel()
    for axes in panels[len(instances) :]:
        axes.set_axis_off()
    for axes, (instance, counts) in zip(panels, instances.items(), strict=False):
        for method, (recovered, starts) in counts.items():
            share = 100 * recovered / starts
            axes.barh(methods.index(method), share, height=0.66, color=BLUE, zorder=3)
            inside = share > 60
            axes.annotate(
                f"{recovered}/{starts}",
                (share, methods.index(method)),
                xytext=(-4 if inside else 4, 0),
                textcoords="offset points",
                ha="right" if inside else "left",
                va="center",
                color="white" if inside else GREY,
                fontsize=9,
            )
        dress(axes, instance, "recovered (%)", "")
        axes.set(xlim=(0, 100), ylim=(len(methods) - 0.5, -0.5))
        axes.set_xticks([0, 50, 100])
        axes.set_yticks(range(len(methods)), methods)
        axes.grid(visible=False, axis="y")
        axes.tick_params(axis="y", length=0)
    return figure


def _checked(name: str, curves: Curves) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The arrays of a method, all finite and of shapes that fit."""
    steps, objective, penalty = (np.asarray(array, float) for array in curves)
    shapes = f"steps {steps.shape}, an objective {objective.shape} and a penalty {penalty.shape}"
    if (
        objective.ndim != 2
        or not len(objective)
        or not objective.shape == penalty.shape == (len(objective), steps.size)
    ):
        raise ValueError(f"{name} must have (records,), (starts, records) and (starts, records), got {shapes}")
    if steps.ndim != 1 or steps.size < 2 or not (np.diff(steps) > 0).all():
        raise ValueError(f"the steps of {name} must be at least two and ascend, got {steps.tolist()}")
    if not all(np.isfinite(array).all() for array in (steps, objective, penalty)):
        raise ValueError(f"the numbers of {name} must be finite: leave out the starts that diverged")
    return steps, objective, penalty


def _band(axes: Axes, name: str, steps: np.ndarray, values: np.ndarray, style: tuple[str, str, str, float]) -> None:
    """The median over the starts, marked now and then, in the range from the smallest to the largest."""
    colour, marker, dashes, size = style
    every = max(1, len(steps) // 8)
    line = axes.plot(steps, np.median(values, axis=0), label=name, markevery=every, zorder=3, clip_on=False)[0]
    line.set(color=colour, linestyle=dashes, marker=marker, markersize=0.8 * size, linewidth=1.6)
    line.set(markerfacecolor="white", markeredgewidth=1.2)
    axes.fill_between(steps, values.min(axis=0), values.max(axis=0), color=colour, alpha=0.15, linewidth=0)
