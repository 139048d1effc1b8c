"""Circular padding: what is beyond one side of an image is what is on the opposite one."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from shuffle_jax.ops.depthwise_shifts import Pads
from shuffle_jax.ops.mesh import each_device
from shuffle_jax.typing import Images, Outputs


def wrap(x: Images, pads: Pads) -> Outputs:
    """Pads an image with itself: ``y[n, i, j] = x[n, (i - top) mod h, (j - left) mod w]``.

    Rows and columns are gathered, and so they are for the gradient, in which every value adds up its copies: XLA on CPU
    fuses a concatenation or a scatter into what reads it, where each takes several times as long. There is no
    forward-mode derivative.

    Args:
        x: ``(n, h, w, c)``.
        pads: how much ``((top, bottom), (left, right))``, also more than the image is long.

    Returns:
        ``(n, top + h + bottom, left + w + right, c)``.

    >>> wrap(jnp.arange(3.0).reshape(1, 1, 3, 1), ((0, 0), (1, 2))).ravel().tolist()
    [2.0, 0.0, 1.0, 2.0, 0.0, 1.0]
    """
    return x if pads == ((0, 0), (0, 0)) else each_device(partial(_wrap, (x.shape[1], x.shape[2]), pads), (x,))


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _wrap(size: tuple[int, int], pads: Pads, x: Images) -> Outputs:
    for axis, (length, (before, after)) in enumerate(zip(size, pads, strict=True), start=1):
        if before or after:
            x = jnp.take(x, np.arange(-before, length + after) % length, axis=axis, mode="clip")
    return x


def _forward(size: tuple[int, int], pads: Pads, x: Images) -> tuple[Outputs, None]:
    return _wrap(size, pads, x), None


def _backward(size: tuple[int, int], pads: Pads, _: None, gradient: Outputs) -> tuple[Images]:
    for axis, (length, (before, after)) in enumerate(zip(size, pads, strict=True), start=1):
        if before or after:
            copies = range(0, before + length + after, length)
            first = (np.arange(length) + before) % length
            gradient = sum(_taken(gradient, first + start, axis) for start in copies)  # type: ignore[assignment]
    return (gradient,)


def _taken(x: Images, places: np.ndarray, axis: int) -> Outputs:
    """The values at these places of an axis; 0 where a place is beyond its end."""
    within = places < x.shape[axis]
    values = jnp.take(x, places, axis=axis, mode="clip")
    if within.all():
        return values
    return jnp.where(within.reshape(-1, *(1,) * (x.ndim - 1 - axis)), values, jnp.zeros((), x.dtype))


_wrap.defvjp(_forward, _backward)
