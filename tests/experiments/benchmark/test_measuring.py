"""Cases are measured in turn, others are told from this process, and what is shown is exact."""

from __future__ import annotations

import os

import pytest

from experiments.benchmark import machine, measuring, showing
from experiments.benchmark.effort import Effort
from experiments.benchmark.measuring import Turn
from experiments.benchmark.showing import Goal, Table


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(measuring, "SHORTEST", 0.0)
    monkeypatch.setattr(measuring, "rest", lambda: True)


def table(show=showing.columns, images=None, goals=None):
    return Table("title", lambda effort: {}, images, show, goals or {})


def shown(one, result):
    return one.show(one, result)


def test_cases_run_in_turn_after_two_runs_each():
    calls = []
    result = measuring.measure(lambda: {name: lambda name=name: calls.append(name) for name in "ab"}, Effort(3))
    assert "".join(calls) == "aabb" + "ab" * 3
    assert {name: len(values) for name, values in result["seconds"].items()} == {"a": 3, "b": 3}


def test_a_short_case_is_repeated_and_its_time_is_that_of_one_run(monkeypatch):
    monkeypatch.setattr(measuring, "SHORTEST", 1.0)
    monkeypatch.setattr(measuring, "rest", lambda: True)
    clock, calls = [0.0], []
    monkeypatch.setattr(measuring.time, "perf_counter", lambda: clock[0])

    def case(seconds):
        clock[0] += seconds
        calls.append(seconds)

    result = measuring.measure(lambda: {"short": lambda: case(0.375), "long": lambda: case(2.0)}, Effort(2))
    assert result["seconds"] == {"short": [0.375] * 2, "long": [2.0] * 2}
    assert calls.count(0.375) == 2 + 2 * 3  # the fewest that take a second
    assert calls.count(2.0) == 2 + 2


def test_cores_of_others_are_those_of_a_whole_round_and_steps_of_the_clock_even_out():
    rounds = iter(
        [
            (Turn(1.0, 2.0, others=-0.01), Turn(1.0, 2.0, others=1.01)),  # a second of a core in four
            (Turn(1.0, 2.0, others=-0.02), Turn(1.0, 2.0, others=0.01)),  # nobody
            (Turn(1.0, 2.0, others=-1.0, stolen=1.5), Turn(1.0, 2.0, others=0.5)),  # stolen, and counted as ours
        ]
    )
    taken = []

    def take():
        if not taken:
            taken.extend(next(rounds))
        return taken.pop(0)

    result = measuring.take_turns({"a": take, "b": take}, Effort(3))
    assert result["others"] == pytest.approx([0.25, 0.0, 0.375])


def test_who_else_computes_is_read_from_the_lines_of_our_cores(tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "PROC", tmp_path)
    monkeypatch.setattr(machine.os, "sched_getaffinity", lambda pid: {1, 3})
    monkeypatch.setattr(machine.time, "process_time", lambda: 0.5)
    tick = 1 / os.sysconf("SC_CLK_TCK")
    rows = ["cpu  9 9 9 9 9 9 9 9 9 9", *(f"cpu{k} {10 * k} 2 3 400 5 6 7 {k} 0 0" for k in range(4)), "ctxt 7"]
    (tmp_path / "stat").write_text("\n".join(rows))
    spent = machine.spent()
    assert spent.others == pytest.approx((10 + 30 + 2 * (2 + 3 + 6 + 7)) * tick - 0.5)
    assert spent.stolen == pytest.approx((1 + 3) * tick)
    (tmp_path / "stat").write_text("cpu  1 2 3 4")
    assert machine.spent() is None
    (tmp_path / "stat").unlink()
    assert machine.spent() is None
    assert machine.resident() is None
    assert machine.running_threads() is None
    assert not machine.forget_peak()


def test_a_process_that_works_beside_is_seen_and_the_own_work_is_not(monkeypatch):
    """The work of this process comes off what all cores do, whatever else the machine does."""
    own = iter([10.0, 13.0])
    monkeypatch.setattr(machine, "spent", lambda: machine.Spent(next(own), 0.0))
    assert measuring.turn(lambda: None, 1).others == 3.0
    monkeypatch.setattr(machine, "spent", lambda: None)
    assert measuring.turn(lambda: None, 1).others is None


def test_disturbed_rounds_are_counted_and_unknown_where_the_system_does_not_tell():
    share = showing.disturbances({"others": [0.0, 0.25, 0.26, 1.5]})
    assert share == "disturbed rounds: 2 of 4 (50%; others used more than 0.25 of a core, at most 1.5)"
    assert showing.disturbances({"others": [0.0, None]}).startswith("disturbed rounds: unknown")
    assert showing.disturbances({"bytes": {}}) is None
    assert measuring.take_turns({"a": lambda: Turn(1.0, 1.0)}, Effort(2))["others"] == [None, None]


def test_ratios_are_taken_round_by_round_against_the_first_case():
    result = {"seconds": {"base": [1.0, 2.0, 4.0], "twice": [2.0, 4.0, 12.0]}}
    headings, rows = shown(table(images=64), result)
    times = ["", "median_ms", "min_ms", "max_ms"]
    assert headings == [*times, "images/s", "ratio_min", "ratio_median", "ratio_max"]
    assert rows == [
        ["base", "2000", "1000", "4000", 32, "1.00", "1.00", "1.00"],
        ["twice", "4000", "2000", "12000", 16, "2.00", "2.00", "3.00"],
    ]
    headings, rows = shown(table(), {"seconds": {"base": [0.00125]}})
    assert rows == [["base", "1.25", "1.25", "1.25", "1.00", "1.00", "1.00"]]
    assert len(headings) == 7


def test_an_aim_stands_beside_the_median_of_its_ratio():
    goals = {
        "ours": (Goal(0.8), Goal(0.5, "slow")),
        "slow": (Goal(1.0, "not installed"),),
    }
    result = {"seconds": {"base": [1.0, 1.0, 1.0], "ours": [0.7, 0.9, 0.8], "slow": [2.0, 1.5, 1.6]}}
    headings, rows = shown(table(goals=goals), result)
    assert headings[-1] == "aim"
    assert [row[-1] for row in rows] == ["", "0.80, met; 0.50 of slow (0.50), met", ""]
    result["seconds"]["ours"][2] = 0.81
    assert shown(table(goals=goals), result)[1][1][-1] == "0.80, missed; 0.50 of slow (0.51), missed"


def test_memory_is_shown_for_one_image_a_batch_and_each_image_more():
    needed = {"a": [2.0**20, 9 * 2.0**20], "b": [2.0**20, 18 * 2.0**20]}
    headings, rows = shown(table(showing.sizes_for_images, images=9), {"bytes": needed})
    assert headings == ["", "1_image_MiB", "9_images_MiB", "each_MiB", "ratio"]
    assert rows == [["a", "1", "9", "1", "1.00"], ["b", "1", "18", "2.12", "2.00"]]


def test_peaks_are_shown_with_and_without_what_came_before():
    goals = {"ours": (Goal(1.1),)}
    held = {"torch": [100 * 2**20, 200 * 2**20], "ours": [120 * 2**20, 100 * 2**20]}
    headings, rows = shown(table(showing.peaks, goals=goals), {"peaks": held})
    assert headings == ["", "steps_MiB", "ratio", "whole_MiB", "whole_ratio", "aim"]
    assert rows == [
        ["torch", "100", "1.00", "200", "1.00", ""],
        ["ours", "120", "1.20", "100", "0.50", "1.10, missed"],
    ]
