"""The end of a residual unit."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from shuffle_jax.ops.barrier import computed_once
from shuffle_jax.ops.mesh import varying_alike
from shuffle_jax.typing import Array, Float


def relu_of_sum(x: Float[Array, "n *s"], y: Float[Array, "n *s"]) -> Float[Array, "n *s"]:
    """``z = max(x + y, 0)``, with the gradient ``dz`` where z is above 0, and 0 elsewhere.

    The gradient keeps z, which the next unit has to keep as well, and makes it once: XLA on CPU otherwise computes the
    sums of all units before it anew, at each place where a gradient reads z.

    Args:
        x: the shortcut, ``(n, ...)``.
        y: what the unit adds to it, of the same shape and type.

    Returns:
        Array like x.

    >>> relu_of_sum(jnp.array([1.0, -2.0]), jnp.array([1.0, 1.0])).tolist()
    [2.0, 0.0]

    Source: He, Zhang, Ren and Sun, Deep residual learning, 2015; that it is kept is this project's.
    """
    return _relu_of_sum(*varying_alike(x, y))


def _plain(x: Array, y: Array) -> Array:
    return jnp.maximum(x + y, 0)


_relu_of_sum = jax.custom_jvp(_plain)


@_relu_of_sum.defjvp
def _(primals: tuple[Array, Array], tangents: tuple[Array, Array]) -> tuple[Array, Array]:
    z = computed_once(_relu_of_sum, *primals)
    return z, jnp.where(z > 0, tangents[0] + tangents[1], 0)
