"""Rounding is valid, optimal and exact where the certificate says so."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment

from shuffle_jax.ops import penalty, permutation, relaxation, rounding

seeds = st.integers(0, 999)


def near_permutation(seed, size, noise, passes=200):
    """A nonnegative matrix near a known permutation; doubly stochastic if ``passes`` is large."""
    p = permutation.random(jax.random.key(seed), size)
    uniform = jax.random.uniform(jax.random.key(seed + 1), (size, size))
    return p, relaxation.clamp_normalize(permutation.to_matrix(p) + noise * uniform, passes)


@given(st.integers(1, 9), seeds)
def test_assignment_is_a_permutation_and_optimal(size, seed):
    matrix = np.random.default_rng(seed).standard_normal((size, size)).astype(np.float32)
    p = rounding.assignment(jnp.array(matrix))
    assert p.dtype == jnp.int32
    assert bool(permutation.is_permutation(p))
    rows, columns = linear_sum_assignment(matrix, maximize=True)
    np.testing.assert_allclose(matrix[np.arange(size), p].sum(), matrix[rows, columns].sum(), rtol=1e-4, atol=1e-5)


def test_assignment_repairs_an_invalid_argmax():
    matrix = jnp.array([[0.6, 0.4, 0.0], [0.5, 0.1, 0.4], [0.0, 0.4, 0.6]])
    assert not bool(permutation.is_permutation(rounding.argmax(matrix)))
    assert rounding.assignment(matrix).tolist() == [1, 0, 2]


def test_rounding_in_batches_under_jit_and_vmap():
    matrices = jnp.asarray(np.random.default_rng(0).standard_normal((2, 3, 6, 6)), jnp.float32)
    for rounds in (rounding.argmax, rounding.assignment):
        expected = np.stack([[rounds(one) for one in row] for row in matrices])
        for result in (rounds(matrices), jax.jit(rounds)(matrices), jax.vmap(rounds)(matrices)):
            np.testing.assert_array_equal(result, expected)


def test_straight_through_is_hard_forward_and_the_identity_backward():
    _, matrix = near_permutation(0, 5, 0.3)
    weights = jnp.asarray(np.random.default_rng(1).standard_normal((5, 5)), jnp.float32)

    def loss(matrix):
        return (weights * rounding.straight_through(matrix, rounding.assignment(matrix))).sum()

    hard = permutation.to_matrix(rounding.assignment(matrix))
    np.testing.assert_array_equal(rounding.straight_through(matrix, rounding.assignment(matrix)), hard)
    np.testing.assert_array_equal(jax.jit(jax.grad(loss))(matrix), weights)


@given(st.integers(2, 10), seeds, st.floats(0, 0.6))
def test_certificate_on_the_birkhoff_polytope(size, seed, noise):
    _, matrix = near_permutation(seed, size, noise)
    c = rounding.certificate(matrix)
    np.testing.assert_allclose(c.row_slack, 1 - jnp.linalg.norm(matrix, axis=-1), atol=1e-5)
    np.testing.assert_allclose((c.row_slack + c.column_slack).sum(), penalty.l1_minus_l2(matrix), atol=1e-4)
    # The page's condition, away from its edge.
    worst = float(c.row_slack.max())
    if abs(worst - (1 - 2**-0.5)) > 1e-4:
        assert bool(c.guaranteed) == (worst < 1 - 2**-0.5)
    assert_certificate_holds(c, matrix)


@given(st.integers(2, 8), seeds, st.floats(0, 0.4), st.floats(0, 0.3))
def test_certificate_holds_off_the_polytope_too(size, seed, noise, drift):
    p = permutation.random(jax.random.key(seed), size)
    rng = np.random.default_rng(seed)
    matrix = np.asarray(permutation.to_matrix(p)) * rng.uniform(1 - drift, 1 + drift, (size, 1))
    matrix = jnp.asarray(matrix + noise * rng.uniform(0, 1, (size, size)) / size, jnp.float32)
    assert_certificate_holds(rounding.certificate(matrix), matrix)


def assert_certificate_holds(c, matrix):
    sums = np.concatenate([matrix.sum(0), matrix.sum(1)])
    np.testing.assert_allclose(c.residual, np.abs(sums - 1).max(), atol=1e-5)
    if not bool(c.guaranteed):
        return
    p = rounding.argmax(matrix)
    assert bool(permutation.is_permutation(p))
    np.testing.assert_array_equal(rounding.assignment(matrix), p)
    difference = matrix - permutation.to_matrix(p)
    assert float(jnp.abs(difference).sum()) <= float(c.l1_bound) + 1e-5
    assert float(jnp.linalg.norm(difference)) <= float(c.frobenius_bound) + 1e-5


def test_certificate_is_not_fooled_by_one_hot_rows_that_share_a_column():
    matrix = jnp.array([[1.0, 0.0], [1.0, 0.0]])
    c = rounding.certificate(matrix)
    assert c.row_slack.tolist() == [0.0, 0.0]
    assert float(c.residual) == 1
    assert not bool(c.guaranteed)
    assert not bool(rounding.certificate(jnp.zeros((3, 3))).guaranteed)


def test_a_certified_matrix_never_becomes_uncertified_on_its_way_to_the_permutation():
    p, matrix = near_permutation(3, 12, 0.05)
    hard = permutation.to_matrix(p)
    path = jnp.stack([(1 - t) * matrix + t * hard for t in np.linspace(0, 1, 5)])
    c = rounding.certificate(path)
    assert c.guaranteed.tolist() == [True] * 5
    assert bool(jnp.all(jnp.diff(c.l1_bound) < 0))
    np.testing.assert_allclose(c.l1_bound[-1], 0, atol=1e-5)


@pytest.mark.parametrize("transform", [jax.jit, jax.vmap])
def test_certificate_under_transformations(transform):
    matrices = jnp.stack([near_permutation(s, 6, 0.2)[1] for s in range(3)])
    for actual, expected in zip(transform(rounding.certificate)(matrices), rounding.certificate(matrices), strict=True):
        np.testing.assert_allclose(actual, expected, rtol=1e-6, atol=1e-6)
