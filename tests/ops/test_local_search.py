"""Local search: tables carried on equal tables made anew, local optima are optimal, searches find the best."""

from __future__ import annotations

from functools import partial
from itertools import permutations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shuffle_jax.ops import local_search, permutation
from shuffle_jax.ops import quadratic_assignment as qap

descend = jax.jit(local_search.two_exchange)
search = jax.jit(local_search.tabu_search, static_argnames="steps")
exchange = jax.jit(local_search.exchange)
tabulate = jax.jit(local_search.tabulate)
tabu_start = jax.jit(local_search.tabu_start)
kick = jax.jit(local_search.kick)
evaluate = jax.jit(qap.value)
deltas = jax.jit(qap.exchange_deltas)


def pair_of(seed, size, symmetric=False):
    a, b = np.random.default_rng(seed).integers(0, 20, (2, size, size)).astype(np.float32)
    return (a + a.T, b + b.T) if symmetric else (a, b)


def drawn(seed, size, count):
    return np.stack([np.random.default_rng((seed, i)).permutation(size) for i in range(count)])


def are_permutations(p):
    return np.array_equal(np.sort(p, axis=-1), np.broadcast_to(np.arange(p.shape[-1]), p.shape))


def optimum(pair, size):
    return min(float((pair[0] * pair[1][np.ix_(p, p)]).sum()) for p in permutations(range(size)))


@settings(max_examples=15, deadline=None)
@given(st.sampled_from([2, 3, 8]), st.integers(0, 10_000))
def test_a_table_carried_on_equals_one_made_anew(size, seed):
    pair = pair_of(seed, size)
    rng = np.random.default_rng(seed)
    table = tabulate(rng.permutation(size).astype(np.int32), pair)
    for _ in range(4):
        u, v = rng.choice(size, 2, replace=False)
        before = np.array(table.permutation)
        table = exchange(table, jnp.int32(u), jnp.int32(v), pair)
        before[[u, v]] = before[[v, u]]
        np.testing.assert_array_equal(table.permutation, before)
    for carried, anew in zip(table, tabulate(table.permutation, pair), strict=True):
        np.testing.assert_array_equal(carried, anew)  # integers: not even rounding differs


def test_local_optima_have_no_exchange_that_helps():
    pair = pair_of(0, 12)
    starts = drawn(0, 12, 8).reshape(2, 4, 12)
    ends = descend(starts, pair)
    assert are_permutations(ends)
    assert np.all(deltas(ends, pair) >= 0)
    before, after = (np.asarray(evaluate(p, pair)) for p in (starts, ends))
    assert np.all(after <= before)
    assert np.any(after < before)
    np.testing.assert_array_equal(descend(ends, pair), ends)


def test_descents_follow_the_steepest_exchange():
    pair = pair_of(1, 7)
    p = drawn(1, 7, 1)[0]
    while True:
        change = np.asarray(deltas(p, pair))
        r, s = np.unravel_index(change.argmin(), change.shape)
        if change[r, s] >= 0:
            break
        p[[r, s]] = p[[s, r]]
    np.testing.assert_array_equal(descend(drawn(1, 7, 1)[0], pair), p)


@pytest.mark.parametrize("symmetric", [False, True])
def test_tabu_search_finds_the_optimum_of_small_problems(symmetric):
    pair = pair_of(2, 7, symmetric)
    best, value = search(drawn(2, 7, 4), pair, jax.random.key(0), steps=300)
    assert value.tolist() == [optimum(pair, 7)] * 4
    assert evaluate(best, pair).tolist() == value.tolist()


def test_tabu_search_leaves_local_optima_and_never_loses_the_best():
    pair = pair_of(3, 12)
    starts = descend(drawn(3, 12, 8).reshape(2, 4, 12), pair)
    states = [tabu_start(starts, pair)]
    go_on = jax.jit(partial(local_search.tabu_steps, steps=10))
    for i in range(10):
        states.append(go_on(states[-1], jax.random.key(i), pair))
    values = np.array([state.best_value for state in states])
    assert np.all(np.diff(values, axis=0) <= 0)
    assert np.any(values[-1] < values[0])
    end = states[-1]
    np.testing.assert_array_equal(evaluate(end.best, pair), end.best_value)
    np.testing.assert_array_equal(evaluate(end.table.permutation, pair), end.table.value)
    assert end.step.tolist() == [[100] * 4] * 2


def test_an_exchange_is_not_undone_within_its_tenure():
    pair = pair_of(4, 9)
    state = tabu_start(drawn(4, 9, 1)[0], pair)
    one = jax.jit(partial(local_search.tabu_steps, steps=1, tenure=(20.0, 21.0)))
    seen = [np.asarray(state.table.permutation).tolist()]
    for i in range(12):
        state = one(state, jax.random.key(i), pair)
        seen.append(np.asarray(state.table.permutation).tolist())
    assert len({tuple(p) for p in seen}) == 13


def test_the_same_key_gives_the_same_search_and_chains_do_not_disturb_each_other():
    pair, starts = pair_of(5, 7), drawn(5, 7, 4)
    first = search(starts, pair, jax.random.key(1), steps=300)
    again = search(starts, pair, jax.random.key(1), steps=300)
    jax.tree.map(np.testing.assert_array_equal, first, again)
    for one, end in zip(starts, descend(starts, pair), strict=True):
        np.testing.assert_array_equal(descend(one, pair), end)


@pytest.mark.parametrize("size", [1, 2])
def test_the_smallest_problems(size):
    pair = pair_of(6, size)
    starts = drawn(6, size, 3)
    best, value = search(starts, pair, jax.random.key(0), steps=5)
    assert value.tolist() == [optimum(pair, size)] * 3
    assert evaluate(descend(starts, pair), pair).tolist() == [optimum(pair, size)] * 3
    assert are_permutations(best)


def test_nothing_to_gain_ends_at_once():
    zero = np.zeros((7, 7), np.float32)
    starts = drawn(7, 7, 4)
    np.testing.assert_array_equal(descend(starts, (zero, zero)), starts)
    best, value = search(starts, (zero, zero), jax.random.key(0), steps=300)
    assert value.tolist() == [0] * 4
    np.testing.assert_array_equal(best, starts)


def test_rounding_does_not_keep_a_descent_going():
    # In float32 the differences of these numbers are mostly rounding, and some of them negative at any permutation.
    rng = np.random.default_rng(8)
    pair = tuple((1e6 + rng.uniform(0, 1, (12, 12))).astype(np.float32) for _ in "ab")
    assert are_permutations(descend(drawn(8, 12, 8).reshape(2, 4, 12), pair, max_steps=100_000))


def test_kicks_move_a_part_along_one_cycle():
    start = np.arange(12)
    for seed in range(20):
        kicked = np.asarray(kick(jax.random.key(seed), start))
        moved = np.flatnonzero(kicked != np.arange(12))
        assert 3 <= len(moved) <= 6
        at, length = kicked[moved[0]], 1
        while at != moved[0]:
            at, length = kicked[at], length + 1
        assert length == len(moved)
    for size in (1, 2):
        assert sorted(kick(jax.random.key(0), np.arange(size)).tolist()) == list(range(size))


def filled(matrix, size):
    return np.pad(matrix, (0, size - len(matrix)))


def test_a_problem_filled_up_is_searched_as_by_itself_and_the_rest_stays():
    pair, starts = pair_of(10, 7), drawn(10, 7, 4)
    larger = tuple(filled(matrix, 12) for matrix in pair)
    rest = np.broadcast_to(np.arange(7, 12), (4, 5))
    more = np.concatenate([starts, rest], 1)
    for size in (7, jnp.int32(7)):
        ends = descend(more, larger, size=size)
        np.testing.assert_array_equal(ends, np.concatenate([descend(starts, pair), rest], 1))
    go_on = jax.jit(partial(local_search.tabu_steps, steps=100))
    alone = go_on(tabu_start(starts, pair), jax.random.key(0), pair)
    found = go_on(tabu_start(more, larger), jax.random.key(0), larger, size=jnp.int32(7))
    np.testing.assert_array_equal(found.best, np.concatenate([alone.best, rest], 1))
    np.testing.assert_array_equal(found.best_value, alone.best_value)
    np.testing.assert_array_equal(found.table.permutation[:, :7], alone.table.permutation)


@pytest.mark.parametrize("size", [1, 2, 3, 8])
def test_kicks_and_draws_leave_what_fills_up(size):
    moved = set()
    for seed in range(20):
        kicked = np.asarray(kick(jax.random.key(seed), np.arange(12), jnp.int32(size)))
        assert sorted(kicked[:size]) == list(range(size)) and kicked[size:].tolist() == list(range(size, 12))
        moved.add(int((kicked != np.arange(12)).sum()))
        drawn_one = np.asarray(permutation.random_inner(jax.random.key(seed), 12, size))
        assert sorted(drawn_one[:size]) == list(range(size)) and drawn_one[size:].tolist() == list(range(size, 12))
    assert moved == {1: {0}, 2: {2}, 3: {3}, 8: {3, 4}}[size]


def test_all_orders_are_drawn():
    orders = jax.vmap(lambda key: permutation.random_inner(key, 3))(jax.random.split(jax.random.key(0), 600))
    counts = np.unique(orders, axis=0, return_counts=True)[1]
    assert len(counts) == 6 and counts.min() > 60  # 100 each, give or take 9


def test_steps_cannot_be_negative():
    with pytest.raises(ValueError, match="steps is -1: give 0 or more"):
        local_search.tabu_search(jnp.arange(3), pair_of(9, 3), jax.random.key(0), steps=-1)
    with pytest.raises(ValueError, match=r"A has the shape \(3, 3\): give a \(4, 4\) matrix"):
        local_search.two_exchange(jnp.arange(4), pair_of(9, 3))
