"""The convolutions of efficient networks, each in the form that is fastest on the platform it runs on.

The choice is made here and nowhere else, at lowering time, see :mod:`shuffle_jax.ops.form`. On CPU, XLA's native
depthwise and grouped convolutions are 5 to 50 times slower than shifted multiply-adds and dot products, and their
gradients more; on GPU and TPU the native ones are used. ``python -m experiments.benchmark`` measures the difference.

Layout is NHWC for images and HWIO for kernels. Padding is symmetric by default, ``k // 2`` zeros on either side, which
keeps the size at stride 1 and matches the published networks at stride 2. With "wrap" it is the opposite side of the
image in place of zeros: at stride 1 the convolution then commutes with every circular shift.
"""

from __future__ import annotations

from functools import partial
from typing import Literal, get_args

import jax.numpy as jnp
from jax import lax

from shuffle_jax.ops.depthwise_shifts import Pads, padded, shifted, sum_of_shifts
from shuffle_jax.ops.form import by_platform, is_native
from shuffle_jax.ops.permutation import check_groups
from shuffle_jax.ops.shift import channels_from, rotate
from shuffle_jax.ops.wrap import wrap
from shuffle_jax.typing import Array, Float, Images, Outputs

Padding = Literal["zeros", "wrap"]
"""What the ``k // 2`` values beyond each side of an image are: zeros, or those of the opposite side."""


def depthwise(
    x: Images,
    kernel: Float[Array, "kh kw 1 c"],
    stride: int = 1,
    padding: Pads | Padding = "zeros",
    dilation: int = 1,
) -> Float[Array, "n oh ow c"]:
    """Convolves every channel with its own kernel.

    ``y[n, i, j, c] = sum_ab K[a, b, 0, c] x[n, s i + d a - top, s j + d b - left, c]``

    On CPU a sum of ``kh kw`` shifted copies, :func:`shuffle_jax.ops.depthwise_shifts.sum_of_shifts`; elsewhere the
    native convolution. Half-precision inputs are summed in float32.

    Args:
        x: ``(n, h, w, c)``.
        kernel: ``(kh, kw, 1, c)``, of the type of x.
        stride: s, at least 1, the same for rows and columns.
        padding: ``k // 2`` "zeros" on every side, k of the dilated window, or as many values of the opposite side,
            "wrap"; or numbers of zeros ``((top, bottom), (left, right))``.
        dilation: d, at least 1, from one tap to the next; the window is one of ``k = d (kh - 1) + 1``.

    Returns:
        ``(n, oh, ow, c)`` with ``oh = floor((h + top + bottom - k) / s) + 1``.

    Raises:
        ValueError: the kernel does not fit the channels, or is larger than the padded image.

    >>> x = jnp.ones((1, 3, 3, 1))
    >>> depthwise(x, jnp.ones((3, 3, 1, 1)))[0, :, :, 0].tolist()
    [[4.0, 6.0, 4.0], [6.0, 9.0, 6.0], [4.0, 6.0, 4.0]]
    """
    channels = x.shape[-1]
    if kernel.shape[2:] != (1, channels):
        raise ValueError(
            f"a depthwise kernel for {channels} channels has the shape (kh, kw, 1, {channels}), not {kernel.shape}"
        )
    x, pads = around(x, dilated(kernel.shape[:2], dilation), padding)
    return by_platform(
        x,
        kernel,
        cpu=partial(sum_of_shifts, stride, pads, dilation=dilation),
        default=partial(_native, stride, pads, channels, dilation=dilation),
    )


def pointwise(
    x: Images, kernel: Float[Array, "1 1 i o"], groups: int = 1, rotation: int = 0
) -> Float[Array, "n h w o"]:
    """A 1x1 convolution, plain or grouped, perhaps of rotated channels.

    ``y[n, h, w, :] = x[n, h, w, :] K[0, 0]`` for one group; for g groups the k-th ``i = c / g`` input channels give
    the k-th ``o / g`` output channels. With a rotation r these are the channels ``(k i + r) mod c`` and on: those of
    :func:`~shuffle_jax.ops.shift.rotate`, which on CPU costs nothing here.

    One group is a matrix product on every platform, and a convolution in the native form that is asked for. Several
    are on CPU g products of slices, or, if the kernel is small, one product with a matrix of blocks and zeros, in which
    an infinity reaches all groups; elsewhere the native grouped convolution.

    Args:
        x: ``(n, h, w, c)``.
        kernel: ``(1, 1, c / g, o)``, of the type of x.
        groups: g, a divisor of c and o.
        rotation: r, any integer.

    Returns:
        ``(n, h, w, o)``.

    Raises:
        ValueError: g does not divide the channels, or the kernel does not fit them.

    >>> pointwise(jnp.array([[[[1.0, 2.0]]]]), jnp.array([[[[3.0, 4.0]]]]), groups=2).tolist()
    [[[[3.0, 8.0]]]]
    """
    channels, features = x.shape[-1], kernel.shape[-1]
    check_groups(channels, groups)
    check_groups(features, groups)
    if kernel.shape[:3] != (1, 1, channels // groups):
        raise ValueError(
            f"a 1x1 kernel for {channels} channels in {groups} groups has the shape "
            f"(1, 1, {channels // groups}, o), not {kernel.shape}"
        )
    if groups == 1:
        kernel = jnp.roll(kernel, rotation, axis=2) if rotation % channels else kernel
        return _native(1, ((0, 0), (0, 0)), 1, x, kernel) if is_native() else _dot(x, kernel[0, 0])
    few = channels <= _BLOCK_CHANNELS or channels * features <= _BLOCK_CHANNELS**2
    return by_platform(
        x,
        kernel,
        cpu=partial(_pointwise_blocks if few else _pointwise_slices, groups, rotation),
        default=lambda x, kernel: _native(1, ((0, 0), (0, 0)), groups, rotate(x, rotation), kernel),
    )


def convolution(
    x: Images,
    kernel: Float[Array, "kh kw i o"],
    stride: int = 1,
    padding: Pads | Padding = "zeros",
    groups: int = 1,
    dilation: int = 1,
) -> Float[Array, "n oh ow o"]:
    """A dense or grouped convolution.

    ``y[n, i, j, o] = sum_abc K[a, b, c, o] x[n, s i + d a - top, s j + d b - left, c]``

    On CPU a 1x1 kernel is a matrix product, a larger one over at most 4 channels (an image stem) gathers its patches
    for one, and groups are convolved one by one; otherwise the native convolution.

    Args:
        x: ``(n, h, w, c)``.
        kernel: ``(kh, kw, c / g, o)``, of the type of x.
        stride: s, at least 1.
        padding: ``k // 2`` "zeros" on every side, k of the dilated window, or as many values of the opposite side,
            "wrap"; or numbers of zeros ``((top, bottom), (left, right))``.
        groups: g, a divisor of c and o.
        dilation: d, at least 1, from one tap to the next; the window is one of ``k = d (kh - 1) + 1``.

    Returns:
        ``(n, oh, ow, o)`` with ``oh = floor((h + top + bottom - k) / s) + 1``.

    Raises:
        ValueError: g does not divide the channels, or the kernel does not fit them, or is larger than the padded image.

    >>> convolution(jnp.ones((1, 2, 2, 1)), jnp.ones((1, 1, 1, 3)), stride=2).shape
    (1, 1, 1, 3)
    """
    channels = x.shape[-1]
    check_groups(channels, groups)
    check_groups(kernel.shape[-1], groups)
    if kernel.shape[2] != channels // groups:
        raise ValueError(
            f"a kernel for {channels} channels{f' in {groups} groups' * (groups > 1)} has the shape "
            f"(kh, kw, {channels // groups}, o), not {kernel.shape}"
        )
    x, pads = around(x, dilated(kernel.shape[:2], dilation), padding)
    native = partial(_native, stride, pads, groups, dilation=dilation)
    if groups > 1:
        return by_platform(x, kernel, cpu=partial(_slices, stride, pads, groups, dilation), default=native)
    if channels > _PATCH_CHANNELS and kernel.shape[:2] != (1, 1):
        return native(x, kernel)
    return by_platform(x, kernel, cpu=partial(_patches_dot, stride, pads, dilation=dilation), default=native)


# Against the native form, forward with the kernel's gradient takes 0.6 to 1.05 times as long on JAX 0.12, 0.3 to 1.0 on
# 0.10 (two cores, 1 to 4 channels, 8 to 112 pixels); with 16 channels patches lose. Forward alone, 0.12 prefers native.
_PATCH_CHANNELS = 4


# With 3 x 3 taps of 3 channels a sum takes 0.3 of the time of a concatenation (two cores, JAX 0.12); it grows with the
# square of the taps.
_SUMMED_TAPS = 9


# Against g products of slices, one with zeros takes 0.3 to 1.3 times as long up to here, with and without gradients,
# and compiles in a third of the time (2 cores, JAX 0.10 and 0.12, 2 to 4 groups of 36 to 96 channels to half or twice
# as many, and 16 and 32 groups of 128 to 32). Above, few rows lose.
_BLOCK_CHANNELS = 96


def dilated(window: tuple[int, ...], dilation: int) -> tuple[int, int]:
    """Rows and columns that a window of so many taps spans, ``d (k - 1) + 1``; a ValueError for d below 1."""
    if dilation < 1:
        raise ValueError(f"dilation must be at least 1, got {dilation}")
    return dilation * (window[0] - 1) + 1, dilation * (window[1] - 1) + 1


def around(x: Images, window: tuple[int, ...], padding: Pads | Padding | None) -> tuple[Outputs, Pads]:
    """An image with what its padding takes from itself, and the zeros that are still to be put around it.

    >>> x, pads = around(jnp.arange(1.0, 4.0).reshape(1, 1, 3, 1), (1, 3), "wrap")
    >>> x.ravel().tolist(), pads
    ([3.0, 1.0, 2.0, 3.0, 1.0], ((0, 0), (0, 0)))
    """
    pads = resolve_padding(x.shape[1:3], window, padding)
    if padding != "wrap":
        return x, pads
    return wrap(x, pads), ((0, 0), (0, 0))


def resolve_padding(size: tuple[int, ...], window: tuple[int, ...], padding: Pads | Padding | None) -> Pads:
    """How much is around an image of ``size`` under a ``window``: ``k // 2`` on every side unless numbers are given."""
    if isinstance(padding, str) and padding not in get_args(Padding):
        raise ValueError(f"there is no padding {padding!r}: choose one of {list(get_args(Padding))}, or give numbers")
    if padding is None or isinstance(padding, str):
        padding = ((window[0] // 2, window[0] // 2), (window[1] // 2, window[1] // 2))
    for n, k, (before, after) in zip(size, window, padding, strict=True):
        if n + before + after < k:
            raise ValueError(
                f"a window of {window[0]} x {window[1]} does not fit an image of {size[0]} x {size[1]} padded by "
                f"{padding}: use a larger image, fewer strides or more padding"
            )
    return padding


def _native(
    stride: int, pads: Pads, groups: int, x: Images, kernel: Float[Array, "kh kw i o"], dilation: int = 1
) -> Outputs:
    return lax.conv_general_dilated(
        x,
        kernel,
        window_strides=(stride, stride),
        padding=pads,
        rhs_dilation=(dilation, dilation),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )


def _dot(x: Images, matrix: Float[Array, "i o"]) -> Outputs:
    # Two-dimensional on purpose: the kernel gradient is then one plain product.
    return (x.reshape(-1, x.shape[-1]) @ matrix).reshape(*x.shape[:-1], matrix.shape[-1])


def _pointwise_blocks(groups: int, rotation: int, x: Images, kernel: Float[Array, "1 1 i o"]) -> Outputs:
    """One product with g blocks and zeros: g times the work, at many times the speed."""
    inputs, features = kernel.shape[2:]
    weights = kernel.reshape(inputs, groups, features // groups)
    matrix = jnp.where(jnp.eye(groups, dtype=bool)[:, None, :, None], weights, 0).reshape(groups * inputs, features)
    return _dot(x, jnp.roll(matrix, rotation, axis=0))


def _pointwise_slices(groups: int, rotation: int, x: Images, kernel: Float[Array, "1 1 i o"]) -> Outputs:
    # Slices are taken of the image as it is: of one that was put together, XLA reads the parts instead.
    inputs = kernel.shape[2]
    if rotation % inputs == 0:
        parts = jnp.split(x, groups, axis=-1)
        parts = parts[rotation // inputs % groups :] + parts[: rotation // inputs % groups]
    else:
        parts = [channels_from(x, k * inputs + rotation, inputs) for k in range(groups)]
    pairs = zip(parts, jnp.split(kernel[0, 0], groups, axis=-1), strict=True)
    return jnp.concatenate([_dot(part, weights) for part, weights in pairs], axis=-1)


def patches(
    x: Images, window: tuple[int, int], stride: int, pads: Pads, dilation: int = 1
) -> Float[Array, "n oh ow f"]:
    """What a window sees at each of its positions, element by element in row-major order, then channel by channel."""
    taps = shifted(padded(x, pads), *window, stride, dilation)
    return taps[0] if len(taps) == 1 else jnp.concatenate(taps, axis=-1)


def _patches_dot(stride: int, pads: Pads, x: Images, kernel: Float[Array, "kh kw i o"], dilation: int = 1) -> Outputs:
    kh, kw, channels, features = kernel.shape
    taps = shifted(padded(x, pads), kh, kw, stride, dilation)
    seen = _side_by_side(taps) if 1 < len(taps) <= _SUMMED_TAPS else patches(x, (kh, kw), stride, pads, dilation)
    return _dot(seen, kernel.reshape(kh * kw * channels, features))


def _side_by_side(parts: list[Images]) -> Outputs:
    """Their channels one after the other, as a sum of each between zeros.

    XLA fuses that, and uses all cores for it; a concatenation of a few channels it copies value by value on one.
    """
    channels = parts[0].shape[-1]
    zero = jnp.zeros((), parts[0].dtype)
    none = ((0, 0, 0),) * 3
    ends = [(k * channels, (len(parts) - 1 - k) * channels, 0) for k in range(len(parts))]
    return sum((lax.pad(part, zero, (*none, end)) for part, end in zip(parts, ends, strict=True)), start=zero)


def _slices(
    stride: int, pads: Pads, groups: int, dilation: int, x: Images, kernel: Float[Array, "kh kw i o"]
) -> Outputs:
    parts = zip(jnp.split(x, groups, axis=-1), jnp.split(kernel, groups, axis=-1), strict=True)
    form = _patches_dot if kernel.shape[:2] == (1, 1) else partial(_native, groups=1)
    convolve = partial(form, stride, pads, dilation=dilation)
    return jnp.concatenate([convolve(x=part, kernel=weights) for part, weights in parts], axis=-1)
