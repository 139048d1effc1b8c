"""Graphs that are the same are matched exactly, others nearly, and the solver goes on from there."""

from __future__ import annotations

from dataclasses import replace
from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shuffle_jax.problems import matching
from shuffle_jax.problems.generators import erdos_renyi, gaussian, moebius_ladder, relabelled
from shuffle_jax.problems.instance import Instance
from shuffle_jax.problems.matching import aligned, bound, isomorphism, match
from shuffle_jax.problems.solver import Solution, SolverConfig

MATRICES = st.lists(st.integers(0, 2), min_size=16, max_size=16)


@settings(max_examples=60, deadline=None)
@given(MATRICES, st.one_of(MATRICES, st.permutations(range(4))))
def test_a_match_is_found_if_and_only_if_there_is_one(first, second):
    a = np.array(first, float).reshape(4, 4)
    b = a[np.ix_(second, second)] if len(second) == 4 else np.array(second, float).reshape(4, 4)
    all_there_are = [p for p in permutations(range(4)) if np.array_equal(a, b[np.ix_(p, p)])]
    found = isomorphism(a, b)
    assert (found is None and not all_there_are) or tuple(found.tolist()) in all_there_are


def rook():
    """Fields of a board of 4 x 4 that share a row or a column."""
    row, column = np.divmod(np.arange(16), 4)
    return (np.equal.outer(row, row) ^ np.equal.outer(column, column)).astype(float)


def shrikhande():
    """As regular as the board, and another graph: fields of a torus that differ by (1, 0), (0, 1) or (1, 1)."""
    row, column = np.divmod(np.arange(16), 4)
    down, right = np.subtract.outer(row, row) % 4, np.subtract.outer(column, column) % 4
    steps = ((1, 0), (3, 0), (0, 1), (0, 3), (1, 1), (3, 3))
    return sum(((down == i) & (right == k)).astype(float) for i, k in steps)


SAME = {
    "random": erdos_renyi(120, 0.1, seed=1),
    "weighted": gaussian(60, seed=2),
    "directed": np.random.default_rng(3).integers(0, 2, (40, 40)),
    "symmetric": moebius_ladder(40),
    "strongly regular": rook(),
    "with nodes alone": np.pad(erdos_renyi(20, 0.3, seed=4), (0, 60)),
    "empty": np.zeros((30, 30)),
    "of one node": np.ones((1, 1)),
}


@pytest.mark.parametrize("name", SAME)
def test_relabelled_graphs_are_recovered_and_nothing_is_compiled(name, monkeypatch):
    monkeypatch.setattr(matching, "solve", None)
    instance = relabelled(SAME[name], seed=5)
    found = match(instance)
    assert found.value == 0 and instance.recovered(found.permutation)
    assert (found.rounds, found.steps, found.compile_seconds) == (0, 0, 0)


def test_graphs_that_only_look_alike_are_not_matched_exactly():
    assert sorted(np.linalg.eigvalsh(rook()).round(9)) == sorted(np.linalg.eigvalsh(shrikhande()).round(9))
    assert isomorphism(rook(), shrikhande()) is None
    assert isomorphism(rook(), shrikhande(), seconds=1e-9) is None  # gives up


def noisy(size, seed=0):
    """A graph, a relabelled one with a tenth of its edges elsewhere, and the value of the hidden permutation."""
    hidden = relabelled(erdos_renyi(size, 0.1, seed), seed)
    rng = np.random.default_rng(seed)
    flipped = np.triu(rng.random((size, size)) < 0.01, 1)
    b = np.where(flipped | flipped.T, 1 - hidden.b, hidden.b)
    instance = Instance("noisy", hidden.a, b, "matching")
    return instance, hidden.solution, instance.value(hidden.solution)


@pytest.mark.parametrize("size", [60, 200])
def test_nearly_equal_graphs_are_aligned_without_a_search(size):
    instance, hidden, value = noisy(size)
    assert instance.value(np.arange(size)) > 5 * value > 0
    found = aligned(instance.a, instance.b)
    assert instance.value(found) <= value and (found == hidden).mean() > 0.95
    moved = np.random.default_rng(1).permutation(size)  # in any order of the nodes, and in any unit of the weights
    again = aligned(1e-3 * instance.a, 1e3 * instance.b[np.ix_(moved, moved)])
    assert instance.value(moved[again]) <= value


def test_the_solver_goes_on_from_there_for_the_time_that_is_left(monkeypatch):
    instance, _, value = noisy(60)
    calls, told = [], []

    def solve(instance, seconds, seed, config, enough, initial):
        calls.append((seconds, seed, config, enough, instance.value(initial)))
        return Solution(initial, instance.value(initial), (), seconds, 0.0, 1, 1)

    monkeypatch.setattr(matching, "solve", solve)
    config = SolverConfig(searches=1)
    match(instance, 2.0, 3, config, lambda *near: told.append(near))
    ((seconds, *others),) = calls
    assert 1 <= seconds < 2 and others == [3, config, bound(instance), value]
    ((near, left),) = told
    assert (near.value, left) == (value, seconds) and near.steps == 0

    monkeypatch.setattr(matching, "solve", None)
    monkeypatch.setattr(matching, "MOST_SEARCHED", 59)
    assert match(instance).value == value  # too large a graph
    part = replace(instance, b=np.where(instance.a * np.add.outer(range(60), range(60)) % 7, instance.a, 0))
    monkeypatch.setattr(matching, "MOST_SEARCHED", 60)
    missing = (part.a != part.b).sum()
    assert match(part).value == bound(part) == missing > 0  # nothing is better than all edges of the part


@settings(max_examples=10, deadline=None)
@given(MATRICES, MATRICES)
def test_of_a_few_nodes_the_best_match_of_all_is_found(first, second):
    instance = Instance("few", *(np.array(m, float).reshape(4, 4) for m in (first, second)), "matching")
    found = match(instance)
    assert found.value == min(instance.value(p) for p in permutations(range(4))) == instance.value(found.permutation)
    assert found.steps == 0


@pytest.mark.slow
def test_the_solver_improves_what_it_is_given():
    instance = Instance("regular", rook(), shrikhande(), "matching")
    found = match(instance, 1.0, config=SolverConfig(searches=4, threads=1))
    assert found.rounds and found.value <= 32 < instance.value(aligned(instance.a, instance.b))
    assert found.history[0].value >= found.value == instance.value(found.permutation)


def test_what_is_no_matching_is_refused():
    with pytest.raises(ValueError, match="tiny is an assignment and no matching: call solve"):
        match(Instance("tiny", np.eye(2), np.eye(2), "assignment"))
    with pytest.raises(ValueError, match="seconds must be positive, got 0"):
        match(relabelled(np.eye(2)), 0)
