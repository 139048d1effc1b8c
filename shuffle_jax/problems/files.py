"""Instances from files: QAPLIB's pairs of matrices with their solutions, graphs as edge lists, matrices as .npy."""

from __future__ import annotations

import math
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np

from shuffle_jax.problems.instance import Goal, Instance
from shuffle_jax.typing import Float

MOST_NODES = 10_000
"""A dense matrix of more does not fit the memory of most machines."""


def read_qaplib(path: Path | str) -> Instance:
    """Reads a quadratic assignment problem of QAPLIB, and the solution beside it if there is one.

    ``name.dat`` holds n and two matrices, row by row; spaces and line breaks may be anywhere. ``name.sln`` holds n, a
    value and a permutation counted from 1. Files in circulation differ: n or the value may be missing, words may stand
    between, commas may separate, the count may start at 0. The permutation may be meant for the matrices exchanged,
    which is the same as its inverse for the matrices as they are; and it may be none at all, or not have the value that
    is stated. All of this is looked into: the solution that is kept is one for the matrices in the order of the file,
    with the smaller value where neither order gives the stated one, and ``notes`` says what was out of the ordinary.

    Args:
        path: the .dat file.

    Returns:
        An assignment instance with the name of the file. Its best value is that of the solution, recomputed; where
        there is no valid one, the value stated.

    Raises:
        ValueError: a file is no text, is cut short or holds what it should not; or the two do not belong together.
        OSError: there is no such file, or it cannot be read.

    Source: Burkard, Karisch and Rendl, QAPLIB, 1997.
    """
    path = Path(path)
    numbers = [_number(word, path) for word in _text(path).split()]
    if not numbers:
        raise ValueError(f"{path} is empty: a .dat file holds n and then two matrices of n x n numbers")
    size = numbers[0]
    if size < 1 or size != int(size):
        raise ValueError(f"{path} begins with {size:g}: a .dat file begins with the size n of its two matrices")
    n, entries = int(size), len(numbers) - 1
    if entries != 2 * n * n:
        what = "is cut short" if entries < 2 * n * n else "holds too much"
        raise ValueError(
            f"{path} {what}: behind n = {n} stand {entries:,} numbers and two matrices have {2 * n * n:,}: get it again"
        )
    a, b = np.array(numbers[1:], np.float64).reshape(2, n, n)
    instance = Instance(path.stem, a, b, "assignment")
    beside = path.with_suffix(".sln")
    return _with_solution(instance, beside) if beside.exists() else instance


def read_graphs(first: Path | str, second: Path | str, goal: Goal = "matching") -> Instance:
    """Reads two graphs or matrices that are to be matched, each by :func:`read_matrix`.

    A smaller one gets nodes without edges until both have the same size: an edge list does not tell of them.

    Args:
        first: the file of A.
        second: the file of B.
        goal: what is asked of them.

    Returns:
        An instance named after both files.

    Raises:
        ValueError: a file is not what :func:`read_matrix` reads.
        OSError: there is no such file, or it cannot be read.
    """
    first, second = Path(first), Path(second)
    (a, notes_a), (b, notes_b) = _read(first), _read(second)
    notes = [*notes_a, *notes_b]
    size = max(len(a), len(b))
    for path, matrix in ((first, a), (second, b)):
        if len(matrix) < size:
            notes.append(f"{path.name} has {len(matrix)} nodes: {size - len(matrix)} without edges were added")
    a, b = (np.pad(matrix, (0, size - len(matrix))) for matrix in (a, b))
    return Instance(f"{first.stem}-{second.stem}", a, b, goal, notes=tuple(notes))


def read_matrix(path: Path | str) -> Float[np.ndarray, "n n"]:
    """Reads a square matrix: a .npy file of one, or a list of the edges of an undirected graph in any other file.

    A line of an edge list is ``i j`` or ``i j weight``, separated by spaces or commas; the weight is 1 where it is left
    out. What follows a ``#`` is passed over, and so are empty lines. Nodes are counted from 0 if a node 0 occurs, else
    from 1, and the largest number tells how many there are. ``i j`` is also ``j i``; both may stand, if weights agree.

    Args:
        path: the file.

    Returns:
        ``(n, n)`` float64; of an edge list, symmetric.

    Raises:
        ValueError: the file holds no square matrix of finite real numbers, a line is no edge, one edge has two weights,
            or there are more than :data:`MOST_NODES` nodes.
        OSError: there is no such file, or it cannot be read.
    """
    return _read(Path(path))[0]


def _read(path: Path) -> tuple[Float[np.ndarray, "n n"], list[str]]:
    """A matrix, and what to note about it."""
    if path.suffix == ".npy":
        with path.open("rb") as file:
            try:
                matrix = np.load(file, allow_pickle=False)
            except (ValueError, EOFError) as error:
                reason = str(error).splitlines()[0].rstrip(".") if str(error) else "it is empty"
                raise ValueError(f"{path} is no .npy file of numbers: {reason}; write it with numpy.save") from None
        return Instance(str(path), matrix, matrix, "matching").a, []
    edges: dict[tuple[int, int], float] = {}
    for number, line in enumerate(_text(path).splitlines(), start=1):
        words = line.partition("#")[0].replace(",", " ").split()
        if not words:
            continue
        where = f"{path}, line {number}"
        if len(words) not in (2, 3) or not all(re.fullmatch(r"\d{1,18}", word, re.ASCII) for word in words[:2]):
            raise ValueError(f"{where}: {_shown(line)} is no edge: write two nodes, counted from 0 or 1, and a weight")
        i, j = sorted(map(int, words[:2]))
        weight = _number(words[2], where) if len(words) == 3 else 1.0
        if edges.setdefault((i, j), weight) != weight:
            weights = f"{edges[i, j]:g} before and {weight:g} here"
            raise ValueError(f"{where}: the edge {i} {j} weighs {weights}: edges have no direction, keep one")
    if not edges:
        raise ValueError(f"{path} holds no edges: write one a line, as two nodes and, if it has one, its weight")
    first = min(1, *(i for i, _ in edges))
    size = 1 + max(j for _, j in edges) - first
    if size > MOST_NODES:
        raise ValueError(f"{path} names a node {size - 1 + first}: number at most {MOST_NODES:,} nodes, without gaps")
    matrix = np.zeros((size, size))
    for (i, j), weight in edges.items():
        matrix[i - first, j - first] = matrix[j - first, i - first] = weight
    return matrix, [f"the nodes of {path.name} are counted from 0"] if first == 0 else []


def _with_solution(instance: Instance, path: Path) -> Instance:
    """The instance with what a .sln file says, as far as it holds."""
    stated, listed, notes = _read_solution(path, instance.size)
    if fault := _fault(listed):
        kept = "" if stated is None else "; its value is kept as it is stated"
        return replace(instance, best=stated, notes=(*notes, f"the .sln is no permutation: {fault}{kept}"))
    if 0 in listed:
        notes.append("the .sln counts from 0")
    solution = np.array(listed) - min(listed)
    # Exchanging the matrices and inverting the permutation come to the same: <A, P B P^T> = <B, P^T A P>.
    inverse = np.argsort(solution)
    value, exchanged = instance.value(solution), instance.value(inverse)
    if stated is not None and not _equal(value, stated) and _equal(exchanged, stated):
        notes.append("the solution's value holds with the matrices exchanged: its inverse is kept")
        solution, value = inverse, exchanged
    elif stated is None or not _equal(value, stated):
        if exchanged < value:
            notes.append("the permutation is better with the matrices exchanged: its inverse is kept")
            solution, value = inverse, exchanged
        if stated is not None:
            notes.append(f"the stated value {stated:.17g} is not the value {value:.17g} of its permutation")
    return replace(instance, best=value, solution=solution, notes=tuple(notes))


def _read_solution(path: Path, size: int) -> tuple[float | None, list[int], list[str]]:
    """The value if there is one, the permutation as it is written, and what to note."""
    words = [word for word in re.split(r"[\s,;:=]+", _text(path)) if word]
    numbers = [float(word) for word in words if _is_number(word)]
    others = [word for word in words if not _is_number(word)]
    head, tail = numbers[:-size], numbers[-size:]
    remedy = "get it again, or move it away"
    if len(head) == 2 and size not in head:
        raise ValueError(f"{path} states the size {head[0]:g}, and its problem has {size}: {remedy}")
    if len(tail) < size or len(head) > 2:
        form = f"{size + 2}, its size, a value and a permutation"
        raise ValueError(
            f"{path} holds {len(numbers)} numbers, and the solution of a problem of size {size} has {form}: {remedy}"
        )
    if not all(value == int(value) for value in tail):
        raise ValueError(f"{path} holds numbers that are not whole where its permutation stands: {remedy}")
    notes = [f"the .sln holds words, passed over: {_shown(' '.join(others))}"] if others else []
    if len(head) == 2:
        head.remove(size)
    elif head == [size]:
        head = []
    if not head:
        notes.append("the .sln states no value")
    return (head[0] if head else None), [int(value) for value in tail], notes


def _fault(listed: list[int]) -> str:
    """Why numbers are no permutation, counted from 1 or from 0; empty if they are one."""
    for first in (1, 0):
        if sorted(listed) == list(range(first, first + len(listed))):
            return ""
    outside = sorted(value for value in listed if not 0 <= value <= len(listed))
    if outside:
        return f"{outside[0]} is outside of 1 to {len(listed)}"
    value, times = Counter(listed).most_common(1)[0]
    if times > 1:
        return f"{value} occurs {'twice' if times == 2 else f'{times} times'}"
    return f"both 0 and {len(listed)} occur"


def _equal(value: float, stated: float) -> bool:
    """Whole numbers are compared exactly; others were rounded when they were written."""
    return value == stated or (value != int(value) and math.isclose(value, stated, rel_tol=1e-5))


def _text(path: Path) -> str:
    content = path.read_bytes()
    if b"\0" in content:
        raise ValueError(f"{path} is no text but a binary file: give one with numbers written out")
    return content.decode("utf-8-sig", errors="replace")


def _number(word: str, where: Path | str) -> float:
    if not _is_number(word):
        raise ValueError(f"{where}: {_shown(word)} is no finite number: correct it, or get the file again")
    return float(word)


def _is_number(word: str) -> bool:
    try:
        return math.isfinite(float(word)) and "_" not in word  # Python reads 1_000, and no other program does
    except ValueError:
        return False


def _shown(text: str) -> str:
    """What stands in a file, fit for one line."""
    text = text.strip()
    return repr(text if len(text) <= 40 else f"{text[:40]}...")
