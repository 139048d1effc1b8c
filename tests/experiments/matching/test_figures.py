from __future__ import annotations

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from experiments.matching.figures import Curves, descent_figure, recovery_figure
from shuffle_jax.analysis.drawing import STYLES

STEPS = np.array([0, 50, 100])
CURVES = {
    "penalty": Curves(STEPS, [[90.0, 5.0, 0.0], [80.0, 9.0, 0.0], [100.0, 7.0, 40.0]], np.full((3, 3), 0.5)),
    "none": Curves(STEPS, [[90.0, 1.0, 0.5]], [[0.9, 0.95, 1.0]]),
}
COUNTS = {
    "Moebius ladder 16": {"penalty": (31, 32), "none": (0, 32)},
    "random graph": {"penalty": (10, 32), "FAQ, random starts": (16, 32)},
}


def boxes(figure: Figure) -> None:
    """Asserts that no panel or legend is cut off, and that none covers another."""
    renderer = FigureCanvasAgg(figure).get_renderer()
    figure.draw_without_rendering()
    parts = [axes.get_tightbbox(renderer, call_axes_locator=False) for axes in figure.axes]
    parts += [legend.get_window_extent(renderer) for legend in figure.legends]
    width, height = figure.bbox.size
    assert all(min(box.x0, box.y0, width - box.x1, height - box.y1) >= -0.5 for box in parts)
    assert not any(a.overlaps(b) for i, a in enumerate(parts) for b in parts[:i])


def test_lines_are_medians_in_bands_from_the_least_to_the_largest() -> None:
    figure = descent_figure(CURVES, "Moebius ladder")
    left, right = figure.axes
    assert [line.get_label() for line in left.lines] == list(CURVES)
    np.testing.assert_allclose(left.lines[0].get_xydata(), [[0, 90], [50, 7], [100, 0]])
    np.testing.assert_allclose(right.lines[1].get_ydata(), [0.9, 0.95, 1.0])
    corners = {tuple(point) for point in left.collections[0].get_paths()[0].vertices}
    assert {(0, 80), (0, 100), (50, 5), (50, 9), (100, 0), (100, 40)} <= corners
    assert left.get_yscale() == "symlog" and left.get_ylim()[0] == 0 and left.get_ylim()[1] > 100
    assert left.get_title(loc="left") == "Moebius ladder"


def test_an_objective_below_zero_or_narrow_is_drawn_linearly() -> None:
    for objective in ([[-3.0, -5.0, -6.0]], [[30.0, 10.0, 5.0]]):
        figure = descent_figure({"a": Curves(STEPS, objective, [[1.0, 0.5, 0.0]])})
        assert figure.axes[0].get_yscale() == "linear"
        low, high = figure.axes[0].get_ylim()
        assert low <= min(objective[0]) and high >= max(objective[0])


def test_methods_are_told_apart_and_nothing_overlaps() -> None:
    figure = descent_figure({f"Sinkhorn, annealed, with penalty {i}": CURVES["penalty"] for i in range(len(STYLES))})
    for axes in figure.axes:
        assert len({(line.get_color(), line.get_marker()) for line in axes.lines}) == len(STYLES)
    boxes(figure)


def test_bars_are_shares_with_their_counts() -> None:
    figure = recovery_figure(COUNTS)
    first, second = figure.axes
    assert [axes.get_title(loc="left") for axes in figure.axes] == list(COUNTS)
    assert [text.get_text() for text in first.get_yticklabels()] == ["penalty", "none", "FAQ, random starts"]
    bars = {round(bar.get_y() + bar.get_height() / 2): bar.get_width() for bar in second.patches}
    assert bars == {0: 31.25, 2: 50.0}  # no bar for the method that was not run
    assert [text.get_text() for text in first.texts] == ["31/32", "0/32"]


@pytest.mark.parametrize("count", [1, 2, 4])
def test_counts_stay_inside_their_panels(count: int) -> None:
    shares = [0, 20, 32, 13, 19, 31]
    instances = {f"Erdos-Renyi {i}": {f"method {s}, annealed": (s, 32) for s in shares} for i in range(count)}
    figure = recovery_figure(instances)
    boxes(figure)
    renderer = FigureCanvasAgg(figure).get_renderer()
    for axes in figure.axes:
        for text in axes.texts:
            box = text.get_window_extent(renderer)
            assert box.x0 >= axes.bbox.x0 and box.x1 <= axes.bbox.x1


@pytest.mark.parametrize(
    ("methods", "message"),
    [
        ({}, "no descent to draw"),
        (
            {str(i): CURVES["none"] for i in range(len(STYLES) + 1)},
            "at most 6 methods can be drawn in one figure, got 7",
        ),
        ({"a": Curves(STEPS, [1.0, 2.0, 3.0], [[1.0] * 3])}, r"got steps \(3,\), an objective \(3,\) and a"),
        ({"a": Curves(STEPS, [[1.0, 2.0]], [[1.0, 1.0]])}, r"got steps \(3,\), an objective \(1, 2\) and a"),
        (
            {"a": Curves([0, 2, 1], [[1.0] * 3], [[1.0] * 3])},
            r"a must be at least two and ascend, got \[0.0, 2.0, 1.0\]",
        ),
        ({"a": Curves([0], [[1.0]], [[1.0]])}, r"the steps of a must be at least two and ascend, got \[0.0\]"),
        ({"a": Curves(STEPS, [[1.0, np.nan, 2.0]], [[1.0] * 3])}, "the numbers of a must be finite"),
    ],
)
def test_a_descent_that_cannot_be_drawn_is_said(methods: dict[str, Curves], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        descent_figure(methods)


def test_a_recovery_that_cannot_be_drawn_is_said() -> None:
    for nothing in ({}, {"a": {}}):
        with pytest.raises(ValueError, match="no recovery to draw"):
            recovery_figure(nothing)
    for count in ((33, 32), (-1, 32), (0, 0)):
        with pytest.raises(ValueError, match=rf"^penalty must recover a from 0 to {count[1]} times, got {count[0]}"):
            recovery_figure({"a": {"penalty": count}})
