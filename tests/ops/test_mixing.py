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
    return [jnp.asarray(rng.standard_normal(shape), jnp.float32) for shape in shapes]


@given(channels=st.integers(1, 9), leading=st.lists(st.integers(1, 3), max_size=3), seed=st.integers(0, 99))
def test_permute_equals_its_matrix_forward_and_backward(channels, leading, seed):
    p = permutation.random(jax.random.key(seed), channels)
    x, cotangent = arrays((*leading, channels), (*leading, channels), seed=seed)
    y, pull_back = jax.vjp(lambda x: mixing.permute(x, p), x)
    z, pull_back_matrix = jax.vjp(lambda x: mixing.mix(x, permutation.to_matrix(p)), x)
    np.testing.assert_array_equal(y, z)
    np.testing.assert_array_equal(pull_back(cotangent)[0], pull_back_matrix(cotangent)[0])


@pytest.mark.parametrize("groups", [1, 2, 3, 4, 6, 12])
def test_shuffle_equals_permute_forward_and_backward(groups):
    x, cotangent = arrays((2, 3, 1, 12), (2, 3, 1, 12))
    p = permutation.channel_shuffle(12, groups)
    y, pull_back = jax.vjp(lambda x: mixing.shuffle(x, groups), x)
    z, pull_back_permute = jax.vjp(lambda x: mixing.permute(x, p), x)
    np.testing.assert_array_equal(y, z)
    np.testing.assert_array_equal(pull_back(cotangent)[0], pull_back_permute(cotangent)[0])


def test_the_gradient_of_permute_is_a_gather_and_never_a_scatter():
    x, p = jnp.ones((2, 6)), permutation.channel_shuffle(6, 2)
    text = str(jax.make_jaxpr(jax.grad(lambda x: jnp.sin(mixing.permute(x, p)).sum()))(x))
    assert "gather" in text
    assert "scatter" not in text


def test_permute_under_vmap_takes_a_permutation_per_sample():
    (x,) = arrays((4, 3, 5))
    p = jax.vmap(lambda k: permutation.random(k, 5))(jax.random.split(jax.random.key(1), 4))
    expected = np.stack([np.asarray(x[i])[:, np.asarray(p[i])] for i in range(4)])
    np.testing.assert_array_equal(jax.vmap(mixing.permute)(x, p), expected)
    gradient = jax.grad(lambda x: (jax.vmap(mixing.permute)(x, p) * expected).sum())(x)
    np.testing.assert_array_equal(gradient, x)  # P^T P x = x


def test_permute_keeps_the_type_and_moves_integers():
    p = jnp.array([1, 2, 0])
    for dtype in (jnp.bfloat16, jnp.int8, jnp.uint8, jnp.bool_):
        assert mixing.permute(jnp.ones((2, 3), dtype), p).dtype == dtype
    assert mixing.permute(jnp.array([7, 8, 9]), p).tolist() == [8, 9, 7]


def test_mix_is_the_matrix_product_and_its_gradients_are_the_outer_ones():
    x, matrix, cotangent = arrays((2, 4, 3), (5, 3), (2, 4, 5))
    y, pull_back = jax.vjp(mixing.mix, x, matrix)
    np.testing.assert_allclose(y, np.einsum("nmj,ij->nmi", x, matrix), rtol=1e-5, atol=1e-6)
    x_gradient, matrix_gradient = pull_back(cotangent)
    np.testing.assert_allclose(x_gradient, np.einsum("nmi,ij->nmj", cotangent, matrix), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(matrix_gradient, np.einsum("nmi,nmj->ij", cotangent, x), rtol=1e-5, atol=1e-5)


def test_mix_computes_in_the_type_of_the_features_and_returns_a_float32_gradient():
    (matrix,) = arrays((3, 3))
    x = jnp.ones((2, 3), jnp.bfloat16)
    assert mixing.mix(x, matrix).dtype == jnp.bfloat16
    assert jax.grad(lambda m: mixing.mix(x, m).astype(jnp.float32).sum())(matrix).dtype == jnp.float32
