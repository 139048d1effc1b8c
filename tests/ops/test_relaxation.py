"""Relaxations land on their constraint set, reach their hard limit, and have finite gradients."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment

from shuffle_jax.ops import relaxation

SIZES = [1, 2, 7]
softmax_rows = jax.jit(relaxation.softmax_rows)
sinkhorn = jax.jit(relaxation.sinkhorn, static_argnames="iterations")
clamp_normalize = jax.jit(relaxation.clamp_normalize, static_argnames="passes")
gumbel_sinkhorn = jax.jit(relaxation.gumbel_sinkhorn, static_argnames="iterations")
soft_sort = jax.jit(relaxation.soft_sort, static_argnames="descending")
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


def clamp_normalize_oracle(matrix, temperature=1.0, passes=1):
    matrix = np.maximum(np.asarray(matrix, np.float64), 0) ** (1 / temperature)
    for _ in range(passes):
        for axis in (-2, -1):
            total = matrix.sum(axis, keepdims=True)
            matrix = np.divide(matrix, total, out=np.zeros_like(matrix), where=total > 0)
    return matrix


def soft_sort_oracle(scores, temperature=1.0, descending=False):
    scores = np.asarray(scores, np.float64)
    ordered = np.sort(scores)[..., ::-1] if descending else np.sort(scores)
    powers = np.exp(-np.abs(ordered[..., :, None] - scores[..., None, :]) / temperature)
    return powers / powers.sum(-1, keepdims=True)


def sharpen(matrix):
    return relaxation.clamp_normalize(matrix, 0.5, passes=2)


def converge(scores):
    return relaxation.converged_sinkhorn(scores, tolerance=1e-12)


ORACLES = {
    relaxation.softmax_rows: softmax_rows_oracle,
    relaxation.sinkhorn: sinkhorn_oracle,
    relaxation.clamp_normalize: clamp_normalize_oracle,
    sharpen: partial(clamp_normalize_oracle, temperature=0.5, passes=2),
    converge: partial(sinkhorn_oracle, iterations=500),
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
        expected = clamp_normalize_oracle(matrices, passes=passes)
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


@pytest.mark.parametrize("channels", [48, 464])
def test_the_start_is_doubly_stochastic_and_not_uniform(channels):
    matrix = np.asarray(random_bistochastic(jax.random.key(1), channels))
    assert matrix.dtype == np.float32 and matrix.shape == (channels, channels)
    assert_doubly_stochastic(matrix, atol=1e-5)
    assert 0.3 / channels < matrix.std() < 0.7 / channels  # 1 / (c sqrt(3)) but for the last digits of the sums


def test_the_start_is_drawn_from_its_key_and_normalised_as_often_as_asked():
    once = np.asarray(random_bistochastic(jax.random.key(2), 5, passes=1))
    np.testing.assert_allclose(
        random_bistochastic(jax.random.key(2), 5, passes=3), clamp_normalize_oracle(once, passes=2), rtol=1e-5
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


@pytest.mark.parametrize("size, iterations", [(5, 500), (8, 60), (16, 60), (40, 30)])
def test_sinkhorn_loses_no_entry_that_starts_too_small_for_float32(size, iterations):
    """Without logarithms taken up on the way all of these overflow, or end at another permutation."""
    left, right = logits(23, 2, 3, size)
    scores = 1000 * left[:, :, None] * right[:, None, :]
    weights = logits(24, 3, size, size)

    def by_logarithms(scores):
        def one_pass(scores, _):
            return jax.nn.log_softmax(jax.nn.log_softmax(scores, axis=-2), axis=-1), None

        return jnp.exp(jax.lax.scan(one_pass, scores, length=iterations)[0])

    def value_and_gradient(relax, scores):
        gradient = jax.grad(lambda scores: (weights.astype(scores.dtype) * relax(scores)).sum())
        return relax(scores), gradient(scores)

    with jax.enable_x64(True):
        expected = jax.jit(partial(value_and_gradient, by_logarithms))(scores.astype(np.float64))
    relax = partial(relaxation.sinkhorn, iterations=iterations)
    for relaxed in (relax, jax.vmap(relax)):
        actual = jax.jit(partial(value_and_gradient, relaxed))(scores)
        np.testing.assert_allclose(actual[0], expected[0], atol=2e-5)
        np.testing.assert_allclose(actual[1], expected[1], atol=2e-3)


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
        several = np.concatenate([scores[None], scores + step, scores - step])
        slopes = jax.jit(lambda several: (jax.vmap(jax.grad(loss))(several), jax.hessian(loss)(several[0])))
        gradients, hessian = slopes(several)
    oracle = partial(loss, relax=ORACLES[relax])
    gradient, after, before = np.split(np.asarray(gradients), [1, 17])
    np.testing.assert_allclose(gradient.ravel(), (oracle(scores + step) - oracle(scores - step)) / 2e-5, atol=1e-8)
    np.testing.assert_allclose(np.reshape(hessian, (16, 4, 4)), (after - before) / 2e-5, atol=1e-7)


def test_sinkhorn_needs_an_iteration():
    with pytest.raises(ValueError, match="at least 1 iteration, not 0"):
        relaxation.sinkhorn(jnp.ones((2, 2)), iterations=0)
    scores = logits(9, 2, 2)
    np.testing.assert_allclose(sinkhorn(scores, iterations=1), sinkhorn_oracle(scores, 1, 1), rtol=1e-5)


@pytest.mark.parametrize("size", SIZES)
def test_clamp_normalize_of_powers_equals_numpy_and_its_own_path_at_temperature_1(size):
    matrices = logits(10, 50, size, size)
    for temperature in (0.3, 1.0, 2.0):
        expected = clamp_normalize_oracle(matrices, temperature, passes=2)
        traced = np.float32(temperature)  # 1 is taken for a power, too, if it is not known before tracing
        np.testing.assert_allclose(clamp_normalize(matrices, traced, passes=2), expected, rtol=1e-4, atol=1e-7)


def test_clamp_normalize_keeps_its_rows_at_tiny_temperatures():
    # 0.1^1000 is far below the smallest float: the power itself would leave rows and columns of zeros.
    matrix = 0.1 * np.random.default_rng(11).uniform(0.1, 1, (3, 6, 6)).astype(np.float32)
    sharp = np.asarray(clamp_normalize(matrix, np.float32(1e-3), passes=3000))
    np.testing.assert_allclose(sharp.sum(-1), 1, atol=1e-5)
    nearest = np.stack([np.eye(6)[linear_sum_assignment(np.log(one), maximize=True)[1]] for one in matrix])
    np.testing.assert_allclose(sharp, nearest, atol=1e-2)


def test_clamp_normalize_of_powers_leaves_zeros_with_finite_gradients():
    matrix = jnp.array([[0.0, -1.0, 0.0], [0.0, 2.0, 1.0], [0.0, 1.0, 3.0]])
    result = clamp_normalize(matrix, np.float32(0.1))
    assert result[0].tolist() == [0.0, 0.0, 0.0] and result[:, 0].tolist() == [0.0, 0.0, 0.0]
    np.testing.assert_allclose(result.sum(-1), [0, 1, 1], rtol=1e-6)
    np.testing.assert_array_equal(clamp_normalize(np.zeros((2, 2), np.float32), np.float32(0.1)), np.zeros((2, 2)))
    slopes = jax.jit(jax.grad(lambda m, t: jnp.sin(relaxation.clamp_normalize(m, t)).sum(), argnums=(0, 1)))
    for slope in slopes(matrix, np.float32(0.1)):
        assert bool(np.all(np.isfinite(slope)))


def test_gumbel_sinkhorn_is_sinkhorn_of_noisy_logits_and_its_limit_their_assignment():
    scores, key = logits(12, 4, 5, 5), jax.random.key(0)
    gumbel = np.asarray(jax.random.gumbel(key, scores.shape))
    for noise in (0.0, 0.5):
        expected = sinkhorn(scores + np.float32(noise) * gumbel, 0.7)
        np.testing.assert_allclose(gumbel_sinkhorn(scores, 0.7, noise=noise, key=key), expected, rtol=1e-5)
    hard = np.asarray(gumbel_sinkhorn(scores, 5e-3, iterations=2000, key=key))
    nearest = np.stack([np.eye(5)[linear_sum_assignment(one, maximize=True)[1]] for one in scores + gumbel])
    np.testing.assert_allclose(hard, nearest, atol=1e-2)
    assert np.abs(hard - gumbel_sinkhorn(scores, 5e-3, iterations=2000, key=jax.random.key(1))).max() > 0.9


def test_the_limit_of_gumbel_sinkhorn_is_not_drawn_in_the_order_of_the_sums_of_logits():
    """Of three permutations with the sums 0, 0.05 and 0 the second, which shares an entry with each, is the rarest.

    A larger entry makes what holds it likelier all the same.
    """
    choices = np.array([[1, 0, 2], [0, 1, 2], [0, 2, 1]])
    noise = np.asarray(jax.random.gumbel(jax.random.key(0), (100_000, 3, 3)))
    sums = noise[:, np.arange(3), choices].sum(-1)

    def frequencies(*sums_of_logits):
        return np.bincount((sums + np.array(sums_of_logits)).argmax(1), minlength=3) / len(sums)

    np.testing.assert_allclose(frequencies(0, 0.05, 0), [0.350, 0.299, 0.351], atol=0.006)
    np.testing.assert_array_less(frequencies(0, 0.05, 0)[[0, 1]], frequencies(1, 1.05, 0)[[0, 1]])  # both hold [2, 2]


def test_gumbel_sinkhorn_in_half_precision_and_its_gradient_through_the_noise():
    scores, key = logits(13, 5, 5), jax.random.key(2)
    rounded = scores.astype(jnp.bfloat16)
    result = gumbel_sinkhorn(rounded, key=key)
    assert result.dtype == jnp.float32
    np.testing.assert_allclose(result, gumbel_sinkhorn(rounded.astype(np.float32), key=key), rtol=1e-6)
    weights, noise = logits(14, 5, 5), np.asarray(jax.random.gumbel(key, scores.shape))

    @jax.jit
    def both(scores, noisy):
        with_noise = jax.grad(lambda s: (weights * relaxation.gumbel_sinkhorn(s, key=key)).sum())
        return with_noise(scores), jax.grad(lambda s: (weights * relaxation.sinkhorn(s)).sum())(noisy)

    np.testing.assert_allclose(*both(scores, scores + noise), atol=1e-6)


@given(size=st.sampled_from([1, 2, 9]), seed=st.integers(0, 999), descending=st.booleans())
def test_soft_sort_equals_its_equation_and_its_row_argmax_is_argsort_at_any_temperature(size, seed, descending):
    scores = np.random.default_rng(seed).permutation(3 * size)[:size].astype(np.float32)  # no ties
    order = np.argsort(-scores if descending else scores)
    for temperature in (0.5, 20.0):
        matrix = np.asarray(soft_sort(scores, temperature, descending=descending))
        np.testing.assert_allclose(matrix, soft_sort_oracle(scores, temperature, descending), rtol=1e-5)
        np.testing.assert_array_equal(matrix.argmax(-1), order)
    hard = np.eye(size)[order]
    np.testing.assert_allclose(soft_sort(scores, 0.01, descending=descending), hard, atol=1e-6)


def test_soft_sort_shares_rows_among_equal_scores():
    matrix = np.asarray(soft_sort(np.float32([2, 1, 2, 0]), 0.01))
    np.testing.assert_allclose(matrix, [[0, 0, 0, 1], [0, 1, 0, 0], [0.5, 0, 0.5, 0], [0.5, 0, 0.5, 0]], atol=1e-6)
    assert matrix.argmax(-1).tolist() == [3, 1, 0, 0]  # no permutation
    np.testing.assert_allclose(soft_sort(np.zeros(3, np.float32)), np.full((3, 3), 1 / 3), rtol=1e-6)
    slope = jax.jit(jax.grad(lambda s: jnp.sin(relaxation.soft_sort(s, 0.01)).sum()))(np.float32([2, 1, 2, 0]))
    assert bool(np.all(np.isfinite(slope)))


def test_soft_sort_of_batches_in_half_precision_with_its_gradient():
    scores = 4 * logits(15, 2, 3, 5)
    expected = soft_sort_oracle(scores)
    for result in (relaxation.soft_sort(jnp.asarray(scores)), jax.jit(jax.vmap(relaxation.soft_sort))(scores)):
        np.testing.assert_allclose(result, expected, rtol=1e-4)
    half = scores.astype(jnp.bfloat16)
    assert soft_sort(half).dtype == jnp.float32
    np.testing.assert_allclose(soft_sort(half), soft_sort_oracle(np.asarray(half, np.float32)), rtol=1e-4)
    one, weights, step = scores[0, 0].astype(np.float64), logits(16, 5, 5).astype(np.float64), 1e-5 * np.eye(5)
    with jax.enable_x64(True):
        slope = np.asarray(jax.jit(jax.grad(lambda s: (weights * relaxation.soft_sort(s)).sum()))(one))
    after, before = ((weights * soft_sort_oracle(one + sign * step)).sum((-1, -2)) for sign in (1, -1))
    np.testing.assert_allclose(slope, (after - before) / 2e-5, atol=1e-8)


@pytest.mark.parametrize(
    "relax",
    [
        relaxation.sinkhorn,
        relaxation.converged_sinkhorn,
        partial(relaxation.gumbel_sinkhorn, key=jax.random.key(0)),
        relaxation.clamp_normalize,
        relaxation.balance,
        relaxation.orthostochastic,
    ],
)
def test_matrices_that_are_not_square_or_not_of_floating_point_are_named(relax):
    for shape in ((2, 3), (4,), (0, 0)):
        with pytest.raises(ValueError, match=r"a matrix of shape .* is not square: give \(\.\.\., c, c\)"):
            relax(jnp.ones(shape))
    with pytest.raises(ValueError, match="a matrix of int32 is not of floating point: convert it to float32"):
        relax(jnp.ones((2, 2), jnp.int32))


def test_scores_that_are_no_vectors_of_floating_point_are_named():
    with pytest.raises(ValueError, match="scores of int32 are not of floating point"):
        relaxation.soft_sort(jnp.arange(3))
    with pytest.raises(ValueError, match="soft_sort sorts vectors and not a scalar"):
        relaxation.soft_sort(jnp.float32(1))
