"""Contextual convolution: one layer whose outputs see the image through windows of several dilations."""

from __future__ import annotations

from collections.abc import Callable
from itertools import accumulate, pairwise

import jax.numpy as jnp

from shuffle_jax.ops.convolution import Padding, convolution, depthwise
from shuffle_jax.ops.slicing import thinned
from shuffle_jax.typing import Array, Float, Images, Outputs

FRACTIONS = {1: (1,), 2: (2, 2), 3: (2, 4, 4), 4: (4, 4, 4, 4), 5: (4, 4, 4, 8, 8)}
"""By the number of levels, what of all outputs each level has: one part of so many."""


def level_outputs(features: int, levels: int, rest: bool = False) -> tuple[int, ...]:
    """How many of the outputs each level has, as published; level d has the dilation d.

    Args:
        features: outputs of the layer.
        levels: 1 to 5.
        rest: gives what the fractions leave over to the first level; this project's own.

    Raises:
        ValueError: there is no such number of levels, or they do not divide the outputs.

    Source: Duta, Georgescu and Ionescu, Contextual Convolutional Neural Networks, 2021, and the code beside it.

    >>> level_outputs(64, 3), level_outputs(58, 4, rest=True)
    ((32, 16, 16), (16, 14, 14, 14))
    """
    if levels not in FRACTIONS:
        raise ValueError(f"levels must be one of {list(FRACTIONS)}, got {levels}")
    parts = [features // part for part in FRACTIONS[levels]]
    least = max(FRACTIONS[levels])
    if features < least or (features % least and not rest):
        raise ValueError(
            f"{levels} levels divide a multiple of {least} channels, got {features}: choose fewer levels, other "
            "channels, or say how many each level has"
        )
    return parts[0] + features - sum(parts), *parts[1:]


def contextual(
    x: Images,
    kernel: Float[Array, "kh kw i o"],
    outputs: tuple[int, ...],
    dilations: tuple[int, ...] | None = None,
    stride: int = 1,
    padding: Padding = "zeros",
    groups: int = 1,
) -> Float[Array, "n oh ow o"]:
    """A contextual convolution: dilated convolutions of all inputs, side by side.

    ``y[n, i, j, o] = sum_abc K[a, b, c, o] x[n, s i + d (a - kh // 2), s j + d (b - kw // 2), c]`` with the dilation d
    of the level of o. The first ``outputs[0]`` outputs are the first level, and so on. Parameters and multiply-adds are
    those of one convolution.

    Args:
        x: ``(n, h, w, c)``.
        kernel: ``(kh, kw, c / g, o)``, of the type of x, kh and kw odd: the levels' kernels one after the other.
        outputs: of each level, o in sum; see :func:`level_outputs`.
        dilations: of each level, at least 1; 1, 2, ... by default.
        stride: s, at least 1.
        padding: "zeros" beyond the image, or the values of its opposite side, "wrap", again and again where a dilation
            is larger than the image.
        groups: g, of every level: a divisor of c and of each of the outputs.

    Returns:
        ``(n, ceil(h / s), ceil(w / s), o)``.

    Raises:
        ValueError: outputs, dilations, groups or window do not fit.

    Source: Duta, Georgescu and Ionescu, Contextual Convolutional Neural Networks, 2021.

    >>> x = jnp.zeros((1, 5, 5, 1)).at[0, 2, 2, 0].set(1.0)
    >>> y = contextual(x, jnp.ones((3, 3, 1, 2)), outputs=(1, 1))
    >>> y[0, 2].T.tolist()
    [[0.0, 1.0, 1.0, 1.0, 0.0], [1.0, 0.0, 1.0, 0.0, 1.0]]
    """

    def level(x: Images, lo: int, hi: int, stride: int, dilation: int) -> Images:
        return convolution(x, kernel[..., lo:hi], stride, padding, groups, dilation)

    _check_groups(outputs, groups)
    return _side_by_side(level, x, kernel, outputs, dilations, stride, padding)


def contextual_depthwise(
    x: Images,
    kernel: Float[Array, "kh kw 1 c"],
    channels: tuple[int, ...],
    dilations: tuple[int, ...] | None = None,
    stride: int = 1,
    padding: Padding = "zeros",
) -> Float[Array, "n oh ow c"]:
    """A depthwise convolution whose channels are divided among levels, each with a dilation of its own.

    ``y[n, i, j, c] = sum_ab K[a, b, 0, c] x[n, s i + d (a - kh // 2), s j + d (b - kw // 2), c]`` with the dilation d
    of the level of c. Parameters and multiply-adds are those of the depthwise convolution.

    Args:
        x: ``(n, h, w, c)``.
        kernel: ``(kh, kw, 1, c)``, of the type of x, kh and kw odd.
        channels: of each level, c in sum; see :func:`level_outputs`.
        dilations: of each level, at least 1; 1, 2, ... by default.
        stride: s, at least 1.
        padding: as of :func:`contextual`.

    Returns:
        ``(n, ceil(h / s), ceil(w / s), c)``.

    Raises:
        ValueError: channels, dilations or window do not fit.

    Source: this project's, after :func:`contextual`.

    >>> contextual_depthwise(jnp.ones((1, 3, 3, 2)), jnp.ones((3, 3, 1, 2)), (1, 1))[0, :, :, 1].tolist()
    [[4.0, 2.0, 4.0], [2.0, 1.0, 2.0], [4.0, 2.0, 4.0]]
    """

    def level(x: Images, lo: int, hi: int, stride: int, dilation: int) -> Images:
        return depthwise(x[..., lo:hi], kernel[..., lo:hi], stride, padding, dilation)

    return _side_by_side(level, x, kernel, channels, dilations, stride, padding)


def _side_by_side(
    level: Callable[[Images, int, int, int, int], Outputs],
    x: Images,
    kernel: Float[Array, "kh kw i o"],
    outputs: tuple[int, ...],
    dilations: tuple[int, ...] | None,
    stride: int,
    padding: Padding,
) -> Outputs:
    """The levels' outputs, each of those from ``lo`` to ``hi``, one after the other."""
    dilations = tuple(range(1, len(outputs) + 1)) if dilations is None else dilations
    _check(kernel, outputs, dilations)
    # Where every tap of a level is in one of the s-th rows and columns, they are taken first: its gradient by the image
    # is then an undilated one of a part of it, in 0.7 of the time (two cores, JAX 0.10).
    every = thinned(x, stride) if stride > 1 and padding == "zeros" else None
    found = []
    for (lo, hi), dilation in zip(pairwise(accumulate((0, *outputs))), dilations, strict=True):
        if every is not None and dilation % stride == 0:
            found.append(level(every, lo, hi, 1, dilation // stride))
        else:
            found.append(level(x, lo, hi, stride, dilation))
    return found[0] if len(found) == 1 else jnp.concatenate(found, axis=-1)


def _check(kernel: Float[Array, "kh kw i o"], outputs: tuple[int, ...], dilations: tuple[int, ...]) -> None:
    if not outputs or min(outputs) < 1 or sum(outputs) != kernel.shape[-1]:
        raise ValueError(f"the outputs of the levels must be positive and sum to {kernel.shape[-1]}, got {outputs}")
    if len(dilations) != len(outputs):
        raise ValueError(f"there must be a dilation for each of {len(outputs)} levels, got {dilations}")
    if kernel.shape[0] % 2 == 0 or kernel.shape[1] % 2 == 0:
        raise ValueError(f"the window must have a middle, an odd size, got {kernel.shape[0]} x {kernel.shape[1]}")


def _check_groups(outputs: tuple[int, ...], groups: int) -> None:
    if any(level % groups for level in outputs):
        raise ValueError(
            f"{groups} groups must divide the outputs of every level, got {outputs}: choose fewer groups or levels"
        )
