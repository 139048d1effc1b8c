"""Sets of cells (row, column, channel) of an input on which channels depend, and what a layer makes of them."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from shuffle_jax.typing import Bool, Int


class Cells(NamedTuple):
    """What each channel of some place in a network sees of an input.

    Attributes:
        sets: of each class of channels that see the same, by row, column and class of channels of the input.
        of: the class of each channel.
        sizes: how many channels of the input are in each class.
        jump: rows and columns of the input from one pixel here to the next.
    """

    sets: Bool[np.ndarray, "k rows columns i"]
    of: Int[np.ndarray, " c"]
    sizes: Int[np.ndarray, " i"]
    jump: int

    @property
    def rows(self) -> int:
        """Of the input that some channel sees, with all between."""
        return self.sets.shape[1]

    @property
    def columns(self) -> int:
        """Of the input that some channel sees, with all between."""
        return self.sets.shape[2]

    @property
    def reach(self) -> float:
        """Channels of the input that a channel sees, on average."""
        return self._mean(self.sets.any((1, 2)) @ self.sizes)

    @property
    def exact(self) -> float:
        """Cells of the input that a channel sees, on average."""
        return self._mean(self.sets.sum((1, 2)) @ self.sizes)

    @property
    def box(self) -> float:
        """Rows times columns times reach."""
        return self.rows * self.columns * self.reach

    def _mean(self, of_classes: Int[np.ndarray, " k"]) -> float:
        return float(of_classes[self.of].mean())


class Seen(NamedTuple):
    """What a layer sees: ``connected[y, x, k, o]`` says whether channel o sees class k of its input at ``(y, x)``.

    Attributes:
        connected: by place relative to one, row by row.
        stride: rows and columns of its input from one of its pixels to the next.
    """

    connected: Bool[np.ndarray, "y x k o"]
    stride: int


def start(channels: int) -> Cells:
    """The input itself, in which each channel sees itself.

    >>> start(4).box, start(4).exact
    (1.0, 1.0)
    """
    each = np.arange(channels)
    return Cells(np.eye(channels, dtype=bool)[:, None, None], each, np.ones_like(each), 1)


def through(cells: Cells, seen: Seen) -> Cells:
    """What is seen behind a layer: of the sets of all that an output sees, moved by where it sees it, the union."""
    height, width, _, channels = seen.connected.shape
    kinds, of = _distinct(seen.connected.reshape(-1, channels).T)
    kinds = kinds.reshape(len(kinds), height, width, -1)
    count, rows, columns, inputs = cells.sets.shape
    jump, flat = cells.jump, cells.sets.reshape(count, -1).astype(np.float32)
    sets = np.zeros((len(kinds), rows + (height - 1) * jump, columns + (width - 1) * jump, inputs), bool)
    for y, x in np.argwhere(kinds.any((0, 3))):
        union = (kinds[:, y, x].astype(np.float32) @ flat > 0).reshape(len(kinds), rows, columns, inputs)
        sets[:, y * jump : y * jump + rows, x * jump : x * jump + columns] |= union
    sets, again = _distinct(sets.reshape(len(sets), -1), sets.shape[1:])
    return _alike(_cropped(Cells(sets, again[of], cells.sizes, jump * seen.stride)))


def _cropped(cells: Cells) -> Cells:
    """Without rows and columns at the ends that no channel sees."""
    rows, columns = (np.flatnonzero(cells.sets.any(axes)) for axes in ((0, 2, 3), (0, 1, 3)))
    if not len(rows):
        raise ValueError("an output sees nothing of the input: what is before it is not connected to it")
    return cells._replace(sets=cells.sets[:, rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1])


def _alike(cells: Cells) -> Cells:
    """With channels of the input that are in the same sets as one class."""
    inputs = cells.sets.shape[-1]
    kinds, of = _distinct(cells.sets.reshape(-1, inputs).T)
    sets = kinds.T.reshape(*cells.sets.shape[:3], len(kinds))
    return cells._replace(sets=sets, sizes=np.bincount(of, cells.sizes, len(kinds)).astype(np.int64))


def _distinct(
    rows: Bool[np.ndarray, "n m"], shape: tuple[int, ...] | None = None
) -> tuple[Bool[np.ndarray, "k *shape"], Int[np.ndarray, " n"]]:
    """The rows that differ, in the order in which they come, and which of them each row is."""
    known: dict[bytes, int] = {}
    packed = np.packbits(rows, axis=1)
    of = np.array([known.setdefault(row.tobytes(), len(known)) for row in packed])
    firsts = [int(np.argmax(of == k)) for k in range(len(known))]
    found = rows[firsts]
    return found if shape is None else found.reshape(len(found), *shape), of
