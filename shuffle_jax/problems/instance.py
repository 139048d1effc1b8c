"""Two matrices and what is asked of them: the permutation that makes one of the other, or that pairs them best."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from shuffle_jax.naming import some
from shuffle_jax.typing import Array, Float, Int

Goal = Literal["matching", "assignment"]
"""What is minimised: ``|A P - P B|_F^2`` or ``<A, P B P^T>``."""

LARGEST = 1e100
"""No entry is larger: products of two and their sums then stay far from the end of float64."""


@dataclass(frozen=True, eq=False)  # arrays have no single answer to ==
class Instance:
    """A problem over permutations p of n, in the convention ``P[i, p[i]] = 1``.

    ``matching``: ``|A P - P B|_F^2 = sum_ik (A[i, k] - B[p[i], p[k]])^2``; zero where ``A = P B P^T``.
    ``assignment``: ``<A, P B P^T> = sum_ik A[i, k] B[p[i], p[k]]``, as QAPLIB has it.

    Args:
        name: what errors and tables call it.
        a: A, ``(n, n)`` finite real numbers; kept as a float64 copy that cannot be written to.
        b: B, of the same size.
        goal: which of the two is minimised.
        best: the smallest value known, if one is.
        solution: a permutation known to be good, with p[i] from 0 on, if one is.
        notes: what a reader of files found out of the ordinary, in plain words.
        names: of the nodes of A and of B, if they have any; fewer than n where nodes were added at the end.

    Raises:
        ValueError: a matrix is not square, empty, not of real finite numbers, or of another size than the other; the
            goal is none of the two; the solution is no permutation; or there are more names than nodes.
    """

    name: str
    a: Float[np.ndarray, "n n"]
    b: Float[np.ndarray, "n n"]
    goal: Goal
    best: float | None = None
    solution: Int[np.ndarray, " n"] | None = None
    notes: tuple[str, ...] = ()
    names: tuple[tuple[str, ...], tuple[str, ...]] | None = None

    def __post_init__(self) -> None:
        if self.goal not in ("matching", "assignment"):
            raise ValueError(f"{self.name}: there is no goal {self.goal!r}: choose matching or assignment")
        for field in ("a", "b"):
            object.__setattr__(self, field, _matrix(getattr(self, field), f"{self.name}: matrix {field}"))
        if self.a.shape != self.b.shape:
            sizes = f"a is {len(self.a)} x {len(self.a)} and b is {len(self.b)} x {len(self.b)}"
            raise ValueError(f"{self.name}: {sizes}: give both the same size, the smaller one with rows of zeros")
        if self.best is not None and not math.isfinite(self.best):
            raise ValueError(f"{self.name}: the best value is {self.best}: give a finite number, or None")
        if self.solution is not None:
            solution = self._permutation(self.solution)
            solution.setflags(write=False)
            object.__setattr__(self, "solution", solution)

        for names in self.names or ():
            if len(names) > self.size:
                raise ValueError(f"{self.name}: there are {len(names)} names for {self.size} nodes: give one a node")

    @property
    def size(self) -> int:
        """The length n of a permutation."""
        return len(self.a)

    def value(self, permutation: Int[Array | np.ndarray, " n"]) -> float:
        """What a permutation costs, the smaller the better.

        The terms are summed without rounding errors. So the value is exact as long as each term and the sum are whole
        numbers below 2^53, and else right to about the last digit of float64. Cost O(n^2).

        Args:
            permutation: ``(n,)`` integers, a permutation of 0 .. n-1.

        Returns:
            The value; for a matching at least 0.

        Raises:
            ValueError: it is no permutation of this size.

        >>> instance = Instance("two", np.array([[0, 1], [2, 0]]), np.array([[0, 3], [5, 0]]), "assignment")
        >>> instance.value([0, 1]), instance.value([1, 0])
        (13.0, 11.0)
        """
        moved = self._moved(permutation)
        terms = self.a * moved if self.goal == "assignment" else np.square(self.a - moved)
        return math.fsum(terms.ravel().tolist())

    def recovered(self, permutation: Int[Array | np.ndarray, " n"], tolerance: float = 0.0) -> bool:
        """Whether a permutation makes one matrix of the other, ``A[i, k] = B[p[i], p[k]]`` everywhere.

        Args:
            permutation: ``(n,)`` integers, a permutation of 0 .. n-1.
            tolerance: how far two entries may be apart. A relabelled matrix holds the same numbers, whatever they are:
                0 is right unless a file rounded them.

        Returns:
            A Python bool.

        Raises:
            ValueError: it is no permutation of this size, or the tolerance is below 0.

        >>> graph = np.array([[0, 1, 0], [1, 0, 1], [0, 1, 0]])
        >>> path = Instance("path", graph, graph[[1, 0, 2]][:, [1, 0, 2]], "matching")
        >>> path.recovered([1, 0, 2]), path.recovered([2, 0, 1]), path.recovered([0, 1, 2])
        (True, True, False)
        """
        if not tolerance >= 0:
            raise ValueError(f"{self.name}: the tolerance is {tolerance}: give 0 or more")
        return bool(np.abs(self.a - self._moved(permutation)).max() <= tolerance)

    def pairs(self, permutation: Int[Array | np.ndarray, " n"]) -> list[tuple[str | None, str | None]]:
        """Which node of A a permutation puts on which of B, by their names; numbers from 0 on where they have none.

        Args:
            permutation: ``(n,)`` integers, a permutation of 0 .. n-1.

        Returns:
            One pair for each node of A, then those of B alone; None in the place of a node that was added.

        Raises:
            ValueError: it is no permutation of this size.

        >>> names = ("ann", "ben"), ("x", "y", "z")
        >>> Instance("three", np.eye(3), np.eye(3), "matching", names=names).pairs([2, 0, 1])
        [('ann', 'z'), ('ben', 'x'), (None, 'y')]
        """
        index = self._permutation(permutation).tolist()
        numbers = tuple(map(str, range(self.size)))
        a, b = ((*names, *(None,) * (self.size - len(names))) for names in self.names or (numbers, numbers))
        return [(a[i], b[k]) for i, k in enumerate(index) if (a[i], b[k]) != (None, None)]

    def _moved(self, permutation: Int[Array | np.ndarray, " n"]) -> Float[np.ndarray, "n n"]:
        """``P B P^T``."""
        index = self._permutation(permutation)
        return self.b[np.ix_(index, index)]

    def _permutation(self, permutation: Int[Array | np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
        """A checked copy as int32."""
        index = np.asarray(permutation)
        if index.shape != (self.size,):
            raise ValueError(f"{self.name}: a permutation has the shape {index.shape}: give ({self.size},)")
        if not np.issubdtype(index.dtype, np.integer) or not np.array_equal(np.sort(index), np.arange(self.size)):
            values = f"each of 0 to {self.size - 1} once, as integers"
            raise ValueError(f"{self.name}: [{some(index.tolist())}] is no permutation: give {values}")
        return index.astype(np.int32)


def _matrix(matrix: Float[np.ndarray, "n n"], what: str) -> Float[np.ndarray, "n n"]:
    """A checked copy as float64."""
    array = np.asarray(matrix)
    if array.ndim != 2 or array.shape[0] != array.shape[1] or not array.size:
        raise ValueError(f"{what} has the shape {array.shape}: give (n, n), n at least 1")
    try:
        real = array.astype(np.float64, casting="same_kind")
    except TypeError:
        raise ValueError(f"{what} holds {array.dtype}: give real numbers") from None
    if not (np.abs(real) <= LARGEST).all():  # also where it is NaN
        i, k = np.argwhere(~(np.abs(real) <= LARGEST))[0].tolist()
        raise ValueError(f"{what} holds {real[i, k]} in row {i}, column {k}: give finite numbers up to {LARGEST:g}")
    real.setflags(write=False)
    return real
