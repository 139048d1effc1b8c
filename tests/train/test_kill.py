"""A run killed and resumed, as whole processes, ends like one that is not; tools/kill_training.py is the long form."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import signal
import sys
from pathlib import Path

import numpy as np
import pytest

SCRIPT = Path(__file__).parents[2] / "tools" / "kill_training.py"
TRAIN = Path(__file__).with_name("one_of_several.py")
SMALL = (
    "--network.family outside_networks:Small --network.mixer identity --epochs 8 "
    "--data.test-fraction 0.9 --batch-size 44 --optimizer.warmup-epochs 0.5 --log-every 3 --devices 1"
)


@pytest.fixture(scope="module")
def killing():
    """The script as a module, of a small network."""
    spec = importlib.util.spec_from_file_location("kill_training", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patched:
        patched.setitem(sys.modules, spec.name, module)  # dataclasses look their module up
        spec.loader.exec_module(module)
        patched.setattr(module, "COMMAND", [sys.executable, str(TRAIN)])
        yield module


@pytest.fixture(scope="module")
def runs(killing, tmp_path_factory):
    """An undisturbed run, a tormented one, and what happened to it."""
    folder = tmp_path_factory.mktemp("killed")
    whole, run = folder / "whole", folder / "killed"
    arguments, cache = ["digits", *SMALL.split()], Path(os.environ["JAX_COMPILATION_CACHE_DIR"])
    life = killing.undisturbed(whole, arguments, cache)
    life.training = 60.0  # So long do signals wait for a checkpoint, however busy the machine is.
    plan = [
        killing.Moment(signal.SIGKILL, part=0.04),  # before the first checkpoint
        killing.Moment(signal.SIGKILL, part=0.0, checkpoint=1, delay=0.01),
        killing.Moment(signal.SIGTERM, part=0.0, checkpoint=1),
    ]
    lines = []
    return whole, run, killing.tormented(run, arguments, cache, life, plan, lines.append), lines


@pytest.mark.slow
def test_killed_and_resumed_equals_undisturbed_bit_for_bit(killing, runs):
    whole, run, story, lines = runs
    assert story.problems == []
    assert len(lines) == story.kills == 3
    assert len(story.stops) == 1  # where SIGTERM met it: training, and not before
    assert killing.newest_step(run) == 32
    assert killing.differences(whole, run, story.stops) == []


@pytest.mark.slow
def test_every_kind_of_difference_is_found(killing, runs, tmp_path):
    whole, copy = runs[0], tmp_path / "copy"
    shutil.copytree(whole, copy)
    (copy / "checkpoints" / "40.orbax-checkpoint-tmp").mkdir()
    (copy / "config.json.tmp").write_text("")
    with np.load(copy / "permutations.npz") as file:
        vectors = dict(file)
    first = sorted(vectors)[0]
    vectors[first] = vectors[first][::-1]
    np.savez(copy / "permutations.npz", **vectors)
    lines = (copy / "metrics.jsonl").read_text().splitlines()
    changed = {**json.loads(lines[-1]), "top1": 2.0}
    (copy / "metrics.jsonl").write_text("\n".join([*lines[:-1], json.dumps(changed)]) + "\n")
    shutil.rmtree(copy / "checkpoints" / "32")  # the newest is then another step's

    found = killing.differences(whole, copy)
    for part in (
        *("left over: checkpoints/40.orbax-checkpoint-tmp", "left over: config.json.tmp", "config.json.tmp is in one"),
        *(f"permutations.npz: {first} differs", "final checkpoint: .step differs", "final checkpoint: .params['"),
        f"metrics.jsonl, line {len(lines)}: ",
    ):
        assert any(line.startswith(part) for line in found), (part, found)


def test_arrays_are_compared_by_their_bits(killing):
    one = {"a": np.array([0.0, np.nan], np.float32)}
    assert killing._unequal(one, {"a": one["a"].copy()}) == []
    assert killing._unequal(one, {"a": np.array([-0.0, np.nan], np.float32)}) == ["a differs"]
    assert killing._unequal(one, {"a": one["a"].astype(np.float64)}) == ["a differs"]
    assert killing._unequal(one, {}) == ["a differs"]


def test_a_mean_may_differ_only_where_the_run_was_stopped(killing, tmp_path):
    def write(name, losses):
        records = [
            {"kind": "train", "step": s, "loss": x, "learning_rate": 0.1}
            for s, x in zip((5, 10, 15), losses, strict=True)
        ]
        (tmp_path / name).write_text("".join(json.dumps(r) + "\n" for r in records))
        return tmp_path / name

    one, other = write("one", (1.0, 2.0, 3.0)), write("other", (1.0, 2.5, 3.0))
    assert killing._different_records(one, other, stops=[7]) == []
    assert killing._different_records(one, other, stops=[10]) == []
    for stops in ([], [3], [12]):
        assert len(killing._different_records(one, other, stops)) == 1


def test_lives_are_cut_so_that_the_run_ends_with_the_signals(killing):
    life = killing.Life(start=5.0, training=60.0, finish=6.0, steps=100)
    for kills in (1, 10, 50):
        longest = life.longest(0, kills)
        share = (longest - 5.0) ** 2 / (2 * longest)  # of a life uniform in (0, longest), what is left after the start
        assert share == pytest.approx(66.0 / (kills + 1))
    assert life.longest(90, 10) < life.longest(0, 10)
    moments = killing.moments(50, killing.SIGNALS["MIX"], seed=0)
    assert moments == killing.moments(50, killing.SIGNALS["MIX"], seed=0) != killing.moments(50, (signal.SIGINT,), 0)
    assert {m.signal for m in moments} == {signal.SIGKILL, signal.SIGTERM, signal.SIGINT}
    assert sum(m.checkpoint > 0 for m in moments) == 16
