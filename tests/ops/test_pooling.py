"""The average that halves an image."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from shuffle_jax.ops.pooling import halve


@pytest.mark.parametrize("size", [(1, 1), (2, 5), (6, 7)])
def test_it_is_the_mean_of_nine_with_zeros_outside_and_has_a_gradient_under_jit(size):
    x = np.random.default_rng(0).standard_normal((2, *size, 3)).astype(np.float32)
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    rows, columns = (range(0, n, 2) for n in size)
    expected = [[padded[:, i : i + 3, j : j + 3].sum((1, 2)) / 9 for j in columns] for i in rows]
    actual, pull = jax.vjp(jax.jit(halve), x)
    np.testing.assert_allclose(actual, np.moveaxis(np.asarray(expected), 2, 0), rtol=1e-5, atol=1e-6)

    # The adjoint: <halve(x), y> = <x, pull(y)>.
    y = np.random.default_rng(1).standard_normal(actual.shape).astype(np.float32)
    np.testing.assert_allclose(np.vdot(actual, y), np.vdot(x, pull(y)[0]), rtol=1e-4)
