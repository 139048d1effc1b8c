"""What one run says in a comparison: when it is finished, and its curves, summed by hand step by step."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from experiments.comparison.runs import run_curves, run_result


def result(network, top1, loss=0.5, step=20):
    return {"kind": "result", "step": step, "network": network, "top1": top1, "top5": 1.0, "loss": loss}


def diagnosis(step, certified, layer="a"):
    return {"kind": "permutation", "step": step, "layer": layer, "size": 8, "certified": certified}


def training(step, loss, length=10):
    return {"kind": "train", "step": step, "epoch": step / length, "loss": loss, "learning_rate": 0.1}


def evaluated(step, top1, length=10):
    return {"kind": "test", "step": step, "epoch": step / length, "loss": 1.0, "top1": top1, "top5": 1.0}


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


def test_other_networks_are_kept_by_name_if_there_are_any():
    learning = [diagnosis(20, True), result("relaxed", 0.75), result("hardened", 0.5)]
    plain = run_result(learning)
    assert "others" not in plain and run_result([*learning, result("unheard of", 0.1)]) == plain
    found = run_result([*learning, result("frozen", 0.25, math.nan), result("soft", 0.625)])
    assert found["others"] == {"soft": {"top1": 0.625, "loss": 0.5}, "frozen": {"top1": 0.25, "loss": "nan"}}
    assert {name: value for name, value in found.items() if name != "others"} == plain


def dynamic(step, layer, invalid=0.0, **counted):
    return {"kind": "dynamic", "step": step, "layer": layer, "invalid": invalid, **counted}


def test_a_run_with_dynamic_layers_is_finished_when_the_last_of_its_networks_was_evaluated():
    start = [dynamic(20, "a", distinct=0.5), result("relaxed", 0.75)]
    others = [result(name, 0.5) for name in ("soft", "repaired", "frozen")]
    for count in range(3):
        assert run_result([*start, *others[:count]]) is None
    found = run_result([*start, *others])
    assert [*found["others"]] == ["soft", "repaired", "frozen"] and found["hardened"] is None
    assert "dynamic" not in found  # an earlier version did not count
    alone = run_result([*start, others[2]])  # a network with dynamic layers of its own has no other form
    assert [*alone["others"]] == ["frozen"]


def test_a_run_says_what_its_dynamic_layers_do_in_the_end():
    end = [result("relaxed", 0.75), result("frozen", 0.5)]
    learned = dynamic(20, "c", invalid=0.75)
    counted = [dynamic(20, "a", 0.5, permutations=3, images=4), dynamic(20, "b", 0.25, permutations=1, images=4)]
    found = run_result([dynamic(10, "a", permutations=4, images=4), *counted, learned, *end])
    assert found["dynamic"] == {"counts": [3, 1], "static": 1, "images": 4, "invalid": 0.5, "learned": 1}
    assert json.loads(json.dumps(found)) == found
    assert "dynamic" not in run_result([learned, *end])


def test_a_finished_run_has_its_curves_beside_what_it_said_without_them():
    end = [diagnosis(20, True), result("relaxed", 0.75), result("hardened", 0.5), result("frozen", 0.25)]
    found = run_result([training(10, 2.0), evaluated(10, 0.5), training(20, 1.0), evaluated(20, 0.75), *end])
    assert found.pop("curves") == {"train_loss": [[1, 2.0], [2, 1.0]], "top1": [[1, 0.5], [2, 0.75]]}
    assert found == run_result(end)


def test_the_loss_of_an_epoch_is_the_mean_over_its_steps():
    # Epochs of ten steps, a record every four and at the end of each second epoch.
    records = [training(step, loss) for step, loss in ((4, 8.0), (8, 6.0), (12, 4.0), (16, 2.0), (20, 1.0))]
    first = (4 * 8 + 4 * 6 + 2 * 4) / 10
    second = (2 * 4 + 4 * 2 + 4 * 1) / 10
    assert run_curves(records) == {"train_loss": [[1, first], [2, second]], "top1": []}
    assert run_curves(records[:-1]) == {"train_loss": [[1, first]], "top1": []}  # the second epoch is not whole


def test_epochs_agree_with_a_loss_of_every_single_step():
    rng = np.random.default_rng(0)
    length, losses = 7, np.exp(rng.normal(size=42))
    ends = sorted({*rng.choice(np.arange(1, 42), 11, replace=False).tolist(), 7, 21, 42})
    records, spread, before = [], np.empty(42), 0
    for end in ends:
        spread[before:end] = losses[before:end].mean()
        records.append(training(end, spread[before], length))
        before = end
    found = dict(run_curves(records)["train_loss"])
    assert set(found) == {-(-end // length) for end in ends}
    for epoch, loss in found.items():
        assert loss == pytest.approx(spread[(epoch - 1) * length : epoch * length].mean(), rel=5e-4)
    assert found[1] == pytest.approx(losses[:7].mean(), rel=5e-4)  # Records end with this epoch: nothing is mixed.


def test_epochs_without_a_record_are_left_out():
    found = run_curves([training(8, 2.0, length=3), training(12, 1.0, length=3)])
    assert found["train_loss"] == [[3, 1.667], [4, 1.0]]  # (2 * 2 + 1) / 3: the ninth step is in the second record
    assert run_curves([training(8, 2.0, length=3)]) == {}  # written in the third epoch, which is not whole


def test_what_a_resumed_run_wrote_twice_counts_once():
    first = [training(4, 3.0), training(8, 2.0), training(10, 1.5), evaluated(10, 0.5)]
    whole = [*first, training(14, 1.0), training(20, 0.5), evaluated(20, 0.75)]
    expected = run_curves(whole)
    assert expected == {"train_loss": [[1, 2.3], [2, 0.7]], "top1": [[1, 0.5], [2, 0.75]]}
    stale = [training(8, 9.0), training(10, 9.0), evaluated(10, 0.1), training(14, 9.0)]
    assert run_curves([whole[0], *stale, *whole[1:]]) == expected


def test_evaluations_stand_at_their_epochs():
    assert run_curves([evaluated(20, 0.5), evaluated(45, 1.0)]) == {"train_loss": [], "top1": [[2, 0.5], [4.5, 1.0]]}


def test_numbers_are_short_and_plain():
    records = [training(10, 0.000123456), evaluated(10, 0.98765), training(20, math.inf), evaluated(20, math.nan)]
    found = run_curves(records)
    assert found == {"train_loss": [[1, 0.0001235], [2, "inf"]], "top1": [[1, 0.9877], [2, "nan"]]}
    assert json.dumps(found, allow_nan=False).startswith('{"train_loss": [[1, 0.0001235], [2, "inf"]], "top1": [[1, ')


def test_records_that_tell_no_epoch_have_no_curves():
    records = [training(10, 1.0), evaluated(10, 0.5)]
    assert run_curves([{key: value for key, value in r.items() if key != "epoch"} for r in records]) == {}
    assert run_curves([]) == {}
