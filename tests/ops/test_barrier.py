"""What is read twice is computed once."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from shuffle_jax.ops.barrier import computed_once


def test_the_compiler_keeps_a_condition_though_both_branches_are_one_function():
    def read_twice(x):
        made = computed_once(jnp.abs, x)
        return made.T @ made, made.mean()

    text = jax.jit(read_twice).lower(jnp.ones((256, 8))).compile().as_text()
    assert (text.count(" conditional("), text.count(" abs(")) == (1, 2)


def test_the_condition_stays_where_x_is_kept_as_it_is():
    """JAX itself hands on what both branches of a condition hand on."""

    def read_twice(x, kernel):
        y = computed_once(lambda y: y, jnp.minimum(x, 6.0))
        return y.mean((1, 2)), y.reshape(-1, 64) @ kernel

    arguments = jnp.full((8, 32, 32, 64), 7.0), jnp.eye(64)
    compiled = jax.jit(read_twice).lower(*arguments).compile()
    assert compiled.as_text().count(" conditional(") == 1
    mean, product = compiled(*arguments)
    np.testing.assert_array_equal(mean, np.full((8, 64), 6.0))
    np.testing.assert_array_equal(product, np.full((8192, 64), 6.0))


@pytest.mark.parametrize("first", [1.0, np.nan, np.inf])
def test_values_and_gradients_pass_also_mapped_whatever_the_first_value(first):
    x = jnp.linspace(-1.0, 1.0, 12).reshape(3, 4).at[0, 0].set(first).at[1, 0].set(-first)
    square = partial(computed_once, lambda row, by: by * jnp.square(row))
    np.testing.assert_array_equal(square(x, 2.0), 2 * x**2)
    np.testing.assert_array_equal(jax.vmap(square)(x, jnp.arange(3.0)), jnp.arange(3.0)[:, None] * x**2)
    gradient = jax.vmap(jax.grad(lambda row: square(row, 3.0).sum()))(x)
    np.testing.assert_array_equal(gradient, 6 * x)


def test_elsewhere_it_is_a_barrier():
    text = jax.export.export(jax.jit(partial(computed_once, jnp.sin)), platforms=["cuda"])(jnp.ones(2))
    assert "optimization_barrier" in text.mlir_module()
