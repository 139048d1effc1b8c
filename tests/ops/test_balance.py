"""Balancing reaches the doubly stochastic matrices from anywhere, and tangent steps stay there; sparse starts keep a
permutation possible."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shuffle_jax.ops import invariants, permutation, relaxation


def logits(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


@pytest.mark.parametrize("size", [1, 2, 8, 48])
def test_balance_is_doubly_stochastic_from_any_matrix(size):
    matrix = relaxation.balance(logits(size, 10, size, size), tolerance=1e-3, max_passes=10_000)
    invariants.assert_doubly_stochastic(matrix, atol=1.1e-3)


def test_balance_escapes_where_one_pass_is_stuck():
    # Three rows share two columns, one row has the two others: no permutation lies in this support.
    stuck = jnp.array([[0.7, 0.3, 0, 0], [0.6, 0.4, 0, 0], [0.4, 0.6, 0, 0], [0, 0, 0.5, 0.5]])
    one_pass = relaxation.clamp_normalize(stuck, passes=1000)
    np.testing.assert_allclose(one_pass.sum(0), [1.5, 1.5, 0.5, 0.5], atol=0.1)
    balanced = relaxation.balance(stuck, tolerance=1e-3)
    np.testing.assert_allclose(balanced.sum(0), [1, 1, 1, 1], atol=1e-3)


def test_balance_leaves_a_permutation_within_the_floor_and_needs_one():
    matrix = permutation.to_matrix(jnp.array([2, 0, 1]))
    np.testing.assert_allclose(relaxation.balance(matrix, floor=1e-6), matrix, atol=3e-6)
    with pytest.raises(ValueError, match="the floor is 0: give a positive number"):
        relaxation.balance(matrix, floor=0)


def test_balance_under_jit_and_vmap():
    scores = logits(9, 3, 5, 5)
    expected = jnp.stack([relaxation.balance(one, tolerance=1e-5) for one in scores])
    for result in (
        jax.vmap(lambda m: relaxation.balance(m, tolerance=1e-5))(scores),
        jax.jit(lambda m: relaxation.balance(m, tolerance=1e-5))(scores),
    ):
        np.testing.assert_allclose(result, expected, atol=1e-4)


def without_best_fit(direction):
    """The direction minus the sums ``a_i + b_j`` nearest to it in squares, in float64."""
    size = len(direction)
    rows, columns = np.kron(np.eye(size), np.ones((size, 1))), np.kron(np.ones((size, 1)), np.eye(size))
    design, entries = np.hstack([rows, columns]), np.asarray(direction, np.float64).ravel()
    return (entries - design @ np.linalg.lstsq(design, entries, rcond=None)[0]).reshape(size, size)


@settings(max_examples=10)
@given(st.integers(1, 7), st.sampled_from([jnp.float32, jnp.bfloat16]), st.integers(0, 99))
def test_tangent_is_the_orthogonal_projection_onto_sums_of_zero(size, dtype, seed):
    directions = 10 * logits(seed, 3, size, size).astype(dtype)
    found = relaxation.tangent(directions)
    assert found.dtype == jnp.float32
    # Widening loses nothing: the half precision of the input is its only error.
    np.testing.assert_allclose(found, [without_best_fit(one) for one in directions.astype(jnp.float32)], atol=1e-4)
    for axis in (-1, -2):
        np.testing.assert_allclose(found.sum(axis), 0, atol=1e-4)
    np.testing.assert_allclose(relaxation.tangent(found), found, atol=1e-5)
    first, second = directions[0].astype(jnp.float32), directions[1].astype(jnp.float32)
    left, right = jnp.vdot(found[0], second), jnp.vdot(first, found[1])
    np.testing.assert_allclose(left, right, atol=1e-5 * float(jnp.linalg.norm(first) * jnp.linalg.norm(second)))


def test_tangent_is_its_own_derivative_and_keeps_double():
    direction, cotangent = logits(0, 4, 4), logits(1, 4, 4)
    _, pull_back = jax.vjp(jax.jit(relaxation.tangent), direction)
    np.testing.assert_allclose(pull_back(cotangent)[0], without_best_fit(cotangent), atol=1e-6)
    with jax.enable_x64(True):
        wide = np.asarray(direction, np.float64)
        found = relaxation.tangent(jnp.asarray(wide))
        assert found.dtype == jnp.float64
        np.testing.assert_allclose(found, without_best_fit(wide), atol=1e-14)


def test_tangent_says_what_is_no_direction():
    with pytest.raises(ValueError, match=r"^a matrix of shape \(2, 3\) is not square: give \(\.\.\., c, c\) .*$"):
        relaxation.tangent(jnp.ones((2, 3)))
    with pytest.raises(ValueError, match=r"^a matrix of int32 is not of floating point: convert it to float32$"):
        relaxation.tangent(jnp.ones((2, 2), jnp.int32))


def test_few_candidates_leave_few_inputs_and_keep_a_permutation_possible():
    matrix = relaxation.random_bistochastic(jax.random.key(2), 48, candidates=3)
    assert int((matrix > 0).sum(-1).max()) == 3
    # Only a support that holds a permutation can be scaled to sums of 1.
    invariants.assert_doubly_stochastic(relaxation.clamp_normalize(matrix, passes=2000), atol=1e-2)
    with pytest.raises(ValueError, match="candidates is 0: give 1 or more"):
        relaxation.random_bistochastic(jax.random.key(2), 48, candidates=0)
