"""The convolutions of efficient networks, each in the form that is fastest on the platform it runs on.

The choice is made here and nowhere else, by ``jax.lax.platform_dependent`` at lowering time. On CPU, XLA's native
depthwise and grouped convolutions are 5 to 50 times slower than shifted multiply-adds and dot products, and their
gradients more; on GPU and TPU the native ones are used. ``python -m experiments.benchmark`` measures the difference.

Layout is NHWC for images and HWIO for kernels. Padding is symmetric by default, ``k // 2`` zeros on either side, which
keeps the size at stride 1 and matches the published networks at stride 2.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from shuffle_jax.ops.permutation import check_groups
from shuffle_jax.ops.precision import at_least_float32
from shuffle_jax.ops.shift import channels_from, rotate
from shuffle_jax.typing import Array, Float, Images

Pads = tuple[tuple[int, int], tuple[int, int]]
"""Zeros before and after the rows, and before and after the columns."""


def depthwise(
    x: Images, kernel: Float[Array, "kh kw 1 c"], stride: int = 1, padding: Pads | None = None
) -> Float[Array, "n oh ow c"]:
    """Convolves every channel with its own kernel.

    ``y[n, i, j, c] = sum_ab K[a, b, 0, c] x[n, s i + a - top, s j + b - left, c]``

    On CPU a sum of ``kh kw`` shifted copies, whose kernel gradient is one variadic reduction over rows and columns;
    elsewhere the native convolution. Half-precision inputs are summed in float32.

    Args:
        x: ``(n, h, w, c)``.
        kernel: ``(kh, kw, 1, c)``, of the type of x.
        stride: s, at least 1, the same for rows and columns.
        padding: zeros ``((top, bottom), (left, right))``; ``k // 2`` on every side by default.

    Returns:
        ``(n, oh, ow, c)`` with ``oh = floor((h + top + bottom - kh) / s) + 1``.

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
    pads = resolve_padding(x.shape[1:3], kernel.shape[:2], padding)
    return lax.platform_dependent(
        x,
        kernel,
        cpu=partial(_depthwise_shifts, stride, pads),
        default=partial(_native, stride, pads, channels),
    )


def pointwise(
    x: Images, kernel: Float[Array, "1 1 i o"], groups: int = 1, rotation: int = 0
) -> Float[Array, "n h w o"]:
    """A 1x1 convolution, plain or grouped, perhaps of rotated channels.

    ``y[n, h, w, :] = x[n, h, w, :] K[0, 0]`` for one group; for g groups the k-th ``i = c / g`` input channels give
    the k-th ``o / g`` output channels. With a rotation r these are the channels ``(k i + r) mod c`` and on: those of
    :func:`~shuffle_jax.ops.shift.rotate`, which on CPU costs nothing here.

    One group is a matrix product on every platform. Several are on CPU g products of slices, or, if they are of few
    channels, one product with a matrix of blocks and zeros, in which an infinity reaches all groups; elsewhere the
    native grouped convolution.

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
        return _dot(x, jnp.roll(kernel[0, 0], rotation, axis=0) if rotation % channels else kernel[0, 0])
    few = channels <= _BLOCK_CHANNELS
    return lax.platform_dependent(
        x,
        kernel,
        cpu=partial(_pointwise_blocks if few else _pointwise_slices, groups, rotation),
        default=lambda x, kernel: _native(1, ((0, 0), (0, 0)), groups, rotate(x, rotation), kernel),
    )


def convolution(
    x: Images, kernel: Float[Array, "kh kw i o"], stride: int = 1, padding: Pads | None = None, groups: int = 1
) -> Float[Array, "n oh ow o"]:
    """A dense or grouped convolution, ``y[n, i, j, o] = sum_abc K[a, b, c, o] x[n, s i + a - top, s j + b - left, c]``.

    On CPU a 1x1 kernel is a matrix product, a larger one over at most 4 channels (an image stem) gathers its patches
    for one, and groups are convolved one by one; otherwise the native convolution.

    Args:
        x: ``(n, h, w, c)``.
        kernel: ``(kh, kw, c / g, o)``, of the type of x.
        stride: s, at least 1.
        padding: zeros ``((top, bottom), (left, right))``; ``k // 2`` on every side by default.
        groups: g, a divisor of c and o.

    Returns:
        ``(n, oh, ow, o)`` with ``oh = floor((h + top + bottom - kh) / s) + 1``.

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
    pads = resolve_padding(x.shape[1:3], kernel.shape[:2], padding)
    native = partial(_native, stride, pads, groups)
    if groups > 1:
        return lax.platform_dependent(x, kernel, cpu=partial(_slices, stride, pads, groups), default=native)
    if channels > _PATCH_CHANNELS and kernel.shape[:2] != (1, 1):
        return native(x, kernel)
    return lax.platform_dependent(x, kernel, cpu=partial(_patches_dot, stride, pads), default=native)


# Against the native form, forward with the kernel's gradient takes 0.6 to 1.05 times as long on JAX 0.12, 0.3 to 1.0 on
# 0.10 (two cores, 1 to 4 channels, 8 to 112 pixels); with 16 channels patches lose. Forward alone, 0.12 prefers native.
_PATCH_CHANNELS = 4


# Against g products of slices, one with zeros takes 0.3 to 1.2 times as long up to here, with and without gradients (2
# cores, JAX 0.10 and 0.12, 2 to 4 groups, 36 to 96 channels to half or twice as many). Above, few rows lose.
_BLOCK_CHANNELS = 96


def resolve_padding(size: tuple[int, ...], window: tuple[int, ...], padding: Pads | None) -> Pads:
    """The explicit padding of a ``window`` over an image of ``size``; ``k // 2`` on every side if none is given."""
    if padding is None:
        padding = ((window[0] // 2, window[0] // 2), (window[1] // 2, window[1] // 2))
    for n, k, (before, after) in zip(size, window, padding, strict=True):
        if n + before + after < k:
            raise ValueError(
                f"a window of {window[0]} x {window[1]} does not fit an image of {size[0]} x {size[1]} padded by "
                f"{padding}: use a larger image, fewer strides or more padding"
            )
    return padding


def _native(stride: int, pads: Pads, groups: int, x: Images, kernel: Float[Array, "kh kw i o"]) -> Images:
    return lax.conv_general_dilated(
        x,
        kernel,
        window_strides=(stride, stride),
        padding=pads,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )


def _dot(x: Images, matrix: Float[Array, "i o"]) -> Images:
    # Two-dimensional on purpose: the kernel gradient is then one plain product.
    return (x.reshape(-1, x.shape[-1]) @ matrix).reshape(*x.shape[:-1], matrix.shape[-1])


def _pointwise_blocks(groups: int, rotation: int, x: Images, kernel: Float[Array, "1 1 i o"]) -> Images:
    """One product with g blocks and zeros: g times the work, at many times the speed."""
    inputs = kernel.shape[2]
    blocks = [
        jnp.pad(weights, ((k * inputs, (groups - 1 - k) * inputs), (0, 0)))
        for k, weights in enumerate(jnp.split(kernel[0, 0], groups, axis=-1))
    ]
    return _dot(x, jnp.roll(jnp.concatenate(blocks, axis=-1), rotation, axis=0))


def _pointwise_slices(groups: int, rotation: int, x: Images, kernel: Float[Array, "1 1 i o"]) -> Images:
    # Slices are taken of the image as it is: of one that was put together, XLA reads the parts instead.
    inputs = kernel.shape[2]
    if rotation % inputs == 0:
        parts = jnp.split(x, groups, axis=-1)
        parts = parts[rotation // inputs % groups :] + parts[: rotation // inputs % groups]
    else:
        parts = [channels_from(x, k * inputs + rotation, inputs) for k in range(groups)]
    pairs = zip(parts, jnp.split(kernel[0, 0], groups, axis=-1), strict=True)
    return jnp.concatenate([_dot(part, weights) for part, weights in pairs], axis=-1)


def patches(x: Images, window: tuple[int, int], stride: int, pads: Pads) -> Float[Array, "n oh ow f"]:
    """What a window sees at each of its positions, element by element in row-major order, then channel by channel."""
    taps = _taps(_pad(x, pads), *window, stride)
    return taps[0] if len(taps) == 1 else jnp.concatenate(taps, axis=-1)


def _patches_dot(stride: int, pads: Pads, x: Images, kernel: Float[Array, "kh kw i o"]) -> Images:
    kh, kw, channels, features = kernel.shape
    return _dot(patches(x, (kh, kw), stride, pads), kernel.reshape(kh * kw * channels, features))


def _slices(stride: int, pads: Pads, groups: int, x: Images, kernel: Float[Array, "kh kw i o"]) -> Images:
    parts = zip(jnp.split(x, groups, axis=-1), jnp.split(kernel, groups, axis=-1), strict=True)
    convolve = _patches_dot if kernel.shape[:2] == (1, 1) else partial(_native, groups=1)
    return jnp.concatenate([convolve(stride, pads, x=part, kernel=weights) for part, weights in parts], axis=-1)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _depthwise_shifts(stride: int, pads: Pads, x: Images, kernel: Float[Array, "kh kw 1 c"]) -> Images:
    kh, kw, _, _ = kernel.shape
    return _sum_of_taps(_taps(_pad(x, pads), kh, kw, stride), kernel)


def _depthwise_forward(
    stride: int, pads: Pads, x: Images, kernel: Float[Array, "kh kw 1 c"]
) -> tuple[Images, tuple[Images, Float[Array, "kh kw 1 c"]]]:
    return _depthwise_shifts(stride, pads, x, kernel), (x, kernel)


def _depthwise_backward(
    stride: int, pads: Pads, saved: tuple[Images, Float[Array, "kh kw 1 c"]], gradient: Images
) -> tuple[Images, Float[Array, "kh kw 1 c"]]:
    x, kernel = saved
    kh, kw, _, channels = kernel.shape
    wide_gradient = at_least_float32(gradient)

    # The barrier keeps XLA from padding anew inside each of the kh kw products.
    padded = lax.optimization_barrier(_pad(x, pads))
    products = tuple(at_least_float32(tap) * wide_gradient for tap in _taps(padded, kh, kw, stride))
    # One reduction for all taps, over rows alone: what is left keeps the batch axis, along which XLA runs in parallel,
    # and (w, c), along which it vectorises.
    zero = jnp.zeros((), wide_gradient.dtype)
    sums = lax.reduce(products, (zero,) * (kh * kw), lambda a, b: tuple(i + j for i, j in zip(a, b, strict=True)), (1,))
    kernel_gradient = jnp.stack([s.sum((0, 1)) for s in sums]).reshape(kh, kw, 1, channels).astype(kernel.dtype)

    # The input's gradient is the full correlation of the (spread out) output gradient with the flipped kernel.
    axes = zip(x.shape[1:3], (kh, kw), pads, gradient.shape[1:3], strict=True)
    spread = [_spread(size, window, before, out, stride) for size, window, (before, _), out in axes]
    dense = lax.pad(gradient, jnp.zeros((), gradient.dtype), ((0, 0, 0), *spread, (0, 0, 0)))
    x_gradient = _sum_of_taps(_taps(dense, kh, kw, 1), kernel[::-1, ::-1])
    return x_gradient, kernel_gradient


_depthwise_shifts.defvjp(_depthwise_forward, _depthwise_backward)


def _spread(size: int, window: int, before: int, out: int, stride: int) -> tuple[int, int, int]:
    """Padding (low, high, interior) that turns ``out`` strided values into ``size + window - 1`` dense ones."""
    low = window - 1 - before
    return low, size + window - 1 - low - ((out - 1) * stride + 1), stride - 1


def _pad(x: Images, pads: Pads) -> Images:
    return jnp.pad(x, ((0, 0), *pads, (0, 0)))


def _taps(padded: Images, kh: int, kw: int, stride: int) -> list[Images]:
    """The shifted, strided views of a padded image, one for each position of the kernel, in row-major order."""
    rows = (padded.shape[1] - kh) // stride * stride + 1
    columns = (padded.shape[2] - kw) // stride * stride + 1
    return [padded[:, a : a + rows : stride, b : b + columns : stride] for a in range(kh) for b in range(kw)]


def _sum_of_taps(taps: list[Images], kernel: Float[Array, "kh kw 1 c"]) -> Images:
    channels = kernel.shape[-1]
    weights = kernel.reshape(-1, 1, 1, 1, channels)
    products = [at_least_float32(tap) * at_least_float32(w) for tap, w in zip(taps, weights, strict=True)]
    return sum(products[1:], start=products[0]).astype(taps[0].dtype)
