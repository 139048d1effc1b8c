"""Making a graph smaller without changing what it computes: what is one operation in ONNX becomes one."""

from __future__ import annotations

from collections import Counter

import numpy as np

from shuffle_jax.deploy.onnx.graph import OUTPUT, Graph, Node


def tidied(graph: Graph, result: str) -> tuple[list[Node], dict[str, np.ndarray]]:
    """The nodes that count towards the result, joined where ONNX has one for two, and the constants that they read.

    - ``x * k / k``, as an average pooling leaves it, is x; a sum over its number is a mean.
    - ``max(x, 0)`` is a ReLU, and the smaller of that and a number is one operation too.
    - A bias goes into the convolution or product before it.
    - Of reshapes one after the other the last counts.

    Args:
        graph: as it was traced.
        result: the name of what is to be called :data:`~shuffle_jax.deploy.onnx.graph.OUTPUT`.
    """
    found = _Joined(graph, result)
    for join in (found.reshape, found.quotient, found.relu, found.clip, found.bias):
        found.apply(join)
    nodes = _named(found.nodes, result)
    used = {name for node in nodes for name in node.inputs}
    return nodes, {name: value for name, value in found.constants.items() if name in used}


def _named(nodes: list[Node], result: str) -> list[Node]:
    """The nodes without those that give their input, and the result under its name."""
    names: dict[str, str] = {}
    for node in nodes:
        if node.op == "Identity":
            names[node.outputs[0]] = names.get(node.inputs[0], node.inputs[0])
    names |= {name: OUTPUT for name in (result, names.get(result, result))}

    def renamed(found: list[str]) -> list[str]:
        return [names.get(name, name) for name in found]

    kept = (node for node in nodes if node.op != "Identity")
    return [Node(node.op, renamed(node.inputs), renamed(node.outputs), node.attributes) for node in kept]


class _Joined:
    """Nodes while they are joined. Each method gives the node that takes the place of one, or None."""

    def __init__(self, graph: Graph, result: str) -> None:
        self.nodes, self.constants, self.added, self.result = graph.nodes, dict(graph.constants), graph.added, result

    def apply(self, join: object) -> None:
        """Replaces the nodes that can be; what nothing reads any more goes."""
        self.nodes = self._alive()
        self.made = {name: node for node in self.nodes for name in node.outputs}
        self.uses = Counter(name for node in self.nodes for name in node.inputs)
        for k, node in enumerate(self.nodes):
            if (new := join(node)) is not None:  # type: ignore[operator]
                self.nodes[k] = new
                self.made |= dict.fromkeys(new.outputs, new)
        self.nodes = self._alive()

    def _alive(self) -> list[Node]:
        wanted, kept = {self.result}, []
        for node in reversed(self.nodes):
            if wanted & set(node.outputs):
                wanted |= set(node.inputs)
                kept.append(node)
        return kept[::-1]

    def _number(self, name: str) -> float | None:
        value = self.constants.get(name)
        return float(value.reshape(())) if value is not None and value.size == 1 else None

    def _source(self, name: str, *ops: str) -> Node | None:
        node = self.made.get(name)
        return node if node is not None and node.op in ops else None

    def reshape(self, node: Node) -> Node | None:
        before = self._source(node.inputs[0], "Reshape") if node.op == "Reshape" else None
        return Node("Reshape", [before.inputs[0], node.inputs[1]], node.outputs) if before else None

    def quotient(self, node: Node) -> Node | None:
        before = self._source(node.inputs[0], "Mul", "ReduceSum") if node.op == "Div" else None
        by = self._number(node.inputs[1]) if before else None
        if before is None or by is None:
            return None
        if before.op == "Mul":
            others = [name for name in before.inputs if self._number(name) != by]
            return Node("Identity", others, node.outputs) if len(others) == 1 else None
        if by != self.added[before.outputs[0]]:
            return None
        axes = self.constants[before.inputs[1]].tolist()
        return Node("ReduceMean", before.inputs[:1], node.outputs, {"axes": axes, "keepdims": 0})

    def relu(self, node: Node) -> Node | None:
        if node.op != "Max":
            return None
        x = [name for name in node.inputs if self._number(name) != 0]
        return Node("Relu", x, node.outputs) if len(x) == 1 else None

    def clip(self, node: Node) -> Node | None:
        if node.op != "Min":
            return None
        for name, most in (node.inputs, node.inputs[::-1]):
            before, limit = self._source(name, "Relu"), self.constants.get(most)
            if before is not None and limit is not None and not limit.shape and self.uses[name] == 1:
                least = f"zero_{limit.dtype.name}"
                self.constants[least] = np.zeros((), limit.dtype)
                return Node("Clip", [before.inputs[0], least, most], node.outputs)
        return None

    def bias(self, node: Node) -> Node | None:
        if node.op != "Add":
            return None
        for name, other in (node.inputs, node.inputs[::-1]):
            before, bias = self._source(name, "Conv", "MatMul"), self.constants.get(other)
            if before is None or bias is None or self.uses[name] != 1 or len(before.inputs) != 2:
                continue
            kernel = self.constants.get(before.inputs[1])
            convolution = before.op == "Conv"
            if kernel is None or not (convolution or (kernel.ndim == 2 and bias.ndim == 2)):
                continue
            features, axis = kernel.shape[0 if convolution else 1], 1
            if bias.ndim < 2 or not bias.size == bias.shape[axis] == features:
                continue
            flat = f"{other}_flat"
            self.constants[flat] = bias.reshape(features)
            inputs = [*before.inputs, flat]
            return Node("Conv" if convolution else "Gemm", inputs, node.outputs, before.attributes)
        return None
