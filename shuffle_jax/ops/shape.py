"""What an array must be before it is taken for a matrix over channels, or for images that have a mean."""

from __future__ import annotations

import jax.numpy as jnp

from shuffle_jax.typing import Array


def check_square(matrix: Array, what: str = "matrix") -> None:
    """Raises a ValueError unless an array is one square matrix or a batch of them, ``(..., c, c)`` with c at least 1.

    >>> check_square(jnp.ones((2, 3, 3)))
    """
    if matrix.ndim < 2 or matrix.shape[-1] != matrix.shape[-2] or not matrix.shape[-1]:
        raise ValueError(f"a {what} of shape {matrix.shape} is not square: give (..., c, c) with c of at least 1")


def check_matrix(matrix: Array) -> None:
    """Raises a ValueError unless :func:`check_square` passes and the array is of floating point.

    >>> check_matrix(jnp.ones((2, 3, 3)))
    """
    check_square(matrix)
    if not jnp.issubdtype(matrix.dtype, jnp.floating):
        raise ValueError(f"a matrix of {matrix.dtype} is not of floating point: convert it to float32")


def check_batch(x: Array) -> None:
    """Raises a ValueError unless there is a value to average over.

    >>> check_batch(jnp.ones((1, 2, 2, 3)))
    """
    if 0 in x.shape:
        raise ValueError(f"a batch of shape {x.shape} holds no values, of which there is no mean: leave it out")
