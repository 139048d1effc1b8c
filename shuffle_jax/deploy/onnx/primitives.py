"""What JAX's elementwise primitives and reductions are in ONNX, and the table of all rules."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from shuffle_jax.deploy.onnx.graph import Graph, Refused, Shape, Tensor, Value, sizes

Rule = Callable[[Graph, list[Value], Any], list[Value]]
"""From a graph, the inputs of an equation and the equation to its outputs."""

RULES: dict[str, Rule] = {}
"""By the name of a primitive."""

SAME = (
    "stop_gradient", "optimization_barrier", "copy", "copy_p", "name", "layout_constraint", "sharding_constraint",
    "reduce_precision", "mesh_cast", "pvary", "device_put",
)  # fmt: skip
"""What changes nothing here."""

ELEMENTWISE = {
    "abs": "Abs", "add": "Add", "add_any": "Add", "and": "And", "ceil": "Ceil", "cos": "Cos", "div": "Div",
    "eq": "Equal", "erf": "Erf", "exp": "Exp", "floor": "Floor", "ge": "GreaterOrEqual", "gt": "Greater",
    "le": "LessOrEqual", "log": "Log", "logistic": "Sigmoid", "lt": "Less", "max": "Max", "min": "Min",
    "mul": "Mul", "neg": "Neg", "not": "Not", "or": "Or", "pow": "Pow", "round": "Round", "sign": "Sign",
    "sin": "Sin", "sqrt": "Sqrt", "sub": "Sub", "tanh": "Tanh", "xor": "Xor",
}  # fmt: skip
"""Those that are one operation there."""

LOGICAL = ("And", "Or", "Xor", "Not")


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Enters a function in :data:`RULES`."""

    def enter(function: Rule) -> Rule:
        RULES.update(dict.fromkeys(names, function))
        return function

    return enter


def input_shapes(equation: Any) -> list[Shape]:
    """The shapes of the inputs of an equation."""
    return [sizes(var.aval.shape) for var in equation.invars]


def output(equation: Any, index: int = 0) -> tuple[Shape, np.dtype]:
    """Shape and type of an output of an equation."""
    aval = equation.outvars[index].aval
    return sizes(aval.shape), np.dtype(aval.dtype)


def elementwise(graph: Graph, op: str, values: Sequence[Value], dtype: Any, **attributes: Any) -> Tensor:
    """An operation on values of one rank, or single numbers, which repeats what has length 1."""
    rank = max(len(value.shape) for value in values)
    # The layout of the one with the most axes, so that the largest is not moved.
    tensors = [value for value in values if isinstance(value, Tensor) and len(value.shape) == rank]
    axes = tuple(range(rank))
    order = max(tensors, key=lambda x: sum(size != 1 for size in x.shape)).order if tensors else axes
    names = [graph.ordered(value, order if value.shape else ()) for value in values]
    shapes = [value.shape for value in values if value.shape]
    shape = tuple(next((size for size in sizes if size != 1), 1) for sizes in zip(*shapes, strict=True))
    return graph.tensor(op, names, shape, dtype, order, **attributes)


@rule(*SAME)
def _same(graph: Graph, values: list[Value], equation: Any) -> list[Value]:
    return list(values)


@rule(*ELEMENTWISE)
def _elementwise(graph: Graph, values: list[Value], equation: Any) -> list[Value]:
    op, (_, dtype) = ELEMENTWISE[equation.primitive.name], output(equation)
    if op in LOGICAL and np.dtype(equation.invars[0].aval.dtype) != np.bool_:
        raise Refused(f"it combines the bits of numbers ({equation.primitive.name})")
    return [elementwise(graph, op, values, dtype)]


@rule("ne")
def _differs(graph: Graph, values: list[Value], equation: Any) -> list[Value]:
    return [elementwise(graph, "Not", [elementwise(graph, "Equal", values, bool)], bool)]


@rule("rem")
def _remainder(graph: Graph, values: list[Value], equation: Any) -> list[Value]:
    return [elementwise(graph, "Mod", values, output(equation)[1], fmod=1)]


@rule("square")
def _square(graph: Graph, values: list[Value], equation: Any) -> list[Value]:
    return [elementwise(graph, "Mul", values * 2, output(equation)[1])]


@rule("integer_pow")
def _integer_power(graph: Graph, values: list[Value], equation: Any) -> list[Value]:
    dtype = output(equation)[1]
    return [elementwise(graph, "Pow", [values[0], np.asarray(equation.params["y"], dtype)], dtype)]


@rule("exp2")
def _exp2(graph: Graph, values: list[Value], equation: Any) -> list[Value]:
    dtype = output(equation)[1]
    return [elementwise(graph, "Pow", [np.asarray(2, dtype), values[0]], dtype)]


@rule("rsqrt")
def _rsqrt(graph: Graph, values: list[Value], equation: Any) -> list[Value]:
    dtype = output(equation)[1]
    return [elementwise(graph, "Reciprocal", [elementwise(graph, "Sqrt", values, dtype)], dtype)]


@rule("log1p")
def _log1p(graph: Graph, values: list[Value], equation: Any) -> list[Value]:
    dtype = output(equation)[1]
    return [elementwise(graph, "Log", [elementwise(graph, "Add", [values[0], np.ones((), dtype)], dtype)], dtype)]


@rule("is_finite")
def _is_finite(graph: Graph, values: list[Value], equation: Any) -> list[Value]:
    odd = [elementwise(graph, op, values, bool) for op in ("IsInf", "IsNaN")]
    return [elementwise(graph, "Not", [elementwise(graph, "Or", odd, bool)], bool)]


@rule("clamp")
def _clamp(graph: Graph, values: list[Value], equation: Any) -> list[Value]:
    (low, x, high), dtype = values, output(equation)[1]
    return [elementwise(graph, "Min", [elementwise(graph, "Max", [x, low], dtype), high], dtype)]


@rule("select_n")
def _select(graph: Graph, values: list[Value], equation: Any) -> list[Value]:
    which, *cases = values
    if len(cases) != 2:
        raise Refused(f"it chooses among {len(cases)} arrays")
    if np.dtype(equation.invars[0].aval.dtype) != np.bool_:
        which = elementwise(graph, "Cast", [which], bool, to=bool)
    return [elementwise(graph, "Where", [which, cases[1], cases[0]], output(equation)[1])]


@rule("convert_element_type")
def _cast(graph: Graph, values: list[Value], equation: Any) -> list[Value]:
    dtype = output(equation)[1]
    (x,) = values
    return [x] if x.dtype == dtype else [elementwise(graph, "Cast", [x], dtype, to=dtype)]


@rule("reduce_sum", "reduce_max", "reduce_min", "reduce_prod", "reduce_and", "reduce_or")
def _reduce(graph: Graph, values: list[Value], equation: Any) -> list[Value]:
    name, dtype = equation.primitive.name, output(equation)[1]
    (shape,) = input_shapes(equation)
    x = graph.made(graph.full(values[0], shape))
    if logical := name in ("reduce_and", "reduce_or"):
        x = elementwise(graph, "Cast", [x], np.dtype(np.int32), to=np.dtype(np.int32))
        name = {"reduce_and": "reduce_min", "reduce_or": "reduce_max"}[name]
    found = reduced(graph, f"Reduce{name.removeprefix('reduce_').title()}", x, equation.params["axes"])
    return [elementwise(graph, "Cast", [found], dtype, to=dtype)] if logical else [found]


def reduced(graph: Graph, op: str, x: Tensor, axes: Sequence[int]) -> Tensor:
    """A reduction over axes, which are gone afterwards."""
    places = sorted(x.axis(axis) for axis in axes)
    kept = [axis for axis in range(len(x.shape)) if axis not in axes]
    order = [kept.index(axis) for axis in x.order if axis in kept]
    shape = tuple(x.shape[axis] for axis in kept)
    if op != "ReduceSum":
        (name,) = graph.add(op, [x.name], keepdims=0, axes=places)
    else:  # of this one the axes are an input since opset 13, of the others since 18
        (name,) = graph.add(op, [x.name, graph.constant(places, np.int64)], keepdims=0)
        graph.added[name] = math.prod(x.shape[axis] for axis in axes)
    return Tensor(name, shape, x.dtype, tuple(order))


@rule("argmax", "argmin")
def _arg(graph: Graph, values: list[Value], equation: Any) -> list[Value]:
    (axis,), dtype = equation.params["axes"], output(equation)[1]
    x = graph.made(graph.full(values[0], input_shapes(equation)[0]))
    op = {"argmax": "ArgMax", "argmin": "ArgMin"}[equation.primitive.name]
    kept = [other for other in range(len(x.shape)) if other != axis]
    order = tuple(kept.index(other) for other in x.order if other != axis)
    (name,) = graph.add(op, [x.name], axis=x.axis(axis), keepdims=0)
    found = Tensor(name, tuple(x.shape[other] for other in kept), np.dtype(np.int64), order)
    return [elementwise(graph, "Cast", [found], dtype, to=dtype)]
