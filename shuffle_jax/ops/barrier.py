"""What the compiler must not fuse."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from jax import lax

from shuffle_jax.ops.form import by_platform
from shuffle_jax.typing import Array, Float


def computed_once(function: Callable[..., Array], x: Float[Array, "n *s"], *others: Array) -> Array:
    """``function(x, *others)``, computed once for all that read it.

    XLA on CPU fuses what is cheap into everything that reads it, and computes it as often: of a sum at the end of a
    residual unit all the sums before it as well, at each place where the gradient needs it. A barrier would keep them
    apart, but that of JAX 0.10 drops barriers there. So it is a branch of a condition of which the compiler
    cannot know that both branches are one function. Over several CPU devices that hold images it costs them the sum of
    one number.

    Args:
        function: of arrays, to one array.
        x: with the images on the first axis.
        others: further arguments.

    Returns:
        What the function returns. The identity keeps x itself, for a layer that both looks at it and convolves it.

    >>> import jax.numpy as jnp
    >>> computed_once(jnp.add, jnp.ones(2), jnp.ones(2)).tolist()
    [2.0, 2.0]

    Source: this project.
    """
    return by_platform(x, *others, cpu=partial(_branch, function), default=partial(_behind_barrier, function))


def _branch(function: Callable[..., Array], x: Float[Array, "n *s"], *others: Array) -> Array:
    first = x
    for axis in range(1, x.ndim):
        first = lax.slice_in_dim(first, 0, 1, axis=axis)
    number = first.sum()
    behind = partial(_behind_barrier, function)  # else JAX itself hands on what both branches hand on
    result: Array = lax.cond(number == number, behind, behind, x, *others)
    return result


def _behind_barrier(function: Callable[..., Array], *arguments: Array) -> Array:
    result: Array = lax.optimization_barrier(function(*arguments))
    return result
