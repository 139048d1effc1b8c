"""The figure of the two-layer network: what it draws, and that nothing overlaps."""

from __future__ import annotations

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex
from scipy.stats import binomtest

from experiments.matching.two_layer_figure import binomial_interval, two_layer_figure
from shuffle_jax.analysis.drawing import STYLES


def found(*counts: int, starts: int = 4) -> np.ndarray:
    """Teachers of whom so many starts recover the permutation."""
    return np.arange(starts) < np.array(counts)[:, None]


RECOVERED = {
    "penalty": {16: found(4, 4, 4, 4), 2: found(0, 1, 0, 3)},
    "no penalty": {2: found(0, 0, 0, 0), 16: found(4, 4, 2, 2)},
}
CERTIFIED = {
    "no penalty": {2: found(1, 0, 0, 0), 16: found(4, 4, 2, 0)},
    "penalty": {16: found(4, 4, 4, 4), 2: found(4, 3, 4, 4)},
}


def points(axes) -> dict[str, tuple[list[float], list[list[float]]]]:
    """By method, the middles and the ends of the bars."""
    return {
        box.get_label(): (
            [round(y, 6) for y in box.lines[0].get_ydata()],
            [[round(y, 6) for y in bar[:, 1]] for bar in box.lines[2][0].get_segments()],
        )
        for box in axes.containers
    }


def test_networks_with_any_start_and_the_share_of_all_starts_certified() -> None:
    left, right = two_layer_figure(RECOVERED, CERTIFIED).axes
    half, all_four, none = ([round(100 * end, 6) for end in binomial_interval(hits, 4)] for hits in (2, 4, 0))
    assert points(left) == {"penalty": ([50, 100], [half, all_four]), "no penalty": ([0, 100], [none, all_four])}
    assert {name: middles for name, (middles, _) in points(right).items()} == {
        "penalty": [93.75, 100],
        "no penalty": [6.25, 62.5],
    }
    assert left.get_ylim() == right.get_ylim()
    for axes in (left, right):
        assert [tick.get_text() for tick in axes.get_xticklabels()] == ["2", "16"]
        first, second = (box.lines[0].get_xdata() for box in axes.containers)
        for width, near in zip((2, 16), zip(first, second, strict=True), strict=True):
            assert near[0] < width < near[1]
            assert near[1] / near[0] < 1.5


def test_a_method_looks_the_same_in_both_panels_and_like_no_other() -> None:
    looks = [
        [(to_hex(box.lines[0].get_color()), box.lines[0].get_marker()) for box in axes.containers]
        for axes in two_layer_figure(RECOVERED, CERTIFIED).axes
    ]
    assert looks[0] == looks[1]
    assert len(set(looks[0])) == 2


@pytest.mark.parametrize("count", [1, len(STYLES)])
def test_nothing_overlaps_or_is_cut_off(count: int) -> None:
    names = [f"relaxation {i}, penalty" for i in range(count)]
    hits = {name: {width: found(1, 4) for width in (1, 2, 4, 8, 16, 32, 64)} for name in names}
    figure = two_layer_figure(hits, hits)
    renderer = FigureCanvasAgg(figure).get_renderer()
    figure.draw_without_rendering()
    boxes = [axes.get_tightbbox(renderer, call_axes_locator=False) for axes in figure.axes]
    boxes.append(figure.legends[0].get_window_extent(renderer))
    width, height = figure.bbox.size
    assert all(min(b.x0, b.y0, width - b.x1, height - b.y1) >= 0 for b in boxes)
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])
    assert [text.get_text() for text in figure.legends[0].get_texts()] == names


def test_the_interval_is_wilsons_and_holds_the_share() -> None:
    for trials in (1, 2, 8, 1000):
        for successes in {0, 1, trials // 2, trials}:
            low, high = binomial_interval(successes, trials)
            exact = binomtest(successes, trials).proportion_ci(0.95, "wilson")
            np.testing.assert_allclose((low, high), (exact.low, exact.high), atol=1e-4)
            assert 0 <= low <= successes / trials <= high <= 1


def test_what_cannot_be_drawn_is_said() -> None:
    for nothing in ({}, {"a": {}}, {"a": {2: found(1)}, "b": {2: np.zeros((0, 3), bool)}}):
        with pytest.raises(ValueError, match="no recovery to draw"):
            two_layer_figure(nothing, nothing)
    with pytest.raises(ValueError, match="at most 6 methods can be drawn in one figure, got 7"):
        many = {str(i): {2: found(1)} for i in range(len(STYLES) + 1)}
        two_layer_figure(many, many)
    for other in ({}, {"a": {4: found(1)}}, {"b": {2: found(1)}}):
        with pytest.raises(ValueError, match="recovered and certified must be of the same methods and widths"):
            two_layer_figure({"a": {2: found(1)}}, other)
