"""RandAugment: random operations of one strength on every image; pure functions for ``jax.jit``.

An operation moves pixels, replaces levels by a table, or blends the image with another made of it. So one pass over
the batch does all three, and what an operation leaves alone it does as nothing: an image is not sent down one of
fourteen branches, of which a batch would have to take every one.

One pass takes about three times as long as a random resized crop on CPU, half of it for the histograms of ``equalize``.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np

from shuffle_jax.data.color import ONE, blend, grey
from shuffle_jax.typing import Array, Bool, Int, Key, UInt8

OPERATIONS = (
    "identity",
    "autocontrast",
    "equalize",
    "rotate",
    "solarize",
    "color",
    "posterize",
    "contrast",
    "brightness",
    "sharpness",
    "shear_x",
    "shear_y",
    "translate_x",
    "translate_y",
)
"""The operations of the paper, in its order."""

STRONGEST = 30
"""The largest magnitude."""

FILL = 128
"""The level of what an operation moves in from outside an image, as in the authors' code."""


def random_augment(key: Key, images: UInt8[Array, "n h w c"], operations: int, magnitude: float) -> UInt8[Array, "..."]:
    """Does operations to every image, each drawn with equal chances from :data:`OPERATIONS`, see :func:`operate`.

    Args:
        key: the random key.
        images: uint8 (n, h, w, c), c 1 or 3.
        operations: how many, one after another; static under jit. The paper's N.
        magnitude: strength of all of them, in [0, 30]; static under jit. The paper's M. For ImageNet and ResNet-50 it
            has N = 2 and M = 9.

    Returns:
        The images, same shape and dtype.

    Source: E. D. Cubuk, B. Zoph, J. Shlens, Q. V. Le, "RandAugment: Practical automated data augmentation with a
    reduced search space", NeurIPS 2020.
    """
    n = images.shape[0]
    for one in jax.random.split(key, operations):
        operation_key, sign_key = jax.random.split(one)
        chosen = jax.random.randint(operation_key, (n,), 0, len(OPERATIONS), jnp.int32)
        images = operate(images, chosen, jax.random.bernoulli(sign_key, 0.5, (n,)), magnitude)
    return images


def operate(
    images: UInt8[Array, "n h w c"], chosen: Int[Array, "n"], negative: Bool[Array, "n"], magnitude: float
) -> UInt8[Array, "n h w c"]:
    """Does one operation to every image.

    With the strength ``s = magnitude / 30``, and minus it where ``negative``:

    - rotate: by 30 s degrees, anticlockwise, about the centre;
    - shear_x, shear_y: by 0.3 s pixels a pixel, with the upper or the left edge held;
    - translate_x, translate_y: by 150/331 s of the width to the left, or of the height upwards;
    - color, contrast, brightness, sharpness: a blend by the factor ``1 + 0.9 s`` with the pixels' shades of grey, the
      mean of these, black, or the image smoothed.

    Whatever the sign:

    - posterize: keeps the ``8 - round(4 s)`` upper bits of a level;
    - solarize: inverts the levels from ``256 (1 - s)`` on;
    - autocontrast: stretches the levels of each channel to all of [0, 255];
    - equalize: evens out the histogram of each channel;
    - identity: nothing.

    The paper states no ranges; these are those of torchvision, which go back to AutoAugment, but for 256 instead of
    255 in solarize, so that magnitude 0 changes nothing. Autocontrast and equalize know no magnitude. Pixels move to
    the nearest place.

    The levels are those of Pillow, but that two are rounded down from the exact number where Pillow rounds that of
    floating point: ``autocontrast``, and blends, see :func:`~shuffle_jax.data.color.blend`.

    Args:
        images: uint8 (n, h, w, c), c 1 or 3, with h and w below 2^14 and h w at most 2^22.
        chosen: int (n,), places in :data:`OPERATIONS`.
        negative: bool (n,), whether the strength is negative.
        magnitude: in [0, 30], static under jit.

    Returns:
        The images, same shape and dtype.

    Raises:
        ValueError: the magnitude is out of its range, or c is neither 1 nor 3.
    """
    if not 0 <= magnitude <= STRONGEST:
        raise ValueError(f"magnitude must be from 0 to {STRONGEST}, got {magnitude}")
    _, h, w, _ = images.shape
    signed = [(name, sign * magnitude / STRONGEST) for name in OPERATIONS for sign in (1, -1)]
    row = 2 * chosen + negative.astype(chosen.dtype)
    # What the operations do is known before the images are, and reckoned in double precision.
    places = np.array([_place(name, strength, h, w) for name, strength in signed], np.int32)
    tables = np.array([_table(name, strength) for name, strength in signed])
    factors = np.array([_factor(name, strength) for name, strength in signed], np.int32)
    return jax.vmap(_operate)(images, chosen, *(jnp.asarray(each)[row] for each in (places, tables, factors)))


def _operate(
    image: UInt8[Array, "h w c"],
    chosen: Int[Array, ""],
    place: Int[Array, "6"],
    table: UInt8[Array, "256"],
    factor: Int[Array, ""],
) -> UInt8[Array, "h w c"]:
    index = OPERATIONS.index
    image = _move(image, place)

    rows = jnp.broadcast_to(table, (image.shape[-1], 256))
    rows = jnp.where(chosen == index("autocontrast"), _autocontrast(image), rows)
    rows = jnp.where(chosen == index("equalize"), _equalize(_histogram(image)), rows)
    shades = grey(image)
    pixels = shades.size
    mean = (2 * jnp.sum(shades, dtype=jnp.int32) + pixels) // (2 * pixels)
    levels = jnp.arange(256, dtype=jnp.int32)
    rows = jnp.where(chosen == index("contrast"), blend(mean, levels, factor)[None], rows)
    # The tables are written out before, and the image after: fused with what reads them, they would be reckoned anew
    # for every pixel.
    rows = jax.lax.optimization_barrier(rows)
    image = jax.lax.optimization_barrier(rows.ravel()[_entries(image)])

    base = jnp.where(chosen == index("color"), grey(image), image)
    base = jnp.where(chosen == index("sharpness"), _smooth(image), base)
    return blend(base, image, factor)


# Which pixel goes where: y[r, s] = x[v, u] with (u, v) = matrix (s, r, 1), in units of 2^-16 of a pixel, as in Pillow.


def _place(name: str, strength: float, h: int, w: int) -> list[int]:
    """The matrix of an operation, row by row, in whole units; that of the identity for those that move nothing."""
    a, b, c, d, e, f = 1.0, 0.0, 0.0, 0.0, 1.0, 0.0
    match name:
        case "rotate":
            angle = math.radians(30 * strength)
            a, b, d, e = math.cos(angle), -math.sin(angle), math.sin(angle), math.cos(angle)
            c, f = w / 2 - (a * w + b * h) / 2, h / 2 - (d * w + e * h) / 2
        case "shear_x":
            b = 0.3 * strength
        case "shear_y":
            d = 0.3 * strength
        case "translate_x":
            c = 150 / 331 * strength * w
        case "translate_y":
            f = 150 / 331 * strength * h
    # Places are those of the pixels' centres.
    return [math.floor(number * 2**16 + 0.5) for number in (a, b, c + (a + b) / 2, d, e, f + (d + e) / 2)]


def _move(image: UInt8[Array, "h w c"], place: Int[Array, "6"]) -> UInt8[Array, "h w c"]:
    h, w, c = image.shape
    r, s = jnp.arange(h, dtype=jnp.int32)[:, None], jnp.arange(w, dtype=jnp.int32)[None, :]
    u = (place[0] * s + place[1] * r + place[2]) >> 16
    v = (place[3] * s + place[4] * r + place[5]) >> 16
    inside = (u >= 0) & (u < w) & (v >= 0) & (v < h)
    moved = image.reshape(h * w, c)[jnp.where(inside, v * w + u, 0)]
    return jnp.where(inside[:, :, None], moved, jnp.uint8(FILL))


# Which level becomes which.


def _table(name: str, strength: float) -> UInt8[np.ndarray, "256"]:
    """The table of an operation that needs no image for it; for all others that which changes nothing."""
    level = np.arange(256)
    match name:
        case "solarize":
            level = np.where(level < 256 * (1 - abs(strength)), level, 255 - level)
        case "posterize":
            level = level & -(2 ** round(4 * abs(strength)))
        case "brightness":
            level = np.clip((level * _unit(strength) + 128) >> 20, 0, 255)  # as in blend, with black
    return level.astype(np.uint8)


def _factor(name: str, strength: float) -> int:
    """The factor of an operation that blends; for all others, 1."""
    return _unit(strength) if name in ("color", "contrast", "sharpness") else ONE


def _unit(strength: float) -> int:
    return round((1 + 0.9 * strength) * ONE)


def _autocontrast(image: UInt8[Array, "h w c"]) -> UInt8[Array, "c 256"]:
    low, high = (f(image, axis=(0, 1)).astype(jnp.int32)[:, None] for f in (jnp.min, jnp.max))
    level = jnp.arange(256, dtype=jnp.int32)[None]
    stretched = jnp.clip(255 * (level - low) // jnp.maximum(high - low, 1), 0, 255)
    return jnp.where(high > low, stretched, level).astype(jnp.uint8)


def _histogram(image: UInt8[Array, "h w c"]) -> Int[Array, "c 256"]:
    # Added up one by one: on two CPU cores a product of one-hot matrices takes ten times as long, and sorting four to
    # nine times.
    return jnp.zeros(image.shape[-1] * 256, jnp.int32).at[_entries(image)].add(1).reshape(-1, 256)


def _entries(image: UInt8[Array, "h w c"]) -> Int[Array, "h w c"]:
    """Where the level of every pixel stands in one row of all channels' tables."""
    return image.astype(jnp.int32) + 256 * jnp.arange(image.shape[-1], dtype=jnp.int32).reshape(1, 1, -1)


def _equalize(histogram: Int[Array, "c 256"]) -> UInt8[Array, "c 256"]:
    level = jnp.arange(256, dtype=jnp.int32)[None]
    highest = jnp.max(jnp.where(histogram > 0, level, 0), axis=1, keepdims=True)
    last = jnp.sum(jnp.where(level == highest, histogram, 0), axis=1, keepdims=True, dtype=jnp.int32)
    step = (
        histogram.sum(axis=1, keepdims=True, dtype=jnp.int32) - last
    ) // 255  # 0 where there are few pixels, or few others
    below = jnp.cumsum(histogram, axis=1, dtype=jnp.int32) - histogram
    even = jnp.clip((step // 2 + below) // jnp.maximum(step, 1), 0, 255)
    return jnp.where(step > 0, even, level).astype(jnp.uint8)


# What an image is blended with.


def _smooth(image: UInt8[Array, "h w c"]) -> UInt8[Array, "h w c"]:
    """Means over 3x3 pixels, the middle one counted five times, rounded; those on the edge as they are."""
    x = image.astype(jnp.int32)
    if min(x.shape[:2]) < 3:
        return image
    rows = x[:-2] + x[1:-1] + x[2:]
    total = rows[:, :-2] + rows[:, 1:-1] + rows[:, 2:] + 4 * x[1:-1, 1:-1]
    return image.at[1:-1, 1:-1].set(((2 * total + 13) // 26).astype(jnp.uint8))
