"""Every candidate of the assignment tables solves the same problem, and the optimal ones reach the same sum."""

from __future__ import annotations

import json

import jax.numpy as jnp
import numpy as np
import pytest

from experiments.benchmark import __main__ as benchmark
from experiments.benchmark import assignments, measuring
from experiments.benchmark.assignments import INTEGERS, NEAR, PROBLEMS, RANDOM, Problem
from experiments.benchmark.cases import Workload
from experiments.benchmark.tables import tables


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(measuring, "SHORTEST", 0.0)
    monkeypatch.setattr(measuring, "rest", lambda: True)


@pytest.mark.parametrize("kind", [RANDOM, NEAR, INTEGERS])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_candidates_agree(kind, dtype):
    problem = Problem(9, 3, kind)
    found = {name: np.asarray(case()) for name, case in assignments.assignments(Workload(dtype=dtype), problem).items()}
    entries = np.asarray(jnp.asarray(assignments.entries(problem), dtype), np.float64)
    sums = {name: np.take_along_axis(entries, p[..., None], -1).sum((1, 2)) for name, p in found.items()}
    for name, p in found.items():
        np.testing.assert_array_equal(np.sort(p, axis=-1), [np.arange(9)] * 3, err_msg=name)
    best = sums["scipy, in a loop"]
    np.testing.assert_allclose(sums["optax, in a loop"], best, rtol=1e-6)
    np.testing.assert_allclose(sums["rounding.assignment"], best, rtol=1e-6)
    assert np.all(sums["rounding.greedy"] <= best + 1e-6)
    assert np.all(sums["rounding.greedy"] >= best / 2)


def test_near_a_permutation_is_doubly_stochastic_and_takes_an_assignment():
    matrices = assignments.entries(Problem(58, 4, NEAR))
    np.testing.assert_allclose(matrices.sum(-1), 1, atol=1e-3)
    np.testing.assert_allclose(matrices.sum(-2), 1, atol=1e-3)
    peaks = matrices.argmax(-1)
    distinct = np.array([len(set(p)) for p in peaks])
    assert np.all((distinct > 58 * 0.7) & (distinct < 58))


def test_optax_is_left_out_where_it_takes_too_long(monkeypatch):
    monkeypatch.setattr(assignments, "OPTAX_UP_TO", 2 * 3**3)
    for batch, expected in ((2, True), (3, False)):
        cases = assignments.assignments(Workload(), Problem(3, batch, RANDOM))
        assert (assignments.OPTAX in cases) == expected
        assert len(cases) == 3 + expected


@pytest.mark.slow
def test_the_command_measures_them(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(PROBLEMS, "58", Problem(6, 1, RANDOM))
    path = tmp_path / "times.json"
    benchmark.run(["--rounds", "2", "--only", "assignment-58", "--json", str(path)])
    printed = capsys.readouterr().out
    assert "linear assignment of 1 matrix of 6 x 6, uniform, float32" in printed
    times = json.loads(path.read_text())["tables"]["assignment-58"]["seconds"]
    assert [len(values) for values in times.values()] == [2] * 4
    assert next(iter(times)) == "scipy, in a loop"


def test_every_problem_has_its_table_and_none_is_made_before_its_turn(monkeypatch):
    monkeypatch.setattr(assignments, "assignments", lambda work, problem: pytest.fail("made"))
    found = tables(Workload())
    assert {f"assignment-{name}" for name in PROBLEMS} <= set(found)
    assert found["assignment-464-batch"].title == "linear assignment of 16 matrices of 464 x 464, uniform, float32"
