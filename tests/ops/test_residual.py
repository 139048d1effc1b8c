"""The end of a residual unit: its equation, and that a chain of units is not computed again for each gradient."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from shuffle_jax.ops.residual import relu_of_sum


def test_values_and_gradients_are_those_of_the_plain_form_also_where_the_sum_is_zero():
    x, y = jnp.array([[1.0, -2.0, 0.0, jnp.nan]]), jnp.array([[2.0, 1.0, 0.0, 1.0]])
    np.testing.assert_array_equal(relu_of_sum(x, y), jax.nn.relu(x + y))
    weights = jnp.arange(1.0, 5.0)[None]
    for argument in (0, 1):
        own, plain = (
            jax.grad(lambda *pair, form=form: (weights * form(*pair)).sum(), argument)(x, y)
            for form in (relu_of_sum, lambda x, y: jax.nn.relu(x + y))
        )
        np.testing.assert_array_equal(own, plain)


def maxima(unit):
    """How many maxima the compiled program of the gradient of four units takes."""
    kernels, x = jnp.ones((4, 64, 64)) / 64, jnp.ones((256, 64))

    def loss(kernels, x):
        for kernel in kernels:
            x = unit(x, x @ kernel)
        return jnp.square(x).sum()

    return jax.jit(jax.grad(loss)).lower(kernels, x).compile().as_text().count(" maximum(")


def test_no_unit_is_computed_again_for_the_gradients_of_those_behind_it():
    assert maxima(relu_of_sum) == 2 * 4  # both branches of each
    assert maxima(lambda x, y: jax.nn.relu(x + y)) > 2 * 4  # what it is for
