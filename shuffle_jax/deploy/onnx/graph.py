"""A graph of ONNX while it is put together: nodes, constants, and tensors that know their layout.

A shape is written with integers: -k stands for k times the number of images, which is open. Axes are those of JAX. In
which order the graph has them a tensor knows, so that a transpose costs nothing until something needs another order;
and axes along which it is still to be repeated have length 1, since most of ONNX repeats by itself.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Tensor:
    """What a node gives.

    Attributes:
        name: in the graph.
        shape: by the axes of JAX.
        dtype: of NumPy.
        order: the axes of JAX in the order in which the graph has them.
    """

    name: str
    shape: Shape
    dtype: np.dtype
    order: tuple[int, ...]

    def axis(self, axis: int) -> int:
        """Where the graph has an axis."""
        return self.order.index(axis)

    def physical(self) -> Shape:
        """The shape as the graph has it."""
        return tuple(self.shape[axis] for axis in self.order)


Value = Tensor | np.ndarray
"""A tensor, or a constant."""


@dataclass
class Node:
    """One operation.

    Attributes:
        op: its name in ONNX.
        inputs: names of what it reads.
        outputs: names of what it gives.
        attributes: by name.
    """

    op: str
    inputs: list[str]
    outputs: list[str]
    attributes: dict[str, Any] = field(default_factory=dict)


class Refused(ValueError):
    """A computation that ONNX has no operation for, or that is not worth one here."""


def sizes(shape: Iterable[Any]) -> Shape:
    """A shape of JAX in integers.

    >>> sizes((3, 4))
    (3, 4)

    Raises:
        Refused: a length is no multiple of the number of images.
    """
    return tuple(size if isinstance(size, int) else _multiple(str(size)) for size in shape)


def _multiple(text: str) -> int:
    found = re.fullmatch(r"(?:(\d+)\*)?n", text)
    if not found:
        raise Refused(f"an array has a length of {text} for n images")
    return -int(found[1] or 1)


class Graph:
    """Nodes in the order in which they run, and constants by their names."""

    def __init__(self) -> None:
        self.nodes: list[Node] = []
        self.constants: dict[str, np.ndarray] = {}
        self.added: dict[str, int] = {}
        self._known: dict[tuple[Any, ...], str] = {}
        self._count = 0

    def new_name(self) -> str:
        """A name that nothing has."""
        self._count += 1
        return f"v{self._count}"

    def constant(self, value: Any, dtype: Any = None) -> str:
        """The name of a constant, the same for equal ones."""
        array = np.ascontiguousarray(np.asarray(value, dtype)).reshape(np.shape(value))
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self._known:
            self._known[key] = name = f"c{len(self.constants) + 1}"
            self.constants[name] = array
        return self._known[key]

    def add(self, op: str, inputs: Sequence[str], outputs: int = 1, **attributes: Any) -> list[str]:
        """A node more, and the names of what it gives."""
        names = [self.new_name() for _ in range(outputs)]
        self.nodes.append(Node(op, list(inputs), names, attributes))
        return names

    def tensor(
        self, op: str, inputs: Sequence[str], shape: Shape, dtype: Any, order: Sequence[int] = (), **attributes: Any
    ) -> Tensor:
        """A node more with one output."""
        (name,) = self.add(op, inputs, **attributes)
        return Tensor(name, shape, np.dtype(dtype), tuple(order) or tuple(range(len(shape))))

    def ordered(self, value: Value, order: Sequence[int]) -> str:
        """The name of a value with its axes in an order; constants are transposed here and now."""
        order = tuple(order)
        if not isinstance(value, Tensor):
            return self.constant(value.transpose(order) if value.ndim else value)
        if value.order == order:
            return value.name
        lengths = [value.shape[axis] for axis in order]
        if [a for a in value.order if value.shape[a] != 1] == [a for a in order if value.shape[a] != 1]:
            return self._reshaped(value.name, lengths)
        return self.add("Transpose", [value.name], perm=[value.axis(axis) for axis in order])[0]

    def plain(self, value: Value) -> str:
        """The name of a value with its axes as JAX has them."""
        return self.ordered(value, range(np.ndim(value) if not isinstance(value, Tensor) else len(value.shape)))

    def _reshaped(self, name: str, lengths: Sequence[int]) -> str:
        target = [-1 if size < 0 else size for size in lengths]
        return self.add("Reshape", [name, self.constant(target, np.int64)])[0]

    def reshape(self, value: Value, shape: Shape) -> Value:
        """The same numbers, in the order of JAX, as another shape.

        Axes that go together into others must stand together in the graph: where they do not, it transposes.
        """
        if not isinstance(value, Tensor):
            return value.reshape(shape)
        if shape == value.shape:
            return value
        blocks = _blocks(value.shape, shape)
        now = [axis for axis in value.order if value.shape[axis] != 1]
        blocks.sort(key=lambda block: min(map(now.index, block[0])))
        wanted = [axis for source, _ in blocks for axis in source]
        name = value.name
        if wanted != now:
            ones = [axis for axis in value.order if value.shape[axis] == 1]
            name = self.ordered(value, [*wanted, *ones])
        target = [axis for _, axes in blocks for axis in axes]
        for axis, size in enumerate(shape):
            if size == 1:
                target.insert(sum(other < axis for other in target), axis)
        if wanted == now and [value.shape[axis] for axis in value.order] == [shape[axis] for axis in target]:
            return Tensor(name, shape, value.dtype, tuple(target))
        return Tensor(self._reshaped(name, [shape[axis] for axis in target]), shape, value.dtype, tuple(target))

    def transpose(self, value: Value, axes: Sequence[int]) -> Value:
        """``y``'s axis k is the axis ``axes[k]`` of the value; no node."""
        if not isinstance(value, Tensor):
            return value.transpose(axes)
        where = {axis: k for k, axis in enumerate(axes)}
        shape = tuple(value.shape[axis] for axis in axes)
        return Tensor(value.name, shape, value.dtype, tuple(where[axis] for axis in value.order))

    def made(self, value: Value) -> Tensor:
        """A value as a tensor."""
        if isinstance(value, Tensor):
            return value
        return Tensor(self.constant(value), value.shape, value.dtype, tuple(range(value.ndim)))

    def full(self, value: Value, shape: Shape) -> Value:
        """A value repeated where it is still to be."""
        if not isinstance(value, Tensor):
            if all(size > 0 for size in shape):
                return np.broadcast_to(value, shape)
            known = tuple(1 if size < 0 else size for size in shape)
            value = self.made(np.broadcast_to(value, known))
        if value.shape == shape:
            return value
        lengths = [shape[axis] for axis in value.order]
        if any(new < 0 and old == 1 for new, old in zip(lengths, value.physical(), strict=True)):
            parts = [self.times_images(-size) if size < 0 else self.constant([size], np.int64) for size in lengths]
            target = self.add("Concat", parts, axis=0)[0]
        else:
            target = self.constant([1 if size < 0 else size for size in lengths], np.int64)
        return self.tensor("Expand", [value.name, target], shape, value.dtype, value.order)

    def times_images(self, factor: int = 1) -> str:
        """The number of images times a factor, as one int64 in an array."""
        count = self._known.get(("images", factor))
        if count is None:
            lengths = self.add("Shape", [INPUT], start=0, end=1)[0]
            count = lengths if factor == 1 else self.add("Mul", [lengths, self.constant([factor], np.int64)])[0]
            self._known["images", factor] = count
        return count


INPUT, OUTPUT = "images", "logits"
"""Names of what goes in and what comes out."""


def _blocks(before: Shape, after: Shape) -> list[tuple[list[int], list[int]]]:
    """Which axes become which, in as many steps as there are; axes of length 1 are left out."""
    old = [axis for axis, size in enumerate(before) if size != 1]
    new = [axis for axis, size in enumerate(after) if size != 1]
    found: list[tuple[list[int], list[int]]] = []
    while old or new:
        source, target = [old.pop(0)] if old else [], [new.pop(0)] if new else []
        while (left := math.prod(before[a] for a in source)) != (right := math.prod(after[a] for a in target)):
            behind, rest = (
                (source, old) if abs(left) < abs(right) or (abs(left) == abs(right) and left > 0) else (target, new)
            )
            if not rest:
                raise Refused(f"a reshape from {before} to {after} mixes images")
            behind.append(rest.pop(0))
        found.append((source, target))
    return found
