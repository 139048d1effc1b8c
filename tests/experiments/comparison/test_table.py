"""What several runs say together: sums done by hand, and the dots of the figure counted."""

from __future__ import annotations

import copy

import numpy as np
import pytest
from matplotlib.colors import to_hex

from experiments.comparison.figure import figure
from experiments.comparison.questions import answer_legend, answer_table
from experiments.comparison.table import block, remarks, rows, table
from shuffle_jax.analysis.drawing import BLUE, ORANGE


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


def test_a_variant_that_hardening_costs_something_is_named():
    assert remarks(RESULTS) == [
        "learned: hardening loses up to 10.0 points and 31 of 32 learned permutations are certified; train longer "
        "(--epochs), or raise --penalty.weight"
    ]
    assert remarks({**RESULTS, "variants": RESULTS["variants"][:1]}) == []


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


def nothing_learned(results):
    """The same without the variant that learns permutations."""
    return {**results, "variants": [results["variants"][0], results["variants"][2]]}


def test_without_learned_permutations_nothing_is_said_of_hardening():
    found = nothing_learned(RESULTS)
    assert table(found).splitlines()[:4] == [
        "| variant | as trained |",
        "|---|---|",
        "| plain | 90.0 ± 10.0 (80.0 to 100.0) |",
        "| broken (0 of 3 seeds) | failed |",
    ]
    found["variants"][0] = copy.deepcopy(found["variants"][0])
    found["variants"][0]["runs"][0]["others"] = {"soft": {"top1": 0.5, "loss": 1.0}}
    costs = {"parameters": 1, "multiply_adds": 2}
    assert cells(table({**found, "variants": [v | costs for v in found["variants"]]}))[2:] == [
        ["plain", "90.0 ± 10.0 (80.0 to 100.0)", "50.0 (50.0 to 50.0)", "1", "2"],
        ["broken (0 of 3 seeds)", "failed", "", "1", "2"],
    ]
    assert "harden" in block(RESULTS) and "harden" not in block(found) and "certified" not in block(found)


def costly(parameters, multiply_adds):
    """The results with costs, the same for all variants but the first."""
    found = copy.deepcopy(RESULTS)
    for variant in found["variants"]:
        variant |= {"parameters": 341_234, "multiply_adds": 12_345_678}
    found["variants"][0] |= {"parameters": parameters, "multiply_adds": multiply_adds}
    return found


def cells(text):
    """The cells of a table in Markdown, line by line."""
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")]


def test_costs_are_the_last_columns_when_every_variant_has_them():
    before = cells(table(RESULTS))
    found = cells(table(costly(999, 99_999)))
    assert [line[:-2] for line in found] == before
    assert found[0][-2:] == ["parameters", "multiply-adds"]
    assert [line[-2:] for line in found[2:]] == [["999", "99,999"], *[["341,234", "12.3M"]] * 2]
    assert cells(table(costly(1_000, 100_000)))[2][-2:] == ["1,000", "0.1M"]
    assert cells(table(costly(2_278_604, 1_234_567_890)))[2][-2:] == ["2,278,604", "1234.6M"]
    for missing in ("parameters", "multiply_adds"):
        partly = costly(1, 1)
        del partly["variants"][1][missing]
        assert table(partly) == table(RESULTS) and block(partly) == block(RESULTS)


def test_other_networks_have_columns_in_one_order_and_are_empty_where_there_are_none():
    found = costly(1, 1)
    _, learned, _ = found["variants"]
    for one, frozen, soft in zip(learned["runs"], (0.5, 0.7), (0.6, 0.6), strict=False):
        one["others"] = {"frozen": {"top1": frozen, "loss": 1.0}, "soft": {"top1": soft, "loss": 1.0}}
    header, _, *lines = cells(table(found))
    assert header == [
        *("variant", "as trained", "hardened", "change by hardening", "certified"),
        *("with soft factors", "frozen to one permutation for all images", "parameters", "multiply-adds"),
    ]
    both = ["60.0 ± 0.0 (60.0 to 60.0)", "60.0 ± 14.1 (50.0 to 70.0)"]
    assert [line[5:7] for line in lines] == [["", ""], both, ["", ""]]
    learned["runs"][0]["others"]["repaired"] = {"top1": 0.9, "loss": 1.0}
    header, _, _, line, _ = cells(table(found))
    assert header[5:8] == ["with soft factors", "argmax repaired by assignment", header[7]]
    assert line[6] == "90.0 (90.0 to 90.0)"  # of the one seed that has it


def test_what_dynamic_layers_do_has_three_columns_for_the_variants_that_have_some():
    found = costly(1, 1)
    before = cells(table(found))
    _, learned, _ = found["variants"]
    uses = ([1, 5, 2, 1], 2, 0.25), ([1, 1, 1, 1], 4, 0.0)
    for one, (counts, static, invalid), frozen in zip(learned["runs"], uses, (0.85, 0.82), strict=False):
        one["others"] = {"frozen": {"top1": frozen, "loss": 1.0}}
        one["dynamic"] = {"counts": counts, "static": static, "images": 9, "invalid": invalid, "learned": 0}
    header, _, *lines = cells(table(found))
    assert [*header[:5], *header[9:]] == before[0] and header[6:9] == ["permutations in use", "invalid", "used"]
    assert [line[6:9] for line in lines] == [
        [""] * 3,
        ["1 to 5 of 9; 6 of 8 layers static in effect", "12.5%", "1.5 (-2.0 to 5.0)"],  # 90 to 85 and 80 to 82
        [""] * 3,
    ]
    assert "static in effect" in block(found) and "Used: points of accuracy lost by freezing" in block(found)


def test_the_legend_speaks_of_what_the_table_has():
    def legend(results):
        return " ".join(block(results).partition("\n\n")[2].partition("\n\n")[0].split())

    plain = legend(RESULTS)
    assert plain.endswith(
        " over seeds 1, 2, 3; the change by hardening in points, seed by seed: mean (minimum to maximum)."
    )
    costs = " Parameters, and multiply-adds of one image, are those after hardening."
    assert legend(costly(1, 1)) == plain + costs
    accuracies = plain.partition("; the change")[0] + "."
    assert legend(nothing_learned(RESULTS)) == accuracies
    assert legend(nothing_learned(costly(1, 1))) == f"{accuracies} Parameters, and multiply-adds of one image."
    found = costly(1, 1)
    found["variants"][1]["runs"][0]["others"] = {name: {"top1": 0.5, "loss": 1.0} for name in ("repaired", "soft")}
    others = " Further columns are test accuracies of the same networks in other forms:"
    assert legend(found) == f"{plain}{others} with soft factors; argmax repaired by assignment.{costs}"


def test_one_seed_has_no_deviation_and_a_change_of_nearly_nothing_is_zero():
    single = copy.deepcopy(RESULTS)
    single["seeds"] = [1]
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


def test_runs_that_are_not_finished_are_left_out_and_named():
    partly = copy.deepcopy(RESULTS)
    partly["variants"][0]["runs"].pop(1)
    partly["variants"][1]["runs"] = partly["variants"][1]["runs"][2:]
    partly["variants"][2]["runs"] = []
    *lines, failed, _, missing = table(partly).splitlines()[2:]
    assert cells("\n".join(lines)) == [
        ["plain (2 of 3 seeds)", "95.0 ± 7.1 (90.0 to 100.0)"],
        ["learned (0 of 3 seeds)", "failed"],
        ["broken (0 of 3 seeds)", "not finished"],
    ]
    assert failed.startswith("Failed: learned, seed 3: ")
    assert missing == "Not finished: plain, seed 2; learned, seeds 1, 2; broken, seeds 1, 2, 3."
    words = {text.get_text() for text in figure(partly).axes[0].texts}
    assert words == {"95.0 ± 7.1", "no run is finished"}


def test_accuracies_of_validation_images_are_called_so():
    other = {**RESULTS, "measured": "validation"}
    assert block(RESULTS).replace("Test acc", "Validation acc").split() == block(other).split()
    assert [figure(one).axes[0].get_xlabel().split()[0] for one in (RESULTS, other)] == ["test", "validation"]


def test_answers_stand_below_the_table():
    asked = {**RESULTS, "margin": 1.0, "questions": {"learned better": ["learned", "plain"]}}
    before, after = block(RESULTS), block(asked)
    first, rest = after.split(answer_table(asked))
    assert first == before.partition("    python -m")[0]
    assert "| learned better | 2 | 0.00 | 0.00 to 0.00 | level |" in after
    assert rest.strip().startswith(answer_legend(asked)) and rest.endswith(before.partition("    python -m")[2])


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
    with pytest.raises(ValueError, match="no accuracies to draw: no run of the comparison is finished"):
        figure(failed)
