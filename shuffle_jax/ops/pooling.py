"""The pooling that halves an image: an average on the way past a unit, a maximum behind a stem or a stage."""

from __future__ import annotations

from functools import partial, reduce

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from shuffle_jax.ops.barrier import computed_once
from shuffle_jax.ops.depthwise_shifts import interleave
from shuffle_jax.ops.form import by_platform
from shuffle_jax.ops.precision import at_least_float32
from shuffle_jax.ops.slicing import strided
from shuffle_jax.typing import Array, Float, Images, Int, Outputs

SIZE, STRIDE, PADS = (1, 3, 3, 1), (1, 2, 2, 1), ((0, 0), (1, 1), (1, 1), (0, 0))
"""Of the windows: 3 x 3 values around every second one."""


def halve(x: Images) -> Float[Array, "n oh ow c"]:
    """The average of 3 x 3 values around every second one, zeros outside included.

    ``y[n, i, j, c] = sum_ab x[n, 2 i + a - 1, 2 j + b - 1, c] / 9``

    On CPU three rows are added, and of the sums three columns: XLA's native form takes two to four times as long, and
    five times with its gradient. Elsewhere the native form is used.

    Args:
        x: ``(n, h, w, c)``; half precision is added in float32 and rounded once.

    Returns:
        ``(n, ceil(h / 2), ceil(w / 2), c)``, in the type of x.

    >>> import jax.numpy as jnp
    >>> halve(jnp.ones((1, 3, 3, 1))).ravel().round(3).tolist()
    [0.444, 0.444, 0.444, 0.444]

    Source: Zhang et al., ShuffleNet, 2017, figure 2.
    """
    return (by_platform(at_least_float32(x), cpu=_sums_of_slices, default=_sums_native) / 9).astype(x.dtype)


def largest(x: Images) -> Float[Array, "n oh ow c"]:
    """The largest of 3 x 3 values around every second one, of those inside the image.

    ``y[n, i, j, c] = max_ab x[n, 2 i + a - 1, 2 j + b - 1, c]``

    The gradient goes to that value, of equal ones to the first in row-major order.

    On CPU the forward pass notes which of the nine it was, and the gradient is put together from what was noted: XLA's
    native form scatters there, and takes five to ten times as long. Elsewhere the native form is used. On CPU there
    is no forward-mode derivative.

    Args:
        x: ``(n, h, w, c)``, finite.

    Returns:
        ``(n, ceil(h / 2), ceil(w / 2), c)``.

    >>> largest(jnp.arange(9.0).reshape(1, 3, 3, 1)).ravel().tolist()
    [4.0, 5.0, 7.0, 8.0]
    """
    return by_platform(x, cpu=partial(_largest_noted, x.shape[1:3]), default=_largest_native)


def largest_2x2(x: Images) -> Float[Array, "n oh ow c"]:
    """The largest of each 2 x 2 values. A last odd row or column is left out, and one row or column is not halved.

    ``y[n, i, j, c] = max_ab x[n, 2 i + a, 2 j + b, c]``, a and b in (0, 1)

    The gradient goes to that value, of equal ones to the first in row-major order. It follows the comparisons that the
    forward pass made: to look for the maximum again finds none, and nan, where XLA computes the values anew and rounds
    them otherwise.

    Args:
        x: ``(n, h, w, c)``, finite.

    Returns:
        ``(n, max(1, floor(h / 2)), max(1, floor(w / 2)), c)``.

    >>> largest_2x2(jnp.arange(10.0).reshape(1, 2, 5, 1)).ravel().tolist()
    [6.0, 8.0]
    >>> largest_2x2(jnp.arange(4.0).reshape(1, 1, 4, 1)).ravel().tolist()
    [1.0, 3.0]
    """
    return _larger_of_pairs(_larger_of_pairs(x, 2), 1)


def _sums_native(x: Images) -> Outputs:
    zero = np.zeros((), x.dtype)  # A constant, by which JAX knows the reduction for a sum and has its gradient.
    return lax.reduce_window(x, zero, lax.add, SIZE, STRIDE, PADS)


def _sums_of_slices(x: Images) -> Outputs:
    height, width = (-(-length // 2) for length in x.shape[1:3])
    x = jnp.pad(x, PADS)
    x = reduce(jnp.add, (strided(x, range(a, a + 2 * height - 1, 2), range(x.shape[2])) for a in range(3)))
    return reduce(jnp.add, (strided(x, range(height), range(b, b + 2 * width - 1, 2)) for b in range(3)))


def _larger_of_pairs(x: Images, axis: int) -> Outputs:
    """The larger of each two values along an axis; a split has a concatenation as its gradient."""
    length = x.shape[axis]
    size = min(2, length)
    x = lax.slice_in_dim(x, 0, length // size * size, axis=axis)
    pairs = jnp.split(x.reshape(*x.shape[:axis], length // size, size, *x.shape[axis + 1 :]), size, axis + 1)
    return reduce(lambda first, second: jnp.where(second > first, second, first), pairs).squeeze(axis + 1)


def _largest_native(x: Images) -> Outputs:
    return lax.reduce_window(x, np.array(-np.inf, x.dtype), lax.max, SIZE, STRIDE, PADS)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _largest_noted(size: tuple[int, int], x: Images) -> Outputs:
    return _largest_and_place(size, x)[0]


def _largest_forward(size: tuple[int, int], x: Images) -> tuple[Float[Array, "n oh ow c"], Int[Array, "n oh ow c"]]:
    # By the function itself, for a second derivative: that of a maximum of equal numbers is half of each.
    return _largest_noted(size, x), computed_once(lambda x: _largest_and_place(size, x)[1], x)


def _largest_and_place(size: tuple[int, int], x: Images) -> tuple[Float[Array, "n oh ow c"], Int[Array, "n oh ow c"]]:
    """The largest value of each window, and which of the nine it is."""
    padded = jnp.pad(x, PADS, constant_values=-jnp.inf)
    rows, columns = ([range(a, a + length, 2) for a in range(3)] for length in size)
    taps = [strided(padded, down, across) for down in rows for across in columns]
    best, which = taps[0], jnp.zeros(taps[0].shape, jnp.int8)
    for k, tap in enumerate(taps[1:], start=1):
        which = jnp.where(tap > best, jnp.int8(k), which)
        best = jnp.maximum(best, tap)
    return best, which


def _largest_backward(
    size: tuple[int, int], which: Int[Array, "n oh ow c"], gradient: Float[Array, "n oh ow c"]
) -> tuple[Images]:
    wide = at_least_float32(gradient)
    zero = jnp.zeros((), wide.dtype)

    def given(a: int, b: int) -> Images:
        """What windows give to their value at (a, b); to their first row or column what the window after gives."""
        taken = jnp.where(which == 3 * a + b, wide, zero)
        rows, columns = ((-1, 1, 0) if first else (0, 0, 0) for first in (a == 0, b == 0))
        return lax.pad(taken, zero, ((0, 0, 0), rows, columns, (0, 0, 0)))

    # An even row is the middle one of its window, an odd one the last of its window and the first of the next.
    ways = ((1,), (2, 0))
    parts = [[sum((given(a, b) for a in rows for b in columns), zero) for columns in ways] for rows in ways]
    return (interleave(parts, size).astype(gradient.dtype),)


_largest_noted.defvjp(_largest_forward, _largest_backward)
