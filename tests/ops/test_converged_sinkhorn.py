"""Sinkhorn's fixed point, its implicit derivative, and the elimination that stays exact near permutations."""

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
from shuffle_jax.ops.converged_sinkhorn import converged_sinkhorn, fixed_point_derivative, solve_laplacian

converge = jax.jit(converged_sinkhorn, static_argnames=("tolerance", "max_iterations"))
derive = jax.jit(fixed_point_derivative)


def draw(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def fixed_point(scores):
    """The fixed point in float64."""
    matrix = np.exp(np.asarray(scores, np.float64))
    for _ in range(5000):
        matrix /= matrix.sum(-2, keepdims=True)
        matrix /= matrix.sum(-1, keepdims=True)
    return matrix


def dense_derivative(matrix, tangent):
    """M o (G - a - b), a and b by least squares on the singular system of all row and column sums."""
    weighted, size = matrix * tangent, len(matrix)
    system = np.block([[np.diag(matrix.sum(1)), matrix], [matrix.T, np.diag(matrix.sum(0))]])
    both = np.linalg.lstsq(system, np.concatenate([weighted.sum(1), weighted.sum(0)]), rcond=1e-12)[0]
    return weighted - (both[:size, None] + both[size:]) * matrix


@pytest.mark.parametrize("size", [1, 2, 7])
def test_is_the_fixed_point_with_rows_exact_and_columns_within_the_tolerance(size):
    scores = draw(size, 20, size, size)
    for temperature in (0.2, 2.0):
        matrix = np.asarray(converge(scores, temperature), np.float64)
        assert np.abs(matrix.sum(-2) - 1).max() <= 1.1e-4
        np.testing.assert_allclose(matrix.sum(-1), 1, atol=2e-6)
        np.testing.assert_allclose(
            converge(scores, temperature, tolerance=1e-6), fixed_point(scores / temperature), atol=2e-5
        )


def test_takes_the_passes_it_needs_and_no_more():
    scores = 4 * draw(0, 6, 6)
    after = [np.exp(scores.astype(np.float64))]
    while len(after) == 1 or np.abs(after[-1].sum(0) - 1).max() > 1e-2:
        columns = after[-1] / after[-1].sum(0)
        after.append(columns / columns.sum(1, keepdims=True))
    assert 3 < len(after) < 100
    np.testing.assert_allclose(converge(scores, tolerance=1e-2), after[-1], rtol=1e-4, atol=1e-7)
    np.testing.assert_allclose(converge(scores, tolerance=1e-2, max_iterations=2), after[2], rtol=1e-4, atol=1e-7)
    # Of doubly stochastic matrices there is one pass, too, so that rows always sum to 1.
    np.testing.assert_allclose(converge(np.full((3, 3), 7.0, np.float32)), 1 / 3, rtol=1e-6)


def test_matrices_that_converge_soon_are_not_disturbed_by_slow_ones():
    fast, slow = 0.1 * draw(1, 5, 5), 30 * draw(2, 5, 5)
    together = converge(np.stack([fast, slow])[:, None])
    alone = np.stack([converge(fast), converge(slow)])[:, None]
    mapped = jax.jit(jax.vmap(converged_sinkhorn))(np.stack([fast, slow]))
    np.testing.assert_array_equal(together, alone)
    np.testing.assert_array_equal(mapped, alone[:, 0])
    passed = relaxation.sinkhorn(fast, 1.0, 1000)
    assert np.abs(passed - alone[0, 0]).max() > 0  # further passes would have been noticed

    gradient = jax.jit(jax.grad(lambda scores: jnp.sin(converged_sinkhorn(scores)).sum()))
    both = gradient(np.stack([fast, slow]))
    np.testing.assert_allclose(both[0], gradient(fast), rtol=1e-5, atol=1e-8)


def test_the_hard_limit_is_the_assignment():
    scores = draw(4, 8, 6, 6)
    nearest = np.stack([np.eye(6)[linear_sum_assignment(one, maximize=True)[1]] for one in scores])
    # The eight are drawn, some nearly tied; most are converged at this temperature.
    error = np.abs(np.asarray(converge(scores, 5e-3, max_iterations=5000)) - nearest).max((-1, -2))
    assert np.sum(error < 1e-2) >= 7


def test_the_gradient_is_that_of_long_unrolled_sinkhorn_in_float64():
    scores, weights = draw(5, 5, 5), draw(6, 5, 5)

    def loss(relax, scores, temperature):
        return (jnp.asarray(weights, scores.dtype) * relax(scores, temperature)).sum()

    unrolled = partial(relaxation.sinkhorn, iterations=1000)
    slope = jax.jit(jax.grad(partial(loss, unrolled), argnums=(0, 1)))
    implicit = jax.jit(jax.grad(partial(loss, partial(converged_sinkhorn, tolerance=1e-6)), argnums=(0, 1)))
    for temperature in (2.0, 0.3, 0.05):
        with jax.enable_x64(True):
            expected = jax.device_get(slope(scores.astype(np.float64), temperature))
        actual = implicit(scores, np.float32(temperature))
        np.testing.assert_allclose(actual[0], expected[0], atol=1e-4 * np.abs(expected[0]).max())
        np.testing.assert_allclose(actual[1], expected[1], rtol=1e-4)


@given(size=st.sampled_from([1, 2, 3, 6]), seed=st.integers(0, 99), sharpness=st.floats(0.01, 8))
def test_the_derivative_solves_the_singular_system(size, seed, sharpness):
    rng = np.random.default_rng(seed)
    matrix = fixed_point(sharpness * rng.standard_normal((size, size)))
    tangent = rng.standard_normal((size, size))
    with jax.enable_x64(True):
        actual = np.asarray(derive(matrix, tangent))
    np.testing.assert_allclose(actual, dense_derivative(matrix, tangent), atol=1e-9)
    for axis in (0, 1):
        np.testing.assert_allclose(actual.sum(axis), 0, atol=1e-12)


def test_the_derivative_is_its_own_transpose_and_precise_where_entries_are_tiny():
    # At distances from a permutation far below the rounding of float32, where all derivatives are as small.
    size = 6
    base = np.eye(size)[np.random.default_rng(7).permutation(size)]
    tangent = draw(8, size, size)
    transposed = jax.jit(lambda m, g: jax.linear_transpose(partial(fixed_point_derivative, m), g)(g)[0])
    for distance in (1e-3, 1e-9, 1e-20):
        off = np.where(base > 0, 0, np.random.default_rng(9).uniform(0.1, 1, base.shape))
        matrix = fixed_point(np.log(base + distance * off + 1e-300))
        with jax.enable_x64(True):
            expected = np.asarray(derive(matrix, tangent.astype(np.float64)))
        for actual in (derive(matrix.astype(np.float32), tangent), transposed(matrix.astype(np.float32), tangent)):
            np.testing.assert_allclose(actual, expected, atol=1e-4 * np.abs(expected).max())


def test_derivatives_of_permutations_and_tiny_temperatures_are_zero_and_finite():
    scores = 100 * draw(10, 5, 5)
    slope = jax.jit(jax.grad(lambda s, t: jnp.sin(converged_sinkhorn(s, t)).sum(), argnums=(0, 1)))
    for temperature in (1e-4, 1e-2, 1.0):
        for gradient in slope(scores, np.float32(temperature)):
            assert bool(np.all(np.isfinite(gradient)))
    hard = np.eye(5, dtype=np.float32)[[3, 0, 4, 1, 2]]
    np.testing.assert_array_equal(derive(hard, draw(11, 5, 5)), np.zeros((5, 5)))
    np.testing.assert_allclose(slope(np.zeros((3, 3), np.float32), np.float32(1))[0], np.zeros((3, 3)), atol=1e-7)


def test_forbidden_entries_stay_zero_and_have_no_gradient():
    allowed = (np.eye(5) + np.eye(5, k=1) + np.eye(5, k=-4)) > 0  # the identity and one cycle
    scores = np.where(allowed, draw(12, 5, 5), -np.inf).astype(np.float32)
    matrix = np.asarray(converge(scores))
    assert np.array_equal(matrix > 0, allowed)
    np.testing.assert_allclose(matrix.sum(0), 1, atol=1.1e-4)
    gradient = np.asarray(jax.jit(jax.grad(lambda s: jnp.sin(converged_sinkhorn(s)).sum()))(scores))
    assert np.all(np.isfinite(gradient)) and np.abs(gradient[allowed]).min() > 0
    np.testing.assert_array_equal(gradient[~allowed], 0)


def test_memory_of_the_gradient_does_not_grow_with_the_passes():
    def temporary(relax):
        gradient = jax.jit(jax.grad(lambda s: jnp.sin(relax(s)).sum()))
        return gradient.lower(jnp.ones((32, 32))).compile().memory_analysis().temp_size_in_bytes

    implicit = [temporary(partial(converged_sinkhorn, max_iterations=count)) for count in (10, 1000)]
    assert implicit[0] == implicit[1]
    # That through the passes keeps two vectors for each, and a matrix for every few, but not one for each.
    unrolled = [temporary(partial(relaxation.sinkhorn, iterations=count)) for count in (10, 1000)]
    assert 990 * 2 * 32 * 4 < unrolled[1] - unrolled[0] < 990 * 32 * 32 * 4 / 3


def test_the_laplacian_of_a_chain_with_weights_from_tiny_to_large():
    # All that flows out of node 0 goes through every edge, x_j - x_{j+1} = -10^-20 / w_j.
    weights = np.array([1e-20, 3.0, 1e-8, 1e5], np.float32)
    vector = np.zeros(5, np.float32)
    vector[[0, -1]] = -1e-20, 1e-20
    solution = np.asarray(jax.jit(solve_laplacian)(np.diag(weights, 1) + np.diag(weights, -1), vector))
    np.testing.assert_allclose(solution, [0, 1, 1, 1, 1], rtol=1e-6)


def test_the_laplacian_of_a_graph_in_parts_has_a_finite_solution():
    weights = np.zeros((5, 5), np.float32)
    weights[0, 3] = weights[3, 0] = 2
    weights[1, 4] = weights[4, 1] = 0.5
    x = np.asarray(jax.jit(solve_laplacian)(weights, np.float32([4, -1, 0, -4, 1])))
    np.testing.assert_allclose([x[0] - x[3], x[4] - x[1], x[2]], [2, 2, 0])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((np.ones((2, 3), np.float32),), "a matrix of shape .2, 3. is not square"),
        ((np.ones((2, 2), np.float32), 1.0, 0.0), "the tolerance is 0.0: give a positive number"),
        ((np.ones((2, 2), np.float32), 1.0, 1e-4, 0), "at least 1 iteration, not 0"),
    ],
)
def test_mistakes_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        converged_sinkhorn(*arguments)
