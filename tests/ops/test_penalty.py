"""The penalties are exact: zero on permutations alone, largest at J / c, concave between, finite gradients."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import entropy

from shuffle_jax.ops import penalty, relaxation

SIZES = [1, 2, 7]
penalize = jax.jit(penalty.l1_minus_l2)
normalize = jax.jit(penalty.normalized_l1_minus_l2)


def in_float64(function, *args):
    with jax.enable_x64(True):
        return jax.tree.map(np.asarray, function(*args))


def definition(matrices):
    return sum(
        np.linalg.norm(matrices, 1, axis=axis).sum(-1) - np.linalg.norm(matrices, 2, axis=axis).sum(-1)
        for axis in (-1, -2)
    )


def permutations(seed, size, count):
    rng = np.random.default_rng(seed)
    return np.stack([np.eye(size)[rng.permutation(size)] for _ in range(count)])


def birkhoff(seed, size, count):
    """Doubly stochastic matrices in float64, from the centre of the polytope to close by its corners."""
    rng = np.random.default_rng(seed)
    matrices = rng.uniform(0, 1, (count, size, size)) ** rng.uniform(0, 8, (count, 1, 1))
    for _ in range(500):
        matrices /= matrices.sum(-2, keepdims=True)
        matrices /= matrices.sum(-1, keepdims=True)
    weight = rng.uniform(0, 1, (count, 1, 1)) ** 4
    return weight * matrices + (1 - weight) * permutations(seed, size, count)


@pytest.mark.parametrize("size", SIZES)
def test_equals_the_definition(size):
    matrices = np.random.default_rng(size).standard_normal((100, size, size))
    matrices[:20, -1] = 0
    matrices[10:30, :, 0] = 0
    np.testing.assert_allclose(in_float64(penalize, matrices), definition(matrices), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("size", SIZES)
def test_zero_on_permutations_and_on_nothing_else_doubly_stochastic(size):
    assert penalize(permutations(0, size, 24).astype(np.float32)).tolist() == [0] * 24
    matrices = birkhoff(0, size, 100)
    distance = np.abs(matrices - np.round(matrices)).max((-1, -2))
    # A row with an entry m costs at least 1 - sqrt(m^2 + (1 - m)^2) >= m (1 - m), and its column as much.
    assert np.all(in_float64(penalize, matrices) >= 2 * distance * (1 - distance) - 1e-12)


@pytest.mark.parametrize("size", SIZES)
def test_bounded_and_maximal_at_the_centre(size):
    centre = np.full((1, size, size), 1 / size)
    np.testing.assert_allclose(in_float64(penalize, centre), penalty.max_l1_minus_l2(size), rtol=1e-12, atol=1e-12)
    matrices = birkhoff(1, size, 100)
    values = in_float64(penalize, matrices)
    assert np.all((values >= -1e-12) & (values <= penalty.max_l1_minus_l2(size)))
    if size > 1:
        np.testing.assert_allclose(in_float64(normalize, centre), 1, rtol=1e-12)
        np.testing.assert_allclose(in_float64(normalize, matrices), values / penalty.max_l1_minus_l2(size), rtol=1e-12)


def test_one_channel_has_nothing_to_penalise():
    assert float(penalty.normalized_l1_minus_l2(jnp.ones((1, 1)))) == 0
    assert penalty.max_l1_minus_l2(1) == 0


@pytest.mark.parametrize("size", SIZES[1:])
def test_concave_on_the_birkhoff_polytope_and_invariant_under_permutations(size):
    a, b = birkhoff(2, size, 100), birkhoff(3, size, 100)
    t = np.random.default_rng(size).uniform(0, 1, 100)
    between = (1 - t)[:, None, None] * a + t[:, None, None] * b
    at_a, at_b, at_between = (in_float64(penalize, m) for m in (a, b, between))
    assert np.all(at_between >= (1 - t) * at_a + t * at_b - 1e-12)
    moved = permutations(4, size, 100) @ a @ permutations(5, size, 100)
    np.testing.assert_allclose(in_float64(penalize, moved), at_a, rtol=1e-12, atol=1e-12)


def test_gradient_in_closed_form_and_by_finite_differences():
    m = np.random.default_rng(0).uniform(0.1, 1, (5, 5))

    def closed_form(m):
        return 2 - m / np.linalg.norm(m, axis=-1, keepdims=True) - m / np.linalg.norm(m, axis=-2, keepdims=True)

    @jax.jit
    def derivatives(m):
        return jax.grad(penalty.l1_minus_l2)(m), jax.hessian(penalty.l1_minus_l2)(m)

    gradient, hessian = in_float64(derivatives, m)
    np.testing.assert_allclose(gradient, closed_form(m), rtol=1e-12)
    step = 1e-5 * np.eye(25).reshape(25, 5, 5)
    np.testing.assert_allclose(gradient.ravel(), (definition(m + step) - definition(m - step)) / 2e-5, rtol=1e-8)
    differences = (closed_form(m + step) - closed_form(m - step)) / 2e-5
    np.testing.assert_allclose(hessian.reshape(25, 5, 5), differences, rtol=1e-6, atol=1e-8)


def test_gradient_is_finite_at_zero_rows_and_columns():
    slope = jax.jit(jax.grad(penalty.l1_minus_l2))
    gradient = slope(np.array([[0.0, 0.0, 0.0], [0.0, 0.5, 0.5], [0.0, 0.5, 0.5]], np.float32))
    assert bool(np.all(np.isfinite(gradient)))
    assert gradient[0].tolist() == [2.0, 2.0, 2.0]  # pushed down, where the clamp holds it
    np.testing.assert_array_equal(slope(np.zeros((3, 3), np.float32)), np.full((3, 3), 2.0))


def test_the_norm_has_a_subgradient_of_zero_at_zero():
    array = jnp.array([[0.0, 3.0], [0.0, 4.0]])
    norm, gradient = jax.jit(lambda a: (penalty.safe_norm(a, 0), jax.jacrev(penalty.safe_norm)(a, 0)))(array)
    assert norm.tolist() == [0, 5]
    np.testing.assert_allclose(gradient, [np.zeros((2, 2)), [[0, 0.6], [0, 0.8]]], rtol=1e-6)


def test_batched_under_jit_and_vmap():
    matrices = birkhoff(6, 4, 6).reshape(2, 3, 4, 4).astype(np.float32)
    expected = definition(matrices.astype(np.float64)) / penalty.max_l1_minus_l2(4)
    for result in (
        penalty.normalized_l1_minus_l2(jnp.asarray(matrices)),
        normalize(matrices),
        jax.jit(jax.vmap(penalty.normalized_l1_minus_l2))(matrices),
    ):
        np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("size", [16, 116])
def test_radial_gradients_vanish_through_the_normalisation_without_the_l1_term(size):
    # The reason why |.|_1 is not replaced by the 1 that it equals on the constraint set.
    matrix = relaxation.clamp_normalize(
        np.random.default_rng(0).uniform(0, 1, (size, size)).astype(np.float32), passes=20
    )

    def without_l1(m):
        return -penalty.safe_norm(m, -1).sum() - penalty.safe_norm(m, -2).sum()

    @jax.jit
    def decrease(matrix):
        moved = [
            relaxation.clamp_normalize(matrix - 1e-3 / size * jax.grad(loss)(matrix))
            for loss in (penalty.l1_minus_l2, without_l1)
        ]
        return [penalty.l1_minus_l2(matrix) - penalty.l1_minus_l2(m) for m in moved]

    full, radial = map(float, decrease(matrix))
    assert full > 5 * abs(radial)


orthogonalize = jax.jit(penalty.orthogonality)
spread = jax.jit(penalty.row_entropy)


def row_stochastic(seed, size, count):
    """Row-stochastic matrices in float64, from nearly uniform to nearly one-hot, columns shared or not."""
    logits = (
        np.random.default_rng(seed).standard_normal((count, size, size)) * np.geomspace(0.1, 30, count)[:, None, None]
    )
    matrices = np.exp(logits - logits.max(-1, keepdims=True))
    return matrices / matrices.sum(-1, keepdims=True)


@pytest.mark.parametrize("size", SIZES)
def test_orthogonality_equals_its_definition_and_so_does_its_gradient(size):
    matrices = np.random.default_rng(size).standard_normal((2, 15, size, size))
    excess = np.einsum("...ik,...jk->...ij", matrices, matrices) - np.eye(size)
    expected = np.linalg.norm(excess, axis=(-2, -1)) ** 2 / size
    gradients = 4 * excess @ matrices / size
    sum_and_gradient = jax.jit(jax.value_and_grad(lambda m: penalty.orthogonality(m).sum()))
    np.testing.assert_allclose(in_float64(orthogonalize, matrices), expected, rtol=1e-12)
    total, actual = in_float64(sum_and_gradient, matrices)
    np.testing.assert_allclose(total, expected.sum(), rtol=1e-12)
    np.testing.assert_allclose(actual, gradients, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("size", SIZES)
def test_orthogonality_is_zero_on_permutations_and_on_nothing_else_row_stochastic(size):
    assert orthogonalize(permutations(0, size, 24).astype(np.float32)).tolist() == [0] * 24
    matrices = row_stochastic(0, size, 200)
    values = in_float64(orthogonalize, matrices)
    # A row with the largest entry m has |M_i|^2 <= m, its diagonal error at least 1 - m; shared columns cost as much.
    peaks = matrices.max(-1)
    assert np.all(values >= np.square(1 - peaks).sum(-1) / size - 1e-12)
    shared = np.array([len(set(row)) < size for row in matrices.argmax(-1)])
    assert np.all(values[shared] * size >= (4 / 9) ** 2)  # see the certificate
    assert np.all(values <= size - 1 + 1e-12)
    if size > 1:
        assert 20 < shared.sum() < 200
    one_hot_in_one_column = np.eye(size, dtype=np.float32)[np.zeros(size, int)]
    assert float(orthogonalize(one_hot_in_one_column)) == pytest.approx(size - 1)


@pytest.mark.parametrize("size", SIZES)
def test_row_entropy_equals_scipys_over_its_maximum(size):
    matrices = row_stochastic(1, size, 30)
    matrices[:5] = permutations(1, size, 5)
    expected = entropy(matrices, axis=-1).mean(-1) / np.log(size) if size > 1 else np.zeros(30)
    np.testing.assert_allclose(in_float64(spread, matrices), expected, rtol=1e-12, atol=1e-15)
    uniform = np.full((1, size, size), 1 / size)
    np.testing.assert_allclose(in_float64(spread, uniform), float(size > 1), rtol=1e-12)


def test_the_gradient_of_row_entropy_in_closed_form_and_finite_at_zeros():
    slope = jax.jit(jax.grad(lambda m: penalty.row_entropy(m).sum()))
    matrices = row_stochastic(2, 5, 10)[:6]
    expected = -(np.log(matrices) + 1) / (5 * np.log(5))
    np.testing.assert_allclose(in_float64(slope, matrices), expected, rtol=1e-12)
    assert spread(np.eye(3, dtype=np.float32)).tolist() == 0
    # At one, -(log 1 + 1); at zero, where the true slope is infinite, none.
    np.testing.assert_allclose(slope(np.eye(3, dtype=np.float32)), -np.eye(3) / (3 * np.log(3)), rtol=1e-6)


informed = jax.jit(penalty.mutual_information)


@given(seed=st.integers(0, 2**32 - 1), images=st.sampled_from([1, 5]), size=st.sampled_from(SIZES))
def test_mutual_information_is_scipys_between_images_over_its_maximum(seed, images, size):
    rng = np.random.default_rng(seed)
    matrices = row_stochastic(seed, size, 3 * images).reshape(images, 3, size, size)[:, rng.permutation(3)]
    found = in_float64(informed, matrices)
    expected = sum(
        entropy(matrices.mean(0)[:, row], axis=-1) - entropy(matrices[:, :, row], axis=-1).mean(0)
        for row in range(size)
    ) / (size * np.log(size) if size > 1 else 1)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)
    assert np.all((found >= -1e-12) & (found <= 1 + 1e-12))
    np.testing.assert_allclose(in_float64(informed, rng.permutation(matrices)), found, rtol=0, atol=1e-12)
    np.testing.assert_allclose(in_float64(informed, np.broadcast_to(matrices[:1], matrices.shape)), 0, atol=1e-12)


def test_mutual_information_is_1_for_balanced_permutations_and_its_gradient_is_that_of_its_differences():
    shifts = np.stack([np.roll(np.eye(5), shift, axis=1) for shift in range(5)])
    np.testing.assert_allclose(in_float64(informed, shifts), 1, rtol=1e-12)
    matrices = row_stochastic(4, 5, 4).reshape(2, 2, 5, 5)
    step = 1e-4 * matrices * np.random.default_rng(5).standard_normal(matrices.shape)
    gradient = jax.jit(jax.grad(lambda m: penalty.mutual_information(m).sum()))
    slope = in_float64(gradient, matrices)
    below, above = (in_float64(informed, matrices + sign * step).sum() for sign in (-1, 1))
    np.testing.assert_allclose((slope * step).sum(), (above - below) / 2, rtol=1e-5)
    assert np.isfinite(in_float64(gradient, shifts[:4].reshape(matrices.shape))).all()


@pytest.mark.parametrize("op", [penalty.orthogonality, penalty.row_entropy])
def test_orthogonality_and_entropy_of_batches_eagerly_under_vmap_and_in_half_precision(op):
    half = jnp.asarray(row_stochastic(3, 4, 6).reshape(2, 3, 4, 4), jnp.bfloat16)
    expected = in_float64(jax.jit(op), np.asarray(half, np.float64))
    for result in (op(half), jax.jit(op)(half), jax.jit(jax.vmap(op))(half)):
        assert result.dtype == jnp.float32
        np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("size", SIZES)
def test_normalized_orthogonality_is_a_sum_over_singular_values_from_0_to_1(size):
    matrices = birkhoff(7, size, 50)
    corners, centre = permutations(8, size, 6), np.full((1, size, size), 1 / size)
    measured = in_float64(jax.jit(penalty.normalized_orthogonality), np.concatenate([matrices, corners, centre]))
    values, hard, flat = np.split(measured, [50, 56])
    singular = np.linalg.svd(matrices, compute_uv=False)
    np.testing.assert_allclose(values, np.square(1 - singular**2).sum(-1) / max(size - 1, 1), rtol=1e-9, atol=1e-12)
    assert np.all((values >= 0) & (values <= 1 + 1e-12))
    np.testing.assert_array_equal(hard, np.zeros(6))
    np.testing.assert_allclose(flat, float(size > 1), rtol=1e-12)
    if size > 2:  # where the centre is no midpoint of permutations, all others lie strictly between
        assert np.all(values < 1)
    with pytest.raises(ValueError, match=r"a matrix of shape \(2, 3\) is not square"):
        penalty.normalized_orthogonality(jnp.ones((2, 3)))


@pytest.mark.parametrize("size", SIZES)
def test_row_entropy_of_doubly_stochastic_matrices_is_the_entropy_of_their_columns(size):
    matrices = birkhoff(9, size, 50)
    rows, columns = (in_float64(spread, m) for m in (matrices, np.swapaxes(matrices, -1, -2)))
    np.testing.assert_allclose(rows, columns, rtol=1e-12)
