"""Rematerialisation: what a gradient needs of a forward pass, computed again instead of kept."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax import lax

from shuffle_jax.ops.form import by_platform
from shuffle_jax.ops.mesh import varying_alike
from shuffle_jax.typing import Array, PyTree

_T = TypeVar("_T")


def recomputed(function: Callable[..., _T]) -> Callable[..., _T]:
    """``function(x, *others)``, of which the gradient keeps the arguments alone and computes all the rest again.

    As :func:`jax.checkpoint`, but on CPU as well: there the XLA of JAX 0.10 drops the barriers between the two
    computations, finds them equal, and keeps what was to be computed again. Here the second one is of an x that the
    compiler cannot know for the first: ``where(g = g, x, NaN)``, g of each image one number of the gradient that comes
    back. Values and gradients are those of the function, but for how a compiler fuses and rounds them. Reverse mode
    alone, any number of times.

    Args:
        function: of arrays and pytrees of arrays, to one of arrays.

    Returns:
        The function of ``(x, *others)``. What it computes of ``others`` alone may be kept.

    Raises:
        TypeError: a derivative in forward mode is asked for.

    >>> slope = jax.grad(recomputed(lambda x: jnp.sin(jnp.sin(x)).sum()))(jnp.ones(2))
    >>> slope.tolist() == jax.grad(lambda x: jnp.sin(jnp.sin(x)).sum())(jnp.ones(2)).tolist()
    True

    Source: Chen, Xu, Zhang and Guestrin, Training deep nets with sublinear memory cost, 2016. The dependence on the
    gradient is this project's.
    """

    def kept(*arguments: PyTree) -> _T:
        # Traced once for both: a second run of the Python code might draw other random numbers.
        traced, closed_over = jax.closure_convert(function, *arguments)
        keeping: Any = jax.custom_vjp(traced)
        keeping.defvjp(partial(_forward, traced), partial(_backward, traced))
        result: _T = keeping(*arguments, *closed_over)
        return result

    return kept


def _forward(function: Callable[..., _T], *arguments: PyTree) -> tuple[_T, tuple[PyTree, ...]]:
    return function(*arguments), arguments


def _backward(function: Callable[..., _T], arguments: tuple[PyTree, ...], cotangents: PyTree) -> tuple[PyTree, ...]:
    x, *others = arguments
    gradients: tuple[PyTree, ...] = jax.vjp(function, _later(x, cotangents), *others)[1](cotangents)
    return gradients


def _later(x: PyTree, cotangents: PyTree) -> PyTree:
    """Arrays as they are, not to be had before a gradient."""
    gradients = [leaf for leaf in jax.tree.leaves(cotangents) if jnp.issubdtype(leaf.dtype, jnp.floating) and leaf.size]
    if not gradients:
        return x
    largest = max(gradients, key=lambda leaf: leaf.ndim)

    def one(leaf: Array) -> Array:
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            return leaf
        # One number for each image, where both have images: no device waits for that of another.
        images = leaf.shape[:1] if largest.shape[:1] == leaf.shape[:1] else ()
        numbers = largest
        for axis in range(len(images), largest.ndim):
            numbers = lax.slice_in_dim(numbers, 0, 1, axis=axis)
        numbers = numbers.reshape(*images, *(1,) * (leaf.ndim - len(images)))
        array, seen = varying_alike(leaf, numbers)
        return by_platform(
            array,
            seen,
            cpu=lambda array, seen: jnp.where(seen == seen, array, jnp.nan),
            default=lambda array, seen: lax.optimization_barrier((array, seen))[0],
        )

    return jax.tree.map(one, x)
