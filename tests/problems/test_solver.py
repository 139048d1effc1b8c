"""The solver finds known optima, keeps to its time and its seed, and judges exactly."""

from __future__ import annotations

import time
from itertools import permutations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from shuffle_jax.ops import quadratic_assignment as qap
from shuffle_jax.problems.generators import moebius_ladder, relabelled
from shuffle_jax.problems.instance import Instance
from shuffle_jax.problems.solver import SolverConfig, filled_up, scaled_pair, solve

FAST = {"searches": 4, "threads": 1}
CONFIGS = {
    "default": SolverConfig(**FAST),
    "random": SolverConfig(start="random", **FAST),
    "exchange": SolverConfig(start="random", search="exchange", **FAST),
    "starts": SolverConfig(search="none", **FAST),
    "penalty": SolverConfig(start="penalty", search="exchange", **FAST),
}


def instance_of(seed, size, scale=1.0):
    a, b = scale * np.random.default_rng(seed).integers(0, 30, (2, size, size))
    return Instance(f"random-{size}", a, b, "assignment")


def optimum(instance):
    return min(instance.value(np.array(p)) for p in permutations(range(instance.size)))


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
@pytest.mark.fast_cases(1)
def test_every_way_of_searching_finds_the_optimum_of_a_small_problem(config):
    instance = instance_of(0, 6)
    least = optimum(instance)
    found = solve(instance, seconds=60, config=config, enough=least)
    assert found.value == least == instance.value(found.permutation)
    assert found.history[-1].value == least
    values = [improvement.value for improvement in found.history]
    assert values == sorted(values, reverse=True) and len(set(values)) == len(values)


def test_recovers_a_relabelled_graph_with_many_symmetries():
    instance = relabelled(moebius_ladder(6), seed=1, name="ladder")
    found = solve(instance, seconds=60, config=CONFIGS["default"], enough=0.0)
    assert found.value == 0
    assert instance.recovered(found.permutation)


def test_the_same_seed_and_rounds_give_the_same_answer(monkeypatch):
    from shuffle_jax.problems import solver

    monkeypatch.setattr(solver, "_blocks_a_round", lambda *_: 2)  # measured, else
    instance = instance_of(1, 6)
    first, again, other = (solve(instance, seed=seed, config=CONFIGS["random"], rounds=1) for seed in (5, 5, 6))
    assert (first.rounds, first.steps) == (1, 4 * 2 * 8)  # six points, filled up to eight
    np.testing.assert_array_equal(first.permutation, again.permutation)
    assert [i.value for i in first.history] == [i.value for i in again.history]
    assert other.history[0].value != first.history[0].value


def test_starts_that_take_too_long_are_random_instead(monkeypatch):
    from shuffle_jax.problems import solver

    instance = instance_of(7, 6)
    random = solve(instance, seed=1, config=CONFIGS["random"], rounds=1).history[0].value
    relaxed = solve(instance, seed=1, config=CONFIGS["default"], rounds=1).history[0].value
    assert random != relaxed
    for share, expected in ((1e9, relaxed), (0.0, random)):
        monkeypatch.setattr(solver, "START_SHARE", share)
        assert solve(instance, seconds=0.2, seed=1, config=CONFIGS["default"]).history[0].value == expected


def test_keeps_to_its_time():
    instance = instance_of(2, 6)
    solve(instance, seconds=0.1, config=CONFIGS["default"])  # compiles
    begun = time.perf_counter()
    found = solve(instance, seconds=1.0, config=CONFIGS["default"])
    assert found.rounds >= 1
    # Another round must fit, so that only a slow machine can make it longer than was said.
    assert found.seconds < 2.0
    assert found.seconds <= time.perf_counter() - begun


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_scales_beyond_float32_are_judged_in_float64(scale):
    instance = instance_of(3, 6, scale)
    found = solve(instance, seconds=60, config=CONFIGS["exchange"], enough=optimum(instance))
    assert found.value == optimum(instance)


def test_the_pair_is_scaled_by_powers_of_two_alone():
    instance = Instance("pair", np.array([[0, 3], [5, 1]]), np.array([[0, 1000], [7, 0]]), "assignment")
    a, b = scaled_pair(instance)
    assert a.dtype == b.dtype == jnp.float32
    np.testing.assert_array_equal(8 * np.asarray(a), instance.a)
    np.testing.assert_array_equal(1024 * np.asarray(b), instance.b)
    matching = Instance("graphs", instance.a, instance.b, "matching")
    np.testing.assert_array_equal(scaled_pair(matching)[0], -np.asarray(a))
    p = np.array([1, 0])
    assert float(qap.value(p, (a, b))) * 8 * 1024 == instance.value(p)


def test_sizes_share_programs_and_find_their_optima():
    from shuffle_jax.problems.search import advance, begin

    solve(instance_of(8, 6), config=CONFIGS["default"], rounds=1)
    compiled = begin._cache_size(), advance._cache_size()
    for size in (5, 7):
        instance = instance_of(9, size)
        start = np.arange(size)[::-1].copy()
        for initial in (None, start) if size == 5 else (None,):
            found = solve(instance, seconds=60, config=CONFIGS["default"], enough=optimum(instance), initial=initial)
            assert found.value == optimum(instance) and found.permutation.shape == (size,)
    assert begin._cache_size() - compiled[0] <= 1 and advance._cache_size() == compiled[1]  # one for a given start


def test_few_sizes_are_compiled():
    def sizes(least, most, config=CONFIGS["default"]):
        return {len(filled_up(instance_of(0, size), config).pair[0]) for size in range(least, most + 1)}

    assert sizes(12, 56) == {12, 16, 24, 32, 40, 48, 56}
    assert sizes(1, 4) == {4} and sizes(65, 80) == {80} and sizes(129, 130) == {160}
    assert sizes(5, 7, CONFIGS["penalty"]) == {5, 6, 7}


@pytest.mark.parametrize(("size", "config"), [(1, "default"), (2, "exchange")])
@pytest.mark.fast_cases(1)
def test_the_smallest_problems_and_nothing_to_gain(size, config):
    for instance in (instance_of(4, size), instance_of(4, size, scale=0.0)):
        found = solve(instance, config=CONFIGS[config], rounds=1)
        assert found.value == optimum(instance)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"searches": 0}, "searches is 0: give 1 or more"),
        ({"patience": ()}, "patience is empty"),
        ({"patience": (1, 0)}, "patience is 0: give 1 or more"),
        ({"threads": 0}, "threads is 0: give 1 or more, or None"),
        ({"forgive": 1.5}, "forgive is 1.5: give a share from 0 to 1"),
        ({"iterations": -1}, "iterations is -1: give 0 or more"),
    ],
)
def test_what_cannot_be_searched_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        SolverConfig(**options)


def test_time_must_be_given():
    for options in ({"seconds": 0.0}, {"rounds": 0}, {"seconds": float("nan")}):
        with pytest.raises(ValueError, match="give seconds above 0, and 1 round or more"):
            solve(instance_of(5, 3), **options)


@pytest.mark.slow
def test_memory_of_64_searches_of_100():
    from shuffle_jax.problems.search import Problem, advance, begin

    config = SolverConfig(searches=64, threads=1)
    key = jax.random.key(0)
    problem = Problem((jnp.zeros((100, 100)), jnp.zeros((100, 100))), jnp.int32(100))
    search = jax.eval_shape(lambda: begin(key, problem, config))
    compiled = advance.lower(search, key, jnp.int32(0), jnp.int32(1), problem, config).compile()
    memory = compiled.memory_analysis()
    used = memory.temp_size_in_bytes + memory.argument_size_in_bytes + memory.output_size_in_bytes
    assert used < 100 * 2**20
