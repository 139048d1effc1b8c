"""Augmentation: pure functions of a key and a batch, to be called under ``jax.jit``.

Every sample draws its own crop, flip, operations, colours, square and rectangle from the one key of the batch. On a
batch split over devices these, and the normalisation, run without communication; mixup and cutmix pass one image
between neighbouring devices.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from shuffle_jax.data.color import jitter
from shuffle_jax.data.erase import cutout, erase
from shuffle_jax.data.mix import cutmix, mixup, mixup_or_cutmix
from shuffle_jax.data.random_augment import STRONGEST, random_augment
from shuffle_jax.data.resized_crop import random_resized_crop
from shuffle_jax.typing import Array, Float, Images, Key, Num, UInt8


@dataclass(frozen=True)
class AugmentConfig:
    """Which augmentations to apply; 0 and False leave one out.

    Args:
        crop_padding: rows and columns of zeros around the image before it is cropped back.
        flip: whether half of the images are mirrored left to right.
        cutout: side of the square that is blanked.
        mixup: alpha of the Beta(alpha, alpha) that pairs of images are mixed by.
        mixup_epochs: epochs over which alpha rises linearly from 0, see ``mixup_alpha``; 0 for the whole of it from
            the start.
        resized_crop: smallest share of the area that a crop of random size and shape keeps, at most 1; 0.08 is
            usual for ImageNet.
        jitter: largest change of brightness, contrast and saturation, as a share, at most 1; 0.4 is usual for
            ImageNet.
        random_operations: operations of RandAugment on every image; 2 is usual for ImageNet.
        random_magnitude: their strength, from 0 to 30; 9 is usual for ImageNet.
        erasing: share of the images of which a rectangle is blanked, at most 1.
        cutmix: alpha of the Beta(alpha, alpha) that the rectangle is drawn by which pairs of images share; 1 is the
            paper's. With mixup, each batch has one of the two, by chance.

    Raises:
        ValueError: a number is out of its range, or both crops are asked for.
    """

    crop_padding: int = 0
    flip: bool = False
    cutout: int = 0
    mixup: float = 0.0
    mixup_epochs: float = 0.0
    resized_crop: float = 0.0
    jitter: float = 0.0
    random_operations: int = 0
    random_magnitude: float = 9.0
    erasing: float = 0.0
    cutmix: float = 0.0

    def __post_init__(self) -> None:
        for name, value in (
            ("crop_padding", self.crop_padding),
            ("cutout", self.cutout),
            ("mixup", self.mixup),
            ("mixup_epochs", self.mixup_epochs),
            ("resized_crop", self.resized_crop),
            ("jitter", self.jitter),
            ("random_operations", self.random_operations),
            ("random_magnitude", self.random_magnitude),
            ("erasing", self.erasing),
            ("cutmix", self.cutmix),
        ):
            if not value >= 0:  # nor is NaN
                raise ValueError(f"{name} must be at least 0, got {value}")
        if self.resized_crop > 1:
            raise ValueError(f"resized_crop must be at most 1, the whole area, got {self.resized_crop}")
        if self.jitter > 1:
            raise ValueError(f"jitter must be at most 1, got {self.jitter}")
        if self.random_magnitude > STRONGEST:
            raise ValueError(f"random_magnitude must be at most {STRONGEST}, got {self.random_magnitude}")
        if self.erasing > 1:
            raise ValueError(f"erasing must be at most 1, got {self.erasing}")
        if self.resized_crop and self.crop_padding:
            raise ValueError(
                f"of resized_crop and crop_padding one must be 0, got {self.resized_crop} and {self.crop_padding}"
            )


NO_AUGMENTATION = AugmentConfig()
"""Images as they are."""


def augment(
    key: Key,
    images: UInt8[Array, "n h w c"],
    targets: Float[Array, "n k"],
    config: AugmentConfig,
    mean: Sequence[float] | Float[np.ndarray, "c"],
    std: Sequence[float] | Float[np.ndarray, "c"],
    epoch: float | Float[Array, ""] | None = None,
) -> tuple[Images, Float[Array, "n k"]]:
    """Crops, flips, does random operations, jitters, normalises, cuts out, erases and mixes, in this order.

    Each where ``config`` asks for it. The crop pads with level 0 (black) before the normalisation, or resizes, whose
    levels are rounded for random operations only; cutout and erasing blank with 0 after it (the mean).

    Args:
        key: the key of this step. Each augmentation has its own part of it, so switching one on or off leaves
            the draws of the others as they were. Only the two crops, of which there is one, have the same.
        images: uint8 (n, h, w, c).
        targets: float32 (n, k), each row a distribution over the classes.
        config: which augmentations; static under jit.
        mean: per channel, in units of [0, 1].
        std: per channel, in units of [0, 1], positive.
        epoch: passes over the training images before this step, with fractions; needed where alpha of mixup rises.

    Returns:
        float32 images (n, h, w, c) and targets (n, k).

    Raises:
        ValueError: alpha of mixup rises, and there is no epoch; or colours are to change where there are neither 1
            nor 3 channels.
    """
    crop_key, flip_key, cutout_key, mixup_key = jax.random.split(key, 4)
    # Not a wider split, whose first four are these only in one of JAX's two ways to split; its keys beyond are these.
    random_key, jitter_key, erase_key, cutmix_key, choice_key = (jax.random.fold_in(key, i) for i in range(4, 9))
    if config.crop_padding:
        images = random_crop(crop_key, images, config.crop_padding)
    if config.resized_crop:
        images = random_resized_crop(crop_key, images, config.resized_crop)
    if config.flip:
        images = random_flip(flip_key, images)
    if config.random_operations:
        images = random_augment(random_key, to_levels(images), config.random_operations, config.random_magnitude)
    if config.jitter:
        images = jitter(jitter_key, images, config.jitter)
    values = normalize(images, mean, std)
    if config.cutout:
        values = cutout(cutout_key, values, config.cutout)
    if config.erasing:
        values = erase(erase_key, values, config.erasing)
    if config.mixup and config.cutmix:
        keys = mixup_key, cutmix_key, choice_key
        values, targets = mixup_or_cutmix(keys, values, targets, mixup_alpha(config, epoch), config.cutmix)
    elif config.cutmix:
        values, targets = cutmix(cutmix_key, values, targets, config.cutmix)
    elif config.mixup:
        values, targets = mixup(mixup_key, values, targets, mixup_alpha(config, epoch))
    return values, targets


def normalize(
    images: Num[Array, "n h w c"],
    mean: Sequence[float] | Float[np.ndarray, "c"],
    std: Sequence[float] | Float[np.ndarray, "c"],
) -> Images:
    """Brings images to zero mean and unit deviation, ``y = (x / 255 - mean) / std``.

    Args:
        images: (n, h, w, c), uint8 or other levels in [0, 255].
        mean: per channel, in units of [0, 1].
        std: per channel, in units of [0, 1], positive.

    Returns:
        float32 (n, h, w, c).

    >>> normalize(jnp.array([0, 51, 255], jnp.uint8).reshape(1, 1, 3, 1), mean=[0.2], std=[0.2]).ravel()
    Array([-1.,  0.,  4.], dtype=float32)
    """
    shift = jnp.asarray(mean, jnp.float32).reshape(1, 1, 1, -1)
    scale = jnp.asarray(std, jnp.float32).reshape(1, 1, 1, -1)
    return (images.astype(jnp.float32) / 255 - shift) / scale


def to_levels(images: Num[Array, "n h w c"]) -> UInt8[Array, "n h w c"]:
    """Rounds levels in [0, 255] to 8 bits; those of 8 bits stay as they are."""
    return images if images.dtype == jnp.uint8 else jnp.round(images).astype(jnp.uint8)


def random_crop(key: Key, images: Num[Array, "n h w c"], padding: int) -> Num[Array, "n h w c"]:
    """Moves every image by its own random offset, filling with zeros.

    ``y[i, r, s] = x[i, r + dy[i] - padding, s + dx[i] - padding]``, zero outside of x, with dy and dx
    independent and uniform on {0, ..., 2 padding}: pad with zeros on every side, then crop back at a random
    place.

    Args:
        key: the random key.
        images: (n, h, w, c) of any dtype. In 8-bit images zero is black.
        padding: at least 0, static under jit.

    Returns:
        The images, same shape and dtype.

    Source: C.-Y. Lee et al., "Deeply-Supervised Nets", 2015 (padding 4 on 32x32 images).
    """
    n, *shape = images.shape
    offsets = jax.random.randint(key, (n, 2), 0, 2 * padding + 1, jnp.int32)
    padded = jnp.pad(images, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    # A mapped slice: 0.12 ms for 256 images of 32x32x3 on two CPU cores, against 0.18 ms for indices along
    # each axis, 2 ms for one-hot matrix products and 5 ms for selecting among shifts. Over devices it stays
    # local.
    return jax.vmap(lambda image, offset: jax.lax.dynamic_slice(image, (offset[0], offset[1], np.int32(0)), shape))(
        padded, offsets
    )


def random_flip(key: Key, images: Num[Array, "n h w c"]) -> Num[Array, "n h w c"]:
    """Mirrors every image left to right with probability 1/2, ``y[i, r, s] = x[i, r, w - 1 - s]``.

    Args:
        key: the random key; the same key mirrors the same images, so applying it twice gives them back.
        images: (n, h, w, c) of any dtype.

    Returns:
        The images, same shape and dtype.
    """
    flipped = jax.random.bernoulli(key, 0.5, (images.shape[0],)).reshape(-1, 1, 1, 1)  # compiles sooner in a row
    return jnp.where(flipped, images[:, :, ::-1], images)


def mixup_alpha(config: AugmentConfig, epoch: float | Float[Array, ""] | None) -> float | Float[Array, ""]:
    """Alpha of mixup, ``mixup min(1, epoch / mixup_epochs)``.

    Args:
        config: ``mixup`` and ``mixup_epochs``; with 0 epochs alpha is ``mixup``, and static under jit.
        epoch: passes over the training images so far, with fractions; None where alpha does not rise.

    Returns:
        Alpha, at least 0.

    Raises:
        ValueError: alpha rises, and there is no epoch.

    >>> float(mixup_alpha(AugmentConfig(mixup=0.2, mixup_epochs=100), 25.0))
    0.05
    """
    if not config.mixup_epochs:
        return config.mixup
    if epoch is None:
        raise ValueError(
            f"mixup rises over {config.mixup_epochs} epochs and needs the epoch: give it, or set mixup_epochs to 0"
        )
    return config.mixup * jnp.clip(epoch / config.mixup_epochs, 0, 1)
