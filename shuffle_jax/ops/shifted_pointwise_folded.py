"""The fused step of AddressNet without the shifted image.

A grouped 1x1 convolution reads slices of its input. A channel shift in front of it only makes the slices begin
elsewhere. An address shift commutes with it where each of its groups moves as a whole: then it is the smaller of the
two arrays that moves, and the image as it was shifted is never made.
"""

from __future__ import annotations

import math
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from shuffle_jax.ops import convolution
from shuffle_jax.ops.shift import Boundary, Offsets, address_shift, channels_from, pointer_reads, rotate
from shuffle_jax.typing import Array, Float, Images, Outputs

Rims = tuple[tuple[int, int], ...]
"""Ranges of pixels, (first, last + 1), one for each piece that is cut out."""

Rows = Float[Array, "n 1 s c"]


def folded(
    x: Images, kernel: Float[Array, "1 1 i o"], groups: int, rotation: int, offsets: Offsets, boundary: Boundary
) -> Float[Array, "n h w o"]:
    """Rotates the channels, moves them over the image, and convolves them in groups.

    ``y = pointwise(address_shift(rotate(x, r), offsets, boundary), K, g)``

    It rotates the rows of the kernel, or the slices that are read, at no cost. Where there are several groups, and
    fewer channels out than in, the products move and not the image; if several offsets share a group, its parts.

    Args:
        x: ``(n, h, w, c)``.
        kernel: ``(1, 1, c / g, o)``, of the type of x.
        groups: g, a divisor of c and o.
        rotation: r, channels by which they rotate to the left.
        offsets: of the address shift; none for no address shift.
        boundary: of the address shift.

    Returns:
        ``(n, h, w, o)``.

    Raises:
        ValueError: as :func:`~shuffle_jax.ops.shift.address_shift` and
            :func:`~shuffle_jax.ops.convolution.pointwise`.

    >>> x, kernel = jnp.arange(4.0).reshape(1, 1, 1, 4), jnp.ones((1, 1, 2, 2))
    >>> folded(x, kernel, 2, 1, (), "wrap").ravel().tolist()
    [3.0, 3.0]

    Source: this project.
    """
    # In as many groups as both need, each moves as a whole; those that make the same outputs are added afterwards.
    channels, outputs = x.shape[-1], kernel.shape[-1]
    parts = math.lcm(groups, len(offsets) or 1)
    if parts > groups == 1 or parts * outputs > groups * channels:
        return convolution.pointwise(address_shift(rotate(x, rotation), offsets, boundary), kernel, groups)
    if parts > groups:
        jax.eval_shape(partial(convolution.pointwise, groups=groups), x, kernel)  # what does not fit is told in groups
        kernel = _split_groups(kernel, groups, parts // groups)
    if boundary == "pointer" and offsets:
        moved = _products_by_pointer(x, kernel, parts, rotation, offsets)
    else:
        moved = address_shift(convolution.pointwise(x, kernel, parts, rotation), offsets, boundary)
    return moved if parts == groups else _add_neighbours(moved, groups, parts // groups)


def _split_groups(kernel: Float[Array, "1 1 i o"], groups: int, by: int) -> Float[Array, "1 1 j p"]:
    """The kernel of a convolution in ``by`` times as many groups, whose outputs remain to be added."""
    _, _, inputs, outputs = kernel.shape
    table = kernel.reshape(by, inputs // by, groups, outputs // groups)
    return table.transpose(1, 2, 0, 3).reshape(1, 1, inputs // by, by * outputs)


def _add_neighbours(x: Images, groups: int, by: int) -> Outputs:
    parts = jnp.split(x, groups * by, axis=-1)
    return jnp.concatenate([sum(parts[k * by + 1 : (k + 1) * by], parts[k * by]) for k in range(groups)], axis=-1)


def _products_by_pointer(
    x: Images, kernel: Float[Array, "1 1 i o"], groups: int, rotation: int, offsets: Offsets
) -> Float[Array, "n h w o"]:
    """Moves products; those of what a pointer reads from the neighbouring channels, a rim, are made apart."""
    n, h, w, c = x.shape
    reads = [pointer_reads(h * w, dh * w + dw) for dh, dw in offsets]
    rims = tuple((start, stop) for read in reads for start, stop, further in read if further)
    rows, cut = _with_rims(rims, x.reshape(n, h * w, c)[:, None])
    cut_out = iter(cut)
    parts = jnp.split(convolution.pointwise(rows, kernel, groups, rotation), len(offsets), axis=-1)
    kernels = jnp.split(kernel, len(offsets), axis=-1)
    size, moved = c // len(offsets), []
    for k, (part, weights, read) in enumerate(zip(parts, kernels, reads, strict=True)):
        pieces = []
        for start, stop, further in read:
            if further == 0:
                pieces.append(part[:, :, start:stop])
            else:
                rim = channels_from(next(cut_out), k * size + rotation + further, size)
                pieces.append(convolution.pointwise(rim, weights, groups // len(offsets)))
        moved.append(jnp.concatenate(pieces, axis=2))
    return jnp.concatenate(moved, axis=-1)[:, 0].reshape(n, h, w, kernel.shape[-1])


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _with_rims(rims: Rims, rows: Rows) -> tuple[Rows, list[Rows]]:
    """An image, and slices of its pixels, whose gradients are added in place.

    Otherwise they are spread out between zeros, and of each value of the sum XLA asks whether it is in one of them.
    """
    return rows, [rows[:, :, start:stop] for start, stop in rims]


def _with_rims_forward(rims: Rims, rows: Rows) -> tuple[tuple[Rows, list[Rows]], None]:
    return _with_rims(rims, rows), None


def _with_rims_backward(rims: Rims, _: None, gradients: tuple[Rows, list[Rows]]) -> tuple[Rows]:
    gradient, parts = gradients
    for (start, stop), part in zip(rims, parts, strict=True):
        own = gradient[:, :, start:stop] + part
        gradient = lax.dynamic_update_slice_in_dim(gradient, own, start, axis=2)
    return (gradient,)


_with_rims.defvjp(_with_rims_forward, _with_rims_backward)
