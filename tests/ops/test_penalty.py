"""The penalty is exact: zero on permutations alone, largest at J / c, concave between, finite gradients."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import jax.test_util
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shuffle_jax.ops import penalty, permutation, relaxation

sizes = st.integers(1, 8)
seeds = st.integers(0, 99)


def birkhoff(seed, size):
    return relaxation.random_bistochastic(jax.random.key(seed), size, passes=200)


@given(sizes, seeds)
def test_equals_the_definition(size, seed):
    matrix = np.random.default_rng(seed).standard_normal((size, size)).astype(np.float32)
    expected = sum(np.linalg.norm(v, 1) - np.linalg.norm(v, 2) for v in [*matrix, *matrix.T])
    np.testing.assert_allclose(penalty.l1_minus_l2(jnp.array(matrix)), expected, rtol=1e-4, atol=1e-5)


@given(sizes, seeds)
def test_zero_on_permutations_and_on_nothing_else_doubly_stochastic(size, seed):
    matrix = permutation.to_matrix(permutation.random(jax.random.key(seed), size))
    assert float(penalty.l1_minus_l2(matrix)) == 0
    other = birkhoff(seed, size)
    distance = float(jnp.abs(other - jnp.round(other)).max())
    assert (float(penalty.l1_minus_l2(other)) > 1e-3) == (distance > 1e-3)


@given(st.integers(2, 8), seeds)
def test_bounded_and_maximal_at_the_centre(size, seed):
    centre = jnp.full((size, size), 1 / size)
    np.testing.assert_allclose(penalty.l1_minus_l2(centre), penalty.max_l1_minus_l2(size), rtol=1e-5)
    assert 0 <= float(penalty.normalized_l1_minus_l2(birkhoff(seed, size))) < 1


@given(st.integers(2, 6), seeds, st.floats(0, 1))
def test_concave_on_the_birkhoff_polytope_and_invariant_under_permutations(size, seed, t):
    a, b = birkhoff(seed, size), birkhoff(seed + 1000, size)
    between = penalty.l1_minus_l2((1 - t) * a + t * b)
    assert float(between) >= (1 - t) * float(penalty.l1_minus_l2(a)) + t * float(penalty.l1_minus_l2(b)) - 1e-4
    p = permutation.random(jax.random.key(seed), size)
    np.testing.assert_allclose(penalty.l1_minus_l2(a[p][:, p[::-1]]), penalty.l1_minus_l2(a), rtol=1e-4, atol=1e-5)


def test_gradient_in_closed_form_and_by_finite_differences():
    with jax.enable_x64(True):
        m = jnp.asarray(np.random.default_rng(0).uniform(0.1, 1, (5, 5)))
        expected = 2 - m / jnp.linalg.norm(m, axis=1, keepdims=True) - m / jnp.linalg.norm(m, axis=0, keepdims=True)
        np.testing.assert_allclose(jax.grad(penalty.l1_minus_l2)(m), expected, rtol=1e-12)
        jax.test_util.check_grads(penalty.l1_minus_l2, (m,), order=2)


def test_gradient_is_finite_at_zero_rows_and_columns():
    matrix = jnp.array([[0.0, 0.0, 0.0], [0.0, 0.5, 0.5], [0.0, 0.5, 0.5]])
    gradient = jax.grad(penalty.l1_minus_l2)(matrix)
    assert bool(jnp.all(jnp.isfinite(gradient)))
    assert gradient[0].tolist() == [2.0, 2.0, 2.0]  # pushed down, where the clamp holds it
    np.testing.assert_array_equal(jax.grad(penalty.l1_minus_l2)(jnp.zeros((3, 3))), np.full((3, 3), 2.0))


def test_batched_under_jit_and_vmap():
    matrices = jnp.stack([birkhoff(s, 4) for s in range(3)])
    expected = jnp.stack([penalty.normalized_l1_minus_l2(m) for m in matrices])
    for result in (
        penalty.normalized_l1_minus_l2(matrices),
        jax.jit(penalty.normalized_l1_minus_l2)(matrices),
        jax.vmap(penalty.normalized_l1_minus_l2)(matrices),
    ):
        np.testing.assert_allclose(result, expected, rtol=1e-6)


def test_one_channel_has_nothing_to_penalise():
    assert float(penalty.normalized_l1_minus_l2(jnp.ones((1, 1)))) == 0
    assert penalty.max_l1_minus_l2(1) == 0


@pytest.mark.parametrize("size", [16, 116])
def test_radial_gradients_vanish_through_the_normalisation_without_the_l1_term(size):
    # The reason why |.|_1 is not replaced by the 1 that it equals on the constraint set.
    matrix = relaxation.random_bistochastic(jax.random.key(0), size)

    def through(loss):
        gradient = jax.grad(loss)(matrix)
        moved = relaxation.clamp_normalize(matrix - 1e-3 / size * gradient)
        return float(penalty.l1_minus_l2(matrix) - penalty.l1_minus_l2(moved))

    without_l1 = through(lambda m: -penalty.safe_norm(m, -1).sum() - penalty.safe_norm(m, -2).sum())
    assert through(penalty.l1_minus_l2) > 5 * abs(without_l1)
