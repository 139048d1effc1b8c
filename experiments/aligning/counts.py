"""What a mixer does to images in several orders, as numbers."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from experiments.aligning.task import mixer_index
from shuffle_jax.typing import Bool, Int


class Counts(NamedTuple):
    """Of one mixer and a set of images.

    Attributes:
        distinct: how many different index vectors it has.
        valid: the share of images whose index vector is a permutation.
        aligned: the share of images whose channels come out in the order in which most do; 1 where the mixer undoes the
            differences of all orders, about 1/K where it treats all images alike.
    """

    distinct: int
    valid: float
    aligned: float


def count(
    outer: Int[np.ndarray, "m k p"],
    inner: Int[np.ndarray, "m k q"],
    orders: Int[np.ndarray, "K c"],
    numbers: Int[np.ndarray, " n"],
    groups: int,
) -> Counts:
    """Counts what hard factors do to n images, the channels of image i in order ``orders[numbers[i]]``.

    Args:
        outer: row-argmax of A for each image, or all of them (m = 1), and each group, or all of them (k = 1).
        inner: that of B.
        orders: K index vectors.
        numbers: of each image the number of its order.
        groups: G of the mixer.
    """
    index = np.broadcast_to(mixer_index(outer, inner, groups), (len(numbers), orders.shape[-1]))
    together = np.take_along_axis(orders[numbers], index, -1)
    return Counts(len(np.unique(index, axis=0)), float(is_valid(index).mean()), _largest_share(together))


def worst(counts: list[Counts]) -> Counts:
    """Of several mixers the smallest of each number."""
    return Counts(*(min(column) for column in zip(*counts, strict=True)))


def is_valid(index: Int[np.ndarray, "n c"]) -> Bool[np.ndarray, " n"]:
    """Which index vectors are permutations.

    >>> is_valid(np.array([[1, 0, 2], [1, 1, 2]])).tolist()
    [True, False]
    """
    valid: np.ndarray = (np.sort(index, -1) == np.arange(index.shape[-1])).all(-1)
    return valid


def _largest_share(rows: Int[np.ndarray, "n c"]) -> float:
    return float(np.unique(rows, axis=0, return_counts=True)[1].max() / len(rows))
