"""Quadratic assignment problems from files of QAPLIB: pairs of matrices, with their solutions."""

from __future__ import annotations

import math
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np

from shuffle_jax.problems.instance import Instance
from shuffle_jax.problems.text import is_number, number, read_text, shown


def read_qaplib(path: Path | str) -> Instance:
    """Reads a quadratic assignment problem of QAPLIB, and the solution beside it if there is one.

    ``name.dat`` holds n and two matrices, row by row; spaces, commas and line breaks may be anywhere. Its first line
    may be ``n best`` or ``n optimum best``. What follows ``#``, ``%`` or ``//`` is a comment, and so are lines that
    begin with ``!``, ``*`` or a ``c`` that stands alone.

    ``name.sln`` holds n, a value and a permutation counted from 1. Files in circulation differ: n or the value may be
    missing, there may be two values, words may stand between, commas may separate, the count may start at 0. The
    permutation may be meant for the matrices exchanged, which is the same as its inverse for the matrices as they are;
    and it may be none at all, or not have the value that is stated. All of this is looked into: the solution that is
    kept is one for the matrices in the order of the file, with the smaller value where neither order gives the stated
    one, and ``notes`` says what was out of the ordinary.

    Args:
        path: the .dat file.

    Returns:
        An assignment instance with the name of the file. Its best value is that of the solution, recomputed, or the one
        stated where that is smaller or there is no valid solution.

    Raises:
        ValueError: a file is no text, is cut short or holds what it should not; it can be read in two ways; or the two
            files do not belong together.
        OSError: there is no such file, or it cannot be read.

    Source: Burkard, Karisch and Rendl, QAPLIB, 1997.
    """
    path = Path(path)
    lines = [[number(word, path) for word in re.split(r"[\s,;]+", line) if word] for line in _uncommented(path)]
    lines = [line for line in lines if line]
    if not lines:
        raise ValueError(f"{path} is empty: a .dat file holds n and then two matrices of n x n numbers")
    size = lines[0][0]
    if size < 1 or size != int(size):
        raise ValueError(f"{path} begins with {size:g}: a .dat file begins with the size n of its two matrices")
    n = int(size)
    stated, entries = _stated(lines, n, path)
    a, b = np.array(entries, np.float64).reshape(2, n, n)
    best, notes = _best(stated)
    names = tuple(str(i) for i in range(1, n + 1))
    instance = Instance(path.stem, a, b, "assignment", best, notes=notes, names=(names, names))
    beside = path.with_suffix(".sln")
    return _with_solution(instance, beside) if beside.exists() else instance


def _stated(lines: list[list[float]], n: int, path: Path) -> tuple[list[float], list[float]]:
    """The values that the first line states behind n, and the entries of the matrices."""
    first, rest = lines[0], [entry for line in lines[1:] for entry in line]
    entries, wanted = [*first[1:], *rest], 2 * n * n
    if len(first) in (2, 3) and rest:
        if len(rest) == wanted:
            return first[1:], rest
        if len(entries) == wanted:
            begin = " ".join(f"{entry:.15g}" for entry in first)
            raise ValueError(
                f"{path} can be read in two ways: its first line is {begin!r}, and {len(rest):,} numbers follow where "
                f"two matrices have {wanted:,}. Put n on a line of its own, or get the file again"
            )
        entries = rest
    if len(entries) == wanted:
        return [], entries
    what, remedy = "is cut short", ""
    if len(entries) > wanted:
        what, remedy = "holds too much", ", or let n, and a best value if there is one, have a line of their own"
    raise ValueError(
        f"{path} {what}: behind n = {n} stand {len(entries):,} numbers and two matrices have {wanted:,}: get it "
        f"again{remedy}"
    )


def _best(stated: list[float]) -> tuple[float | None, tuple[str, ...]]:
    """Of the values stated, none to two of them: an optimum and a best value."""
    if len(stated) < 2 or stated[0] == stated[1]:
        return (stated[-1] if stated else None), ()
    optimum, best = stated
    if optimum <= 0 < best:
        return best, (f"the stated optimum {optimum:.17g} is taken for unknown, and {best:.17g} for the best value",)
    kept = min(stated)
    return kept, (f"the optimum {optimum:.17g} and the best value {best:.17g} are stated: the smaller one is kept",)


def _with_solution(instance: Instance, path: Path) -> Instance:
    """The instance with what a .sln file says, as far as it holds."""
    stated, listed, found = _read_solution(path, instance.size)
    notes = [*instance.notes, *found]
    if fault := _fault(listed):
        if len(set(stated)) > 1:
            values = " and ".join(f"{value:.17g}" for value in stated)
            raise ValueError(
                f"{path} states {values}, and no permutation ({fault}) that tells which is the best value: keep one"
            )
        kept = "; its value is kept as it is stated" if stated else ""
        notes.append(f"the .sln is no permutation: {fault}{kept}")
        return _with_best(replace(instance, notes=tuple(notes)), stated[0] if stated else None)
    if 0 in listed:
        notes.append("the .sln counts from 0")
    solution = np.array(listed) - min(listed)
    # Exchanging the matrices and inverting the permutation come to the same: <A, P B P^T> = <B, P^T A P>.
    inverse = np.argsort(solution)
    value, exchanged = instance.value(solution), instance.value(inverse)
    holds, holds_exchanged = (any(_equal(v, each) for each in stated) for v in (value, exchanged))
    if holds_exchanged and not holds:
        notes.append("the solution's value holds with the matrices exchanged: its inverse is kept")
        solution, value = inverse, exchanged
    elif not holds:
        if exchanged < value:
            notes.append("the permutation is better with the matrices exchanged: its inverse is kept")
            solution, value = inverse, exchanged
        if stated:
            values = " and ".join(f"{each:.17g}" for each in dict.fromkeys(stated))
            notes.append(f"the stated value {values} is not the value {value:.17g} of its permutation")
    return _with_best(replace(instance, solution=solution, notes=tuple(notes)), value)


def _with_best(instance: Instance, best: float | None) -> Instance:
    """The instance with the smaller of the best values of its two files."""
    if instance.best is None or best is None or best == instance.best:
        return replace(instance, best=instance.best if best is None else best)
    note = f"the .dat states {instance.best:.17g} and the .sln {best:.17g}: the smaller value is kept"
    return replace(instance, best=min(best, instance.best), notes=(*instance.notes, note))


def _read_solution(path: Path, size: int) -> tuple[list[float], list[int], list[str]]:
    """The values that are stated, the permutation as it is written, and what to note."""
    words = [word for word in re.split(r"[\s,;:=]+", read_text(path)) if word]
    numbers = [float(word) for word in words if is_number(word)]
    others = [word for word in words if not is_number(word)]
    head, tail = numbers[:-size], numbers[-size:]
    remedy = "get it again, or move it away"
    of_another = len(numbers) not in (size, size + 1) and _is_whole_solution(numbers) and numbers[0] != size
    if of_another or (len(head) in (2, 3) and size not in head):
        raise ValueError(f"{path} states the size {numbers[0]:g}, and its problem has {size}: {remedy}")
    if len(tail) < size or len(head) > 3:
        form = f"{size + 2}, its size, a value and a permutation"
        raise ValueError(
            f"{path} holds {len(numbers)} numbers, and the solution of a problem of size {size} has {form}: {remedy}"
        )
    if not all(value == int(value) for value in tail):
        raise ValueError(f"{path} holds numbers that are not whole where its permutation stands: {remedy}")
    notes = [f"the .sln holds words, passed over: {shown(' '.join(others))}"] if others else []
    if len(head) > 1 or head == [size]:
        head.remove(size)
    if not head:
        notes.append("the .sln states no value")
    return head, [int(value) for value in tail], notes


def _is_whole_solution(numbers: list[float]) -> bool:
    """Whether numbers are a size, a value or two, and a permutation of that size."""
    return any(
        numbers[0] == size and not _fault([int(value) for value in numbers[-size:]])
        for size in (len(numbers) - 2, len(numbers) - 3)
        if size > 0
    )


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


def _uncommented(path: Path) -> list[str]:
    return [re.sub(r"^\s*(!|\*|c\s).*|(#|%|//).*", "", line) for line in read_text(path).splitlines()]
