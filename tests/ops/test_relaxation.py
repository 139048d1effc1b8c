"""Relaxations land on their constraint set, reach their hard limit, and have finite gradients."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shuffle_jax.ops import invariants, permutation, relaxation, rounding

sizes = st.integers(1, 8)
seeds = st.integers(0, 99)


def logits(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


@given(sizes, seeds)
def test_clamp_normalize_equals_three_lines_of_numpy(size, seed):
    matrix = np.array(logits(seed, size, size))
    for passes in (1, 3):
        expected = np.maximum(matrix, 0)
        for _ in range(passes):
            for axis in (0, 1):
                total = expected.sum(axis, keepdims=True)
                expected = np.divide(expected, total, out=np.zeros_like(expected), where=total > 0)
        np.testing.assert_allclose(relaxation.clamp_normalize(jnp.array(matrix), passes), expected, rtol=1e-5)


def test_clamp_normalize_leaves_zero_rows_and_columns_at_zero_with_finite_gradients():
    matrix = jnp.array([[0.0, -1.0, 0.0], [0.0, 2.0, 1.0], [0.0, 1.0, 3.0]])
    result = relaxation.clamp_normalize(matrix)
    assert result[0].tolist() == [0.0, 0.0, 0.0] and result[:, 0].tolist() == [0.0, 0.0, 0.0]
    gradient = jax.grad(lambda m: jnp.sin(relaxation.clamp_normalize(m)).sum())(matrix)
    assert bool(jnp.all(jnp.isfinite(gradient)))


@given(sizes, seeds)
def test_permutations_are_fixed_points(size, seed):
    matrix = permutation.to_matrix(permutation.random(jax.random.key(seed), size))
    np.testing.assert_array_equal(relaxation.clamp_normalize(matrix), matrix)


def test_doubly_stochastic_matrices_are_fixed_points():
    matrix = relaxation.random_bistochastic(jax.random.key(0), 16)
    invariants.assert_doubly_stochastic(matrix, atol=1e-5)
    np.testing.assert_allclose(relaxation.clamp_normalize(matrix), matrix, atol=1e-6)


@pytest.mark.parametrize("channels", [48, 116, 464])
def test_the_start_is_doubly_stochastic_and_not_uniform(channels):
    matrix = relaxation.random_bistochastic(jax.random.key(1), channels)
    invariants.assert_doubly_stochastic(matrix, atol=1e-5)
    assert float(matrix.std()) > 0.3 / channels


@given(st.integers(2, 8), seeds)
def test_sinkhorn_is_doubly_stochastic_at_moderate_temperature(size, seed):
    matrix = relaxation.sinkhorn(logits(seed, size, size), iterations=100)
    invariants.assert_doubly_stochastic(matrix, atol=1e-3)


@given(st.integers(2, 6), seeds)
def test_sinkhorn_equals_alternate_division(size, seed):
    scores = logits(seed, size, size)
    expected = np.exp(np.asarray(scores, np.float64))
    for _ in range(7):
        expected /= expected.sum(0, keepdims=True)
        expected /= expected.sum(1, keepdims=True)
    np.testing.assert_allclose(relaxation.sinkhorn(scores, iterations=7), expected, rtol=1e-4)


def test_hard_limits():
    scores = logits(5, 4, 6, 6)
    cold = relaxation.softmax_rows(scores, 1e-3)
    np.testing.assert_allclose(cold, jax.nn.one_hot(rounding.argmax(scores), 6), atol=1e-4)
    cold = relaxation.sinkhorn(scores, 5e-3, iterations=2000)
    np.testing.assert_allclose(cold, permutation.to_matrix(rounding.assignment(scores)), atol=1e-2)


def test_tiny_temperatures_do_not_overflow():
    scores = 100 * logits(6, 5, 5)
    for matrix in (relaxation.sinkhorn(scores, 1e-4), relaxation.softmax_rows(scores, 1e-4)):
        assert bool(jnp.all(jnp.isfinite(matrix)))
    gradient = jax.grad(lambda s: (relaxation.sinkhorn(s, 1e-2) ** 2).sum())(scores)
    assert bool(jnp.all(jnp.isfinite(gradient)))


@pytest.mark.parametrize("relax", [relaxation.softmax_rows, relaxation.sinkhorn, relaxation.clamp_normalize])
def test_batches_jit_vmap_and_half_precision(relax):
    scores = logits(7, 3, 5, 5)
    expected = jnp.stack([relax(one) for one in scores])
    for result in (relax(scores), jax.jit(relax)(scores), jax.vmap(relax)(scores)):
        np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-7)
    half = relax(scores.astype(jnp.bfloat16))
    assert half.dtype == jnp.float32
    np.testing.assert_allclose(half.sum(-1), np.ones((3, 5)), rtol=1e-5)


def test_gradients_equal_finite_differences():
    with jax.enable_x64(True):
        scores = jnp.asarray(np.random.default_rng(8).uniform(0.1, 1.0, (4, 4)))
        for relax in (relaxation.softmax_rows, relaxation.sinkhorn, relaxation.clamp_normalize):
            jax.test_util.check_grads(relax, (scores,), order=2)


def test_sinkhorn_needs_an_iteration():
    with pytest.raises(ValueError, match="at least 1 iteration, not 0"):
        relaxation.sinkhorn(jnp.ones((2, 2)), iterations=0)
