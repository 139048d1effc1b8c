"""Relaxations land on their constraint set, reach their hard limit, and have finite gradients."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment

from shuffle_jax.ops import relaxation

SIZES = [1, 2, 7]
softmax_rows = jax.jit(relaxation.softmax_rows)
sinkhorn = jax.jit(relaxation.sinkhorn, static_argnames="iterations")
clamp_normalize = jax.jit(relaxation.clamp_normalize, static_argnames="passes")
random_bistochastic = jax.jit(relaxation.random_bistochastic, static_argnames=("channels", "candidates", "passes"))


def logits(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def softmax_rows_oracle(scores, temperature=1.0):
    powers = np.exp(np.asarray(scores, np.float64) / temperature)
    return powers / powers.sum(-1, keepdims=True)


def sinkhorn_oracle(scores, temperature=1.0, iterations=20):
    matrix = np.exp(np.asarray(scores, np.float64) / temperature)
    for _ in range(iterations):
        matrix = matrix / matrix.sum(-2, keepdims=True)
        matrix = matrix / matrix.sum(-1, keepdims=True)
    return matrix


def clamp_normalize_oracle(matrix, passes=1):
    matrix = np.maximum(np.asarray(matrix, np.float64), 0)
    for _ in range(passes):
        for axis in (-2, -1):
            total = matrix.sum(axis, keepdims=True)
            matrix = np.divide(matrix, total, out=np.zeros_like(matrix), where=total > 0)
    return matrix


ORACLES = {
    relaxation.softmax_rows: softmax_rows_oracle,
    relaxation.sinkhorn: sinkhorn_oracle,
    relaxation.clamp_normalize: clamp_normalize_oracle,
}


def assert_doubly_stochastic(matrices, atol):
    assert np.all(np.asarray(matrices) >= 0)
    for axis in (-1, -2):
        np.testing.assert_allclose(np.asarray(matrices, np.float64).sum(axis), 1, rtol=0, atol=atol)


@pytest.mark.parametrize("size", SIZES)
def test_clamp_normalize_equals_four_lines_of_numpy(size):
    matrices = logits(0, 50, size, size)
    matrices[:10] *= 1e-20
    for passes in (1, 3):
        expected = clamp_normalize_oracle(matrices, passes)
        np.testing.assert_allclose(clamp_normalize(matrices, passes=passes), expected, rtol=1e-5)


def test_clamp_normalize_leaves_zero_rows_and_columns_at_zero_with_finite_gradients():
    matrix = jnp.array([[0.0, -1.0, 0.0], [0.0, 2.0, 1.0], [0.0, 1.0, 3.0]])
    result = clamp_normalize(matrix)
    assert result[0].tolist() == [0.0, 0.0, 0.0] and result[:, 0].tolist() == [0.0, 0.0, 0.0]
    gradient = jax.jit(jax.grad(lambda m: jnp.sin(relaxation.clamp_normalize(m)).sum()))(matrix)
    assert bool(np.all(np.isfinite(gradient)))


@pytest.mark.parametrize("size", SIZES)
def test_permutations_are_fixed_points(size):
    rng = np.random.default_rng(size)
    matrices = np.stack([np.eye(size, dtype=np.float32)[rng.permutation(size)] for _ in range(50)])
    np.testing.assert_array_equal(clamp_normalize(matrices), matrices)


def test_doubly_stochastic_matrices_are_fixed_points():
    matrix = random_bistochastic(jax.random.key(0), 16)
    assert_doubly_stochastic(matrix, atol=1e-5)
    np.testing.assert_allclose(clamp_normalize(matrix), matrix, atol=1e-6)


@pytest.mark.parametrize("channels", [48, 116, 464])
def test_the_start_is_doubly_stochastic_and_not_uniform(channels):
    matrix = np.asarray(relaxation.random_bistochastic(jax.random.key(1), channels))
    assert matrix.dtype == np.float32 and matrix.shape == (channels, channels)
    assert_doubly_stochastic(matrix, atol=1e-5)
    assert 0.3 / channels < matrix.std() < 0.7 / channels  # 1 / (c sqrt(3)) but for the last digits of the sums


def test_the_start_is_drawn_from_its_key_and_normalised_as_often_as_asked():
    once = np.asarray(random_bistochastic(jax.random.key(2), 5, passes=1))
    np.testing.assert_allclose(
        random_bistochastic(jax.random.key(2), 5, passes=3), clamp_normalize_oracle(once, 2), rtol=1e-5
    )
    other = np.asarray(random_bistochastic(jax.random.key(3), 5, passes=1))
    assert np.abs(once - other).min() > 1e-4


@pytest.mark.parametrize("candidates", [1, 3])
def test_the_start_can_have_the_support_of_few_random_permutations(candidates):
    matrices = [
        np.asarray(random_bistochastic(jax.random.key(i), 24, candidates=candidates, passes=200)) for i in range(3)
    ]
    for matrix in matrices:
        assert_doubly_stochastic(matrix, atol=1e-2)
        for axis in (0, 1):
            count = (matrix > 0).sum(axis)
            assert count.min() >= 1 and count.max() == candidates
        # A union of independent permutations, who share few of their entries; and entries that are drawn as well.
        assert np.mean(matrix > 0) == pytest.approx(1 - (1 - 1 / 24) ** candidates, rel=0.1)
        assert (np.std(matrix[matrix > 0]) > 0.1) == (candidates > 1)
    assert not np.array_equal(matrices[0] > 0, matrices[1] > 0)


def test_a_start_with_very_many_candidates_draws_every_entry():
    key = jax.random.key(4)
    np.testing.assert_array_equal(random_bistochastic(key, 3, candidates=64), random_bistochastic(key, 3))


def test_the_start_needs_a_candidate():
    with pytest.raises(ValueError, match="candidates is 0: give 1 or more, or None for all"):
        relaxation.random_bistochastic(jax.random.key(0), 4, candidates=0)


@pytest.mark.parametrize("size", SIZES)
def test_softmax_rows_equals_its_equation(size):
    scores = logits(1, 50, size, size)
    for temperature in (0.4, 2.0):
        expected = softmax_rows_oracle(scores, temperature)
        np.testing.assert_allclose(softmax_rows(scores, temperature), expected, rtol=1e-5)


@pytest.mark.parametrize("size", SIZES)
def test_sinkhorn_equals_alternate_division_and_is_doubly_stochastic_at_moderate_temperature(size):
    scores = logits(2, 50, size, size)
    for temperature in (0.4, 2.0):
        actual, expected = sinkhorn(scores, temperature, iterations=7), sinkhorn_oracle(scores, temperature, 7)
        np.testing.assert_allclose(actual, expected, rtol=1e-4)
    assert_doubly_stochastic(sinkhorn(scores, iterations=100), atol=1e-3)


def test_hard_limits():
    scores = logits(5, 4, 6, 6)
    np.testing.assert_allclose(softmax_rows(scores, 1e-3), np.eye(6)[scores.argmax(-1)], atol=1e-4)
    nearest = np.stack([np.eye(6)[linear_sum_assignment(one, maximize=True)[1]] for one in scores])
    np.testing.assert_allclose(sinkhorn(scores, 5e-3, iterations=2000), nearest, atol=1e-2)


def test_tiny_temperatures_do_not_overflow():
    scores = 100 * logits(6, 5, 5)
    for matrix in (sinkhorn(scores, 1e-4), softmax_rows(scores, 1e-4)):
        assert bool(np.all(np.isfinite(matrix)))
    gradient = jax.jit(jax.grad(lambda s: (relaxation.sinkhorn(s, 1e-2) ** 2).sum()))(scores)
    assert bool(np.all(np.isfinite(gradient)))


@pytest.mark.parametrize("relax", ORACLES, ids=lambda relax: relax.__name__)
def test_batches_jit_vmap_and_half_precision(relax):
    scores = 4 * logits(7, 2, 3, 5, 5)  # where every iteration counts
    expected = ORACLES[relax](scores)
    for result in (relax(jnp.asarray(scores)), jax.jit(relax)(scores), jax.jit(jax.vmap(relax))(scores)):
        assert result.dtype == jnp.float32
        np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-6)
    rounded = scores.astype(jnp.bfloat16)
    half = jax.jit(relax)(rounded)
    assert half.dtype == jnp.float32
    np.testing.assert_allclose(half, ORACLES[relax](rounded), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("relax", ORACLES, ids=lambda relax: relax.__name__)
def test_gradients_equal_finite_differences(relax):
    rng = np.random.default_rng(8)
    scores, weights = rng.uniform(0.1, 1.0, (4, 4)), rng.standard_normal((4, 4))
    step = 1e-5 * np.eye(16).reshape(16, 4, 4)

    def loss(scores, relax=relax):
        return (weights * relax(scores)).sum((-1, -2))

    with jax.enable_x64(True):
        gradients = jax.jit(jax.vmap(jax.grad(loss)))(np.concatenate([scores[None], scores + step, scores - step]))
        hessian = jax.jit(jax.hessian(loss))(scores)
    oracle = partial(loss, relax=ORACLES[relax])
    gradient, after, before = np.split(np.asarray(gradients), [1, 17])
    np.testing.assert_allclose(gradient.ravel(), (oracle(scores + step) - oracle(scores - step)) / 2e-5, atol=1e-8)
    np.testing.assert_allclose(np.reshape(hessian, (16, 4, 4)), (after - before) / 2e-5, atol=1e-7)


def test_sinkhorn_needs_an_iteration():
    with pytest.raises(ValueError, match="at least 1 iteration, not 0"):
        relaxation.sinkhorn(jnp.ones((2, 2)), iterations=0)
    scores = logits(9, 2, 2)
    np.testing.assert_allclose(sinkhorn(scores, iterations=1), sinkhorn_oracle(scores, 1, 1), rtol=1e-5)
