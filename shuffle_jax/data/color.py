"""Colour of images: shades of grey, blends in whole levels, and jitter; pure functions for ``jax.jit``."""

from __future__ import annotations

from itertools import permutations

import jax
import jax.numpy as jnp

from shuffle_jax.typing import Array, Images, Int, Key, Num, UInt8

ONE = 2**20
"""The factor 1 of :func:`blend`."""

SHARES = (19595, 38470, 7471)
"""Of red, green and blue in a shade of grey, in units of 2^-16: those of ITU-R BT.601, 0.299, 0.587 and 0.114."""


def grey(images: UInt8[Array, "*n h w c"]) -> UInt8[Array, "*n h w 1"]:
    """The shade of grey of every pixel, ``0.299 r + 0.587 g + 0.114 b``, rounded.

    Args:
        images: uint8 (..., h, w, c), c 1 or 3.

    Returns:
        uint8 (..., h, w, 1), to the level what Pillow converts to; grey images as they are.

    Raises:
        ValueError: c is neither 1 nor 3.

    >>> grey(jnp.array([[[[255, 0, 0], [10, 20, 30]]]], jnp.uint8)).ravel()
    Array([76, 18], dtype=uint8)
    """
    if _channels(images) == 1:
        return images
    red, green, blue = (share * images[..., i : i + 1].astype(jnp.int32) for i, share in enumerate(SHARES))
    return ((red + green + blue + 2**15) >> 16).astype(jnp.uint8)


def blend(base: Num[Array, "..."], levels: Num[Array, "..."], factor: Int[Array, "..."] | int) -> UInt8[Array, "..."]:
    """Levels between, or beyond, two: ``base + factor / 2^20 (levels - base)``, cut to [0, 255] and rounded down.

    Reckoned in whole numbers, so that the level is the same under jit, on every device and over devices. It is
    Pillow's too, but where the equation gives less than 2^-12 below a whole number: there this is that number, and
    Pillow's is it or the one below.

    Args:
        base: levels of factor 0, whole numbers in [0, 255].
        levels: levels of factor 1, whole numbers in [0, 255].
        factor: in units of 2^-20, in [0, 2^21].

    Returns:
        uint8, of the three shapes together.

    >>> blend(jnp.int32(100), jnp.array([0, 100, 200]), ONE * 3 // 2)
    Array([  0, 100, 250], dtype=uint8)
    """
    start, end = base.astype(jnp.int32), levels.astype(jnp.int32)
    # 128 is the most that rounding the factor to units can take away: an exact whole number stays one.
    return jnp.clip((start * ONE + factor * (end - start) + 128) >> 20, 0, 255).astype(jnp.uint8)


def jitter(key: Key, images: Num[Array, "n h w c"], strength: float) -> Images:
    """Changes brightness, contrast and saturation of every image, each by its own random factor.

    ``y = cut(b + f (x - b), 0, 255)``, three times: with black, the image's mean shade of grey and each pixel's shade
    of grey as b, in an order random for every image, each f uniform on [1 - strength, 1 + strength]. The ImageNet
    recipe released with ResNet in Torch has strength 0.4, as have many after it, and adds noise along the principal
    components of the colours, which is left out here. The hue stays: that recipe does not turn it, and those that do
    are for learning without labels.

    Args:
        key: the random key.
        images: (n, h, w, c) of levels in [0, 255], uint8 or others, c 1 or 3. Grey images have no saturation.
        strength: in [0, 1], static under jit. 0 changes nothing.

    Returns:
        float32 (n, h, w, c), in [0, 255]; the levels are not rounded.

    Raises:
        ValueError: c is neither 1 nor 3.

    Source: S. Gross, M. Wilber, "Training and investigating Residual Nets", 2016 (the release); after A. G. Howard,
    "Some Improvements on Deep Convolutional Neural Network Based Image Classification", arXiv:1312.5402, 2013.
    """
    channels, n = _channels(images), images.shape[0]
    order_key, factor_key = jax.random.split(key)
    orders = jnp.array(list(permutations(range(3))), jnp.int32)[jax.random.randint(order_key, (n,), 0, 6, jnp.int32)]
    change = strength * jax.random.uniform(factor_key, (3, n, 1, 1, 1), jnp.float32, -1, 1)  # f - 1
    shares = jnp.ones(1, jnp.float32) if channels == 1 else jnp.array(SHARES, jnp.float32) / 2**16
    levels = images.astype(jnp.float32)
    for turn in range(3):
        which = orders[:, turn].reshape(-1, 1, 1, 1)
        shade = jnp.sum(levels * shares.reshape(1, 1, 1, -1), axis=-1, keepdims=True)
        mean = shade.mean(axis=(1, 2), keepdims=True)
        base = jnp.where(which == 0, 0, jnp.where(which == 1, mean, shade))
        # Written as x + (f - 1) (x - b) so that a factor of 1 changes no bit.
        levels = jnp.clip(levels + change[turn] * (levels - base), 0, 255)
    return levels


def _channels(images: Num[Array, "..."]) -> int:
    channels = images.shape[-1]
    if channels not in (1, 3):
        raise ValueError(
            f"colours need 1 or 3 channels, got {channels}: leave jitter and random operations out, or give others"
        )
    return channels
