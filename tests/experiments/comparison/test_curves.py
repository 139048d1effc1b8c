"""The curves of a comparison, read back from the axes."""

from __future__ import annotations

import copy

import numpy as np
import pytest
from matplotlib.colors import to_hex

from experiments.comparison.curves import COLOURS, STROKES, curves, has_curves


def run(seed, train_loss, top1):
    return {"seed": seed, "curves": {"train_loss": train_loss, "top1": top1}}


RESULTS = {
    "title": "Two ways",
    "variants": [
        {
            "label": "plain",
            "runs": [
                run(1, [[1, 3.0], [2, 1.0]], [[2, 0.5]]),
                run(2, [[1, 2.0], [2, 2.0]], [[2, 0.625]]),
                run(3, [[1, 7.0], [2, 1.5]], [[2, 0.9375]]),
            ],
        },
        {"label": "early", "runs": [{"seed": 1}, {"seed": 2, "failed": "no"}]},
        {
            "label": "other",
            "runs": [run(1, [[1, 2.5], [2, 2.0]], [[1, 0.25], [2, 0.5]]), run(2, [[2, 1.0]], [[2, 0.75]])],
        },
    ],
}


def lines(axes):
    """The mean lines by label, as lists of (epoch, number), and the dots by colour."""
    means = {line.get_label(): line.get_xydata().tolist() for line in axes.lines if line.get_marker() != "o"}
    dots = {line.get_color(): line.get_xydata().tolist() for line in axes.lines if line.get_marker() == "o"}
    assert len(means) + len(dots) == len(axes.lines)
    return means, dots


def test_lines_are_means_and_dots_are_single_evaluations():
    loss, accuracy = curves(RESULTS).axes
    means, dots = lines(loss)
    # Of the last variant only one seed has a loss of the first epoch.
    assert means == {"plain": [[1, 4.0], [2, 1.5]], "other": [[2, 1.5]]} and dots == {}
    means, dots = lines(accuracy)
    assert means == {"plain": [[2, 68.75]], "other": [[2, 62.5]]}
    assert dots == {COLOURS[0]: [[2, 50], [2, 62.5], [2, 93.75]], COLOURS[2]: [[1, 25], [2, 50], [2, 75]]}


def test_a_single_epoch_is_seen():
    loss, accuracy = curves(RESULTS).axes
    assert [line.get_marker() for line in loss.lines] == ["None", "_"]  # both epochs of the first, one of the other
    assert [line.get_marker() for line in accuracy.lines] == ["_", "o", "_", "o"]


def test_bands_reach_from_the_smallest_to_the_largest():
    loss, accuracy = curves(RESULTS).axes
    first = loss.collections[0].get_paths()[0].vertices
    reach = {epoch: (first[first[:, 0] == epoch, 1].min(), first[first[:, 0] == epoch, 1].max()) for epoch in (1, 2)}
    assert reach == {1: (2.0, 7.0), 2: (1.0, 2.0)}
    assert accuracy.collections[0].get_datalim(accuracy.transData).intervaly == pytest.approx((50, 93.75))
    assert len(loss.collections) == len(accuracy.collections) == 2


def test_every_variant_keeps_its_colour_whether_others_are_drawn_or_not():
    def looks(results):
        axes = curves(results).axes[0]
        return {line.get_label(): (to_hex(line.get_color()), line.get_linestyle()) for line in axes.lines}

    assert looks(RESULTS) == {"plain": (COLOURS[0], "-"), "other": (COLOURS[2], "-")}
    many = [{"label": str(k), "runs": [run(1, [[1, 1.0]], [[1, 0.5]])]} for k in range(3 * len(COLOURS))]
    found = looks({"title": "", "variants": many})
    assert len({*found.values()}) == len(many)
    assert [found[str(k)] for k in range(len(COLOURS))] == [(colour, STROKES[0]) for colour in COLOURS]


def test_the_legend_names_those_drawn_and_the_seeds_that_are_missing():
    few = copy.deepcopy(RESULTS)
    few["variants"][0]["runs"][1] = {"seed": 2, "failed": "the loss is nan"}
    texts = [text.get_text() for text in curves(few).legends[0].get_texts()]
    assert texts == ["plain (2 of 3 seeds)", "other"]


def test_numbers_that_are_not_finite_leave_a_gap(tmp_path):
    broken = copy.deepcopy(RESULTS)
    broken["variants"][0]["runs"][0]["curves"] = {"train_loss": [[1, "nan"], [2, "inf"]], "top1": []}
    drawing = curves(broken)
    means, _ = lines(drawing.axes[0])
    assert np.isnan(means["plain"][0][1]) and means["plain"][1][1] == np.inf and means["other"] == [[2, 1.5]]
    drawing.savefig(tmp_path / "curves.png")
    assert (tmp_path / "curves.png").stat().st_size > 10_000


def test_a_wide_range_of_losses_is_logarithmic():
    assert curves(RESULTS).axes[0].get_yscale() == "linear"
    wide = copy.deepcopy(RESULTS)
    for one in wide["variants"][0]["runs"]:
        one["curves"]["train_loss"][1][1] = 0.01
    assert [axes.get_yscale() for axes in curves(wide).axes] == ["log", "linear"]


def test_nothing_to_draw_is_said():
    early = {**RESULTS, "variants": RESULTS["variants"][1:2]}
    assert has_curves(RESULTS) and not has_curves(early)
    with pytest.raises(ValueError, match="no curves to draw: no run of the comparison has any; make the results"):
        curves(early)
