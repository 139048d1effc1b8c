"""From image files and arrays of pixels to what a network takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from shuffle_jax.data.encoded import bombs_are_errors, check_crop, read_image
from shuffle_jax.typing import Float, UInt8


@dataclass(frozen=True)
class Preprocessing:
    """The steps between a picture and the input of a network, as they were in its training.

    Args:
        size: height and width of the network's images, in pixels.
        channels: 3 for red, green and blue, 1 for grey.
        mean: of the training pixels per channel, in units of [0, 1].
        std: their standard deviation per channel, positive.
        crop: the share of a picture's shorter side that is kept, in (0, 1], as of the images of the test.

    Raises:
        ValueError: the numbers do not fit each other.
    """

    size: int
    channels: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    crop: float = 1.0

    def __post_init__(self) -> None:
        if self.channels not in (1, 3):
            raise ValueError(f"channels must be 1 or 3, got {self.channels}")
        if self.size < 1 or not len(self.mean) == len(self.std) == self.channels or min(self.std) <= 0:
            raise ValueError(f"a preprocessing must have a size, and a mean and a positive std per channel, got {self}")
        check_crop(self.crop)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(h, w, c) of an image."""
        return self.size, self.size, self.channels

    def read(self, path: Path) -> UInt8[np.ndarray, "h w c"]:
        """Reads a picture, see :func:`shuffle_jax.data.encoded.read_image`; one channel is its brightness.

        Raises:
            ValueError: the file is not a complete, readable image.
        """
        with bombs_are_errors():
            return read_image(path, self.size, self.channels, crop=self.crop)

    def batch(self, paths: Sequence[Path]) -> Float[np.ndarray, "n h w c"]:
        """Reads pictures as the network's input; none give an array of none.

        Raises:
            ValueError: a file is not a complete, readable image.
        """
        pixels = np.empty((len(paths), *self.shape), np.uint8)
        for row, path in enumerate(paths):
            pixels[row] = self.read(path)
        return self.normalize(pixels)

    def normalize(self, images: UInt8[np.ndarray, "n h w c"]) -> Float[np.ndarray, "n h w c"]:
        """Brings 8-bit images to the network's input, ``(x / 255 - mean) / std``.

        Raises:
            ValueError: the array is not uint8 or not of the network's shape.
        """
        if images.dtype != np.uint8 or images.shape[1:] != self.shape:
            raise ValueError(
                f"the images are {images.dtype} {images.shape}: give uint8 (n, {', '.join(map(str, self.shape))}), "
                "or normalised ones with --raw"
            )
        mean, std = (np.asarray(v, np.float32).reshape(1, 1, 1, -1) for v in (self.mean, self.std))
        return (images.astype(np.float32) / np.float32(255) - mean) / std

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return asdict(self)


def preprocessing_from_json(value: Mapping[str, Any]) -> Preprocessing:
    """The inverse of :meth:`Preprocessing.to_json`.

    Raises:
        ValueError: a value is missing or does not fit.
    """
    try:
        size, channels = int(value["size"]), int(value["channels"])
        mean, std = (tuple(float(v) for v in _listed(value[name])) for name in ("mean", "std"))
        crop = float(value.get("crop", 1.0))  # files of before know no crop
    except (KeyError, TypeError) as error:
        raise ValueError(f"the preprocessing {dict(value)} is wrong in {error}: export again") from error
    return Preprocessing(size, channels, mean, std, crop)


def _listed(value: Any) -> Sequence[Any]:
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise TypeError(repr(value))
    return value
