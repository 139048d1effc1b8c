"""What several runs say together: sums done by hand, and the dots of the figure counted."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
from matplotlib.colors import to_hex

from shuffle_jax.analysis.comparison import block, figure, rows, run_result, table
from shuffle_jax.analysis.drawing import BLUE, ORANGE


def result(network, top1, loss=0.5, step=20):
    return {"kind": "result", "step": step, "network": network, "top1": top1, "top5": 1.0, "loss": loss}


def diagnosis(step, certified, layer="a"):
    return {"kind": "permutation", "step": step, "layer": layer, "size": 8, "certified": certified}


def run(seed, relaxed, hardened=None, certified=0):
    numbers = [None if top1 is None else {"top1": top1, "loss": 0.5} for top1 in (relaxed, hardened)]
    found = {"relaxed": numbers[0], "hardened": numbers[1], "certified": certified}
    return {"seed": seed, **found, "permutations": 0 if hardened is None else 16}


RESULTS = {
    "name": "two",
    "title": "Two ways",
    "text": "\nWhat was done.\n",
    "command": "python -m experiments.compare two.toml",
    "each_seed": "--seed {seed}",
    "seeds": [1, 2, 3],
    "versions": {"jax": "0.12.0", "flax": "0.13.0"},
    "devices": ["2 cores, x86_64"],
    "date": "2026-11-21",
    "variants": [
        {"label": "plain", "command": "digits --a b", "runs": [run(1, 0.9), run(2, 0.8), run(3, 1.0)]},
        {
            "label": "learned",
            "command": "digits",
            "runs": [run(1, 0.9, 0.8, 16), run(2, 0.8, 0.9, 15), {"seed": 3, "failed": "the loss is nan at step 3"}],
        },
        {"label": "broken", "command": "digits --c d", "runs": [{"seed": s, "failed": "no"} for s in (1, 2, 3)]},
    ],
}


def test_a_run_is_finished_when_every_network_it_has_was_evaluated():
    learning = [diagnosis(0, False), diagnosis(20, True), diagnosis(20, False, "b")]
    assert run_result([]) is None
    assert run_result([{"kind": "test", "step": 20, "top1": 1.0}, *learning]) is None
    assert run_result([*learning, result("relaxed", 0.75)]) is None
    fixed = run_result([result("relaxed", 0.75)])
    assert fixed == {"relaxed": {"top1": 0.75, "loss": 0.5}, "hardened": None, "certified": 0, "permutations": 0}
    learned = run_result([*learning, result("relaxed", 0.75), result("hardened", 0.5, math.inf)])
    assert learned["hardened"] == {"top1": 0.5, "loss": "inf"}
    assert (learned["certified"], learned["permutations"]) == (1, 2)  # of the last step


def test_rows_are_the_sums_done_by_hand():
    plain, learned, broken = rows(RESULTS)
    assert plain.relaxed.mean == pytest.approx(90) and plain.relaxed.deviation == pytest.approx(10)
    assert plain.hardened is None and plain.change is None and plain.permutations == 0
    # Paired by seed the change is -10 and +10; the two means alone would say 0 and nothing else.
    np.testing.assert_allclose(learned.change.values, [-10, 10])
    assert learned.change.mean == pytest.approx(0)
    assert (learned.certified, learned.permutations) == (31, 32)
    assert learned.failed == {3: "the loss is nan at step 3"}
    assert broken.relaxed is None and len(broken.failed) == 3


def test_the_table():
    assert table(RESULTS).splitlines() == [
        "| variant | as trained | hardened | change by hardening | certified |",
        "|---|---|---|---|---|",
        "| plain | 90.0 ± 10.0 (80.0 to 100.0) |  |  |  |",
        "| learned (2 of 3 seeds) | 85.0 ± 7.1 (80.0 to 90.0) | 85.0 ± 7.1 (80.0 to 90.0) "
        "| 0.00 (-10.00 to 10.00) | 31 of 32 |",
        "| broken (0 of 3 seeds) | failed |  |  |  |",
        *["", "Failed: learned, seed 3: the loss is nan at step 3"],
        *[line for seed in (1, 2, 3) for line in ("", f"Failed: broken, seed {seed}: no")],
    ]


def test_one_seed_has_no_deviation_and_a_change_of_nearly_nothing_is_zero():
    single = copy.deepcopy(RESULTS)
    single["variants"] = [{"label": "x", "command": "digits", "runs": [run(1, 0.5, 0.5 - 1e-6, 16)]}]
    line = "| x | 50.0 (50.0 to 50.0) | 50.0 (50.0 to 50.0) | 0.00 (0.00 to 0.00) | 16 of 16 |"
    assert table(single).splitlines()[-1] == line


def test_a_block_says_how_to_repeat_it():
    text = block(RESULTS)
    assert text.startswith("What was done.\n\n") and text.endswith(".\n") and "\n\n\n" not in text
    assert table(RESULTS).strip() in text
    for part in (
        *("seeds 1, 2, 3", "\n    python -m experiments.compare two.toml\n", "`--seed {seed}`"),
        *("- plain: `digits --a b`", "- learned: `digits`", "2026-11-21; 2 cores, x86_64; jax 0.12.0, flax 0.13.0."),
    ):
        assert part in text


def dots(axes, colour):
    """The accuracies drawn in a colour, by the row they are nearest to."""
    found = {}
    for line in axes.lines:
        if line.get_marker() == "o" and to_hex(line.get_color()) == colour:
            x, y = np.asarray(line.get_xdata()), np.asarray(line.get_ydata())
            assert len({*y.tolist()}) == len(y)  # equal accuracies do not cover each other
            assert len({*np.rint(y)}) == 1
            found[int(np.rint(y[0]))] = x
    return found


def test_the_figure_has_a_dot_for_every_seed_in_the_row_of_its_variant():
    drawing = figure(RESULTS)
    (axes,) = drawing.axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["plain", "learned", "broken"]
    trained, hardened = dots(axes, BLUE), dots(axes, ORANGE)
    assert {row: x.tolist() for row, x in trained.items()} == {0: [90, 80, 100], 1: [90, 80]}
    assert {row: x.tolist() for row, x in hardened.items()} == {1: [80, 90]}
    bars = [line.get_xdata() for line in axes.lines if line.get_marker() == "None"]
    np.testing.assert_allclose(bars[0], [80, 100])  # mean and sample deviation
    words = {text.get_text() for text in axes.texts}
    assert words == {"90.0 ± 10.0", "85.0 ± 7.1", "every run failed"}
    assert [text.get_text() for text in drawing.legends[0].get_texts()] == ["as trained", "hardened"]


def test_a_wide_range_is_stretched_and_keeps_the_order(tmp_path):
    wide = copy.deepcopy(RESULTS)
    wide["variants"][1]["runs"] = [run(1, 1.0, 0.1), run(2, 0.99, 0.1), run(3, 0.98, 0.09)]
    drawing = figure(wide)
    (axes,) = drawing.axes
    low, high = axes.get_xlim()
    assert low <= 9 and high == 100
    x = np.array([9.0, 10.0, 80.0, 98.0, 99.0, 99.5, 100.0])
    position = axes.transData.transform(np.stack([x, np.zeros_like(x)], -1))[:, 0]
    assert (np.diff(position) > 0).all() and np.isfinite(position).all()
    np.testing.assert_allclose(axes.transData.inverted().transform(np.stack([position, 0 * x], -1))[:, 0], x, rtol=1e-6)
    # On a plain axis 98 to 99 would be a hundredth.
    assert position[4] - position[3] > 0.05 * (position[-1] - position[0])
    drawing.savefig(tmp_path / "figure.png")

    assert figure(RESULTS).axes[0].get_xscale() == "linear"  # errors of 0, 10 and 20
    narrow = copy.deepcopy(RESULTS)
    narrow["variants"] = narrow["variants"][:1]
    narrow["variants"][0]["runs"] = [run(1, 0.97), run(2, 0.98), run(3, 0.99)]
    assert figure(narrow).axes[0].get_xscale() == "linear"


def test_nothing_to_draw_is_said():
    failed = {**RESULTS, "variants": RESULTS["variants"][2:]}
    with pytest.raises(ValueError, match="no accuracies to draw: every run of the comparison failed"):
        figure(failed)
