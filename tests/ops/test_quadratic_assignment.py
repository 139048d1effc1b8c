"""Quadratic assignment: objectives against NumPy, their slopes, and what exchanges change against doing them."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shuffle_jax.ops import quadratic_assignment as qap

evaluate = jax.jit(qap.value)
deltas = jax.jit(qap.exchange_deltas)
assignment_objective = jax.jit(qap.assignment_objective)
matching_objective = jax.jit(qap.matching_objective)


def integers(seed, *shape):
    return np.random.default_rng(seed).integers(-9, 10, shape)


def as_float(*arrays):
    return tuple(np.asarray(array, np.float32) for array in arrays)


def matrix_of(p):
    return np.eye(len(p))[p]


def exchanged(p, r, s):
    p = p.copy()
    p[[r, s]] = p[[s, r]]
    return p


def by_hand(a, b, p):
    return sum(a[i, k] * b[p[i], p[k]] for i in range(len(p)) for k in range(len(p)))


@pytest.mark.parametrize("size", [1, 2, 7])
def test_objectives_equal_their_sums_at_permutations(size):
    rng = np.random.default_rng(size)
    a, b = integers(size, 2, size, size)
    p = rng.permutation(size)
    pair = as_float(a, b)
    assert float(evaluate(p, pair)) == by_hand(a, b, p)
    matrix = matrix_of(p).astype(np.float32)
    assert float(assignment_objective(matrix, pair)) == by_hand(a, b, p)
    difference = matrix_of(p) @ b @ matrix_of(p).T - a
    assert float(matching_objective(matrix, pair)) == np.square(difference).sum()
    np.testing.assert_array_equal(qap.moved(pair[1], p), matrix_of(p) @ b @ matrix_of(p).T)
    # |A P - P B|^2 = |A|^2 + |B|^2 - 2 <A, P B P^T>
    assert np.square(difference).sum() == np.square(a).sum() + np.square(b).sum() - 2 * by_hand(a, b, p)


def test_objectives_and_slope_at_relaxed_matrices():
    a, b, m = np.random.default_rng(0).standard_normal((3, 5, 5))
    with jax.enable_x64(True):
        pair = jnp.asarray(a), jnp.asarray(b)
        assignment, slope = jax.jit(jax.value_and_grad(qap.assignment_objective))(m, pair)
        matching = jax.jit(qap.matching_objective)(m, pair)
        closed = jax.jit(qap.assignment_slope)(m, pair)
    np.testing.assert_allclose(assignment, np.trace(a.T @ m @ b @ m.T), rtol=1e-12)
    np.testing.assert_allclose(matching, np.linalg.norm(a @ m - m @ b) ** 2, rtol=1e-12)
    np.testing.assert_allclose(closed, slope, rtol=1e-12)


def test_the_centre_solves_the_matching_of_regular_graphs():
    ring = np.roll(np.eye(6), 1, axis=1) + np.roll(np.eye(6), -1, axis=1)
    p = np.random.default_rng(1).permutation(6)
    pair = as_float(ring, ring[np.ix_(p, p)])
    assert float(matching_objective(np.full((6, 6), 1 / 6, np.float32), pair)) == pytest.approx(0, abs=1e-12)


def test_what_matches():
    a = np.triu(integers(2, 6, 6) + 20)
    p = np.random.default_rng(3).permutation(6)
    b = np.zeros_like(a)
    b[np.ix_(p, p)] = a  # b[p[i], p[k]] = a[i, k]
    pair = as_float(a, b)
    others = np.stack([p, np.roll(p, 1), exchanged(p, 0, 1)])
    assert jax.jit(qap.matches)(others, pair).tolist() == [True, False, False]
    assert bool(qap.matches(p, (pair[0] + np.float32(0.01), pair[1]), 0.02))
    assert not bool(qap.matches(p, (pair[0] + np.float32(0.01), pair[1])))


@settings(max_examples=25, deadline=None)
@given(st.sampled_from([1, 2, 3, 9]), st.integers(0, 10_000), st.booleans())
def test_deltas_are_what_exchanges_change(size, seed, symmetric):
    a, b = integers(seed, 2, size, size)
    if symmetric:
        a, b = a + a.T, b + b.T
    p = np.random.default_rng(seed).permutation(size)
    expected = [[by_hand(a, b, exchanged(p, r, s)) - by_hand(a, b, p) for s in range(size)] for r in range(size)]
    np.testing.assert_array_equal(deltas(p, as_float(a, b)), expected)


def test_batches_under_jit_and_vmap_and_in_half_precision():
    a, b = integers(4, 2, 4, 4)
    p = np.stack([np.random.default_rng(s).permutation(4) for s in range(6)]).reshape(2, 3, 4)
    pair = as_float(a, b)
    values = np.array([[by_hand(a, b, one) for one in row] for row in p])
    half = tuple(jnp.asarray(m, jnp.bfloat16) for m in (a, b))
    for found in (qap.value(p, pair), jax.vmap(lambda q: evaluate(q, pair))(p), qap.value(p, half)):
        assert found.dtype == jnp.float32
        np.testing.assert_array_equal(found, values)
    one_by_one = np.stack([[deltas(one, pair) for one in row] for row in p])
    np.testing.assert_array_equal(deltas(p, pair), one_by_one)
    matrices = np.eye(4, dtype=np.float32)[p]
    np.testing.assert_array_equal(assignment_objective(matrices, pair), values)
    np.testing.assert_array_equal(jax.jit(jax.vmap(lambda m: qap.assignment_objective(m, half)))(matrices), values)


def test_what_is_no_problem_is_refused():
    square = jnp.ones((3, 3))
    with pytest.raises(ValueError, match=r"B has the shape \(3, 4\): give a square matrix"):
        qap.as_pair(square, jnp.ones((3, 4)))
    with pytest.raises(ValueError, match=r"A has the shape \(0, 0\)"):
        qap.as_pair(jnp.ones((0, 0)), square)
    with pytest.raises(ValueError, match="A is 3 x 3 and B 2 x 2: give matrices of one size"):
        qap.as_pair(square, jnp.ones((2, 2)))
    for bad in (jnp.nan, jnp.inf):
        with pytest.raises(ValueError, match="B holds a NaN or an infinity: give finite numbers"):
            qap.as_pair(square, square.at[1, 2].set(bad))
    for function in (qap.value, qap.exchange_deltas, qap.matches):
        with pytest.raises(ValueError, match=r"A has the shape \(3, 3\): give a \(4, 4\) matrix"):
            function(jnp.arange(4), (square, square))
    with pytest.raises(ValueError, match=r"B has the shape \(2, 2\): give a \(3, 3\) matrix"):
        qap.matching_objective(square, (square, jnp.ones((2, 2))))


def test_a_pair_is_at_least_float32():
    a, b = qap.as_pair(np.ones((2, 2), int), np.ones((2, 2), np.float16))
    assert a.dtype == b.dtype == jnp.float32
    with jax.enable_x64(True):
        a, b = qap.as_pair(np.ones((2, 2), np.float64), np.ones((2, 2), np.float32))
    assert a.dtype == b.dtype == jnp.float64
