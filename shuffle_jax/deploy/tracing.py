"""What a trace of a network says of its layers: how each is called, and which follow each other directly."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.ad_checkpoint import checkpoint_name
from jax.extend.core import Var, jaxprs_in_params

from shuffle_jax.nn import BatchNorm
from shuffle_jax.typing import PyTree

Path = tuple[str, ...]
"""Of a module: the names on the way to it."""


class Variables:
    """The variables of a network while modules get others.

    Attributes:
        flat: by collection, path and name.
    """

    def __init__(self, variables: dict[str, PyTree]) -> None:
        self._before = flatten_dict(variables)
        self.flat = dict(self._before)

    def of(self, path: Path) -> dict[str, PyTree]:
        """The collections of a module."""
        depth = 1 + len(path)
        own = {(key[0], *key[depth:]): leaf for key, leaf in self.flat.items() if key[1:depth] == path}
        return unflatten_dict(own)

    def replace(self, path: Path, collections: dict[str, PyTree]) -> None:
        """Gives a module other collections, and takes those away that it had."""
        depth = 1 + len(path)
        self.flat = {key: leaf for key, leaf in self.flat.items() if key[1:depth] != path}
        self.flat |= {(key[0], *path, *key[1:]): leaf for key, leaf in flatten_dict(collections).items()}

    def finished(self) -> dict[str, PyTree]:
        """All of them, new ones in the type of what they replace."""
        leaves = {
            key: leaf if leaf is self._before[key] else jnp.asarray(leaf, self._before[key].dtype)
            for key, leaf in self.flat.items()
        }
        return unflatten_dict(leaves)


class Call(NamedTuple):
    """How a module is called.

    Attributes:
        module: unbound.
        shapes: of its variables, as it sees them, by collection and path.
        times: how often.
        inputs: the shape of its first argument; empty if that is no array.
    """

    module: Any
    shapes: dict[Path, PyTree]
    times: int
    inputs: tuple[int, ...]

    def is_whole(self, variables: dict[str, PyTree]) -> bool:
        """Whether it is called once and sees these variables: not a slice of them, as under nn.scan."""
        return self.times == 1 and self.shapes == shapes(variables)


def shapes(variables: dict[str, PyTree]) -> dict[Path, PyTree]:
    """The shape of every variable, by collection and path."""
    return {path: jax.tree.map(jnp.shape, leaf) for path, leaf in flatten_dict(variables).items()}


def traced(
    network: nn.Module, variables: dict[str, PyTree], image_shape: tuple[int, int, int]
) -> tuple[dict[Path, Call], dict[Path, Path]]:
    """Traces a network with a mark at the inputs and outputs of its layers, and reads off which follow each other.

    Args:
        network: called as ``network(images)``, which evaluates.
        variables: of the network, or their shapes.
        image_shape: (h, w, c), of any size that the network takes.

    Returns:
        Every module that is called, in the order of the calls; and for batch norms and layers that take a scale the one
        of these whose output is the input, if that output is used by nothing else.
    """
    calls: dict[Path, Call] = {}

    def mark(call: Callable[..., Any], arguments: tuple, keywords: dict[str, Any], context: Any) -> Any:
        module = context.module
        if context.method_name != "__call__":
            return call(*arguments, **keywords)
        path = module.path
        times = calls[path].times + 1 if path in calls else 1
        inputs = jnp.shape(arguments[0]) if arguments and isinstance(arguments[0], jax.Array) else ()
        calls[path] = Call(module.clone(parent=None), shapes(module.variables), times, inputs)
        if not arguments or not (isinstance(module, BatchNorm) or hasattr(module, "scale_outputs")):
            return call(*arguments, **keywords)
        x, *others = arguments
        return _marked(call(_marked(x, IN, path), *others, **keywords), OUT, path)

    def evaluate(variables: dict[str, PyTree], images: Any) -> Any:
        with nn.intercept_methods(mark):
            return network.apply(variables, images)

    program = jax.make_jaxpr(evaluate)(variables, jax.ShapeDtypeStruct((1, *image_shape), jnp.float32))
    before: dict[Path, Path] = {}
    for jaxpr in _with_inner(program.jaxpr):
        uses = Counter(v for e in jaxpr.eqns for v in e.invars if isinstance(v, Var))
        uses.update(v for v in jaxpr.outvars if isinstance(v, Var))
        marks = {e.outvars[0]: e for e in jaxpr.eqns if e.primitive.name == "name"}
        for equation in marks.values():
            place, follower = _unmarked(equation.params["name"])
            if place != IN:
                continue
            # A layer around another one that gives its output as it is marks it too: the inner one counts.
            source, layer = equation.invars[0], None
            while source in marks and uses[source] == 1 and _unmarked(marks[source].params["name"])[0] == OUT:
                layer = _unmarked(marks[source].params["name"])[1]
                source = marks[source].invars[0]
            if layer is not None and uses[source] == 1:
                before[follower] = layer
    return calls, before


IN, OUT = "shuffle_jax in", "shuffle_jax out"


def _marked(x: Any, place: str, path: Path) -> Any:
    return checkpoint_name(x, "/".join((place, *path))) if isinstance(x, jax.Array) else x


def _unmarked(name: str) -> tuple[str, Path]:
    place, *path = name.split("/")
    return place, tuple(path)


def _with_inner(jaxpr: Any) -> Iterator[Any]:
    """A jaxpr and all those inside of it."""
    yield jaxpr
    for equation in jaxpr.eqns:
        for inner in jaxprs_in_params(equation.params):
            yield from _with_inner(inner)
