"""From a function of images to a graph: its trace, equation by equation."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import export as jax_export
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal

from shuffle_jax.deploy.onnx import linear  # noqa: F401 (enters its rules)
from shuffle_jax.deploy.onnx.graph import INPUT, Graph, Refused, Tensor, Value, sizes
from shuffle_jax.deploy.onnx.moves import concatenated, reshaped, sliced
from shuffle_jax.deploy.onnx.primitives import ELEMENTWISE, RULES, SAME, input_shapes, output
from shuffle_jax.ops.form import native
from shuffle_jax.typing import Array, Float, Images, PyTree

INSIDE = ("jaxpr", "call_jaxpr", "fun_jaxpr", "call")
"""Where a call of a function has that function."""

LOOP = 64
"""Rounds of a loop that are written one after the other; a longer one is refused."""

LAZY = {*ELEMENTWISE, "ne", "rem", "square", "integer_pow", "exp2", "rsqrt", "log1p", "is_finite", "select_n"}
LAZY |= {"convert_element_type", "clamp"}
"""What may be computed of constants before they are repeated."""

MOVED = ("broadcast_in_dim", "transpose")
"""What makes another view of a constant, and no node."""


def graph_of(
    apply: Callable[[PyTree, Images], Float[Array, "n k"]], params: PyTree, image_shape: tuple[int, int, int]
) -> tuple[Graph, Tensor]:
    """Traces ``images -> apply(params, images)`` in its native form, for any number of images.

    Args:
        apply: from normalised float32 images ``(n, h, w, c)`` to logits.
        params: its arrays; they become constants.
        image_shape: (h, w, c).

    Returns:
        The graph, whose input is ``(n, h, w, c)``, and its logits.

    Raises:
        Refused: there is no such graph; the message names the layer and why.
    """
    (n,) = jax_export.symbolic_shape("n")
    with native():
        program = jax.make_jaxpr(apply)(params, jax.ShapeDtypeStruct((n, *image_shape), jnp.float32))
    graph = Graph()
    images = Tensor(INPUT, (-1, *image_shape), np.dtype(np.float32), (0, 1, 2, 3))
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(params)]
    (logits,) = _Walk(graph).run(program.jaxpr, program.consts, [*leaves, images])
    if not isinstance(logits, Tensor):
        raise Refused("its logits do not depend on the images")
    return graph, logits


class _Walk:
    """Goes through a program; where it is, a refusal says by the names of modules."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph

    def run(self, jaxpr: Jaxpr, consts: Sequence[Any], inputs: Sequence[Value], place: str = "") -> list[Value]:
        known: dict[Any, Value] = dict(zip(jaxpr.constvars, map(np.asarray, consts), strict=True))
        known.update(zip(jaxpr.invars, inputs, strict=True))

        def read(atom: Any) -> Value:
            aval: Any = atom.aval
            return np.asarray(atom.val, aval.dtype) if isinstance(atom, Literal) else known[atom]

        for equation in jaxpr.eqns:
            here = "/".join(filter(None, (place, str(equation.source_info.name_stack))))
            values = self.equation(equation, [read(atom) for atom in equation.invars], here)
            known.update(zip(equation.outvars, values, strict=True))
        return [read(atom) for atom in jaxpr.outvars]

    def equation(self, equation: Any, values: list[Value], place: str) -> list[Value]:
        name = equation.primitive.name
        constants = bool(values) and not any(isinstance(value, Tensor) for value in values)
        try:
            if name in SAME:
                return values
            if name == "scan":
                return self.scan(equation, values, place)
            if name == "cond" and not isinstance(which := values[0], Tensor):
                branch = equation.params["branches"][int(which)]
                return self.run(branch.jaxpr, branch.consts, values[1:], place)
            if name == "reduce":
                return self.reduce(equation, values, place)
            if (inner := self.inside(equation)) is not None and name not in RULES and name != "while":
                return self.run(inner.jaxpr, inner.consts, values, place)
            if constants and (found := _computed(equation, values)) is not None:
                return found
            if name not in RULES:
                raise Refused(NAMED.get(name, f"ONNX has no {name}"))
            return RULES[name](self.graph, values, equation)
        except Refused as error:
            if getattr(error, "placed", False):
                raise
            refused = Refused(f"{place or 'the network'}: {error}")
            refused.placed = True  # type: ignore[attr-defined]
            raise refused from error

    @staticmethod
    def inside(equation: Any) -> ClosedJaxpr | None:
        for key in INSIDE:
            found = equation.params.get(key)
            if isinstance(found, ClosedJaxpr):
                return found
            if isinstance(found, Jaxpr):
                return ClosedJaxpr(found, ())
        return None

    def scan(self, equation: Any, values: list[Value], place: str) -> list[Value]:
        """A loop of a known number of rounds, written out."""
        p, graph = equation.params, self.graph
        if p["length"] > LOOP:
            raise Refused(f"it loops {p['length']} times")
        if "num_consts" in p:
            fixed, carried = p["num_consts"], p["num_carry"]
        else:  # JAX 0.12
            fixed, carried = map(len, p["ft_in"].unpack()[:2])
        shapes = [sizes(var.aval.shape) for var in equation.invars]
        consts, carry, stacked = values[:fixed], values[fixed : fixed + carried], values[fixed + carried :]
        rounds: list[list[Value]] = []
        order = range(p["length"])[:: -1 if p["reverse"] else 1]
        for step in order:
            taken = []
            for x, shape in zip(stacked, shapes[fixed + carried :], strict=True):
                part = sliced(graph, x, {0: range(step, step + 1)})
                taken.append(reshaped(graph, part, (1, *shape[1:]), shape[1:]))
            found = self.run(p["jaxpr"].jaxpr, p["jaxpr"].consts, [*consts, *carry, *taken], place)
            carry = found[:carried]
            rounds.append(found[carried:])
        outputs = list(carry)
        for k, var in enumerate(equation.outvars[carried:]):
            shape, dtype = sizes(var.aval.shape), np.dtype(var.aval.dtype)
            rows = rounds[:: -1 if p["reverse"] else 1]
            parts = [reshaped(graph, graph.full(row[k], shape[1:]), shape[1:], (1, *shape[1:])) for row in rows]
            if any(isinstance(part, Tensor) for part in parts):
                outputs.append(concatenated(graph, parts, 0, shape, dtype))
            else:
                outputs.append(np.concatenate(parts))  # type: ignore[arg-type]
        return outputs

    def reduce(self, equation: Any, values: list[Value], place: str) -> list[Value]:
        """A reduction by a function of its own: halves of an axis combined until one value is left."""
        p, graph, count = equation.params, self.graph, len(values) // 2
        shapes = input_shapes(equation)
        arrays = [graph.full(x, shape) for x, shape in zip(values[:count], shapes[:count], strict=True)]
        jaxpr = p["jaxpr"].jaxpr if isinstance(p["jaxpr"], ClosedJaxpr) else p["jaxpr"]

        def combined(one: list[Value], other: list[Value]) -> list[Value]:
            return self.run(jaxpr, (), [*one, *other], place)

        for axis in p["dimensions"]:
            while (length := arrays[0].shape[axis]) > 1:
                half = length // 2
                first, second, rest = (
                    [sliced(graph, x, {axis: part}) if len(part) < length else x for x in arrays]
                    for part in (range(half), range(half, 2 * half), range(2 * half, length))
                )
                arrays = combined(first, second)
                if length % 2:
                    shape = (*arrays[0].shape[:axis], half + 1, *arrays[0].shape[axis + 1 :])
                    arrays = [
                        concatenated(graph, [x, one], axis, shape, x.dtype) for x, one in zip(arrays, rest, strict=True)
                    ]
        after = [output(equation, k)[0] for k in range(count)]
        return [reshaped(graph, x, x.shape, shape) for x, shape in zip(arrays, after, strict=True)]


NAMED: Mapping[str, str] = {
    "while": "it loops until something is reached, as a linear assignment for each image does",
    "cond": "it computes one of several ways, chosen by the image",
    "sort": "it sorts for each image",
    "pallas_call": "it is a kernel for GPU",
}
"""What is said of primitives that have no rule."""


def _computed(equation: Any, values: list[Any]) -> list[Value] | None:
    """The outputs of an equation of constants, None if they depend on the number of images."""
    name = equation.primitive.name
    open_ended = any(size < 0 for var in equation.outvars for size in sizes(var.aval.shape))
    if name in MOVED or (name in ("iota", "reshape") and not open_ended):
        return RULES[name](Graph(), values, equation)
    if name in LAZY:
        shape = np.broadcast_shapes(*(np.shape(value) for value in values))
        operands = [np.broadcast_to(value, shape) for value in values]
    elif open_ended:
        return None
    else:
        operands = [np.broadcast_to(v, sizes(var.aval.shape)) for v, var in zip(values, equation.invars, strict=True)]
    found = equation.primitive.bind(*map(jnp.asarray, operands), **equation.params)
    return [np.asarray(leaf) for leaf in (found if equation.primitive.multiple_results else [found])]
