"""Assertions pass what holds, catch what does not, eagerly and under jit."""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from shuffle_jax.ops import invariants, permutation, relaxation

ROTATION = jnp.array([[0.6, 0.8], [-0.8, 0.6]])
CASES = [
    (invariants.assert_permutation, jnp.array([[2, 0, 1], [0, 1, 2]]), jnp.array([[2, 0, 1], [0, 1, 1]])),
    (invariants.assert_permutation, jnp.array([0]), jnp.array([1])),
    (invariants.assert_doubly_stochastic, jnp.full((2, 3, 3), 1 / 3), jnp.full((2, 3, 3), 0.3)),
    (invariants.assert_doubly_stochastic, jnp.eye(3)[::-1], jnp.array([[1.0, 0.0], [1.0, 0.0]])),
    (invariants.assert_doubly_stochastic, jnp.eye(2), jnp.array([[1.5, -0.5], [-0.5, 1.5]])),
    (invariants.assert_doubly_stochastic, jnp.eye(2), jnp.full((2, 2), jnp.nan)),
    (invariants.assert_orthogonal, jnp.stack([ROTATION, ROTATION.T]), jnp.stack([ROTATION, 1.1 * ROTATION])),
    (invariants.assert_orthogonal, permutation.to_matrix(jnp.array([2, 0, 1])), jnp.full((2, 2), jnp.inf)),
]


@pytest.mark.parametrize(("check", "good", "bad"), CASES)
def test_eagerly(check, good, bad):
    check(good)
    with pytest.raises(AssertionError):
        check(bad)


@pytest.mark.parametrize(("check", "good", "bad"), CASES)
def test_under_jit_with_chexify(check, good, bad):
    @chex.chexify
    @jax.jit
    def double(array):
        check(array)
        return array + array

    np.testing.assert_array_equal(double(good), good + good)
    double.wait_checks()
    with pytest.raises(AssertionError):
        double(bad)
        double.wait_checks()


def test_messages_say_which_law_is_broken():
    with pytest.raises(AssertionError, match="a column sum is not 1"):
        invariants.assert_doubly_stochastic(jnp.array([[1.0, 0.0], [1.0, 0.0]]))
    with pytest.raises(AssertionError, match="an entry is negative or NaN"):
        invariants.assert_doubly_stochastic(jnp.array([[1.5, -0.5], [-0.5, 1.5]]))
    with pytest.raises(AssertionError, match="some index is missing or occurs twice"):
        invariants.assert_permutation(jnp.array([0, 0]))
    with pytest.raises(AssertionError, match="integer index vector, this array is float32"):
        invariants.assert_permutation(jnp.array([0.0, 1.0]))
    with pytest.raises(AssertionError, match=r"square matrices .* got the shape \(2, 3\)"):
        invariants.assert_orthogonal(jnp.ones((2, 3)))


def test_the_tolerance_is_a_bound_on_the_deviation():
    matrix = jnp.eye(3) * 1.001
    invariants.assert_doubly_stochastic(matrix, atol=2e-3)
    with pytest.raises(AssertionError):
        invariants.assert_doubly_stochastic(matrix, atol=5e-4)


def test_relaxations_can_be_checked_where_they_are_used():
    @chex.chexify
    @jax.jit
    def relax(logits, temperature):
        matrix = relaxation.sinkhorn(logits, temperature, iterations=5)
        invariants.assert_doubly_stochastic(matrix, atol=1e-3)
        return matrix

    logits = jnp.asarray(np.random.default_rng(0).standard_normal((4, 4)), jnp.float32)
    relax(logits, 10.0)
    relax.wait_checks()
    with pytest.raises(AssertionError, match="column sum"):  # too cold for five iterations
        relax(logits, 0.01)
        relax.wait_checks()
