"""Sets whose images come in six variants: each image is changed in one of six ways, always the same one."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from shuffle_jax.data.names import image_keys
from shuffle_jax.typing import UInt8, UInt64

Vary = Literal["none", "colors", "planes", "corruptions"]
"""By what the images of a set differ: by the order of their three channels, red, green and blue or brightness and two
differences of colour, or by a corruption."""

ORDERS = tuple(itertools.permutations(range(3)))
"""The variants of "colors" and "planes": channel c of the image is channel ``order[c]`` of the picture."""

CORRUPTIONS = ("none", "noise", "blur", "contrast", "pixelate", "invert")
"""The variants of "corruptions"."""

_DEVIATION, _CONTRAST = 25.5, 0.3


@dataclass(frozen=True, eq=False)
class Variants:
    """Which variant each image of a split is.

    Args:
        vary: "colors", "planes" (the picture in YCbCr, as JPEG files keep it) or "corruptions".
        keys: uint64 (n,), a number for each image, as good as uniform.
    """

    vary: Vary
    keys: UInt64[np.ndarray, "n"]

    def index(self, position: int) -> int:
        """Which of the six the image at a position is, in [0, 6)."""
        return int(self.keys[position] % np.uint64(len(CORRUPTIONS if self.vary == "corruptions" else ORDERS)))

    def __call__(self, image: UInt8[np.ndarray, "h w c"], position: int) -> UInt8[np.ndarray, "h w c"]:
        """The image at a position in its variant."""
        if self.vary == "corruptions":
            return corrupted(image, CORRUPTIONS[self.index(position)], int(self.keys[position] >> np.uint64(32)))
        if self.vary == "planes":
            from PIL import Image

            image = np.asarray(Image.fromarray(image).convert("YCbCr"))
        return image[..., ORDERS[self.index(position)]]


def variants(vary: Vary, channels: int, identities: Callable[[], Iterable[str]], seed: int) -> Variants | None:
    """The variants of a split, None where images stay as they are.

    The variant of an image is drawn by the seed and by what says which image it is: whatever other images there are,
    in whatever order they are read.

    Args:
        vary: by what images differ.
        channels: of the images.
        identities: gives what says which image it is, for each.
        seed: in [0, 2**32).

    Raises:
        ValueError: there are no colours whose order could differ.
    """
    if vary == "none":
        return None
    if vary != "corruptions" and channels != len(ORDERS[0]):
        raise ValueError(f'vary "{vary}" needs images of 3 channels, got {channels}: use "corruptions" or "none"')
    return Variants(vary, image_keys("vary", seed, identities()))


def corrupted(image: UInt8[np.ndarray, "h w c"], corruption: str, seed: int = 0) -> UInt8[np.ndarray, "h w c"]:
    """An image with one of the corruptions.

    "noise" adds normal noise of deviation 25.5 levels, "blur" convolves rows and columns with (1, 4, 6, 4, 1) / 16 (a
    Gaussian of deviation 1; the edge is repeated), "contrast" brings levels to 0.3 of their distance from the mean of
    their channel, "pixelate" gives squares of 2 x 2 pixels their mean, "invert" takes levels from 255.

    Args:
        image: uint8 (h, w, c).
        corruption: one of ``CORRUPTIONS``.
        seed: of the noise, in [0, 2**32).

    Returns:
        uint8 (h, w, c).

    Raises:
        ValueError: the corruption is none of them.

    >>> corrupted(np.array([[[0], [100]], [[100], [200]]], np.uint8), "contrast").ravel()
    array([ 70, 100, 100, 130], dtype=uint8)

    Source: D. Hendrycks, T. Dietterich, "Benchmarking Neural Network Robustness to Common Corruptions and
    Perturbations", ICLR 2019; noise and contrast in strengths 5 and 4 of their CIFAR-10-C. Blur, squares and
    inversion are this project's own.
    """
    height, width, _ = image.shape
    levels = image.astype(np.float64)
    match corruption:
        case "none":
            return image
        case "noise":  # RandomState's stream is frozen, so the noise stays the same under every NumPy version
            levels = levels + np.random.RandomState(seed).normal(0, _DEVIATION, image.shape)
        case "blur":
            padded = np.pad(levels, ((2, 2), (2, 2), (0, 0)), "edge")
            weights = np.array([1, 4, 6, 4, 1]) / 16
            rows = sum(weight * padded[i : i + height] for i, weight in enumerate(weights))
            levels = sum(weight * rows[:, i : i + width] for i, weight in enumerate(weights))
        case "contrast":
            mean = levels.mean(axis=(0, 1), keepdims=True)
            levels = mean + _CONTRAST * (levels - mean)
        case "pixelate":
            padded = np.pad(levels, ((0, height % 2), (0, width % 2), (0, 0)), "edge")
            means = padded.reshape((height + 1) // 2, 2, (width + 1) // 2, 2, -1).mean(axis=(1, 3))
            levels = means.repeat(2, axis=0).repeat(2, axis=1)[:height, :width]
        case "invert":
            levels = 255 - levels
        case _:
            raise ValueError(f"corruption must be one of {', '.join(CORRUPTIONS)}, got {corruption!r}")
    return np.clip(np.round(levels), 0, 255).astype(np.uint8)
