"""Convolutions in which every image has kernels of its own.

They are batched matrix products over patches. Folding the images into the groups of one grouped convolution, or
``vmap`` over a convolution, makes XLA gather a batch that is split over devices; these products stay where they are.
"""

from __future__ import annotations

import math

import jax.numpy as jnp

from shuffle_jax.ops.convolution import Padding, Pads, around, patches
from shuffle_jax.ops.permutation import check_groups
from shuffle_jax.typing import Array, Float, Images


def convolution(
    x: Images, kernels: Float[Array, "n kh kw i o"], stride: int = 1, padding: Pads | Padding = "zeros", groups: int = 1
) -> Float[Array, "n oh ow o"]:
    """A convolution with one kernel for each image.

    ``y[n, i, j, o] = sum_abc K[n, a, b, c, o] x[n, s i + a - top, s j + b - left, c]``; of g groups, the k-th ``c / g``
    channels give the k-th ``o / g``.

    Args:
        x: ``(n, h, w, c)``.
        kernels: ``(n, kh, kw, c / g, o)``, of the type of x.
        stride: s, at least 1.
        padding: ``k // 2`` "zeros" on every side, or as many values of the opposite side, "wrap"; or numbers of zeros
            ``((top, bottom), (left, right))``.
        groups: g, a divisor of c and o.

    Returns:
        ``(n, oh, ow, o)`` with ``oh = floor((h + top + bottom - kh) / s) + 1``.

    Raises:
        ValueError: the kernels do not fit the images or their channels, or are larger than the padded images.

    >>> convolution(jnp.ones((2, 1, 1, 1)), jnp.array([3.0, 4.0]).reshape(2, 1, 1, 1, 1)).ravel().tolist()
    [3.0, 4.0]
    """
    n, channels, features = x.shape[0], x.shape[-1], kernels.shape[-1]
    check_groups(channels, groups)
    check_groups(features, groups)
    if kernels.shape[0] != n or kernels.shape[3] != channels // groups:
        raise ValueError(
            f"kernels for {n} images of {channels} channels in {groups} groups have the shape "
            f"({n}, kh, kw, {channels // groups}, o), not {kernels.shape}"
        )
    kh, kw = kernels.shape[1:3]
    x, pads = around(x, (kh, kw), padding)
    columns = patches(x, (kh, kw), stride, pads)
    return _product(columns, kernels.reshape(n, kh * kw, channels // groups, features), groups)


def affine(
    x: Images,
    rows: Float[Array, "n r o"],
    window: tuple[int, int],
    stride: int = 1,
    padding: Pads | Padding = "zeros",
    groups: int = 1,
) -> Float[Array, "n oh ow o"]:
    """A convolution with one kernel and one bias for each image: :func:`convolution`, plus the bias.

    Where a window sees fewer values than there are features, it sees a 1 as well, and the bias is within the product.

    Args:
        x: ``(n, h, w, c)``.
        rows: ``(n, kh kw c / g + 1, o)``, of the type of x: the kernels, and in the last row the biases.
        window: (kh, kw).
        stride: as of :func:`convolution`.
        padding: as there.
        groups: as there.

    Returns:
        ``(n, oh, ow, o)``.

    Raises:
        ValueError: as there, or the rows do not fit.

    >>> affine(jnp.ones((2, 1, 1, 1)), jnp.array([[3.0, 1.0], [4.0, 2.0]]).reshape(2, 2, 1), (1, 1)).ravel().tolist()
    [4.0, 6.0]
    """
    n, channels, features = x.shape[0], x.shape[-1], rows.shape[-1]
    size = math.prod(window) * channels // groups
    if rows.shape[:2] != (n, size + 1):
        raise ValueError(
            f"kernels and biases for {n} images of {channels} channels in {groups} groups, seen by {window}, have the "
            f"shape ({n}, {size + 1}, o), not {rows.shape}"
        )
    if groups > 1 or size > features:
        kernels = rows[:, :-1].reshape(n, *window, channels // groups, features)
        return convolution(x, kernels, stride, padding, groups) + rows[:, None, None, -1]
    x, pads = around(x, window, padding)
    columns = patches(x, window, stride, pads)
    columns = jnp.concatenate([columns, jnp.ones_like(columns[..., :1])], axis=-1)
    return _product(columns, rows[:, None], 1)


def _product(
    columns: Float[Array, "n oh ow f"], kernels: Float[Array, "n t i o"], groups: int
) -> Float[Array, "n oh ow o"]:
    """What a window sees, by the elements of the kernel and then by channel, times the kernel of the image."""
    n, *size, seen = columns.shape
    taps, inputs, features = kernels.shape[1:]
    positions = math.prod(size)
    columns = columns.reshape(n, positions, seen)
    if groups == 1:
        y = columns @ kernels.reshape(n, seen, features)
    else:
        parts = columns.reshape(n, positions, taps, groups, inputs)
        split = kernels.reshape(n, taps, inputs, groups, features // groups)
        y = jnp.einsum("npagc,nacgo->npgo", parts, split).reshape(n, positions, features)
    return y.reshape(n, *size, features)
