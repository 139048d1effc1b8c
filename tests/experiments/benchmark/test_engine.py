"""Engines take turns in real processes; one that fails is named, and none outlives the command."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from experiments.benchmark import beside, engine, measuring
from experiments.benchmark.effort import Effort, OutOfTime
from experiments.benchmark.engine import Recipe, running

MODULE = "tests.experiments.benchmark.engines:"
MIB = 2**20
TELLS = pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the system does not tell of memory")
ROOT = Path(__file__).parents[3]


def recipe(name, function, *arguments):
    return Recipe(name, MODULE + function, arguments, keep_freed=False)


def test_engines_take_turns_and_never_work_at_the_same_time(tmp_path):
    log = tmp_path / "log"
    recipes = [
        recipe("one", "working", str(log), "A"),
        recipe("two", "working", str(log), "B", 1.0, "B C"),
    ]
    result = beside.measure_beside(recipes, 1e-4, Effort(rounds=3))
    lines = [line.split() for line in log.read_text().splitlines()]
    assert [line[1] for line in lines] == ["begins", "ends"] * (len(lines) // 2)  # no two overlap, in either process
    assert "".join(name for _, what, name, _ in lines if what == "begins") == "AA" + "BBCC" + "ABC" * 3
    assert len({(name, process) for _, _, name, process in lines}) == 3
    assert len({process for *_, process in lines}) == 2
    assert list(result["seconds"]) == ["A", "B", "C"]
    assert all(len(seconds) == 3 and min(seconds) >= 0.11 for seconds in result["seconds"].values())
    assert len(result["others"]) == 3


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (("raising",), "bad: RuntimeError: no such kernel"),
        (("dying", 3), "bad: its process ended with code 3: out of paper"),
        (("dying", -9), "bad: its process ended with signal 9 (SIGKILL): out of paper"),
        (("working", "log", "B", 1.001), "bad and good do not compute the same, so they are not compared: the numbers"),
        (("nowhere",), "bad: AttributeError: module 'tests.experiments.benchmark.engines' has no attribute 'nowhere'"),
    ],
)
@pytest.mark.fast_cases(3)
def test_what_goes_wrong_in_an_engine_is_told_in_one_line_and_ends_them_all(tmp_path, monkeypatch, bad, message):
    started = []
    start = subprocess.Popen
    monkeypatch.setattr(engine.subprocess, "Popen", lambda *a, **b: started.append(start(*a, **b)) or started[-1])
    monkeypatch.chdir(tmp_path)
    recipes = [recipe("good", "working", "log", "A"), recipe("bad", *bad)]
    with pytest.raises(ArithmeticError) as error:
        beside.measure_beside(recipes, 1e-4, Effort(rounds=1))
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)
    assert len(started) == 2
    assert all(process.returncode is not None for process in started)


@pytest.mark.slow
def test_an_engine_whose_threads_do_not_rest_is_refused():
    with (
        pytest.raises(ArithmeticError, match="spinning: its threads still run 5 s after its work"),
        running([recipe("spinning", "spinning")], Effort(rounds=1)),
    ):
        pass


def test_an_engine_that_takes_too_long_is_left(tmp_path):
    file = tmp_path / "process"
    effort = Effort(rounds=1, ends=time.monotonic() + 60)
    with pytest.raises(OutOfTime), running([], effort):
        short = Effort(1, time.monotonic() - 1)
        with running([recipe("late", "sleeping", str(file))], short):
            pass
    with pytest.raises(OutOfTime):
        measuring.take_turns({"a": lambda: measuring.Turn(1.0, 1.0)}, Effort(1, time.monotonic() - 1))


@TELLS
def test_the_peak_is_that_of_the_steps_and_the_whole_that_of_everything():
    with running([recipe("holding", "holding", 32 * MIB, 96 * MIB)], Effort(rounds=1)) as (one,):
        steps, whole = one.ask("peak")
    assert 30 * MIB < steps < 60 * MIB
    assert 90 * MIB < whole < 130 * MIB


@TELLS
@pytest.mark.slow
def test_peaks_are_of_one_engine_after_the_other_and_of_what_computes_the_same(tmp_path):
    log = str(tmp_path / "log")
    held = beside.measure_peaks(
        [recipe("large", "holding", 32 * MIB, MIB), recipe("small", "holding", 8 * MIB, MIB)], Effort(rounds=1)
    )["peaks"]
    assert list(held) == ["large", "small"]
    assert held["large"][0] - held["small"][0] > 20 * MIB
    with pytest.raises(ArithmeticError, match="other and large do not compute the same"):
        beside.measure_peaks([recipe("large", "holding", 1, 1), recipe("other", "working", log, "A", 3.0)], Effort(1))


COMMAND = """
import time
from experiments.benchmark.effort import Effort
from experiments.benchmark.engine import Recipe, running
with running([Recipe("one", "tests.experiments.benchmark.engines:{function}", ({file!r},), (), False)], Effort(1)):
    time.sleep(600)
"""


@pytest.mark.parametrize(("number", "function"), [(signal.SIGINT, "sleeping"), (signal.SIGKILL, "waiting")])
@pytest.mark.fast_cases(1)
def test_no_engine_outlives_its_command(tmp_path, number, function):
    file = tmp_path / "process"
    code = COMMAND.format(function=function, file=str(file))
    command = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stderr=subprocess.DEVNULL)
    try:
        wait_for(lambda: file.exists() and file.read_text())
        engine = int(file.read_text())
        command.send_signal(number)
        command.wait(60)
        wait_for(lambda: not alive(engine))
    finally:
        command.kill()
        command.wait()


def alive(process):
    """Whether it runs; one that nobody has waited for is a zombie."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_for(condition, seconds=120):
    ends = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < ends
        time.sleep(0.05)


def test_agreement_is_relative_to_the_largest_value_and_refuses_what_is_not_a_number():
    ours = {"logits": np.array([100.0, 1.0], np.float32)}
    beside.agree({"a": ours, "b": {"logits": ours["logits"] + 0.009}}, 1e-4)
    for other in (ours["logits"] + 0.011, np.array([np.nan, 1.0], np.float32)):
        with pytest.raises(ArithmeticError, match=r"b and a do not compute the same.*: the logits differ by .* above"):
            beside.agree({"a": ours, "b": {"logits": other}}, 1e-4)
    with pytest.raises(ArithmeticError, match=r"the logits differ in shape, \(1,\) and \(2,\)"):
        beside.agree({"a": ours, "b": {"logits": np.ones(1)}}, 1e-4)
