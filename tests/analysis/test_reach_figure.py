from __future__ import annotations

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from shuffle_jax.analysis.channel_reach import Reach
from shuffle_jax.analysis.drawing import STYLES
from shuffle_jax.analysis.reach_figure import reach_figure


def reaches(*shares: float, channels: int = 40) -> list[Reach]:
    return [Reach(f"stage3_{i}", channels, 80, share) for i, share in enumerate(shares, start=1)]


PANELS = {
    "eight groups": {"shuffle": reaches(1.0, 1.0), "shift": reaches(0.5, 0.75, 1.0), "none": reaches(0.125, 0.125)},
    "four groups": {"none": reaches(0.25, channels=10), "learned": reaches(0.999999, 1.0)},
}


def drawn(figure: Figure) -> list[dict[str, list[tuple[float, float]]]]:
    return [
        {line.get_label(): [tuple(point) for point in np.asarray(line.get_xydata())] for line in axes.lines}
        for axes in figure.axes
    ]


def test_lines_begin_at_the_channels_themselves_and_say_when_all_are_connected() -> None:
    first, second = drawn(reach_figure(PANELS))
    assert first == {
        "shuffle: all after 1 unit": [(0, 2.5), (1, 100), (2, 100)],
        "shift: all after 3 units": [(0, 2.5), (1, 50), (2, 75), (3, 100)],
        "none: 12.5 % after 2 units": [(0, 2.5), (1, 12.5), (2, 12.5)],
    }
    assert second["none: 25 % after 1 unit"] == [(0, 10), (1, 25)]
    assert second["learned: all after 2 units"][1] == (1, pytest.approx(99.9999))


def test_a_mixer_looks_the_same_in_every_panel_and_like_no_other() -> None:
    figure = reach_figure(PANELS)
    looks: dict[str, set[tuple[str, ...]]] = {}
    for axes in figure.axes:
        for line in axes.lines:
            look = to_hex(line.get_color()), str(line.get_marker())
            looks.setdefault(str(line.get_label()).split(":")[0], set()).add(look)
    assert list(looks) == ["shuffle", "shift", "none", "learned"]
    assert all(len(look) == 1 for look in looks.values()) and len(set.union(*looks.values())) == 4
    assert [axes.get_title(loc="left") for axes in figure.axes] == list(PANELS)
    assert [axes.get_ylabel() != "" for axes in figure.axes] == [True, False]
    assert figure.axes[0].get_ylim() == figure.axes[1].get_ylim()


@pytest.mark.parametrize("count", [1, 2, 3])
def test_nothing_overlaps_or_is_cut_off(count: int) -> None:
    lines = {f"learned permutations {i}": reaches(0.5, 0.6 + i / 20) for i in range(len(STYLES))}
    figure = reach_figure({f"ShuffleNetV1 0.5x, 8 groups: stage {i}": lines for i in range(count)})
    renderer = FigureCanvasAgg(figure).get_renderer()
    figure.draw_without_rendering()
    boxes = []
    for axes in figure.axes:
        texts = [axes.xaxis.label, axes.get_legend(), *(t for t in axes.get_xticklabels() if t.get_text())]
        boxes += [axes.get_tightbbox(renderer, call_axes_locator=False)]
        parts = [part.get_window_extent(renderer) for part in texts]
        assert not any(a.overlaps(b) for a, b in zip(parts[:1] * 9, parts[1:], strict=False))
        assert not any(parts[1].overlaps(tick) for tick in parts[2:])
        assert not parts[1].overlaps(axes.bbox)
    width, height = figure.bbox.size
    assert all(min(b.x0, b.y0, width - b.x1, height - b.y1) >= 0 for b in boxes)
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])


def test_what_cannot_be_drawn_is_said() -> None:
    for nothing in ({}, {"a": {}}, {"a": {"shuffle": reaches(1.0)}, "b": {"shift": []}}):
        with pytest.raises(ValueError, match="no reach to draw"):
            reach_figure(nothing)
    many = {str(i): reaches(1.0) for i in range(len(STYLES) + 1)}
    with pytest.raises(ValueError, match="at most 6 mixers can be drawn in one figure, got 7"):
        reach_figure({"a": many})
