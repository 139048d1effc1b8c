"""Sums over images, rows and columns, in the order that is fastest on the CPU."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from shuffle_jax.ops.mesh import varying_alike
from shuffle_jax.typing import Array, Float, Images


def sums(images: Sequence[Images]) -> list[Float[Array, "c"]]:
    """The sums over (n, h, w) of several images of one shape, read once.

    Over blocks of rows first: what is left keeps the batch axis, along which XLA on CPU runs in parallel, and (w, c),
    along which it vectorises. That takes a third of the time of reducing rows and columns together.

    Args:
        images: each ``(n, h, w, c)``, of one type.

    Returns:
        As many arrays ``(c,)``.

    >>> sums([jnp.ones((2, 3, 3, 1)), jnp.zeros((2, 3, 3, 1))])[0].tolist()
    [18.0]
    """
    n, height, width, channels = images[0].shape
    rows = _block(height)
    blocks = [x.reshape(n, height // rows, rows, width, channels) for x in images]  # two steps, see mesh.py
    blocks = [x.reshape(n * (height // rows), rows, width, channels) for x in blocks]
    return [part.sum((0, 1)) for part in together(blocks, 1)]


@partial(jax.custom_jvp, nondiff_argnums=(1,))
def together(arrays: Sequence[Float[Array, "*s"]], axis: int) -> list[Float[Array, "*t"]]:
    """The sums of several arrays of one shape along an axis, in one reduction that reads what they share once.

    Its derivative is made of plain sums: of a reduction of several arrays JAX's own is a tree of slices.

    Args:
        arrays: of one shape and type.
        axis: along which they are summed.

    >>> [total.tolist() for total in together([jnp.ones((2, 3)), jnp.zeros((2, 3))], 0)]
    [[2.0, 2.0, 2.0], [0.0, 0.0, 0.0]]
    """
    operands = varying_alike(*arrays)
    zero = jnp.zeros((), operands[0].dtype)
    return list(lax.reduce(operands, (zero,) * len(operands), lambda a, b: tuple(map(operator.add, a, b)), (axis,)))


@together.defjvp
def _(axis, primals, tangents):  # type: ignore[no-untyped-def]
    return together(*primals, axis), [change.sum(axis) for change in tangents[0]]


def _block(height: int) -> int:
    """How many rows are summed at once: the largest divisor of the height from 4 to 10, or all of them.

    Rows are powers of two apart in memory, more often than not, and whole columns of them push one another out of the
    caches: of two arrays of 64 x 32 x 32 x 96 blocks of 8 take 0.2 of the time. Of nine, as a depthwise convolution
    sums them, blocks of 12 and more take twice as long or more, and so do those of 2, which leave too much (one core,
    JAX 0.10).
    """
    return next((rows for rows in range(_MOST_ROWS, _LEAST_ROWS - 1, -1) if height % rows == 0), height)


_LEAST_ROWS, _MOST_ROWS = 4, 10
