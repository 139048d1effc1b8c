"""Which node goes with which: as a table, in a sentence, and as a file."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from experiments.cli import print_rows, write_csv

if TYPE_CHECKING:
    from shuffle_jax.problems.instance import Instance
    from shuffle_jax.problems.solver import Solution

FORMATS = (".csv", ".json")
"""What pairs can be written as."""


def check_pairs_file(path: Path | None) -> None:
    """Raises ValueError unless pairs can be written under this name."""
    if path is not None and path.suffix not in FORMATS:
        raise ValueError(f"the name of a file of pairs must end with {' or '.join(FORMATS)}, got {path.name!r}")


def show_pairs(instance: Instance, found: Solution, names: tuple[str, str], as_csv: bool) -> None:
    """Prints all pairs, and in a sentence how good they are; the latter beside the output of programs."""
    print_rows(names, _cells(instance, found.permutation, "" if as_csv else "-"), as_csv)
    print(told(instance, found, names), file=sys.stderr if as_csv else sys.stdout)


def told(instance: Instance, found: Solution, names: tuple[str, str]) -> str:
    """How good a match is, in a sentence."""
    from shuffle_jax.problems.matching import MOST_TRIED, bound

    exact, first, second, both = edges_that_meet(instance, found.permutation)
    if exact:
        return f"exact: each of the {first:,} edges of {names[0]} is one of {names[1]}, and the other way round"
    proved = instance.size <= MOST_TRIED or found.value <= bound(instance)
    least = "the least there is" if proved else f"the least found in {found.seconds:.1f} s"
    weights = ", not all of the same weight" if both == first == second else ""
    return (
        f"not exact: of the {first:,} edges of {names[0]} and the {second:,} of {names[1]} {both:,} lie over each "
        f"other{weights}; |A - P B P^T|^2 = {found.value:g} is {least}"
    )


class Meeting(NamedTuple):
    """How many edges of two graphs lie over each other.

    Attributes:
        exact: whether all entries are equal.
        first: edges of A.
        second: edges of B.
        both: those that lie over each other, whatever their weights.
    """

    exact: bool
    first: int
    second: int
    both: int


def edges_that_meet(instance: Instance, permutation: np.ndarray) -> Meeting:
    """Counts edges, of symmetric matrices once."""
    moved = instance.b[np.ix_(permutation, permutation)]
    undirected = np.array_equal(instance.a, instance.a.T) and np.array_equal(moved, moved.T)
    first, second = (np.triu(m) != 0 if undirected else m != 0 for m in (instance.a, moved))
    counts = (int(edges.sum()) for edges in (first, second, first & second))
    return Meeting(instance.recovered(permutation), *counts)


def write_pairs(path: Path, instance: Instance, permutation: np.ndarray, names: tuple[str, str]) -> None:
    """Writes which node goes with which, whole or not at all; no name stands for a node that was added."""
    from shuffle_jax.files import replacing

    with replacing(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        if path.suffix == ".csv":
            write_csv(file, names, _cells(instance, permutation, ""))
            return
        content: dict[str, object] = {"instance": instance.name, "goal": instance.goal, "columns": names}
        content |= {"value": instance.value(permutation), "best_known": instance.best}
        if instance.goal == "matching":
            content["edges"] = edges_that_meet(instance, permutation)._asdict()
        about = json.dumps(content, indent=2, ensure_ascii=False).removesuffix("\n}")
        pairs = ",\n    ".join(json.dumps(pair, ensure_ascii=False) for pair in instance.pairs(permutation))
        file.write(f'{about},\n  "pairs": [\n    {pairs}\n  ]\n}}\n')


def _cells(instance: Instance, permutation: np.ndarray, empty: str) -> list[list[str]]:
    return [[empty if name is None else name for name in pair] for pair in instance.pairs(permutation)]
