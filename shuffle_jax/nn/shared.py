"""One layer in many places of a network."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.linen as nn

from shuffle_jax.typing import Images, Outputs

Path = tuple[str, ...]

OWN = "own"
"""The name of a copy that one use has of a shared layer."""


class Use(nn.Module):
    """One use of a layer that a network calls in many places.

    It has no parameters: they are the layer's, once in the network, in its checkpoints and in its gradient. Where it
    has parameters below :data:`OWN` all the same, as after :func:`shuffle_jax.deploy.folding.fold` with ``copies``,
    they are those of a copy, which is called instead.

    Attributes:
        layer: what is shared: one module, made by whoever makes its uses, and called as ``layer(x, train=...)``.
        own: start with a copy, which nobody shares.
    """

    layer: nn.Module
    own: bool = False

    @nn.compact
    def __call__(self, x: Images, train: bool = False) -> Outputs:
        """What the layer makes of x."""
        own = self.own or self.has_variable("params", OWN)
        layer = self.layer.clone(parent=self, name=OWN) if own else self.layer
        y: Images = layer(x, train=train)
        return y


def apart(module: nn.Module) -> tuple[nn.Module, dict[Path, Path]]:
    """A module of a network by itself, with what it shares with others as layers of its own.

    Args:
        module: while its network is called.

    Returns:
        The module without a parent and a name, and for each place in its variables where they are in the network's:
        those of the module itself at ``()``, and those of each layer that one of its fields holds.
    """
    fields = {f.name: getattr(module, f.name) for f in dataclasses.fields(module) if f.init and f.name != "parent"}
    held = {name: one for name, one in fields.items() if isinstance(one, nn.Module) and one.scope is not None}
    alone: dict[str, Any] = {name: one.clone(parent=None, name=None) for name, one in held.items()}
    places: dict[Path, Path] = {(): module.path} | {(name,): one.path for name, one in held.items()}
    return module.clone(parent=None, name=None, **alone), places


def gathered(leaves: Mapping[Path, Any], places: Mapping[Path, Path]) -> dict[Path, Any]:
    """The variables of a module by itself, by collection and path, from those of its network: see :func:`apart`."""
    return {
        (path[0], *place, *path[1 + len(there) :]): leaf
        for place, there in places.items()
        for path, leaf in leaves.items()
        if path[1 : 1 + len(there)] == there
    }
