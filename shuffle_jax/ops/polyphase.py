"""Adaptive polyphase sampling: every second row and column, of those four grids the one with the largest norm.

A stride of 2 keeps the even rows and columns, whatever is on them: an image that is moved by one pixel becomes another
image. Here the image itself says which of its four polyphase components is kept, for each sample. On even sizes, moving
the image circularly moves the choice with it: the result is the same values, moved by whole pixels.

Source: Chaman and Dokmanic, Truly Shift-Invariant Convolutional Neural Networks, 2021. That sums are compensated is
this project's.
"""

from __future__ import annotations

from typing import Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from shuffle_jax.ops.convolution import depthwise
from shuffle_jax.ops.mesh import varying_alike
from shuffle_jax.ops.precision import at_least_float32
from shuffle_jax.ops.slicing import strided
from shuffle_jax.ops.wrap import wrap
from shuffle_jax.typing import Array, Bool, Float, Images, Int, Outputs

Criterion = Literal["l2", "l1", "largest", "largest_signed", "smallest_l2", "smallest_l1"]
"""By what a component is chosen: the largest l2 or l1 norm, the largest absolute or signed value, the smallest norm."""

Select = Literal["blurred", "unblurred"]
"""Of which image the components are compared: what is sampled, or what it was before the blur."""

BlurSize = Literal[1, 2, 3, 4, 5]
"""Of the blur; 1 is none."""


def blur(x: Images, size: BlurSize) -> Images:
    """The circular binomial blur, ``y[i, j] = sum_ab w[a] w[b] x[i + a - t, j + b - t]`` with ``t = (k - 1) // 2``.

    ``w`` is the row of binomials (1 1), (1 2 1), (1 3 3 1) or (1 4 6 4 1) over its sum; for k = 1 nothing happens.

    Args:
        x: ``(n, h, w, c)``; half precision is added in float32 and rounded once.
        size: k, 1 to 5.

    Returns:
        Array like x.

    Raises:
        ValueError: there is no such size.

    >>> jax.jit(blur, static_argnums=1)(np.float32([0, 4, 0, 0]).reshape(1, 1, 4, 1), 3).ravel().tolist()
    [1.0, 2.0, 1.0, 0.0]
    """
    if size not in get_args(BlurSize):
        raise ValueError(f"there is no blur of size {size}: choose one of {list(get_args(BlurSize))}")
    if size == 1:
        return x
    row = np.ones(1)
    for _ in range(size - 1):
        row = np.convolve(row, [0.5, 0.5])
    return _smoothed(x, row)


def mean_around(x: Images) -> Images:
    """The mean of 3 x 3 values around every one, circular: what a pooled shortcut samples.

    ``y[n, i, j, c] = sum_ab x[n, i + a - 1, j + b - 1, c] / 9``

    Args:
        x: ``(n, h, w, c)``; half precision is added in float32 and rounded once.

    Returns:
        Array like x.

    >>> jax.jit(mean_around)(np.float32([0, 9, 0, 0]).reshape(1, 1, 4, 1)).ravel().round(3).tolist()
    [3.0, 3.0, 3.0, 0.0]
    """
    return _smoothed(x, np.full(3, 1 / 3))


def largest_ahead(x: Images) -> Images:
    """The largest of 2 x 2 values from every one on, circular: what a pooled stem samples.

    ``y[n, i, j, c] = max_ab x[n, i + a, j + b, c]``

    Args:
        x: ``(n, h, w, c)``.

    Returns:
        Array like x.

    >>> jax.jit(largest_ahead)(np.float32([0, 9, 0, 1]).reshape(1, 1, 4, 1)).ravel().tolist()
    [9.0, 9.0, 1.0, 1.0]
    """
    x = wrap(x, ((0, 1), (0, 1)))
    rows = jnp.maximum(x[:, :-1], x[:, 1:])
    return jnp.maximum(rows[:, :, :-1], rows[:, :, 1:])


def choose(x: Images, criterion: Criterion = "l2") -> Int[Array, " n"]:
    """The component that each sample keeps: ``j = argmax_j |p_j|`` over channels and pixels; of equal ones the first.

    ``p_j[h, w] = x[2 h + r, 2 w + s]`` with ``j = r + 2 s``. A moved image has the same values in another order, so
    sums are made as if with twice the digits: components that are nearly alike are told apart alike.

    Args:
        x: ``(n, h, w, c)``, of any size; an odd one is made even by its first row or column once more. Half precision
            is compared in float32.
        criterion: one of :data:`Criterion`.

    Returns:
        j, ``(n,)`` int32 in 0 to 3.

    Raises:
        ValueError: there is no such criterion.

    >>> jax.jit(choose)(np.arange(16, dtype=np.float32).reshape(1, 4, 4, 1)).tolist()
    [3]
    """
    if criterion not in get_args(Criterion):
        raise ValueError(f"there is no criterion {criterion!r}: choose one of {list(get_args(Criterion))}")
    wide = at_least_float32(_even(lax.stop_gradient(x)))
    if criterion == "largest_signed":
        measure = _largest(wide)
    elif criterion == "largest":
        measure = _largest(jnp.abs(wide))
    else:
        measure = _sums(wide * wide if criterion.endswith("l2") else jnp.abs(wide))
    return (jnp.argmin if criterion.startswith("smallest") else jnp.argmax)(measure, axis=1).astype(jnp.int32)


def component(x: Images, choice: Int[Array, " n"]) -> Float[Array, "n oh ow c"]:
    """One polyphase component of each sample: ``y[n, h, w] = x[n, 2 h + r, 2 w + s]`` with ``j[n] = r + 2 s``.

    The gradient goes to the values that were taken, and there is none by the choice.

    Args:
        x: ``(n, h, w, c)``, of any size; an odd one is made even by its first row or column once more.
        choice: j, ``(n,)`` in 0 to 3.

    Returns:
        ``(n, ceil(h / 2), ceil(w / 2), c)``.

    >>> jax.jit(component)(np.arange(16, dtype=np.float32).reshape(1, 4, 4, 1), np.array([3])).ravel().tolist()
    [5.0, 7.0, 13.0, 15.0]
    """
    return _component(*varying_alike(_even(x), choice))


def sample(
    x: Images,
    choice: Int[Array, " n"] | None = None,
    criterion: Criterion = "l2",
    size: BlurSize = 1,
    select: Select = "blurred",
) -> tuple[Float[Array, "n oh ow c"], Int[Array, " n"]]:
    """Blurs an image and keeps one of its four polyphase components, its own choice or that of another image.

    ``y = p_j(blur(x))`` with the j of :func:`choose`. For a circular shift of an image of even sizes by (a, b), the
    choice is ``j' = ((r + a) mod 2) + 2 ((s + b) mod 2)`` and the result the same, moved by whole pixels.

    Args:
        x: ``(n, h, w, c)``.
        choice: j, ``(n,)``; by default (None) that of x.
        criterion: of the choice.
        size: of the blur, 1 to 5.
        select: what is compared, the image "blurred" or "unblurred".

    Returns:
        y, ``(n, ceil(h / 2), ceil(w / 2), c)``, and j.

    Raises:
        ValueError: there is no such criterion, size or image to select by.

    >>> y, choice = jax.jit(sample)(np.roll(np.arange(16, dtype=np.float32).reshape(1, 4, 4, 1), 1, axis=1))
    >>> y.ravel().tolist(), choice.tolist()
    ([13.0, 15.0, 5.0, 7.0], [2])
    """
    if select not in get_args(Select):
        raise ValueError(f"there is no {select!r} image to select by: choose one of {list(get_args(Select))}")
    blurred = blur(x, size)
    if choice is None:
        choice = choose(blurred if select == "blurred" else x, criterion)
    return component(blurred, choice), choice


def _smoothed(x: Images, row: Float[np.ndarray, " k"]) -> Images:
    """A circular correlation with the outer product of a row with itself, centred, an even one half a pixel ahead."""
    y, size, none = at_least_float32(x), len(row), (0, 0)
    ends = (size - 1) // 2, size // 2
    for window, pads in (((size, 1), (ends, none)), ((1, size), (none, ends))):
        weights = jnp.asarray(row, y.dtype).reshape(*window, 1, 1)
        kernel = jnp.broadcast_to(weights, (*window, 1, x.shape[-1]))
        y = depthwise(wrap(y, pads), kernel, padding=(none, none))
    return y.astype(x.dtype)


def _even(x: Images) -> Outputs:
    """An image of even sizes: its first row below and its first column at the right, where they are odd."""
    _, height, width, _ = x.shape
    x = jnp.concatenate([x, x[:, :1]], axis=1) if height % 2 else x
    return jnp.concatenate([x, x[:, :, :1]], axis=2) if width % 2 else x


def _largest(x: Images) -> Float[Array, "n 4"]:
    return _by_component(x.reshape(x.shape[0], x.shape[1] // 2, 2, *x.shape[2:]).max(1)).max((2, 4)).mT.reshape(-1, 4)


def _sums(x: Images) -> Float[Array, "n 4"]:
    """The sum of each component, in order of j, with twice the digits of its type (Knuth's sum with its error).

    Rows first: what is left keeps the axes along which XLA on CPU runs in parallel and vectorises.
    """
    zero = jnp.zeros((), x.dtype)

    def add(one: tuple[Array, Array], other: tuple[Array, Array]) -> tuple[Array, Array]:
        total = one[0] + other[0]
        part = total - one[0]
        return total, one[1] + other[1] + ((one[0] - (total - part)) + (other[0] - part))

    rows = x.reshape(x.shape[0], x.shape[1] // 2, 2, *x.shape[2:])
    high, low = lax.reduce((rows, jnp.zeros_like(rows)), (zero, zero), add, (1,))
    high, low = lax.reduce((_by_component(high), _by_component(low)), (zero, zero), add, (2, 4))
    return (high + low).mT.reshape(-1, 4)


def _by_component(rows: Float[Array, "n 2 w c"]) -> Float[Array, "n 2 v 2 c"]:
    n, _, width, channels = rows.shape
    return rows.reshape(n, 2, width // 2, 2, channels)


def _is(choice: Int[Array, " n"], row: int, column: int) -> Bool[Array, "n 1 1 1"]:
    return (choice == row + 2 * column).reshape(-1, 1, 1, 1)


@jax.custom_vjp
def _component(x: Images, choice: Int[Array, " n"]) -> Outputs:
    row, column = (choice % 2 == 1).reshape(-1, 1, 1, 1), (choice // 2 == 1).reshape(-1, 1, 1, 1)
    (even_rows, odd_rows), width = (range(first, x.shape[1], 2) for first in (0, 1)), range(x.shape[2])
    rows = jnp.where(row, strided(x, odd_rows, width), strided(x, even_rows, width))
    (even_columns, odd_columns), height = (range(first, x.shape[2], 2) for first in (0, 1)), range(rows.shape[1])
    return jnp.where(column, strided(rows, height, odd_columns), strided(rows, height, even_columns))


def _forward(x: Images, choice: Int[Array, " n"]) -> tuple[Outputs, Int[Array, " n"]]:
    return _component(x, choice), choice


def _backward(choice: Int[Array, " n"], gradient: Images) -> tuple[Images, None]:
    """The gradient between zeros: one fused pass, where that of slices is four and a sum."""
    n, height, width, channels = gradient.shape
    place = jnp.arange(4, dtype=choice.dtype).reshape(1, 1, 2, 1, 2, 1).swapaxes(2, 4)
    taken = place == choice.reshape(-1, 1, 1, 1, 1, 1)
    spread = jnp.where(taken, gradient[:, :, None, :, None], jnp.zeros((), gradient.dtype))
    spread = spread.reshape(n, 2 * height, width, 2, channels)  # in two steps, see mesh.py
    return spread.reshape(n, 2 * height, 2 * width, channels), None


_component.defvjp(_forward, _backward)
