"""Rounding is valid, optimal and exact where the certificate says so."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment

from shuffle_jax.ops import penalty, rounding

assign = jax.jit(rounding.assignment)
choose = jax.jit(rounding.greedy)
certify = jax.jit(lambda matrices: rounding.certificate(matrices)._asdict())
certify_orthogonality = jax.jit(rounding.orthogonality_certificate)


def optima(matrices):
    """The optimal assignments by SciPy, over leading axes."""
    flat = matrices.reshape(-1, *matrices.shape[-2:])
    return np.stack([linear_sum_assignment(one, maximize=True)[1] for one in flat]).reshape(matrices.shape[:-1])


def value_of(matrices, permutations):
    """``sum_i M[i, p[i]]``."""
    return np.take_along_axis(matrices.astype(np.float64), permutations[..., None], -1).sum((-1, -2))


def matrix_of(permutations):
    return np.eye(permutations.shape[-1])[permutations]


def normal(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def near_permutations(seed, size, count, noise):
    """Doubly stochastic matrices in float64 near permutations, up to the given noise."""
    rng = np.random.default_rng(seed)
    p = np.stack([rng.permutation(size) for _ in range(count)])
    matrices = matrix_of(p) + noise * rng.uniform(0, 1, (count, 1, 1)) * rng.uniform(0, 1, (count, size, size))
    for _ in range(500):
        matrices /= matrices.sum(-2, keepdims=True)
        matrices /= matrices.sum(-1, keepdims=True)
    return p, matrices


@pytest.mark.parametrize("size", [1, 2, 8])
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
    assert rounding.assignment(jnp.asarray(matrix)).tolist() == [1, 0, 2]


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


@given(st.integers(0, 2**32 - 1), st.sampled_from([1, 2, 3, 9]), st.sampled_from(["float32", "bfloat16"]))
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


def definition(matrices):
    """Every field of the certificate from its docstring, in float64."""
    rows, columns = np.abs(matrices).sum(-1), np.abs(matrices).sum(-2)
    row_slack = rows - np.linalg.norm(matrices, axis=-1)
    column_slack = columns - np.linalg.norm(matrices, axis=-2)
    total = (row_slack + column_slack).sum(-1)
    errors = np.abs(1 - np.concatenate([rows, columns], axis=-1))
    with np.errstate(invalid="ignore"):
        peaks = np.nan_to_num(np.square(matrices).sum(-1) / rows)
    return {
        "row_slack": row_slack,
        "column_slack": column_slack,
        "residual": errors.max(-1),
        "guaranteed": peaks.min(-1) > columns.max(-1) / 2,
        "l1_bound": 2 * total + errors.sum(-1) / 2,
        "frobenius_bound": np.sqrt(2) * total + errors.sum(-1) / 2,
    }


def assert_certificate_holds(matrices):
    """It equals its definition, and its theorem is true. Returns which matrices are guaranteed."""
    with jax.enable_x64(True):
        c = {name: np.asarray(field) for name, field in certify(matrices).items()}
    for name, expected in definition(matrices).items():
        np.testing.assert_allclose(c[name], expected, rtol=1e-9, atol=1e-9, err_msg=name)
    guaranteed = c["guaranteed"]
    p = matrices.argmax(-1)[guaranteed]
    np.testing.assert_array_equal(np.sort(p, axis=-1), np.broadcast_to(np.arange(p.shape[-1]), p.shape))
    np.testing.assert_array_equal(optima(matrices)[guaranteed], p)
    difference = matrices[guaranteed] - matrix_of(p)
    assert np.all(np.abs(difference).sum((-1, -2)) <= c["l1_bound"][guaranteed] + 1e-9)
    assert np.all(np.linalg.norm(difference, axis=(-1, -2)) <= c["frobenius_bound"][guaranteed] + 1e-9)
    return guaranteed


@pytest.mark.parametrize("size", [3, 10])
def test_certificate_on_the_birkhoff_polytope(size):
    _, matrices = near_permutations(size, size, 200, noise=4 / size)
    guaranteed = assert_certificate_holds(matrices)
    # On the polytope the condition is one on the slacks alone.
    slack = 1 - np.linalg.norm(matrices, axis=-1)
    np.testing.assert_array_equal(guaranteed, slack.max(-1) < 1 - 2**-0.5)
    assert 20 < guaranteed.sum() < 180


@pytest.mark.parametrize("size", [1, 2, 5])
def test_certificate_holds_off_the_polytope_too(size):
    rng = np.random.default_rng(size)
    p, _ = near_permutations(size, size, 400, noise=0)
    drift = 1 + rng.uniform(0, 0.4, (400, 1, 1)) * rng.uniform(-1, 1, (400, size, 1))
    noise = rng.uniform(0, 0.6, (400, 1, 1)) * rng.uniform(0, 1, (400, size, size)) / size
    guaranteed = assert_certificate_holds(matrix_of(p) * drift + noise)
    assert 100 < guaranteed.sum() <= 400


def test_slacks_sum_to_the_penalty():
    matrices = np.abs(normal(4, 3, 5, 5))
    c = certify(matrices)
    total = (np.asarray(c["row_slack"]) + np.asarray(c["column_slack"])).sum(-1)
    np.testing.assert_allclose(total, jax.jit(penalty.l1_minus_l2)(matrices), rtol=1e-5)


def test_certificate_is_not_fooled_by_zeros_ties_and_one_hot_rows_that_share_a_column():
    c = certify(np.array([[[1, 0], [1, 0]], [[0, 0], [0, 0]], [[0.5, 0.5], [0.5, 0.5]]], np.float32))
    assert c["row_slack"][:2].tolist() == [[0, 0], [0, 0]]
    assert c["residual"].tolist() == [1, 1, 0]
    assert c["guaranteed"].tolist() == [False, False, False]


def test_a_certified_matrix_never_becomes_uncertified_on_its_way_to_the_permutation():
    p, matrices = near_permutations(3, 12, 1, noise=0.05)
    t = np.linspace(0, 1, 5)[:, None, None]
    c = certify(((1 - t) * matrices + t * matrix_of(p)).astype(np.float32))
    assert c["guaranteed"].tolist() == [True] * 5
    assert np.all(np.diff(c["l1_bound"]) < 0)
    np.testing.assert_allclose(c["l1_bound"][-1], 0, atol=1e-5)


def test_certificate_eagerly_in_half_precision_and_under_transformations():
    _, matrices = near_permutations(5, 6, 3, noise=0.2)
    half = matrices.astype(jnp.bfloat16)
    expected = definition(half.astype(np.float64))
    for c in (
        rounding.certificate(jnp.asarray(half)),
        jax.jit(rounding.certificate)(half),
        jax.jit(jax.vmap(rounding.certificate))(half),
    ):
        assert c.l1_bound.dtype == jnp.float32
        for name, field in expected.items():
            np.testing.assert_allclose(getattr(c, name), field, rtol=1e-5, atol=1e-5, err_msg=name)


ROW_STOCHASTIC_LIMIT = (3 - 5**0.5) / 2


def is_valid(matrices):
    return np.all(np.sort(matrices.argmax(-1), axis=-1) == np.arange(matrices.shape[-1]), axis=-1)


@given(st.integers(0, 2**32 - 1), st.sampled_from([1, 2, 3, 5]))
def test_orthogonality_never_guarantees_what_is_no_permutation(seed, size):
    rng = np.random.default_rng(seed)
    column = rng.integers(0, size, (200, size))  # of the large entry of a row, seldom a permutation
    column[:100] = rng.permuted(np.broadcast_to(np.arange(size), (100, size)), axis=-1)
    matrices = matrix_of(column) + rng.uniform(0, 0.6, (200, 1, 1)) * rng.uniform(0, 1, (200, size, size)) ** 3
    matrices /= matrices.sum(-1, keepdims=True)
    matrices[1::2] *= rng.uniform(0.5, 1.4, (100, size, 1))  # every second one is scaled row by row
    with jax.enable_x64(True):
        residual, guaranteed = map(np.asarray, certify_orthogonality(matrices))
    expected = np.abs(np.einsum("nik,njk->nij", matrices, matrices) - np.eye(size)).max((-2, -1))
    np.testing.assert_allclose(residual, expected, rtol=1e-12, atol=1e-12)
    assert np.all(is_valid(matrices)[guaranteed])
    np.testing.assert_array_equal(guaranteed[::2], expected[::2] < ROW_STOCHASTIC_LIMIT)
    assert np.all(is_valid(matrices[::2])[expected[::2] < 4 / 9])
    assert 0 < guaranteed.sum() < 200 or size == 1


@pytest.mark.parametrize("size", [2, 3])
def test_the_limit_of_orthogonality_on_row_stochastic_matrices(size):
    # (1 - t) P + t J / c has the residual (c - 1) / c (2 t - t^2) on the diagonal, and no larger one beside it.
    for residual, expected in [(ROW_STOCHASTIC_LIMIT - 1e-5, True), (ROW_STOCHASTIC_LIMIT + 1e-5, False)]:
        t = 1 - (1 - residual * size / (size - 1)) ** 0.5
        c = certify_orthogonality(((1 - t) * np.eye(size)[::-1] + t / size).astype(np.float32))
        np.testing.assert_allclose(c.residual, residual, rtol=1e-6)
        assert bool(c.guaranteed) == expected


def test_where_argmax_first_fails():
    # No row-stochastic matrix of a residual below 4/9 has two rows with their peaks in one column; this has 4/9.
    first = np.array([[2, 1, 0], [2, 0, 1], [0, 1, 2]], np.float32) / 3
    c = certify_orthogonality(first)
    assert rounding.argmax(jnp.asarray(first)).tolist() == [0, 0, 2]
    np.testing.assert_allclose(c.residual, 4 / 9, rtol=1e-6)
    assert not c.guaranteed
    # Scaled rows may reach the bound of the test itself, (1 - e)^2 / r^2 = e.
    scaled = np.array([[1, 0], [1, 0]]) * 0.5**0.5
    c = certify_orthogonality(scaled.astype(np.float32))
    np.testing.assert_allclose((1 - c.residual) ** 2 / scaled.sum(-1).max() ** 2, c.residual, rtol=1e-6)
    assert not c.guaranteed
    # The largest row sum counts: with the smallest, this would be let through.
    uneven = np.array([[0.742, 0, 0], [0.606, 0.6, 0], [0, 0, 0.8]], np.float32)
    c = certify_orthogonality(uneven)
    assert rounding.argmax(jnp.asarray(uneven)).tolist() == [0, 0, 2]
    assert (1 - c.residual) ** 2 / uneven.sum(-1).min() ** 2 > c.residual
    assert not c.guaranteed


def test_zeros_and_large_entries_guarantee_nothing():
    matrices = np.stack([np.zeros((2, 2)), [[0, 0], [0, 1]], [[1, 0], [1, 0]], 2 * np.eye(2), np.full((2, 2), 0.5)])
    c = certify_orthogonality(matrices.astype(np.float32))
    assert c.residual.tolist() == [1, 1, 1, 3, 0.5]
    assert c.guaranteed.tolist() == [False] * 5
    assert certify_orthogonality(np.zeros((1, 1), np.float32)).guaranteed.tolist() is False
    assert certify_orthogonality(np.ones((1, 1), np.float32)).guaranteed.tolist() is True


def test_orthogonality_of_batches_eagerly_in_half_precision_and_under_transformations():
    p, matrices = near_permutations(6, 4, 6, noise=0.8)
    half = matrices.astype(jnp.bfloat16).reshape(2, 3, 4, 4)
    product = np.einsum("...ik,...jk->...ij", half.astype(np.float64), half.astype(np.float64))
    expected = np.abs(product - np.eye(4)).max((-2, -1))
    for certifies in (rounding.orthogonality_certificate, certify_orthogonality, jax.vmap(certify_orthogonality)):
        c = certifies(jnp.asarray(half))
        assert c.residual.dtype == jnp.float32
        np.testing.assert_allclose(c.residual, expected, rtol=1e-5, atol=1e-6)
        assert c.guaranteed.shape == (2, 3)
        assert c.guaranteed.any()
        assert not c.guaranteed.all()
        np.testing.assert_array_equal(half.argmax(-1)[c.guaranteed], p.reshape(2, 3, 4)[c.guaranteed])
