"""Parts of images blanked: cutout and random erasing; pure functions for ``jax.jit``."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

from shuffle_jax.typing import Array, Bool, Int, Key, Num

AREAS = (0.02, 1 / 3)
"""Smallest and largest share of the area that random erasing asks for."""

RATIO = 10 / 3
"""The most that one side of such a rectangle is longer than the other, as shares of the sides of the image."""


def cutout(key: Key, images: Num[Array, "n h w c"], size: int) -> Num[Array, "n h w c"]:
    """Blanks a square of every image.

    ``y[i, r, s] = 0`` where ``0 <= r - (cy[i] - size // 2) < size`` and the same for s and cx, x elsewhere,
    with the centre (cy, cx) uniform over the pixels. The part of the square outside the image is lost.

    Args:
        key: the random key.
        images: (n, h, w, c) of any dtype; normalised images are blanked with their mean.
        size: side of the square, at least 0.

    Returns:
        The images, same shape and dtype.

    Source: T. DeVries, G. W. Taylor, "Improved Regularization of Convolutional Neural Networks with Cutout",
    arXiv:1708.04552, 2017.
    """
    n, h, w, _ = images.shape
    row_key, column_key = jax.random.split(key)
    rows = jax.random.randint(row_key, (n, 1), 0, h, jnp.int32) - size // 2
    columns = jax.random.randint(column_key, (n, 1), 0, w, jnp.int32) - size // 2
    return _blank(images, within(rows, size, h), within(columns, size, w))


def erase(key: Key, images: Num[Array, "n h w c"], probability: float) -> Num[Array, "n h w c"]:
    """Blanks a rectangle of some images, inside of them, of random size and shape.

    The rectangle is ``sqrt(a / r) h`` by ``sqrt(a r) w`` pixels, rounded: its share a of the area is uniform on
    [0.02, 1/3], its aspect ratio r, over that of the image, log-uniform on [3/10, 10/3], and its place uniform over
    those inside the image. These ranges, and the fill with the mean, are those of torchvision; the paper has areas
    up to 0.4 and fills with noise. A side that would be longer than the image is cut to it, where the published
    rectangle is drawn again; that, and the aspect ratio over that of the image, are this project's choice.

    Args:
        key: the random key.
        images: (n, h, w, c) of any dtype; normalised images are blanked with their mean.
        probability: of each image to lose a rectangle, in [0, 1].

    Returns:
        The images, same shape and dtype.

    Source: Z. Zhong, L. Zheng, G. Kang, S. Li, Y. Yang, "Random Erasing Data Augmentation", AAAI 2020.
    """
    n, h, w, _ = images.shape
    struck, area, tilt, top, left = jax.random.uniform(key, (5, n, 1), jnp.float32)
    area = AREAS[0] + (AREAS[1] - AREAS[0]) * area
    ratio = jnp.exp(math.log(RATIO) * (2 * tilt - 1))
    rows, columns = _whole(jnp.sqrt(area / ratio), h), _whole(jnp.sqrt(area * ratio), w)
    first, start = _place(top, h - rows), _place(left, w - columns)
    return _blank(images, within(first, rows, h) & (struck < probability), within(start, columns, w))


def within(first: Int[Array, "n 1"], size: Int[Array, "n 1"] | int, length: int) -> Bool[Array, "n length"]:
    """Which of ``length`` places lie in a stretch of ``size`` from ``first`` on, which may begin and end outside."""
    distance = jnp.arange(length, dtype=jnp.int32)[None, :] - first
    return (distance >= 0) & (distance < size)


def _whole(share: Num[Array, "n 1"], length: int) -> Int[Array, "n 1"]:
    return jnp.minimum(jnp.round(share * length).astype(jnp.int32), length)


def _place(share: Num[Array, "n 1"], free: Int[Array, "n 1"]) -> Int[Array, "n 1"]:
    return jnp.floor(share * (free + 1).astype(jnp.float32)).astype(jnp.int32)


def _blank(
    images: Num[Array, "n h w c"], rows: Bool[Array, "n h"], columns: Bool[Array, "n w"]
) -> Num[Array, "n h w c"]:
    blank = rows[:, :, None, None] & columns[:, None, :, None]
    return jnp.where(blank, jnp.zeros((), images.dtype), images)
