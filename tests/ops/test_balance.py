"""Balancing reaches the doubly stochastic matrices from anywhere, and tangent steps stay there; sparse starts keep a
permutation possible."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shuffle_jax.ops import relaxation

balance = jax.jit(relaxation.balance, static_argnames=("floor", "tolerance", "max_passes"))
tangent = jax.jit(relaxation.tangent)
clamp_normalize = jax.jit(relaxation.clamp_normalize, static_argnames="passes")


def logits(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def assert_doubly_stochastic(matrix, atol):
    assert np.min(matrix) >= 0
    for axis in (-1, -2):
        np.testing.assert_allclose(np.sum(matrix, axis), 1, atol=atol)


@pytest.mark.parametrize("size", [1, 2, 48])
def test_balance_is_doubly_stochastic_from_any_matrix(size):
    matrix = balance(logits(size, 10, size, size), tolerance=1e-3, max_passes=10_000)
    assert_doubly_stochastic(matrix, atol=1.1e-3)


def test_balance_escapes_where_one_pass_is_stuck():
    # Three rows share two columns, one row has the two others: no permutation lies in this support.
    stuck = np.array([[0.7, 0.3, 0, 0], [0.6, 0.4, 0, 0], [0.4, 0.6, 0, 0], [0, 0, 0.5, 0.5]], np.float32)
    one_pass = clamp_normalize(stuck, passes=1000)
    np.testing.assert_allclose(one_pass.sum(0), [1.5, 1.5, 0.5, 0.5], atol=0.1)
    balanced = balance(stuck, tolerance=1e-3)
    np.testing.assert_allclose(balanced.sum(0), [1, 1, 1, 1], atol=1e-3)


def test_balance_leaves_a_permutation_within_the_floor_and_needs_one():
    matrix = np.eye(3, dtype=np.float32)[[2, 0, 1]]
    np.testing.assert_allclose(balance(matrix, floor=1e-6), matrix, atol=3e-6)
    with pytest.raises(ValueError, match="the floor is 0: give a positive number"):
        relaxation.balance(matrix, floor=0)


def test_balance_under_jit_and_vmap():
    scores = logits(9, 3, 5, 5)
    expected = np.stack([relaxation.balance(jnp.asarray(one), tolerance=1e-5) for one in scores])
    for result in (
        jax.jit(jax.vmap(lambda m: relaxation.balance(m, tolerance=1e-5)))(scores),
        balance(scores, tolerance=1e-5),
    ):
        np.testing.assert_allclose(result, expected, atol=1e-4)


def without_best_fit(direction):
    """The direction minus the sums ``a_i + b_j`` nearest to it in squares, in float64."""
    size = len(direction)
    rows, columns = np.kron(np.eye(size), np.ones((size, 1))), np.kron(np.ones((size, 1)), np.eye(size))
    design, entries = np.hstack([rows, columns]), np.asarray(direction, np.float64).ravel()
    return (entries - design @ np.linalg.lstsq(design, entries, rcond=None)[0]).reshape(size, size)


@settings(max_examples=10)
@given(st.sampled_from([1, 2, 7]), st.sampled_from([jnp.float32, jnp.bfloat16]), st.integers(0, 99))
def test_tangent_is_the_orthogonal_projection_onto_sums_of_zero(size, dtype, seed):
    directions = 10 * logits(seed, 3, size, size).astype(dtype)
    found = tangent(directions)
    assert found.dtype == jnp.float32
    found, wide = np.asarray(found), directions.astype(np.float32)
    # Widening loses nothing: the half precision of the input is its only error.
    np.testing.assert_allclose(found, [without_best_fit(one) for one in wide], atol=1e-4)
    for axis in (-1, -2):
        np.testing.assert_allclose(found.sum(axis), 0, atol=1e-4)
    np.testing.assert_allclose(tangent(found), found, atol=1e-5)
    left, right = np.vdot(found[0], wide[1]), np.vdot(wide[0], found[1])
    np.testing.assert_allclose(left, right, atol=1e-5 * float(np.linalg.norm(wide[0]) * np.linalg.norm(wide[1])))


def test_tangent_is_its_own_derivative_and_keeps_double():
    direction, cotangent = logits(0, 4, 4), logits(1, 4, 4)
    pulled = jax.jit(lambda d, u: jax.vjp(relaxation.tangent, d)[1](u)[0])(direction, cotangent)
    np.testing.assert_allclose(pulled, without_best_fit(cotangent), atol=1e-6)
    with jax.enable_x64(True):
        wide = np.asarray(direction, np.float64)
        found = tangent(wide)
        assert found.dtype == jnp.float64
        np.testing.assert_allclose(found, without_best_fit(wide), atol=1e-14)


def test_tangent_says_what_is_no_direction():
    with pytest.raises(ValueError, match=r"^a matrix of shape \(2, 3\) is not square: give \(\.\.\., c, c\) .*$"):
        relaxation.tangent(jnp.ones((2, 3)))
    with pytest.raises(ValueError, match=r"^a matrix of int32 is not of floating point: convert it to float32$"):
        relaxation.tangent(jnp.ones((2, 2), jnp.int32))


def test_few_candidates_leave_few_inputs_and_keep_a_permutation_possible():
    matrix = jax.jit(lambda key: relaxation.random_bistochastic(key, 48, candidates=3))(jax.random.key(2))
    assert int((np.asarray(matrix) > 0).sum(-1).max()) == 3
    # Only a support that holds a permutation can be scaled to sums of 1.
    assert_doubly_stochastic(clamp_normalize(matrix, passes=2000), atol=1e-2)
