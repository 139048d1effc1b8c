"""Questions to a comparison: intervals and numbers of seeds from tables, verdicts, and the order of the runs."""

from __future__ import annotations

import math

import numpy as np
import pytest

from experiments.comparison.questions import Answer, answer_legend, answer_table, answers, next_run, operand


def answer(*differences, margin=1.0):
    return Answer("q", "A", "B", differences, margin)


def test_the_interval_is_that_of_a_table_of_t():
    # Student's t for 95 %: 12.706 with one degree of freedom, 4.303 with two, 2.776 with four.
    for differences, mean, half in (
        ((1.0, 3.0), 2.0, 12.706 * math.sqrt(2) / math.sqrt(2)),
        ((1.0, 2.0, 3.0), 2.0, 4.303 * 1 / math.sqrt(3)),
        ((1.0, 2.0, 3.0, 4.0, 5.0), 3.0, 2.776 * math.sqrt(2.5) / math.sqrt(5)),
    ):
        found = answer(*differences)
        assert found.mean == mean and found.interval == pytest.approx((mean - half, mean + half), abs=2e-3)
    assert answer(1.0).interval is None and answer().interval is None


@pytest.mark.parametrize(("effect", "seeds"), [(1.0, 10), (0.8, 15), (0.5, 34), (0.3, 90), (0.2, math.inf)])
def test_seeds_for_a_power_of_80_per_cent_are_those_of_cohens_tables(effect, seeds):
    spread = 1 / math.sqrt(2)  # of two numbers so far from their mean the sample deviation is 1
    found = answer(effect - spread, effect + spread, margin=1e-3)
    assert found.is_open and found.seeds == seeds
    told = "more than 100" if math.isinf(seeds) else f"about {seeds}"
    assert found.verdict == f"undecided: {told} seeds"


def test_seeds_until_the_interval_is_within_the_margin_are_counted_by_hand():
    # The deviation is 1.414: 2.262 x 1.414 / sqrt(10) = 1.01 with ten seeds, 2.228 x 1.414 / sqrt(11) = 0.95 with 11.
    assert answer(-1.0, 1.0).seeds == 11
    assert answer(-1.0, 1.0, margin=1.012).seeds == 10


@pytest.mark.parametrize(
    ("differences", "verdict"),
    [
        ((), "undecided: fewer than two pairs"),
        ((5.0,), "undecided: fewer than two pairs"),
        ((3.0, 3.1, 2.9), "A is ahead"),
        ((-3.0, -3.1, -2.9), "B is ahead"),
        ((0.5, 0.51, 0.49), "A is ahead, but by less than the margin"),
        ((0.1, -0.1, 0.0), "level"),
        ((0.0, 0.0), "level"),  # without a spread the interval is a point
        ((2.0, 2.0), "A is ahead"),
        ((-0.5, -0.5, -0.5), "B is ahead, but by less than the margin"),
    ],
)
def test_verdicts(differences, verdict):
    assert answer(*differences).verdict == verdict


def test_an_operand_is_a_label_or_a_form_of_one():
    labels = ["learned", "learned: hard", "a: b"]
    assert operand("learned", labels) == ("learned", None)
    assert operand("learned: hardened", labels) == ("learned", "hardened")
    assert operand("learned: hard", labels) == ("learned: hard", None)  # a variant of that name
    assert operand("a: b: soft", labels) == ("a: b", "soft")
    with pytest.raises(ValueError, match=r"'learned: hardend' names no form 'hardend' of a network; near: hardened"):
        operand("learned: hardend", labels)
    with pytest.raises(ValueError, match=r"'leaned: soft' names no variant; near: learned"):
        operand("leaned: soft", labels)


def results(seeds=(1, 2, 3, 4), questions=None, **variants):
    """Results of variants with the accuracies of their first seeds, in points; None failed, ... is missing."""
    found = []
    for label, accuracies in variants.items():
        runs = []
        for seed, top1 in zip(seeds, accuracies, strict=False):
            if top1 is None:
                runs.append({"seed": seed, "failed": "no"})
            elif top1 is not ...:
                runs.append({"seed": seed, "relaxed": {"top1": top1 / 100}, "hardened": None})
        found.append({"label": label, "runs": runs})
    asked = {"questions": questions, "margin": 1.0} if questions else {}
    return {"seeds": list(seeds), "variants": found, **asked}


def test_differences_are_of_the_seeds_that_have_both():
    found = results(questions={"q": ["a", "b"], "h": ["a: hardened", "a"]}, a=[50, 60, None, 80], b=[49, ..., 70, 82])
    found["variants"][0]["runs"][0]["hardened"] = {"top1": 0.75}
    first, second = answers(found)
    assert first.differences == pytest.approx((1, -2)) and second.differences == pytest.approx((25,))
    found["variants"][1]["runs"][0]["others"] = {"soft": {"top1": 0.4}}
    (soft,) = answers({**found, "questions": {"q": ["a", "b: soft"]}})
    assert soft.differences == pytest.approx((10,))


def test_without_questions_runs_go_variant_by_variant():
    assert next_run(results(a=[], b=[])) == ("a", 1)
    assert next_run(results(a=[1, ..., 1, 1], b=[1])) == ("a", 2)
    assert next_run(results(a=[1] * 4, b=[None])) == ("b", 2)
    assert next_run(results(a=[1] * 4, b=[1] * 4)) is None


def test_with_questions_each_in_turn_has_two_seeds_first():
    asked = {"first": ["c", "b"], "hardening": ["c: hardened", "c"], "second": ["b", "a"]}
    order = [("c", 1), ("b", 1), ("c", 2), ("b", 2), ("a", 1), ("a", 2)]
    for k in range(6):
        done = {label: [50.0] * sum(label == name for name, _ in order[:k]) for label in "abc"}
        assert next_run(results(questions=asked, **done)) == order[k]


def test_then_the_question_that_needs_the_fewest_further_seeds_has_its_turn():
    asked = {"far": ["a", "c"], "near": ["b", "c"], "decided": ["d", "c"]}
    spread = 1 / math.sqrt(2)
    # a less c is 0.5 with a deviation of 1, in the margin after 18 seeds; b less c is 1, which is found with 10.
    tops = {"a": [50.5 - spread, 50.5 + spread], "b": [51 - spread, 51 + spread], "c": [50, 50], "d": [60, 60]}
    found = results(questions=asked, **tops)
    assert [one.verdict for one in answers(found)][1:] == ["undecided: about 10 seeds", "d is ahead"]
    assert next_run(found) == ("b", 3)
    assert next_run(results(questions=asked, **tops | {"b": [*tops["b"], 51]})) == ("c", 3)  # the pair becomes whole
    # One run makes a pair at the fourth seed, where c is there already, and two would be needed at the third.
    assert next_run(results(questions=asked, **tops | {"c": [50, 50, ..., 50]})) == ("b", 4)
    # A seed at which one of the two failed makes no pair.
    assert next_run(results(questions=asked, **tops | {"b": [*tops["b"], None]})) == ("b", 4)
    # The near question has no seed left: the far one.
    assert next_run(results(questions=asked, **tops | {"b": [*tops["b"], None, None]})) == ("a", 3)
    # No open question can be brought further: what is missing, seed by seed.
    closed = {"a": [*tops["a"], None, None], "b": [*tops["b"], None, None]}
    assert next_run(results(questions=asked, **tops | closed)) == ("c", 3)


@pytest.mark.parametrize("asked", [None, {"p": ["a", "b"], "q": ["b", "c"]}, {"h": ["a: hardened", "a"]}])
def test_every_run_has_its_turn_once(asked):
    rng, found, order = np.random.default_rng(0), results(questions=asked, a=[], b=[], c=[]), []
    while (chosen := next_run(found)) is not None:
        order.append(chosen)
        runs = next(variant["runs"] for variant in found["variants"] if variant["label"] == chosen[0])
        said = {"relaxed": {"top1": rng.normal(0.5, 0.01)}, "hardened": {"top1": 0.5}}
        runs.append({"seed": chosen[1], **({"failed": "no"} if rng.random() < 0.2 else said)})
    assert sorted(order) == [(label, seed) for label in "abc" for seed in (1, 2, 3, 4)]


def test_the_table_of_answers():
    asked = {"learned against fixed": ["a", "b"], "none": ["a: soft", "b"]}
    found = results(questions=asked, a=[53, 54, 52], b=[50, 50.9, 49.1])
    assert answer_table(found).splitlines() == [
        "| question | pairs | mean difference | 95 % interval | verdict |",
        "|---|---|---|---|---|",
        "| learned against fixed | 3 | 3.00 | 2.75 to 3.25 | a is ahead |",  # 4.303 x 0.1 / sqrt(3) = 0.25
        "| none | 0 |  |  | undecided: fewer than two pairs |",
    ]
    legend = " ".join(answer_legend(found).split())
    assert all(
        part in legend for part in ("learned against fixed: 'a' less 'b'; none: 'a: soft' less 'b'.", "of 1.0 points")
    )
    assert answer_table(results(a=[1])) == answer_legend(results(a=[1])) == ""
