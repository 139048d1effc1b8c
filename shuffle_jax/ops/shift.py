"""Shifts: channels moved along the channel axis, groups of channels moved over the image, features moved past a window.

Each moves values and computes nothing. In memory that holds one channel after the other they are changes of a pointer;
in XLA each is a copy unless it meets an operation that can read from elsewhere instead:
:func:`~shuffle_jax.ops.shifted_pointwise.shifted_pointwise` is that operation.

An offset ``(dh, dw)`` says where a channel reads from: ``y[h, w] = x[h + dh, w + dw]``.
"""

from __future__ import annotations

from typing import Literal, get_args

import jax.numpy as jnp
import numpy as np
from jax import lax

from shuffle_jax.ops.permutation import half_group
from shuffle_jax.typing import Array, Num

Boundary = Literal["pointer", "zero", "wrap"]
"""What is read beyond the edge of the image: the neighbour in memory, zero, or the opposite edge."""

Offsets = tuple[tuple[int, int], ...]
"""Where each group of channels reads from, (rows down, columns right)."""

LEFT_UP_RIGHT_DOWN: Offsets = ((0, 1), (1, 0), (0, -1), (-1, 0))
"""The four of the address shift: each group moves one pixel to the left, up, to the right, or down."""

GRID: Offsets = tuple((k // 3 - 1, k % 3 - 1) for k in range(9))
"""The nine of ShiftNet: a 3 x 3 window, row by row."""


def channel_shift(x: Num[Array, "*batch c"], groups: int) -> Num[Array, "*batch c"]:
    """Rotates the channels to the left by half a group: ``y[..., i] = x[..., (i + c / (2 g)) mod c]``.

    A grouped convolution behind it sees half of its own group and half of the next; k shifts reach k + 1 groups, where
    one shuffle reaches all. The same map as :func:`~shuffle_jax.ops.mixing.permute` by
    :func:`~shuffle_jax.ops.permutation.channel_shift`.

    Args:
        x: array with c channels last.
        groups: g; 2 g divides c.

    Returns:
        Array like x.

    Raises:
        ValueError: 2 g does not divide c.

    >>> channel_shift(jnp.arange(8), groups=2).tolist()
    [2, 3, 4, 5, 6, 7, 0, 1]

    Source: He, Liu, Zhong and Ma, AddressNet, 2019.
    """
    return rotate(x, half_group(x.shape[-1], groups))


def rotate(x: Num[Array, "*batch c"], by: int) -> Num[Array, "*batch c"]:
    """Rotates the channels to the left: ``y[..., i] = x[..., (i + by) mod c]``, for any integer.

    >>> rotate(jnp.arange(4), by=-1).tolist()
    [3, 0, 1, 2]
    """
    by %= x.shape[-1]
    if by == 0:
        return x
    first, second = jnp.split(x, [by], axis=-1)  # a split, whose gradient is a concatenation; that of slices is a sum
    return jnp.concatenate([second, first], axis=-1)


def address_shift(
    x: Num[Array, "n h w c"], offsets: Offsets = LEFT_UP_RIGHT_DOWN, boundary: Boundary = "pointer"
) -> Num[Array, "n h w c"]:
    """Moves each of d groups of channels over the image: ``y[n, h, w, i] = x[n, h + dh, w + dw, i]``.

    Channel i is in group ``k = floor(i d / c)`` and moves by ``(dh, dw) = offsets[k]``. Beyond the edge it reads

    - "pointer": what a moved pointer into channel-major memory finds. With the sample as a row of ``c h w`` numbers,
      ``y[i h w + p] = x[(i h w + p + dh w + dw) mod c h w]``: the next row of the image to the left and right of it,
      the neighbouring channel above and below. The four directions in their order never leave the sample, others go
      on at its other end.
    - "zero": zeros. This is a depthwise 3x3 convolution with one 1 in each kernel.
    - "wrap": the opposite edge.

    All three agree where nothing is read from beyond the edge.

    Args:
        x: ``(n, h, w, c)``.
        offsets: of the d groups; d divides c, and no offset is larger than the image. With none, nothing moves.
        boundary: one of the three.

    Returns:
        Array like x.

    Raises:
        ValueError: d does not divide c, an offset is larger than the image, or there is no such boundary.

    >>> x = jnp.arange(1.0, 5.0).reshape(1, 1, 4, 1)
    >>> [address_shift(x, ((0, 1),), boundary).ravel().tolist() for boundary in ("zero", "wrap")]
    [[2.0, 3.0, 4.0, 0.0], [2.0, 3.0, 4.0, 1.0]]

    Source: He, Liu, Zhong and Ma, AddressNet, 2019, which has four offsets and the pointer.
    """
    check_shift(x.shape, offsets, boundary)
    if not any(dh or dw for dh, dw in offsets):
        return x
    if boundary == "pointer":
        return _by_pointer(x, offsets)
    move = _fill_zeros if boundary == "zero" else _wrap
    parts = jnp.split(x, len(offsets), axis=-1)
    return jnp.concatenate([move(part, *offset) for part, offset in zip(parts, offsets, strict=True)], axis=-1)


def grid_shift(x: Num[Array, "n h w c"]) -> Num[Array, "n h w c"]:
    """The shift of ShiftNet: channels take turns in moving by the nine offsets of :data:`GRID`, zeros follow.

    ``y[n, h, w, i] = x[n, h + dh, w + dw, i]`` with ``dh = floor(i / 3) mod 3 - 1`` and ``dw = i mod 3 - 1`` for
    ``i < 9 floor(c / 9)``. The channels left over, fewer than nine, stay in place.

    Args:
        x: ``(n, h, w, c)``, of any c; fewer than nine channels all stay.

    Returns:
        Array like x.

    >>> grid_shift(jnp.ones((1, 3, 3, 10))).sum((1, 2))[0].tolist()
    [4.0, 6.0, 4.0, 6.0, 9.0, 6.0, 4.0, 6.0, 4.0, 9.0]

    Source: Wu et al., Shift: A Zero FLOP, Zero Parameter Alternative to Spatial Convolutions, 2018, and its code.
    """
    _, height, width, channels = x.shape
    centre, moving = GRID.index((0, 0)), channels // len(GRID) * len(GRID)
    place = np.arange(channels)
    turn = np.where(place < moving, place % len(GRID), centre).reshape(1, 1, 1, channels)
    # Each value is chosen among nine: on CPU a quarter to four fifths of the time of moving every ninth channel (two
    # cores, JAX 0.10 and 0.12, 48 to 192 channels), which has to interleave them again.
    padded, y = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0))), x
    for k, (dh, dw) in enumerate(GRID):
        if k != centre:
            y = jnp.where(turn == k, padded[:, 1 + dh : 1 + dh + height, 1 + dw : 1 + dw + width], y)
    return y


def shortcut_shift(x: Num[Array, "*batch c"], new: Num[Array, "*batch k"]) -> Num[Array, "*batch c"]:
    """The shortcut that moves on instead of adding: the oldest k of c channels leave, k new ones follow the others.

    ``y = [x[..., k:] | new]``, the window of c channels that slides along everything a stage has made.

    Args:
        x: array with c channels last.
        new: array with k channels last, 1 to c, and otherwise like x.

    Returns:
        Array like x.

    Raises:
        ValueError: there are more new channels than channels, or none, or the arrays do not match.

    >>> shortcut_shift(jnp.array([1, 2, 3, 4]), jnp.array([5, 6])).tolist()
    [3, 4, 5, 6]

    Source: He, Liu, Zhong and Ma, AddressNet, 2019, a figure; that the oldest channels leave is this project's choice.
    """
    channels, count = x.shape[-1], new.shape[-1]
    if x.shape[:-1] != new.shape[:-1] or not 0 < count <= channels:
        raise ValueError(
            f"an array of the shape {new.shape} cannot follow one of {x.shape}: give 1 to {channels} new channels and "
            "otherwise the same shape"
        )
    return jnp.concatenate([x[..., count:], new], axis=-1)


def check_shift(shape: tuple[int, ...], offsets: Offsets, boundary: Boundary) -> None:
    """Raises a ValueError unless images of a shape ``(n, h, w, c)`` can be shifted so."""
    _, height, width, channels = shape
    if boundary not in get_args(Boundary):
        raise ValueError(f"there is no boundary {boundary!r}: choose one of {list(get_args(Boundary))}")
    if offsets and channels % len(offsets):
        raise ValueError(
            f"{channels} channels cannot move in {len(offsets)} directions: give a multiple of {len(offsets)}, or "
            "other offsets"
        )
    for dh, dw in offsets:
        if abs(dh) > height or abs(dw) > width:
            raise ValueError(
                f"a shift by {(dh, dw)} is larger than the image of {height} x {width}: give offsets within it"
            )


def _fill_zeros(part: Num[Array, "n h w c"], dh: int, dw: int) -> Num[Array, "n h w c"]:
    # Negative padding cuts off: one operation, whose gradient is one as well.
    return lax.pad(part, jnp.zeros((), part.dtype), ((0, 0, 0), (-dh, dh, 0), (-dw, dw, 0), (0, 0, 0)))


def _wrap(part: Num[Array, "n h w c"], dh: int, dw: int) -> Num[Array, "n h w c"]:
    for axis, offset in ((1, dh), (2, dw)):
        by = offset % part.shape[axis]
        if by:
            first, second = jnp.split(part, [by], axis=axis)
            part = jnp.concatenate([second, first], axis=axis)
    return part


def _by_pointer(x: Num[Array, "n h w c"], offsets: Offsets) -> Num[Array, "n h w c"]:
    n, h, w, c = x.shape
    rows = x.reshape(n, h * w, c)
    parts = jnp.split(rows, len(offsets), axis=-1)
    size, moved = c // len(offsets), []
    for k, (part, (dh, dw)) in enumerate(zip(parts, offsets, strict=True)):
        pieces = []
        for start, stop, neighbour in pointer_reads(h * w, dh * w + dw):
            whole = part if neighbour == 0 else channels_from(rows[:, start:stop], k * size + neighbour, size)
            pieces.append(whole[:, start:stop] if neighbour == 0 else whole)
        moved.append(jnp.concatenate(pieces, axis=1))
    return jnp.concatenate(moved, axis=-1).reshape(x.shape)


def pointer_reads(pixels: int, offset: int) -> list[tuple[int, int, int]]:
    """What a pointer that is moved by ``offset`` reads, in order: (first pixel, last + 1, channels further on).

    >>> pointer_reads(9, 3), pointer_reads(9, -3)
    ([(3, 9, 0), (0, 3, 1)], [(6, 9, -1), (0, 6, 0)])
    """
    channels, start = divmod(offset, pixels)
    reads = [(start, pixels, channels), (0, start, channels + 1)]
    return [(first, last, further) for first, last, further in reads if first < last]


def channels_from(x: Num[Array, "*batch c"], start: int, size: int) -> Num[Array, "*batch size"]:
    """The channels ``start`` to ``start + size - 1``, counted around the end.

    >>> channels_from(jnp.arange(4), start=-1, size=3).tolist()
    [3, 0, 1]
    """
    channels = x.shape[-1]
    start %= channels
    if start + size <= channels:
        return x[..., start : start + size]
    return jnp.concatenate([x[..., start:], x[..., : start + size - channels]], axis=-1)
