"""What a data set is: two splits of 8-bit images with integer labels, and the names of the classes.

A split is an array in memory (:class:`Split`), or it reads and decodes images when they are asked for (``Encoded`` in
:mod:`shuffle_jax.data.encoded`); both are :class:`Examples`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal, Protocol, SupportsIndex

import numpy as np

from shuffle_jax.data.encoded import Records
from shuffle_jax.typing import Float, Int, UInt8, UInt64

_PIXELS_PER_CHUNK = 1 << 22
"""``np.bincount`` widens its input to 8 bytes a value; counting in chunks bounds that copy to 32 MiB."""

_SAMPLE = 8192
"""Training images whose pixels give mean and deviation: of a larger split, a part that can be decoded soon."""

_SINGLE = "class {!r} has 1 image, but a hold-out needs at least 2; add images"

Measured = Literal["test", "validation"]
"""What a run measures on: the test images of its data set, or a part of the training images, held out to choose by."""


class Examples(Protocol):
    """Labelled images that are read by position."""

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Height, width and channels of every image."""

    def __len__(self) -> int:
        """How many there are."""

    def take(self, positions: Int[np.ndarray, "m"]) -> tuple[UInt8[np.ndarray, "m h w c"], Int[np.ndarray, "m"]]:
        """The images at some positions, prepared as for evaluation, and their labels."""


@dataclass(frozen=True, eq=False)
class Split:
    """Images with their labels, indexable one by one as grain's ``RandomAccessDataSource`` is.

    Args:
        images: uint8 (n, h, w, c), n at least 1.
        labels: int32 (n,), nonnegative.
        records: what the images were decoded from, where they were.

    Raises:
        ValueError: an array has another shape or dtype, or the two lengths differ.
    """

    images: UInt8[np.ndarray, "n h w c"]
    labels: Int[np.ndarray, "n"]
    records: Records | None = None

    def __post_init__(self) -> None:
        if self.images.ndim != 4 or self.images.dtype != np.uint8:
            raise ValueError(f"images must be uint8 (n, h, w, c), got {_describe(self.images)}")
        if self.labels.ndim != 1 or self.labels.dtype != np.int32:
            raise ValueError(f"labels must be int32 (n,), got {_describe(self.labels)}")
        if len(self.images) != len(self.labels):
            raise ValueError(f"every image needs a label, got {len(self.images)} images, {len(self.labels)} labels")
        if 0 in self.images.shape:
            raise ValueError(f"a split needs at least one image of at least one pixel, got {_describe(self.images)}")
        if self.labels.min() < 0:
            raise ValueError(f"labels must be at least 0, got {self.labels.min()}")

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: SupportsIndex) -> tuple[UInt8[np.ndarray, "h w c"], np.int32]:
        return self.images[index], self.labels[index]

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Height, width and channels of every image."""
        _, height, width, channels = self.images.shape
        return height, width, channels

    def take(self, positions: Int[np.ndarray, "m"]) -> tuple[UInt8[np.ndarray, "m h w c"], Int[np.ndarray, "m"]]:
        """The images at some positions, and their labels."""
        return self.images[positions], self.labels[positions]


@dataclass(frozen=True, eq=False)
class Dataset:
    """A training split, a test split and what is common to both.

    Args:
        name: a short name for reports.
        classes: the class names; label ``k`` means ``classes[k]``.
        train: the images to train on, in memory or not.
        test: the images to measure on, of the same shape.
        validation: whether these are held out of the training images to choose by, and no test images.

    Raises:
        ValueError: a class name is missing or repeated, or the image shapes of the splits differ.
    """

    name: str
    classes: tuple[str, ...]
    train: Examples
    test: Examples
    validation: bool = False

    def __post_init__(self) -> None:
        repeated = sorted({name for name in self.classes if self.classes.count(name) > 1})
        if repeated:
            raise ValueError(f"class names must differ, got {repeated[0]!r} more than once")
        largest = max((int(s.labels.max()) for s in (self.train, self.test) if isinstance(s, Split)), default=0)
        if largest >= len(self.classes):
            raise ValueError(f"label {largest} has no name among {len(self.classes)} classes; name every label")
        if self.train.image_shape != self.test.image_shape:
            raise ValueError(
                f"both splits need one image shape, got train {self.train.image_shape} and test {self.test.image_shape}"
            )

    @property
    def measured(self) -> Measured:
        """What the images to measure on are called."""
        return "validation" if self.validation else "test"

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Height, width and channels of every image."""
        return self.train.image_shape

    @property
    def nbytes(self) -> int:
        """Bytes of all images of both splits, as 8-bit pixels."""
        return (len(self.train) + len(self.test)) * math.prod(self.image_shape)

    def in_memory(self) -> Dataset:
        """The same with every image of both splits read and decoded; itself if they are."""
        return replace(self, train=_decoded(self.train), test=_decoded(self.test))

    @property
    def mean(self) -> Float[np.ndarray, "c"]:
        """Mean of the training pixels of each channel, float32 in [0, 1].

        Of a split of more than 8,192 images so many, evenly spread, give mean and deviation.
        """
        return self._moments[0]

    @property
    def std(self) -> Float[np.ndarray, "c"]:
        """Standard deviation of the training pixels of each channel, float32 in [1/255, 1/2].

        The floor of one grey level keeps a constant channel from a division by zero.
        """
        return self._moments[1]

    @cached_property
    def _moments(self) -> tuple[Float[np.ndarray, "c"], Float[np.ndarray, "c"]]:
        counts = _histograms(self.train, spread(len(self.train), min(len(self.train), _SAMPLE))).astype(np.float64)
        levels = np.arange(256.0) / 255
        total = counts.sum(axis=1)
        mean = counts @ levels / total
        variance = (counts * (levels[None, :] - mean[:, None]) ** 2).sum(axis=1) / total
        return mean.astype(np.float32), np.maximum(np.sqrt(variance), 1 / 255).astype(np.float32)


def spread(examples: int, most: int) -> Int[np.ndarray, "m"]:
    """At most so many positions, evenly spread over all: data sets lie class by class.

    >>> spread(10, 4)
    array([0, 3, 6, 9])
    """
    return np.unique(np.linspace(0, examples - 1, most).round().astype(np.int64))


def stratified_holdout(
    labels: Int[np.ndarray, "n"], classes: Sequence[str], fraction: float, seed: int
) -> tuple[Int[np.ndarray, "kept"], Int[np.ndarray, "held"]]:
    """Splits positions into kept and held out so that every class is in both.

    A class of ``m`` images gives ``round(fraction * m)`` of them, at least 1 and at most ``m - 1``. Which
    ones depends on ``m`` and ``seed`` only, so a class keeps its hold-out whatever other classes there are.

    Args:
        labels: integers (n,) in [0, len(classes)).
        classes: the class names, for the error message.
        fraction: the part to hold out, in (0, 1).
        seed: in [0, 2**32).

    Returns:
        The kept and the held positions, both increasing; together each position once.

    Raises:
        ValueError: a class that occurs has a single image.

    >>> kept, held = stratified_holdout(np.array([0, 0, 0, 0, 1, 1]), ("cat", "dog"), 0.25, seed=0)
    >>> len(kept), len(held)
    (4, 2)
    """
    held = np.zeros(len(labels), bool)
    for label in np.unique(labels):
        (members,) = np.nonzero(labels == label)
        if len(members) < 2:
            raise ValueError(_SINGLE.format(classes[label]))
        count = min(max(round(fraction * len(members)), 1), len(members) - 1)
        # RandomState's stream is frozen, so a hold-out stays the same under every NumPy version.
        held[np.random.RandomState(seed).permutation(members)[:count]] = True
    return np.flatnonzero(~held), np.flatnonzero(held)


def holdout_by_key(
    labels: Int[np.ndarray, "n"], classes: Sequence[str], fraction: float, keys: UInt64[np.ndarray, "n"]
) -> tuple[Int[np.ndarray, "kept"], Int[np.ndarray, "held"]]:
    """Splits positions by a number that belongs to each image, whatever other images there are.

    An image is held out if its key is below ``fraction * 2**64``: of a class with many, about that part. A class of
    which all or none would be gives the one of the smallest key to the held ones, or of the largest to the kept.

    Args:
        labels: integers (n,) in [0, len(classes)).
        classes: the class names, for the error message.
        fraction: the part to hold out, in (0, 1).
        keys: uint64 (n,), as good as uniform over [0, 2**64).

    Returns:
        The kept and the held positions, both increasing; together each position once.

    Raises:
        ValueError: a class that occurs has a single image.
    """
    held = keys < np.uint64(fraction * 2.0**64)
    for label in np.unique(labels):
        (members,) = np.nonzero(labels == label)
        if len(members) < 2:
            raise ValueError(_SINGLE.format(classes[label]))
        ordered = members[np.argsort(keys[members], kind="stable")]  # names that differ in case alone have equal keys
        held[ordered[0]], held[ordered[-1]] = True, False
    return np.flatnonzero(~held), np.flatnonzero(held)


def check_holdout(name: str, fraction: float, seed: int) -> None:
    """Raises ValueError unless ``fraction`` is in (0, 1) and ``seed`` in [0, 2**32).

    Args:
        name: the name of the fraction in the configuration, for the error message.
        fraction: the part to hold out.
        seed: chooses which images are held out.
    """
    if not 0 < fraction < 1:
        raise ValueError(f"{name} must be between 0 and 1, both excluded, got {fraction}")
    if not 0 <= seed < 2**32:
        raise ValueError(f"seed must be in [0, 2**32), got {seed}")


def check_validation(share: float) -> None:
    """Raises ValueError unless the share of the training images to hold out is in [0, 1)."""
    if not 0 <= share < 1:
        raise ValueError(f"validation must be at least 0, for none, and below 1, got {share}")


def _decoded(split: Examples) -> Split:
    if isinstance(split, Split):
        return split
    return Split(*split.take(np.arange(len(split))), getattr(split, "records", None))


def _histograms(split: Examples, positions: Int[np.ndarray, "m"]) -> Int[np.ndarray, "c 256"]:
    """How often each of the 256 levels occurs in each channel of some images."""
    h, w, c = split.image_shape
    step = max(1, _PIXELS_PER_CHUNK // (h * w))
    counts = np.zeros((c, 256), np.int64)
    for start in range(0, len(positions), step):
        chunk, _ = split.take(positions[start : start + step])
        for channel in range(c):
            counts[channel] += np.bincount(chunk[..., channel].ravel(), minlength=256)
    return counts


def _describe(array: np.ndarray) -> str:
    return f"{array.dtype} {array.shape}"
