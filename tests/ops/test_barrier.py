"""What is read twice is computed once: the compiled program says so."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from shuffle_jax.ops.barrier import computed_once


def seen_and_convolved(hold):
    """A layer that reads its image twice, as dynamic convolutions do; a sine stands for what makes the image."""

    def layer(x, kernel):
        made = hold(jnp.sin(x))
        return made.reshape(-1, 8) @ kernel * made.mean((0, 1, 2)).sum()

    return layer


def sines(hold):
    arrays = jnp.ones((4, 16, 16, 8)), jnp.ones((8, 16))
    return jax.jit(seen_and_convolved(hold)).lower(*arrays).compile().as_text().count(" sine(")


@pytest.mark.skipif(jax.__version_info__ < (0, 11), reason="this XLA drops barriers on CPU before it fuses")
def test_the_image_is_made_once_and_would_be_made_twice():
    assert sines(computed_once) == 1
    assert sines(lambda x: x) == 2  # what it is for; if XLA shares the image by itself, it can go


def test_values_and_gradients_pass_also_mapped():
    x = jnp.linspace(-1.0, 1.0, 12).reshape(3, 4)
    np.testing.assert_array_equal(jax.vmap(computed_once)(x), x)
    gradient = jax.vmap(jax.grad(lambda row: jnp.square(computed_once(row)).sum()))(x)
    np.testing.assert_array_equal(gradient, 2 * x)
