"""Three ways to move channels agree, and a permutation's gradient is the inverse permutation."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shuffle_jax.ops import mixing, permutation


def arrays(*shapes, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.standard_normal(shape).astype(np.float32) for shape in shapes]


@jax.jit
def by_index_and_by_matrix(x, p, cotangent):
    y, pull_back = jax.vjp(lambda x: mixing.permute(x, p), x)
    z, pull_back_matrix = jax.vjp(lambda x: mixing.mix(x, permutation.to_matrix(p)), x)
    return (y, *pull_back(cotangent)), (z, *pull_back_matrix(cotangent))


SHAPES = st.sampled_from([(1,), (2,), (8,), (3, 5), (2, 1), (2, 3, 1, 5)])  # every one compiles


@given(st.data(), SHAPES)
def test_permute_equals_its_matrix_forward_and_backward(data, shape):
    p = np.array(data.draw(st.permutations(range(shape[-1]))), np.int32)
    x, cotangent = arrays(shape, shape)
    by_index, by_matrix = by_index_and_by_matrix(x, p, cotangent)
    gradient = np.empty_like(x)
    gradient[..., p] = cotangent
    for y, expected in [(by_index, (x[..., p], gradient)), (by_matrix, by_index)]:
        np.testing.assert_array_equal(y[0], expected[0])
        np.testing.assert_array_equal(y[1], expected[1])


@pytest.mark.parametrize("groups", [1, 2, 3, 4, 6, 12])
def test_shuffle_equals_permute_forward_and_backward(groups):
    x, cotangent = arrays((2, 3, 1, 12), (2, 3, 1, 12))
    p = np.asarray(permutation.channel_shuffle(12, groups))

    @jax.jit
    def shuffled(x, cotangent):
        y, pull_back = jax.vjp(lambda x: mixing.shuffle(x, groups), x)
        return y, *pull_back(cotangent)

    y, gradient = shuffled(x, cotangent)
    np.testing.assert_array_equal(y, x[..., p])
    np.testing.assert_array_equal(np.asarray(gradient)[..., p], cotangent)
    (permuted, permuted_gradient), _ = by_index_and_by_matrix(x, p, cotangent)
    np.testing.assert_array_equal(y, permuted)
    np.testing.assert_array_equal(gradient, permuted_gradient)


def test_shuffle_moves_a_single_vector_and_refuses_what_groups_do_not_divide():
    assert mixing.shuffle(jnp.arange(6), 3).tolist() == [0, 2, 4, 1, 3, 5]
    with pytest.raises(ValueError, match=r"6 channels cannot be split into 4 groups: choose one of \[1, 2, 3, 6\]"):
        mixing.shuffle(jnp.ones((2, 6)), 4)


def test_the_gradient_of_permute_is_a_gather_and_never_a_scatter():
    x, p = jnp.ones((2, 6)), permutation.channel_shuffle(6, 2)
    text = str(jax.make_jaxpr(jax.grad(lambda x: jnp.sin(mixing.permute(x, p)).sum()))(x))
    assert "gather" in text
    assert "scatter" not in text


def test_permute_under_vmap_takes_a_permutation_per_sample():
    (x,) = arrays((4, 3, 5))
    p = np.array([np.random.default_rng(i).permutation(5) for i in range(4)], np.int32)
    expected = np.stack([x[i][:, p[i]] for i in range(4)])

    @jax.jit
    def mapped(x, p, cotangent):
        y, pull_back = jax.vjp(lambda x: jax.vmap(mixing.permute)(x, p), x)
        return y, *pull_back(cotangent)

    y, gradient = mapped(x, p, expected)
    np.testing.assert_array_equal(y, expected)
    np.testing.assert_array_equal(gradient, x)  # P^T P x = x


def test_permute_keeps_the_type_and_moves_integers():
    p = jnp.array([1, 2, 0])
    for dtype in (jnp.bfloat16, jnp.int8, jnp.uint8, jnp.bool_):
        x = np.array([[1, 0, 3], [0, 5, 6]]).astype(dtype)
        y = mixing.permute(jnp.asarray(x), p)
        assert y.dtype == dtype
        np.testing.assert_array_equal(y, x[:, [1, 2, 0]])
    assert mixing.permute(jnp.array([7, 8, 9]), p).tolist() == [8, 9, 7]


def test_mix_is_the_matrix_product_and_its_gradients_are_the_outer_ones():
    x, matrix, cotangent = arrays((2, 4, 3), (5, 3), (2, 4, 5))

    @jax.jit
    def mixed(x, matrix, cotangent):
        y, pull_back = jax.vjp(mixing.mix, x, matrix)
        return y, *pull_back(cotangent)

    y, x_gradient, matrix_gradient = mixed(x, matrix, cotangent)
    np.testing.assert_allclose(y, np.einsum("nmj,ij->nmi", x, matrix), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(x_gradient, np.einsum("nmi,ij->nmj", cotangent, matrix), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(matrix_gradient, np.einsum("nmi,nmj->ij", cotangent, x), rtol=1e-5, atol=1e-5)


def test_mix_computes_in_the_type_of_the_features_and_returns_a_float32_gradient():
    (matrix,) = arrays((3, 3))
    x = jnp.ones((2, 3), jnp.bfloat16)
    assert jax.eval_shape(mixing.mix, x, matrix).dtype == jnp.bfloat16
    gradient = jax.grad(lambda m: mixing.mix(x, m).astype(jnp.float32).sum())(jnp.asarray(matrix))
    assert gradient.dtype == jnp.float32
    np.testing.assert_array_equal(gradient, np.full((3, 3), 2.0))


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="the layout is fixed on CPU alone")
def test_the_gather_keeps_channels_innermost_between_other_operations():
    # Left to itself XLA writes it with the channels outermost and transposes it back, several times as slow.
    def unit(left, right, p, w):
        first, second = jnp.split(mixing.permute(jnp.concatenate([left, right], -1), p), 2, -1)
        return first, second.reshape(-1, 10) @ w

    shapes = [jax.ShapeDtypeStruct(s, jnp.float32) for s in ((4, 6, 6, 10), (4, 6, 6, 10), (10, 10))]
    program = jax.jit(unit).lower(*shapes[:2], jax.ShapeDtypeStruct((20,), jnp.int32), shapes[2]).compile().as_text()
    steps = program[program.index("ENTRY") :]
    assert "f32[4,6,6,20]{3,2,1,0}" in steps
    assert "f32[20,4,6,6" not in steps


@jax.jit
def rows_of_norm_one(matrix, cotangent):
    y, pull_back = jax.vjp(mixing.unit_rows, matrix)
    return y, *pull_back(cotangent)


@given(st.data(), st.sampled_from([(1, 1), (3, 3), (2, 4, 3)]))
def test_rows_of_unit_norm_and_their_derivative(data, shape):
    seed = data.draw(st.integers(0, 2**16))
    matrix, cotangent = arrays(shape, shape, seed=seed)
    matrix *= 10.0 ** data.draw(st.integers(-4, 4))
    y, gradient = rows_of_norm_one(matrix, cotangent)
    norms = np.sqrt((matrix.astype(np.float64) ** 2).sum(-1, keepdims=True))
    rows = matrix / norms
    expected = (cotangent - rows * (rows * cotangent).sum(-1, keepdims=True)) / norms
    np.testing.assert_allclose(y, rows, rtol=1e-5)
    np.testing.assert_allclose(gradient, expected, rtol=1e-3, atol=1e-5 / norms.min())


def test_unit_rows_leave_permutations_bit_for_bit_and_zeros_finite():
    p = np.random.default_rng(0).permutation(6)
    matrix = np.asarray(permutation.to_matrix(jnp.asarray(p)))
    y, gradient = rows_of_norm_one(matrix, np.ones_like(matrix))
    np.testing.assert_array_equal(y, matrix)
    assert np.isfinite(gradient).all()
    y, gradient = rows_of_norm_one(np.zeros((6, 6), np.float32), np.ones((6, 6), np.float32))
    np.testing.assert_array_equal(y, 0)
    assert np.isfinite(gradient).all()
    # Independent inputs of variance 1 keep it, where a row that averages c of them leaves 1 / c.
    matrix, x = np.full((4, 16), 1 / 16, np.float32), arrays((20_000, 16))[0]
    assert np.var(x @ np.asarray(mixing.unit_rows(matrix)).T, axis=0) == pytest.approx(1, abs=0.05)
    assert np.var(x @ matrix.T, axis=0) == pytest.approx(1 / 16, abs=0.005)
