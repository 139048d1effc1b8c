"""The units of a network, each by itself, on data in which nothing cancels: how what reaches what is found out.

A unit is a submodule called ``stage{S}_{I}``. All its weights are the same positive number, norms change nothing, and
mixers are as they are: so an output of an image that is positive in one place is positive where that place is seen.
"""

from __future__ import annotations

import re
from collections.abc import Hashable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from shuffle_jax.nn.collections import PERMUTATIONS, RELAXED, STATIC
from shuffle_jax.nn.shared import apart
from shuffle_jax.typing import Array, Images, PyTree

UNIT = re.compile(r"stage\d+_\d+")

Path = tuple[str, ...]
Leaves = dict[Path, Any]  # Variables by collection and path.


class ImageDependent(ValueError):
    """What a unit connects depends on the image."""


class Call(NamedTuple):
    """A unit as its network calls it: where its variables are, what it is, what it takes beside an image of a shape."""

    places: dict[Path, Path]
    module: nn.Module
    args: tuple[Any, ...]
    kwargs: tuple[tuple[str, Any], ...]
    shape: tuple[int, ...]

    @property
    def channels(self) -> int:
        """Of its input."""
        return self.shape[-1]

    @property
    def name(self) -> str:
        """Where it is in its network."""
        return "/".join(self.places[()])

    def run(self, variables: PyTree, images: Images) -> Array:
        """Calls it by itself, with its variables."""
        return self.module.apply(variables, images, *self.args, **dict(self.kwargs))  # type: ignore[return-value]

    @property
    def likeness(self) -> Hashable:
        """What two units share that are one program."""
        try:
            hash(self.module)
        except TypeError:  # A field of the unit is a list: it is like itself alone.
            return self.name
        return self.module, self.args, self.kwargs, self.channels


def trace(
    network: nn.Module,
    variables: PyTree,
    image_shape: tuple[int, ...],
    named: re.Pattern[str] = UNIT,
    dynamic: bool = False,
) -> tuple[list[Call], Leaves]:
    """The units, by shapes alone, and the leaves of all variables: those that mix as they are, of others the shapes.

    Args:
        network: called as ``network(images)``.
        variables: of the network; what is missing is as it initialises it.
        image_shape: of one image, (h, w, c).
        named: what a unit is called.
        dynamic: whether layers may make something of the whole image.

    Raises:
        ImageDependent: a ValueError; one does and may not.
        ValueError: something is computed between two units.
    """
    calls: list[Call] = []
    around: list[str] = []  # The unit that is being called.
    outputs: list[Any] = []

    def visit(call: Any, args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
        module, name = context.module, "/".join(context.module.path)
        if context.method_name != "__call__":
            return call(*args, **kwargs)
        if around and not dynamic and args and getattr(args[0], "ndim", 4) < 4:
            raise ImageDependent(
                f"what {around[-1]} connects depends on the image, which {name} sees as a whole: choose mixers "
                "ChannelShuffle, ChannelShift, FixedPermutation, AutoShuffle or Identity, or freeze dynamic shuffles"
            )
        if around or not named.fullmatch(module.name or ""):
            return call(*args, **kwargs)
        if outputs and args[0] is not outputs[-1]:
            raise ValueError(f"something is computed between {calls[-1].name} and {name}: make it a part of a unit")
        around.append(name)
        outputs.append(call(*args, **kwargs))
        around.pop()
        unbound, places = apart(module)
        calls.append(Call(places, unbound, args[1:], tuple(kwargs.items()), args[0].shape[1:]))
        return outputs[-1]

    def complete(variables: PyTree) -> Leaves:
        images = jnp.zeros((1, *image_shape), jnp.float32)
        return flatten_dict(network.apply(variables, images, mutable=True, rngs={"params": jax.random.key(0)})[1])

    with nn.intercept_methods(visit):
        leaves = jax.eval_shape(complete, variables)
    if any(map(mixes, leaves)):
        # Kernels, which nobody asks for, are not drawn.
        take = jax.jit(lambda given: {path: leaf for path, leaf in complete(given).items() if mixes(path)})
        leaves |= jax.device_get(take(variables))
    return calls, leaves


def mixes(path: Path) -> bool:
    """Whether a leaf says where channels go."""
    return path[0] == PERMUTATIONS or path[-1] in (RELAXED, STATIC)


def weighted(own: Leaves, weight: float, threshold: float) -> PyTree:
    """The variables of a unit, every weight the same; what mixes is as it is, and norms change nothing."""

    def filled(path: Path, leaf: Any) -> Any:
        if path[-1] == RELAXED:
            return (leaf > threshold).astype(leaf.dtype)
        value = {"bias": 0.0, "mean": 0.0, "scale": 1.0, "var": 1.0}.get(path[-1], weight)
        return leaf if mixes(path) else np.full(leaf.shape, value, leaf.dtype)

    return unflatten_dict({path: filled(path, leaf) for path, leaf in own.items()})
