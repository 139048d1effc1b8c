"""What JAX's moves of values are in ONNX: other shapes and orders, parts, what stands side by side, counting."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from shuffle_jax.deploy.onnx.graph import Graph, Refused, Shape, Tensor, Value, sizes
from shuffle_jax.deploy.onnx.primitives import elementwise, input_shapes, output, rule


@rule("reshape", "squeeze", "expand_dims")
def _reshape(graph: Graph, values: list[Value], equation: Any) -> list[Value]:
    (before,), (after, _) = input_shapes(equation), output(equation)
    if equation.params.get("dimensions") is not None and equation.primitive.name == "reshape":
        raise Refused("it reshapes another order of axes")
    return [reshaped(graph, values[0], before, after)]


def reshaped(graph: Graph, x: Value, before: Shape, after: Shape) -> Value:
    """A reshape; of a value that is still to be repeated too, where only axes of length 1 come or go."""
    if x.shape != before and [s for s in before if s != 1] == [s for s in after if s != 1]:
        real = iter(x.shape[axis] for axis, size in enumerate(before) if size != 1)
        return graph.reshape(x, tuple(1 if size == 1 else next(real) for size in after))
    return graph.reshape(graph.full(x, before), after)


@rule("broadcast_in_dim")
def _broadcast(graph: Graph, values: list[Value], equation: Any) -> list[Value]:
    places, (after, _) = equation.params["broadcast_dimensions"], output(equation)
    x = values[0]
    shape = [1] * len(after)
    for axis, place in enumerate(places):
        shape[place] = x.shape[axis]
    return [graph.reshape(x, tuple(shape))]


@rule("transpose")
def _transpose(graph: Graph, values: list[Value], equation: Any) -> list[Value]:
    return [graph.transpose(values[0], equation.params["permutation"])]


@rule("concatenate")
def _concatenate(graph: Graph, values: list[Value], equation: Any) -> list[Value]:
    axis, (shape, dtype) = equation.params["dimension"], output(equation)
    parts = [graph.full(x, before) for x, before in zip(values, input_shapes(equation), strict=True)]
    return [concatenated(graph, parts, axis, shape, dtype)]


def concatenated(graph: Graph, parts: Sequence[Value], axis: int, shape: Shape, dtype: np.dtype) -> Tensor:
    """Values side by side along an axis, in the layout of the largest of them."""
    leader = max((x for x in parts if isinstance(x, Tensor)), key=lambda x: abs(math.prod(x.shape)))
    names = [graph.ordered(x, leader.order) for x in parts]
    return graph.tensor("Concat", names, shape, dtype, leader.order, axis=leader.axis(axis))


@rule("slice")
def _slice(graph: Graph, values: list[Value], equation: Any) -> list[Value]:
    p, (before,) = equation.params, input_shapes(equation)
    strides = p["strides"] or [1] * len(before)
    limits = sizes(p["limit_indices"])
    ranges = {}
    for axis, (size, start, stop, step) in enumerate(zip(before, p["start_indices"], limits, strides, strict=True)):
        if (start, stop, step) != (0, size, 1):
            ranges[axis] = range(start, stop, step)
    return [sliced(graph, values[0], ranges)]


def sliced(graph: Graph, x: Value, ranges: dict[int, range]) -> Value:
    """Parts of some axes; an axis that is still to be repeated stays so."""
    ranges = {axis: part for axis, part in ranges.items() if x.shape[axis] != 1}
    if not ranges:
        return x
    if not isinstance(x, Tensor):
        return x[
            tuple(slice(r.start, r.stop, r.step) for r in (ranges.get(a, range(s)) for a, s in enumerate(x.shape)))
        ]
    if any(x.shape[axis] < 0 for axis in ranges):
        raise Refused("it takes some of the images")
    columns = [[r.start, r.stop, x.axis(axis), r.step] for axis, r in ranges.items()]
    names = [graph.constant(column, np.int64) for column in zip(*columns, strict=True)]
    shape = tuple(len(ranges[axis]) if axis in ranges else size for axis, size in enumerate(x.shape))
    return graph.tensor("Slice", [x.name, *names], shape, x.dtype, x.order)


@rule("split")
def _split(graph: Graph, values: list[Value], equation: Any) -> list[Value]:
    axis, lengths = equation.params["axis"], equation.params["sizes"]
    if values[0].shape[axis] == 1:
        return [values[0]] * len(lengths)
    x = graph.made(values[0])
    names = graph.add("Split", [x.name, graph.constant(lengths, np.int64)], len(lengths), axis=x.axis(axis))
    shapes = [(*x.shape[:axis], size, *x.shape[axis + 1 :]) for size in lengths]
    return [Tensor(name, shape, x.dtype, x.order) for name, shape in zip(names, shapes, strict=True)]


@rule("pad")
def _pad(graph: Graph, values: list[Value], equation: Any) -> list[Value]:
    (x, fill), (shape, dtype) = values, output(equation)
    config = equation.params["padding_config"]
    if any(inner for _, _, inner in config):
        raise Refused("it spreads an array between zeros")
    before = input_shapes(equation)[0]
    x = graph.full(x, before)
    cut = {a: range(max(-lo, 0), before[a] - max(-hi, 0)) for a, (lo, hi, _) in enumerate(config) if min(lo, hi) < 0}
    x = graph.made(sliced(graph, x, cut))
    if all(lo <= 0 and hi <= 0 for lo, hi, _ in config):
        return [x]
    sides = itertools.product((0, 1), x.order)
    pads = graph.constant([max(config[axis][side], 0) for side, axis in sides], np.int64)
    return [graph.tensor("Pad", [x.name, pads, graph.plain(fill)], shape, dtype, x.order)]


@rule("iota")
def _iota(graph: Graph, values: list[Value], equation: Any) -> list[Value]:
    axis, (shape, dtype) = equation.params["dimension"], output(equation)
    lengths = tuple(size if k == axis else 1 for k, size in enumerate(shape))
    if shape[axis] >= 0:
        return [np.arange(shape[axis], dtype=dtype).reshape(lengths)]
    count = graph.add("Squeeze", [graph.times_images(-shape[axis])])
    bounds = [graph.constant(0, np.int64), *count, graph.constant(1, np.int64)]
    row = graph.tensor("Range", bounds, (shape[axis],), np.int64)
    return [graph.reshape(elementwise(graph, "Cast", [row], dtype, to=dtype), lengths)]


@rule("dim_as_value")
def _images(graph: Graph, values: list[Value], equation: Any) -> list[Value]:
    (factor,), (_, dtype) = sizes((equation.params["dim"],)), output(equation)
    count = graph.tensor("Squeeze", [graph.times_images(-factor)], (), np.int64)
    return [elementwise(graph, "Cast", [count], dtype, to=dtype)]
