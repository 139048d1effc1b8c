"""What convolutions, products, pooling and gathers are in ONNX."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from shuffle_jax.deploy.onnx.graph import Graph, Refused, Shape, Tensor, Value, sizes
from shuffle_jax.deploy.onnx.moves import sliced
from shuffle_jax.deploy.onnx.primitives import elementwise, input_shapes, output, rule


@rule("conv_general_dilated")
def _convolution(graph: Graph, values: list[Value], equation: Any) -> list[Value]:
    p, (shape, dtype) = equation.params, output(equation)
    if p["batch_group_count"] != 1 or any(by != 1 for by in p["lhs_dilation"]):
        raise Refused("it is a convolution with holes in the image")
    pads = [side for column in zip(*p["padding"], strict=True) for side in column]
    if min(pads, default=0) < 0:
        raise Refused("it is a convolution that cuts the image")
    x, kernel = (graph.full(v, before) for v, before in zip(values, input_shapes(equation), strict=True))
    lhs, rhs, out = p["dimension_numbers"]
    window = [kernel.shape[axis] for axis in rhs[2:]]
    names = [graph.ordered(x, lhs), graph.ordered(kernel, rhs)]
    attributes = {
        "strides": list(p["window_strides"]),
        "pads": pads,
        "dilations": list(p["rhs_dilation"]),
        "group": p["feature_group_count"],
        "kernel_shape": window,
    }
    return [graph.tensor("Conv", names, shape, dtype, out, **attributes)]


@rule("reduce_window_sum", "reduce_window_max")
def _pool(graph: Graph, values: list[Value], equation: Any) -> list[Value]:
    p, (shape, dtype) = equation.params, output(equation)
    window, strides, pads = p["window_dimensions"], p["window_strides"], p["padding"]
    moved = [axis for axis in range(len(shape)) if (window[axis], strides[axis], pads[axis]) != (1, 1, (0, 0))]
    still = [axis for axis in range(len(shape)) if axis not in moved]
    if len(still) != 2 or any(by != 1 for by in (*p["base_dilation"], *p["window_dilation"])):
        raise Refused("it pools over other axes than rows and columns")
    x = graph.full(values[0], input_shapes(equation)[0])
    order = (*still, *moved)
    attributes: dict[str, Any] = {
        "kernel_shape": [window[axis] for axis in moved],
        "strides": [strides[axis] for axis in moved],
        "pads": [pads[axis][side] for side in (0, 1) for axis in moved],
    }
    name = graph.ordered(x, order)
    if equation.primitive.name == "reduce_window_max":
        return [graph.tensor("MaxPool", [name], shape, dtype, order, **attributes)]
    mean = graph.tensor("AveragePool", [name], shape, dtype, order, count_include_pad=1, **attributes)
    return [elementwise(graph, "Mul", [mean, np.asarray(math.prod(window), dtype)], dtype)]


@rule("dot_general")
def _product(graph: Graph, values: list[Value], equation: Any) -> list[Value]:
    ((left_in, right_in), (left_batch, right_batch)) = equation.params["dimension_numbers"]
    shape, dtype = output(equation)
    left, right = (graph.full(v, before) for v, before in zip(values, input_shapes(equation), strict=True))
    left_free, right_free = (
        [axis for axis in range(len(x.shape)) if axis not in (*inner, *batch)]
        for x, inner, batch in ((left, left_in, left_batch), (right, right_in, right_batch))
    )
    # A matrix is multiplied with arrays of any rank; what has more axes becomes batches of matrices.
    merge = bool(left_batch) or len(left_in) != 1 or len(right_free) != 1
    rows = _matrix(graph, left, left_batch, left_free, left_in, merge)
    columns = _matrix(graph, right, right_batch, right_in, right_free, True)
    lead = tuple(left.shape[axis] for axis in left_batch)
    free = tuple(left.shape[axis] for axis in left_free)
    inner = (math.prod(free),) if merge else free
    width = math.prod(right.shape[axis] for axis in right_free)
    (name,) = graph.add("MatMul", [rows, columns])
    found = Tensor(name, (*lead, *inner, width), dtype, tuple(range(len(lead) + len(inner) + 1)))
    return [graph.reshape(found, shape)]


def _matrix(graph: Graph, x: Value, batch: Any, rows: Any, columns: Any, merge: bool) -> str:
    """The name of a value with its axes in this order, the rows and the columns each as one axis."""
    x = graph.transpose(x, [*batch, *rows, *columns])
    if not merge:
        return graph.plain(x)
    lead, split = x.shape[: len(batch)], len(batch) + len(rows)
    ends = math.prod(x.shape[len(batch) : split]), math.prod(x.shape[split:])
    x = graph.reshape(x, (*lead, *ends))
    return graph.plain(x)


@rule("gather")
def _gather(graph: Graph, values: list[Value], equation: Any) -> list[Value]:
    """Slices, axes by indices of their own, and an axis by the indices of each image."""
    (x, index), numbers, (after, _) = values, equation.params["dimension_numbers"], output(equation)
    before, of_index = input_shapes(equation)
    x, window = graph.full(x, before), sizes(equation.params["slice_sizes"])
    axes, gone = numbers.start_index_map, numbers.collapsed_slice_dims
    if numbers.operand_batching_dims:
        return [_gather_of_each(graph, x, index, equation)]
    index = graph.full(index, of_index)
    batch = [place for place in range(len(after)) if place not in numbers.offset_dims]
    if isinstance(index, Tensor):
        if (tuple(axes), len(batch)) != (tuple(gone), 1):
            raise Refused("it gathers by a table of indices that the image makes")
        places = {batch[0]: axes[0]}
        x = _taken(graph, x, axes[0], graph.reshape(index, index.shape[:-1]))
    else:
        places = {}
        for axis, starts in zip(axes, np.moveaxis(index, -1, 0), strict=True):
            varied = [k for k in range(starts.ndim) if (starts != starts.take([0], k)).any()]
            first = int(starts.reshape(-1)[0])
            if axis not in gone and not varied:
                x = sliced(graph, x, {axis: range(first, first + window[axis])} if window[axis] != before[axis] else {})
            elif axis in gone and len(varied) == 1 and batch[varied[0]] not in places:
                row = np.moveaxis(starts, varied[0], 0).reshape(starts.shape[varied[0]], -1)[:, 0]
                x, places[batch[varied[0]]] = _taken(graph, x, axis, row), axis
            elif axis in gone and not varied:
                x = sliced(graph, x, {axis: range(first, first + 1)})
            else:
                raise Refused("it gathers windows, or pairs of indices")
    # Axes that were taken at one place are gone; where the batch of indices has an axis for one, it has length 1.
    single = [axis for axis in gone if axis not in places.values()]
    for place in batch:
        if place not in places:
            if after[place] != 1 or not single:
                raise Refused("it gathers the same values again")
            places[place] = single.pop(0)
    kept = [axis for axis in range(len(before)) if axis not in gone]
    places |= dict(zip(numbers.offset_dims, kept, strict=True))
    x = graph.transpose(x, [*(places[k] for k in range(len(after))), *single])
    return [graph.reshape(x, x.shape[: len(after)])]


def _taken(graph: Graph, x: Value, axis: int, row: Value) -> Value:
    """An axis by indices, as a slice where they ascend evenly."""
    if isinstance(row, np.ndarray):
        steps = {int(step) for step in np.diff(row)}
        if len(steps) == 1 and (step := steps.pop()) > 0:
            return sliced(graph, x, {axis: range(int(row[0]), int(row[-1]) + 1, step)})
        if len(row) == 1:
            return sliced(graph, x, {axis: range(int(row[0]), int(row[0]) + 1)})
    x = graph.made(x)
    shape = (*x.shape[:axis], *row.shape, *x.shape[axis + 1 :])
    return graph.tensor("Gather", [x.name, graph.plain(row)], shape, x.dtype, x.order, axis=x.axis(axis))


@rule("rev")
def _reversed(graph: Graph, values: list[Value], equation: Any) -> list[Value]:
    (x,), (before,) = values, input_shapes(equation)
    for axis in equation.params["dimensions"]:
        if x.shape[axis] < 0:
            raise Refused("it reverses the order of the images")
        x = _taken(graph, x, axis, np.arange(before[axis])[::-1]) if x.shape[axis] > 1 else x
    return [x]


def _gather_of_each(graph: Graph, x: Value, index: Value, equation: Any) -> Value:
    """``y[n, ..., i] = x[n, ..., p[n, i]]``, as a vmapped permutation gives it."""
    numbers, (shape, dtype) = equation.params["dimension_numbers"], output(equation)
    index = graph.full(index, input_shapes(equation)[1])
    batch, (axis,) = numbers.operand_batching_dims, numbers.start_index_map
    if tuple(batch) != (0,) or tuple(numbers.start_indices_batching_dims) != (0,) or len(index.shape) != 3:
        raise Refused("it gathers for each image by a table of indices")
    if tuple(numbers.collapsed_slice_dims) != (axis,):
        raise Refused("it gathers windows for each image")
    rest = [k for k in range(len(x.shape)) if k not in (0, axis)]
    names = [graph.ordered(x, (0, axis, *rest)), graph.plain(_as_int64(graph, index))]
    kept: Shape = (x.shape[0], index.shape[1], *(x.shape[k] for k in rest))
    found = graph.tensor("GatherND", names, kept, dtype, batch_dims=1)
    chosen = [k for k in range(len(shape)) if k not in numbers.offset_dims]  # of the images, of what was chosen
    places = {chosen[0]: 0, chosen[1]: 1, **{place: 2 + k for k, place in enumerate(numbers.offset_dims)}}
    return graph.transpose(found, [places[k] for k in range(len(shape))])


def _as_int64(graph: Graph, index: Value) -> Value:
    if isinstance(index, np.ndarray):
        return index.astype(np.int64)
    return elementwise(graph, "Cast", [index], np.dtype(np.int64), to=np.dtype(np.int64))
