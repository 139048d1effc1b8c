"""Rolling pointwise convolution: a 1x1 convolution in groups whose windows of channels overlap and go around the end.

A grouped 1x1 convolution cuts the channels into g windows that share nothing, so that nothing ever leaves a group
without a mixer. Here the windows are as wide and cost as much, but each begins less than a width after the one before.
"""

from __future__ import annotations

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from shuffle_jax.ops.convolution import pointwise
from shuffle_jax.ops.form import by_platform
from shuffle_jax.ops.permutation import check_groups
from shuffle_jax.ops.shift import channels_from
from shuffle_jax.typing import Array, Float, Images, Int, Outputs

ROUNDING = 1e-6
"""What a product of an overlap and a width may lack to a whole number: 0.29 x 100 is 28.999999999999996."""


def rolling_pointwise(
    x: Images, kernel: Float[Array, "1 1 j o"], groups: int, overlap: float = 0.5
) -> Float[Array, "n h w o"]:
    """A 1x1 convolution of windows of channels that overlap.

    ``y[..., o] = sum_j K[0, 0, j, o] x[..., (s_o + j) mod c]`` with the starts s of :func:`window_starts` and j from 0
    to ``w - 1``, ``w = c / g``.

    Without overlap it is :func:`shuffle_jax.ops.convolution.pointwise` in g groups, and with one group the plain one.

    Otherwise, on CPU it is a product for each window, or, if few outputs share one, a single product with a matrix of
    windows and zeros, in which an infinity reaches all outputs. That is also what other platforms do.

    Args:
        x: ``(n, h, w, c)``.
        kernel: ``(1, 1, c / g, o)``, of the type of x.
        groups: g, a divisor of c; it need not divide o.
        overlap: the share of a window that the next one sees as well, from 0 to below 1.

    Returns:
        ``(n, h, w, o)``.

    Raises:
        ValueError: as :func:`window_starts`, or the kernel does not fit the channels.

    >>> x = jnp.array([[[[1.0, 10.0, 100.0, 1000.0]]]])
    >>> rolling_pointwise(x, jnp.tile(jnp.array([[1.0], [2.0]]), (1, 1, 1, 4)), groups=2).tolist()
    [[[[21.0, 210.0, 2100.0, 1002.0]]]]

    Source: Wang, Feng, Peng and Ding, 3DRF, 2020, and the code of its layer; outputs that the windows do not divide,
    and fewer of them than windows, are this project's own.
    """
    channels, features = x.shape[-1], kernel.shape[-1]
    starts = window_starts(channels, features, groups, overlap)
    if kernel.shape[:3] != (1, 1, channels // groups):
        raise ValueError(
            f"a rolling 1x1 kernel for {channels} channels in {groups} groups has the shape "
            f"(1, 1, {channels // groups}, o), not {kernel.shape}"
        )
    if groups == 1 or (features % groups == 0 and np.array_equal(starts, _apart(channels, features, groups))):
        return pointwise(x, kernel, groups)
    many = features >= _OUTPUTS * len(np.unique(starts))
    return by_platform(x, kernel, cpu=partial(_slices if many else _product, starts), default=partial(_product, starts))


def window_starts(channels: int, features: int, groups: int, overlap: float) -> Int[np.ndarray, " o"]:
    """Where the window of each output begins: ``s_o = floor(o K / features) step mod c``.

    With windows of ``w = c / g`` channels, ``step = w - floor(overlap w)``, and ``K = c / gcd(c, step)`` of them until
    one repeats. An output of one group begins at channel 0.

    Args:
        channels: c.
        features: number of outputs.
        groups: g, a divisor of c.
        overlap: from 0 to below 1. A product with w that is short of a whole number by rounding is that number.

    Returns:
        The first channel of each output's window.

    Raises:
        ValueError: g does not divide c, the overlap is out of range, or the outputs are so few that no window with some
            of the channels has one.

    >>> window_starts(8, 8, groups=2, overlap=0.5).tolist(), window_starts(8, 8, groups=2, overlap=0.25).tolist()
    ([0, 0, 2, 2, 4, 4, 6, 6], [0, 3, 6, 1, 4, 7, 2, 5])
    """
    check_groups(channels, groups)
    width = channels // groups
    if not 0 <= overlap < 1:
        raise ValueError(f"overlap must be from 0 to below 1, got {overlap}")
    if groups == 1:
        return np.zeros(features, np.int32)
    step = max(width - math.floor(overlap * width + ROUNDING), 1)
    windows = channels // math.gcd(channels, step)
    starts = np.arange(features) * windows // features * step % channels
    unread = channels - len(np.unique((starts[:, None] + np.arange(width)) % channels))
    if unread:
        raise ValueError(
            f"{features} outputs leave {unread} of {channels} channels unread, in {windows} windows of {width}: give "
            f"at least {windows} outputs, or fewer groups"
        )
    return starts.astype(np.int32)


def _apart(channels: int, features: int, groups: int) -> Int[np.ndarray, " o"]:
    """Where windows begin that share nothing."""
    return np.arange(features) // (features // groups) * (channels // groups)


# Against one product with zeros, products of slices take 0.5 to 0.9 times as long from here on with gradients (forward
# 0.5 to 1.15) and 1.0 to 2.5 times below (2 cores, JAX 0.10, 32 images, 58 to 960 channels, 2 to 8 groups, overlap
# 1/2). Windows side by side in one batched product are behind one of the two everywhere, up to 100 times.
_OUTPUTS = 20


def _product(starts: Int[np.ndarray, " o"], x: Images, kernel: Float[Array, "1 1 j o"]) -> Outputs:
    """One product with all channels, where the kernel of each output stands between zeros."""
    channels, width = x.shape[-1], kernel.shape[2]
    columns = jnp.pad(kernel[0, 0].T, ((0, 0), (0, channels - width)))
    columns = jnp.concatenate([columns, columns], axis=-1)
    take = jax.vmap(lambda column, first: lax.dynamic_slice_in_dim(column, first, channels))
    return pointwise(x, take(columns, jnp.asarray(channels - starts, jnp.int32)).T[None, None])


def _slices(starts: Int[np.ndarray, " o"], x: Images, kernel: Float[Array, "1 1 j o"]) -> Outputs:
    """One product for each run of outputs with the same window."""
    cuts = np.flatnonzero(np.diff(starts)) + 1
    parts = zip(jnp.split(kernel[0, 0], cuts, axis=-1), starts[[0, *cuts]], strict=True)
    windows = [(channels_from(x, int(first), len(part)), part[None, None]) for part, first in parts]
    return jnp.concatenate([pointwise(seen, weights) for seen, weights in windows], axis=-1)
