"""A trace holds the steps that were asked for, and no others."""

from __future__ import annotations

import gzip
import json

import jax
import jax.numpy as jnp
import pytest

from shuffle_jax.train.metrics import Profile


def run(folder, steps, first=1, total=6, fail_at=None):
    add = jax.jit(lambda x: x + 1)
    x = jnp.zeros(3)
    with Profile(folder, steps, total) as trace:
        for step in range(first, total + 1):
            with trace.step(step):
                x = add(x)
            if step == fail_at:
                raise ArithmeticError("not finite")
            trace.after(step, x)


def marked(folder):
    """The steps that the trace for people names."""
    (path,) = folder.rglob("*.trace.json.gz")
    events = json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]
    return sorted({int(e["args"]["step_num"]) for e in events if e.get("name") == "train" and "args" in e})


@pytest.mark.parametrize(("steps", "first", "expected"), [((2, 4), 1, [2, 3, 4]), ((2, 4), 4, [4]), ((6, 6), 1, [6])])
def test_the_steps_of_a_trace_are_marked(tmp_path, steps, first, expected):
    run(tmp_path, steps, first)
    assert marked(tmp_path) == expected
    assert len(list(tmp_path.rglob("*.xplane.pb"))) == 1


def test_nothing_is_written_unasked_or_when_a_resumed_run_is_past_it(tmp_path):
    run(tmp_path, None)
    run(tmp_path, (1, 2), first=3)
    assert list(tmp_path.iterdir()) == []


def test_a_trace_begun_is_ended_when_the_run_fails_and_another_can_begin(tmp_path):
    with pytest.raises(ArithmeticError):
        run(tmp_path / "failed", (2, 5), fail_at=3)
    assert marked(tmp_path / "failed") == [2, 3]
    run(tmp_path / "next", (1, 1))
    assert marked(tmp_path / "next") == [1]


@pytest.mark.parametrize("steps", [(0, 2), (3, 2), (5, 7)])
def test_steps_outside_of_the_training_are_refused(tmp_path, steps):
    with pytest.raises(ValueError, match="profile must be two ascending steps from 1 to 6, got"):
        Profile(tmp_path, steps, 6)
