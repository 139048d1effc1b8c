"""Rounding is valid, optimal, greedy where it says so, and hard in the forward pass alone."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment

from shuffle_jax.ops import rounding

assign = jax.jit(rounding.assignment)
choose = jax.jit(rounding.greedy)


def optima(matrices):
    """The optimal assignments by SciPy, over leading axes."""
    flat = matrices.reshape(-1, *matrices.shape[-2:])
    return np.stack([linear_sum_assignment(one, maximize=True)[1] for one in flat]).reshape(matrices.shape[:-1])


def value_of(matrices, permutations):
    """``sum_i M[i, p[i]]``."""
    return np.take_along_axis(matrices.astype(np.float64), permutations[..., None], -1).sum((-1, -2))


def matrix_of(permutations):
    return np.eye(permutations.shape[-1])[permutations]


def is_valid(matrices):
    return np.all(np.sort(matrices.argmax(-1), axis=-1) == np.arange(matrices.shape[-1]), axis=-1)


def normal(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("size", [1, 8])
def test_assignment_is_a_permutation_and_optimal(size):
    matrices = normal(size, 60, size, size)
    matrices[:20] = np.round(matrices[:20])  # ties
    matrices[0] = 0
    p = assign(matrices)
    assert p.dtype == jnp.int32
    np.testing.assert_array_equal(np.sort(p, axis=-1), np.broadcast_to(np.arange(size), (60, size)))
    np.testing.assert_allclose(value_of(matrices, np.asarray(p)), value_of(matrices, optima(matrices)), atol=1e-5)


@pytest.mark.parametrize("valid", [True, False])
def test_assignment_is_optimal_where_argmax_is_a_permutation_and_where_it_is_not(valid):
    matrices = normal(7, 400, 5, 5)
    matrices[:200] += 1.5 * matrix_of(np.stack([np.random.default_rng(i).permutation(5) for i in range(200)]))
    is_valid = np.all(np.sort(matrices.argmax(-1), axis=-1) == np.arange(5), axis=-1)
    chosen = matrices[is_valid == valid][:30]
    assert len(chosen) == 30
    p = np.asarray(assign(chosen))
    np.testing.assert_allclose(value_of(chosen, p), value_of(chosen, optima(chosen)), atol=1e-5)
    assert np.array_equal(p, chosen.argmax(-1)) == valid


def test_assignment_repairs_an_invalid_argmax():
    matrix = np.array([[0.6, 0.4, 0.0], [0.5, 0.1, 0.4], [0.0, 0.4, 0.6]], np.float32)
    assert rounding.argmax(jnp.asarray(matrix)).tolist() == [0, 0, 2]
    assert assign(matrix).tolist() == [1, 0, 2]


def test_rounding_in_batches_under_jit_and_vmap():
    matrices = normal(0, 2, 3, 6, 6)
    for rounds, expected in [(rounding.argmax, matrices.argmax(-1)), (rounding.assignment, optima(matrices))]:
        for result in (rounds(jnp.asarray(matrices)), jax.jit(rounds)(matrices), jax.jit(jax.vmap(rounds))(matrices)):
            assert result.dtype == jnp.int32
            np.testing.assert_array_equal(result, expected)


def one_by_one(matrices):
    """Greedy rounding from its definition, over leading axes."""
    flat = matrices.reshape(-1, *matrices.shape[-2:]).astype(np.float64)
    chosen = np.zeros(flat.shape[:-1], np.int32)
    for matrix, p in zip(flat, chosen, strict=True):
        for _ in p:
            i, j = np.unravel_index(matrix.argmax(), matrix.shape)
            p[i] = j
            matrix[i], matrix[:, j] = -np.inf, -np.inf
    return chosen.reshape(matrices.shape[:-1])


@given(st.integers(0, 2**32 - 1), st.sampled_from([1, 2, 9]), st.sampled_from(["float32", "bfloat16"]))
def test_greedy_takes_the_largest_entry_again_and_again_the_first_among_equals(seed, size, dtype):
    rng = np.random.default_rng(seed)
    matrices = rng.standard_normal((8, size, size)) * 10.0 ** rng.integers(-30, 30, (8, 1, 1))
    matrices[4:7] = rng.integers(0, rng.integers(1, 9), (3, size, size))
    matrices[7] = rng.choice([-0.0, 0.0, -1.0], (size, size))
    matrices = matrices.astype(jnp.dtype(dtype))
    p = choose(matrices)
    assert p.dtype == jnp.int32
    np.testing.assert_array_equal(p, one_by_one(matrices))


def test_greedy_of_equal_entries_is_the_identity():
    np.testing.assert_array_equal(choose(np.full((2, 40, 40), 0.5, np.float32)), [np.arange(40)] * 2)


def test_greedy_in_batches_under_jit_and_vmap():
    matrices = normal(0, 2, 3, 6, 6)
    for result in (
        rounding.greedy(jnp.asarray(matrices)),
        choose(matrices),
        jax.jit(jax.vmap(rounding.greedy))(matrices),
    ):
        np.testing.assert_array_equal(result, one_by_one(matrices))


def test_greedy_reaches_half_of_the_optimum_and_no_more_can_be_said():
    matrices = np.random.default_rng(0).random((500, 4, 4)).astype(np.float32) ** 8
    matrices[0] = 0
    matrices[0, :2, :2] = [[1 + 1e-3, 1], [1, 0]]
    ratios = value_of(matrices, np.asarray(choose(matrices))) / value_of(matrices, optima(matrices))
    assert ratios.min() >= 0.5
    assert ratios.min() < 0.51


def test_greedy_is_row_argmax_where_that_is_a_permutation():
    matrices = normal(5, 400, 3, 3)
    valid = is_valid(matrices)
    assert 20 < valid.sum() < 380
    np.testing.assert_array_equal(np.asarray(choose(matrices))[valid], matrices.argmax(-1)[valid])


def test_what_is_not_finite_is_refused_where_it_can_be_seen_and_taken_last_where_not():
    broken = np.array([[np.nan, 1, np.inf], [1, -np.inf, 0], [3, 2, 1]], np.float32)
    for rounds in (rounding.assignment, rounding.greedy):
        with pytest.raises(ValueError, match=r"entry at \(0, 0\) is NaN"):
            rounds(broken)
        with pytest.raises(ValueError, match=r"shape \(2, 3\) is not square"):
            rounds(broken[:2])
        assert jax.jit(rounds)(broken).tolist() == jax.jit(rounds)(np.where(np.isfinite(broken), broken, 0)).tolist()
        nothing = jax.jit(rounds)(np.full((3, 3), np.nan, np.float32))
        assert sorted(nothing.tolist()) == [0, 1, 2]


def test_rounded_indices_are_int32_in_64_bit_mode_too():
    with jax.enable_x64(True):
        for rounds in (rounding.argmax, rounding.assignment, rounding.greedy):
            assert jax.eval_shape(rounds, np.eye(4)).dtype == jnp.int32


def test_straight_through_is_hard_forward_and_the_identity_backward():
    matrices, weights = normal(1, 4, 5, 5), normal(2, 4, 5, 5)

    @jax.jit
    def loss_and_gradient(matrices):
        def loss(matrices):
            hard = rounding.straight_through(matrices, rounding.assignment(matrices))
            return (weights * hard).sum(), hard

        return jax.grad(loss, has_aux=True)(matrices)

    gradient, hard = loss_and_gradient(matrices)
    np.testing.assert_array_equal(hard, matrix_of(optima(matrices)))
    np.testing.assert_array_equal(gradient, weights)


def test_straight_through_is_exact_and_keeps_the_type():
    # Entries of every size: M + (P - M) would miss P by a rounding error.
    matrices, p = normal(3, 3, 3) * np.array([[1e-3], [1], [1e3]], np.float32), jnp.array([2, 0, 1])
    for dtype in (jnp.float32, jnp.bfloat16):
        hard = rounding.straight_through(jnp.asarray(matrices, dtype), p)
        assert hard.dtype == dtype
        np.testing.assert_array_equal(hard.astype(jnp.float32), matrix_of(np.asarray(p)))


def test_one_call_rounds_in_the_forward_pass_and_hands_the_gradient_on():
    matrices, weights = normal(1, 4, 5, 5), normal(2, 4, 5, 5)

    @jax.jit
    @jax.vmap
    def hard_and_gradient(matrix, weight):
        hard, back = jax.vjp(rounding.round_straight_through, matrix)
        return hard, back(weight)[0]

    hard, gradient = hard_and_gradient(matrices, weights)
    np.testing.assert_array_equal(hard, matrix_of(optima(matrices)))
    np.testing.assert_array_equal(gradient, weights)
