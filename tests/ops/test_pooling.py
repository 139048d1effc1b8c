"""The average and the maximum that halve an image."""

from __future__ import annotations

from contextlib import nullcontext

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from shuffle_jax.ops.form import native
from shuffle_jax.ops.pooling import halve, largest, largest_2x2


@pytest.mark.parametrize("form", [nullcontext, native])
@pytest.mark.parametrize("size", [(1, 1), (2, 5), (6, 7), (5, 4)])
def test_it_is_the_mean_of_nine_with_zeros_outside_and_has_a_gradient_under_jit(size, form):
    x = np.random.default_rng(0).standard_normal((2, *size, 3)).astype(np.float32)
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    rows, columns = (range(0, n, 2) for n in size)
    expected = [[padded[:, i : i + 3, j : j + 3].sum((1, 2)) / 9 for j in columns] for i in rows]
    with form():
        actual, pull = jax.vjp(jax.jit(halve), x)
    np.testing.assert_allclose(actual, np.moveaxis(np.asarray(expected), 2, 0), rtol=1e-5, atol=1e-6)

    # The adjoint: <halve(x), y> = <x, pull(y)>.
    y = np.random.default_rng(1).standard_normal(actual.shape).astype(np.float32)
    np.testing.assert_allclose(np.vdot(actual, y), np.vdot(x, pull(y)[0]), rtol=1e-4)


def test_the_mean_in_half_precision_is_rounded_once():
    x = np.random.default_rng(0).uniform(0.5, 1, (1, 7, 7, 2)).astype(jnp.bfloat16)
    half, whole = jax.jit(lambda x: (halve(x), halve(x.astype(jnp.float32))))(x)
    assert half.dtype == jnp.bfloat16
    np.testing.assert_array_equal(half, whole.astype(jnp.bfloat16))


def largest_oracle(x, cotangent):
    """Each window's largest value, and the gradient by the first that is it, window by window."""
    y, gradient = np.zeros(cotangent.shape, x.dtype), np.zeros(x.shape, cotangent.dtype)
    for n, i, j, c in np.ndindex(*cotangent.shape):
        top, left = max(2 * i - 1, 0), max(2 * j - 1, 0)
        window = x[n, top : 2 * i + 2, left : 2 * j + 2, c]
        a, b = np.unravel_index(window.argmax(), window.shape)
        y[n, i, j, c] = window[a, b]
        gradient[n, top + a, left + b, c] += cotangent[n, i, j, c]
    return y, gradient


SIZES = [("cpu", (1, 1)), ("cpu", (2, 5)), ("cpu", (6, 7)), ("cpu", (7, 2)), ("cpu", (8, 8)), ("elsewhere", (2, 5))]


@jax.jit
def largest_and_gradient(x, cotangent):
    y, pull = jax.vjp(largest, x)
    return y, *pull(cotangent)


@pytest.mark.parametrize(("platform", "size"), SIZES)
def test_the_largest_takes_the_gradient_and_of_equal_ones_the_first(platform, size, monkeypatch):
    jax.clear_caches()  # of traces for another platform
    if platform == "elsewhere":
        monkeypatch.setattr(lax, "platform_dependent", lambda *args, default, **platforms: default(*args))
    rng = np.random.default_rng(0)
    x = rng.integers(-3, 3, (2, *size, 3)).astype(np.float32)  # of six numbers, so that many are equal
    cotangent = rng.integers(-9, 10, (2, *(-(-n // 2) for n in size), 3)).astype(np.float32)
    for actual, expected in zip(largest_and_gradient(x, cotangent), largest_oracle(x, cotangent), strict=True):
        np.testing.assert_array_equal(actual, expected)


def test_the_largest_is_the_same_for_a_batch_of_batches_and_in_half_precision_is_rounded_once():
    rng = np.random.default_rng(1)
    x = rng.integers(-9, 10, (2, 3, 5, 4, 2)).astype(jnp.bfloat16)
    cotangent = rng.integers(-100, 101, (2, 3, 3, 2, 2)).astype(jnp.bfloat16)

    y, gradient = jax.jit(jax.vmap(largest_and_gradient))(x, cotangent)
    assert y.dtype == gradient.dtype == jnp.bfloat16
    for k in range(2):
        expected = largest_oracle(x[k].astype(np.float32), cotangent[k].astype(np.float32))
        for actual, value in zip((y[k], gradient[k]), expected, strict=True):
            np.testing.assert_array_equal(actual, value.astype(jnp.bfloat16))


def test_only_cpu_notes_where_the_largest_was():
    traced = jax.jit(jax.grad(lambda x: largest(x).sum())).trace(np.zeros((1, 6, 6, 2), np.float32))
    for platform, scatters in (("cpu", False), ("cuda", True), ("tpu", True)):
        assert ("stablehlo.select_and_scatter" in traced.lower(lowering_platforms=(platform,)).as_text()) == scatters


@pytest.mark.parametrize("size", [(2, 5), (1, 6), (1, 1), (7, 4)])
@pytest.mark.fast_cases(2)
def test_the_largest_of_four_takes_the_gradient_and_of_equal_ones_the_first(size):
    rng = np.random.default_rng(0)
    x = rng.integers(-2, 3, (2, *size, 3)).astype(np.float32)
    rows, columns = (min(2, n) for n in size)
    cotangent = rng.integers(-9, 10, (2, max(1, size[0] // 2), max(1, size[1] // 2), 3)).astype(np.float32)
    expected, gradient = np.zeros(cotangent.shape, np.float32), np.zeros(x.shape, np.float32)
    for n, i, j, c in np.ndindex(*cotangent.shape):
        window = x[n, rows * i : rows * i + rows, columns * j : columns * j + columns, c]
        a, b = np.unravel_index(window.argmax(), window.shape)
        expected[n, i, j, c] = window[a, b]
        gradient[n, rows * i + a, columns * j + b, c] = cotangent[n, i, j, c]

    @jax.jit
    def both(x, cotangent):
        y, pull = jax.vjp(largest_2x2, x)
        return y, *pull(cotangent)

    for actual, value in zip(both(x, cotangent), (expected, gradient), strict=True):
        np.testing.assert_array_equal(actual, value)
    half, _ = both(x.astype(jnp.bfloat16), cotangent.astype(jnp.bfloat16))
    assert half.dtype == jnp.bfloat16
