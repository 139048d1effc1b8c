"""Rounding is valid, optimal and exact where the certificate says so."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment

from shuffle_jax.ops import penalty, rounding

assign = jax.jit(rounding.assignment)
certify = jax.jit(lambda matrices: rounding.certificate(matrices)._asdict())


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


def test_rounded_indices_are_int32_in_64_bit_mode_too():
    with jax.enable_x64(True):
        for rounds in (rounding.argmax, rounding.assignment):
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
