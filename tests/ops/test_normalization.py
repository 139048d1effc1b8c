"""Batch normalisation as an operation: NumPy in float64, shards, digits; its gradients are in test_derivatives.py."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shuffle_jax.ops.normalization import normalize, normalize_by_batch
from shuffle_jax.sharding import batch_sharding, data_mesh

by_batch = jax.jit(normalize_by_batch)


def drawn(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def defined(x, scale, bias, epsilon=1e-5):
    """The definition, in whatever library and type it is given."""
    mean = x.mean((0, 1, 2))
    variance = ((x - mean.reshape(1, 1, 1, -1)) ** 2).mean((0, 1, 2))
    rows = [v.reshape(1, 1, 1, -1) for v in (mean, variance, scale, bias)]
    return (x - rows[0]) / (rows[1] + epsilon) ** 0.5 * rows[2] + rows[3], mean, variance


@given(st.sampled_from([(1, 1, 1, 1), (3, 4, 1, 2), (4, 5, 3, 7), (5, 1, 4, 1)]), st.integers(0, 99))
def test_equals_the_definition_in_float64_at_any_size(shape, seed):
    x, (scale, bias, about) = drawn(*shape, seed=seed), drawn(3, shape[-1], seed=seed + 1)
    expected = defined(*(np.asarray(a, np.float64) for a in (x, scale, bias)))
    for found, true in zip(by_batch(x, scale, bias, about), expected, strict=True):
        np.testing.assert_allclose(found, true, rtol=1e-3, atol=1e-3)


def test_no_gradient_flows_through_the_moments_or_the_guess():
    x, (scale, bias, about) = drawn(2, 3, 3, 4), drawn(3, 4, seed=1)

    @jax.jit
    def gradients(x, about):
        moments = jax.grad(lambda x: sum(v.sum() for v in normalize_by_batch(x, scale, bias, about)[1:]))
        return moments(x), jax.grad(lambda a: normalize_by_batch(x, scale, bias, a)[0].sum())(about)

    assert not any(np.any(gradient) for gradient in gradients(x, about))


@pytest.mark.parametrize("offset", [1e3, 1e5])
def test_a_good_guess_keeps_the_digits_of_a_small_deviation(offset):
    x = np.float32(offset) + drawn(8, 6, 6, 2)
    true = np.asarray(x, np.float64).var((0, 1, 2))
    one, zero = np.ones(2, np.float32), np.zeros(2, np.float32)
    near = by_batch(x, one, zero, np.float32(offset + 0.5) * one)[2]
    far = np.asarray(by_batch(x, one, zero, zero)[2])
    np.testing.assert_allclose(near, true, rtol=1e-4)
    assert (far >= 0).all()
    assert np.abs(far - true).max() > 10 * np.abs(near - true).max()


def test_moments_are_those_of_the_whole_batch_over_devices():
    x, (scale, bias, about) = drawn(4, 3, 3, 5), drawn(3, 5, seed=1)
    split = jax.device_put(x, batch_sharding(data_mesh()))

    def everything(x):
        return jax.value_and_grad(lambda x: jnp.sin(normalize_by_batch(x, scale, bias, about)[0]).sum())(x)

    for a, b in zip(jax.jit(everything)(split), jax.jit(everything)(x), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_half_precision_is_summed_in_float32():
    x = (3 + drawn(16, 16, 16, 2)).astype(jnp.bfloat16)
    one, zero = np.ones(2, np.float32), np.zeros(2, np.float32)
    y, mean, variance = by_batch(x, one, zero, zero)
    wide = np.asarray(x, np.float64)
    assert (y.dtype, mean.dtype, variance.dtype) == (jnp.bfloat16, jnp.float32, jnp.float32)
    np.testing.assert_allclose(mean, wide.mean((0, 1, 2)), rtol=1e-5)
    np.testing.assert_allclose(variance, wide.var((0, 1, 2)), rtol=1e-4)
    slope = jax.grad(lambda x: normalize_by_batch(x, one, one, one)[0].sum())
    assert jax.eval_shape(slope, x).dtype == jnp.bfloat16


def test_given_moments_in_float64_stay_there():
    with jax.enable_x64(True):
        x, one = jnp.arange(8.0).reshape(2, 2, 1, 2), jnp.ones(2)
        y = normalize(x, one, one, one, one, epsilon=0.0)
    assert y.dtype == np.float64
    np.testing.assert_allclose(y, np.arange(8.0).reshape(2, 2, 1, 2), rtol=1e-15)
