"""Graphs from files: lists of edges as programs write them, and matrices as .npy."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from shuffle_jax.naming import some
from shuffle_jax.problems.instance import Goal, Instance
from shuffle_jax.problems.text import is_number, number, read_text, shown
from shuffle_jax.typing import Float

MOST_NODES = 10_000
"""A dense matrix of more does not fit the memory of most machines."""

SOURCE = ("source", "from", "src", "start", "node1", "node_1", "u", "i")
TARGET = ("target", "to", "dst", "end", "node2", "node_2", "v", "j")
WEIGHT = ("weight", "w", "value")
"""What the columns of a list of edges are called, in any case of letters."""


class Graph(NamedTuple):
    """A graph of a file.

    Attributes:
        matrix: ``(n, n)`` weights of edges, float64.
        names: of the nodes.
        notes: what is out of the ordinary about the file, in plain words.
    """

    matrix: Float[np.ndarray, "n n"]
    names: tuple[str, ...]
    notes: tuple[str, ...] = ()


class _Row(NamedTuple):
    """One line: its words, and the weight among its attributes if it has any."""

    where: str
    text: str
    words: list[str]
    weight: float | None


def read_graphs(first: Path | str, second: Path | str, goal: Goal = "matching", directed: bool = False) -> Instance:
    """Reads two graphs or matrices that are to be matched, each by :func:`read_graph`.

    A smaller one gets nodes without edges until both have the same size.

    Args:
        first: the file of A.
        second: the file of B.
        goal: what is asked of them.
        directed: whether edges have a direction.

    Returns:
        An instance named after both files, with the names of their nodes.

    Raises:
        ValueError: a file is not what :func:`read_graph` reads.
        OSError: there is no such file, or it cannot be read.
    """
    paths = Path(first), Path(second)
    graphs = [read_graph(path, directed) for path in paths]
    notes = [note for graph in graphs for note in graph.notes]
    size = max(len(graph.matrix) for graph in graphs)
    for path, graph in zip(paths, graphs, strict=True):
        if missing := size - len(graph.matrix):
            notes.append(f"{path.name} has {len(graph.matrix)} nodes: {missing} without edges were added")
    a, b = (np.pad(graph.matrix, (0, size - len(graph.matrix))) for graph in graphs)
    names = graphs[0].names, graphs[1].names
    return Instance(f"{paths[0].stem}-{paths[1].stem}", a, b, goal, notes=tuple(notes), names=names)


def read_matrix(path: Path | str) -> Float[np.ndarray, "n n"]:
    """The matrix of :func:`read_graph`, of undirected edges."""
    return read_graph(path).matrix


def read_graph(path: Path | str, directed: bool = False) -> Graph:
    """Reads a square matrix: a .npy file of one, or a list of the edges of a graph in any other file.

    A line of a list is ``i j`` or ``i j weight``, separated by spaces, tabs, commas or semicolons, or ``i j {...}``
    with attributes as networkx writes them, of which "weight" counts; the weight is 1 where there is none. A line of
    one node says that it is there. Empty lines are passed over, what follows a ``#``, and lines that begin with ``%``
    or ``//``. A first line of names of columns may say which are the source, the target and the weight; one of numbers
    may say how many nodes, or nodes and edges, there are.

    Nodes are numbers, or names if the first edge is one of names. Numbers are counted from 0 if a node 0 occurs, else
    from 1, and the largest tells how many there are; larger ones than :data:`MOST_NODES` are taken for names.

    Args:
        path: the file.
        directed: whether ``i j`` is another edge than ``j i``. If not, both may stand, if weights agree.

    Returns:
        A :class:`Graph`; its matrix is symmetric unless edges have a direction.

    Raises:
        ValueError: the file holds no square matrix of finite real numbers, a line is no edge, one edge has two weights,
            or there are more than :data:`MOST_NODES` nodes.
        OSError: there is no such file, or it cannot be read.
    """
    path = Path(path)
    if path.suffix == ".npy":
        matrix = _in_npy(path)
        return Graph(matrix, tuple(map(str, range(len(matrix)))))
    rows, notes = _without_header(path, _rows(path))
    edges: dict[tuple[str, str], float] = {}
    names: dict[str, None] = {}
    for row in rows:
        names.update(dict.fromkeys(row.words[:2]))
        if len(row.words) == 1:
            continue
        i, j = row.words[:2]
        weight = number(row.words[2], row.where) if len(row.words) == 3 else 1.0 if row.weight is None else row.weight
        for pair in ((i, j),) if directed else ((i, j), (j, i)):
            if edges.setdefault(pair, weight) != weight:
                weights = f"{edges[pair]:g} before and {weight:g} here"
                remedy = "keep one" if directed else "edges have no direction, keep one, or read it as --directed"
                raise ValueError(f"{row.where}: the edge {i} {j} weighs {weights}: {remedy}")
    if not edges:
        raise ValueError(f"{path} holds no edges: write one a line, as two nodes and, if it has one, its weight")
    if all(map(_is_count, names)) and (largest := max(map(int, names))) <= MOST_NODES:
        first = min(1, *map(int, names))
        silent = [str(i) for i in range(first, largest + 1) if str(i) not in names]
        if first == 0:
            notes.append(f"the nodes of {path.name} are counted from 0")
        if silent:
            notes.append(f"{path.name} has {len(silent)} nodes that no line names: {some(silent)}")
        names = dict.fromkeys(map(str, range(first, largest + 1)))
    if len(names) > MOST_NODES:
        raise ValueError(f"{path} names {len(names):,} nodes: give a graph of at most {MOST_NODES:,}")
    at = {name: i for i, name in enumerate(names)}
    matrix = np.zeros((len(names), len(names)))
    for (i, j), weight in edges.items():
        matrix[at[i], at[j]] = weight
    return Graph(matrix, tuple(names), tuple(notes))


def _rows(path: Path) -> list[_Row]:
    """The lines that say something, divided by what all of them can be divided by."""
    lines: list[tuple[str, str, str, float | None]] = []
    for count, line in enumerate(read_text(path).splitlines(), start=1):
        text = line.partition("#")[0].strip()
        if text and not text.startswith(("%", "//")):
            where, (head, brace, attributes) = f"{path}, line {count}", text.partition("{")
            lines.append((where, text, head, _weight(f"{{{attributes}", where) if brace else None))
    everywhere = [mark for mark in "\t,;" if lines and all(mark in head for _, _, head, _ in lines)]
    # Names may have blanks in them only where something else divides the columns.
    for divider in (r"[\s,;]+", *everywhere):
        rows = [_Row(where, text, _words(divider, head), weight) for where, text, head, weight in lines]
        if all(len(row.words) <= 3 for row in rows[1:]):
            break
    return rows if lines else []


def _words(divider: str, text: str) -> list[str]:
    words = [word.strip().strip('"').strip() for word in re.split(divider, text)]
    return [word for word in words if word]


def _weight(attributes: str, where: str) -> float | None:
    try:
        found = ast.literal_eval(attributes.rstrip(",; "))
        weight = found.get("weight")
        return None if weight is None else number(str(weight), where)
    except (AttributeError, SyntaxError, ValueError) as error:
        if isinstance(error, ValueError) and str(error).startswith(where):
            raise
        raise ValueError(f"{where}: {shown(attributes)} are no attributes, such as {{'weight': 2.0}}") from None


def _without_header(path: Path, rows: list[_Row]) -> tuple[list[_Row], list[str]]:
    """The edges, each checked, and what to note about the first line."""
    notes: list[str] = []
    if not rows:
        return rows, notes
    first, rest = rows[0], rows[1:]
    words = [word.lower() for word in first.words]
    if rest and len(words) > 1 and any(word in SOURCE for word in words) and any(word in TARGET for word in words):
        columns = [next(iter(_places(words, names)), None) for names in (SOURCE, TARGET, WEIGHT)]
        notes.append(f"the first line of {path.name} names its columns: {shown(first.text)}")
        chosen = [column for column in columns if column is not None]
        rows = [row._replace(words=[row.words[i] for i in chosen if i < len(row.words)]) for row in rest]
    elif rest and all(map(_is_count, rest[0].words[:2])) and not any(map(is_number, words)):
        notes.append(f"the first line of {path.name} is passed over: {shown(first.text)}")
        rows = rest
    elif rest and all(map(_is_count, words)):
        rows, notes = _without_sizes(path, rows)
    counted = bool(rows) and all(map(_is_count, rows[0].words[:2]))  # 7 and 07 are one node then
    for row in rows:
        odd = [word for word in row.words[:2] if not _is_count(word) and (counted or is_number(word))]
        if not 1 <= len(row.words) <= 3 or odd:
            raise ValueError(
                f"{row.where}: {shown(row.text)} is no edge: write two nodes, counted from 0 or 1 or all by name, and "
                "a weight"
            )
    if counted:
        rows = [row._replace(words=[*(str(int(word)) for word in row.words[:2]), *row.words[2:]]) for row in rows]
    return rows, notes


def _places(words: Sequence[str], names: Sequence[str]) -> Iterator[int]:
    return (i for i, word in enumerate(words) if word in names)


def _without_sizes(path: Path, rows: list[_Row]) -> tuple[list[_Row], list[str]]:
    """Numbered edges without a first line that holds the number of nodes, or of nodes and edges."""
    first, rest = rows[0], rows[1:]
    sizes, largest = [int(word) for word in first.words], 0
    for row in rest:
        largest = max(largest, *(int(word) for word in row.words[:2] if _is_count(word)), 0)
    from_zero = any("0" in row.words[:2] for row in rest)
    fits = sizes[0] >= largest + from_zero
    last = str(sizes[0] - from_zero)
    alone = [first._replace(words=[last])]
    if len(sizes) == 1 and fits:
        return [*alone, *rest], [f"the first line of {path.name} says that there are {sizes[0]} nodes"]
    if len(sizes) == 2 and fits and sizes[1] == len(rest):
        if sizes[1] > sizes[0]:  # it cannot be a node
            return [*alone, *rest], [f"the first line of {path.name} says: {sizes[0]} nodes, {sizes[1]} edges"]
        return rows, [
            f"the first line of {path.name}, {shown(first.text)}, is read as an edge: remove it if it counts the nodes "
            "and the edges"
        ]
    return rows, []


def _is_count(word: str) -> bool:
    """Whether a word numbers a node."""
    return re.fullmatch(r"\d{1,18}", word, re.ASCII) is not None


def _in_npy(path: Path) -> Float[np.ndarray, "n n"]:
    with path.open("rb") as file:
        try:
            matrix = np.load(file, allow_pickle=False)
        except (ValueError, EOFError) as error:
            reason = str(error).splitlines()[0].rstrip(".") if str(error) else "it is empty"
            raise ValueError(f"{path} is no .npy file of numbers: {reason}; write it with numpy.save") from None
    return Instance(str(path), matrix, matrix, "matching").a
