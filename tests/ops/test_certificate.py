"""What certificates guarantee holds, in value and in every bound, and they guarantee nothing that does not."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment

from shuffle_jax.ops import penalty, rounding

certify = jax.jit(lambda matrices: rounding.certificate(matrices)._asdict())
certify_orthogonality = jax.jit(rounding.orthogonality_certificate)


def optima(matrices):
    """The optimal assignments by SciPy, over leading axes."""
    flat = matrices.reshape(-1, *matrices.shape[-2:])
    return np.stack([linear_sum_assignment(one, maximize=True)[1] for one in flat]).reshape(matrices.shape[:-1])


def matrix_of(permutations):
    return np.eye(permutations.shape[-1])[permutations]


def near_permutations(seed, size, count, noise):
    """Doubly stochastic matrices in float64 near permutations, up to the given noise."""
    rng = np.random.default_rng(seed)
    p = np.stack([rng.permutation(size) for _ in range(count)])
    matrices = matrix_of(p) + noise * rng.uniform(0, 1, (count, 1, 1)) * rng.uniform(0, 1, (count, size, size))
    for _ in range(500):
        matrices /= matrices.sum(-2, keepdims=True)
        matrices /= matrices.sum(-1, keepdims=True)
    return p, matrices


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
    matrices = np.abs(np.random.default_rng(4).standard_normal((3, 5, 5)).astype(np.float32))
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
