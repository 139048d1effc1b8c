"""Modules of this library inside ``flax.nnx``, by Flax's own bridge: what ``nnx.bridge.ToNNX`` leaves to its users.

Nothing else in the library imports ``flax.nnx``.
"""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from flax import nnx
from flax.traverse_util import flatten_dict, unflatten_dict

from shuffle_jax.nn.collections import PROGRESS, SOWN, collections_of
from shuffle_jax.typing import Array, PyTree


def set_variables(model: nnx.bridge.ToNNX, variables: Mapping[str, PyTree]) -> nnx.bridge.ToNNX:
    """Gives a module all its variables, in place of those that it has: of a checkpoint, hardened, frozen or folded.

    Args:
        model: one linen module, initialised or not.
        variables: of it, by collection. What was only sown, such as the penalties of a step, is left out.

    Returns:
        The same module.

    Raises:
        ValueError: it is another kind of module, or these are no variables by collection.

    >>> from shuffle_jax.nn import FixedPermutation
    >>> model = set_variables(nnx.bridge.ToNNX(FixedPermutation()), {"permutations": {"index": jnp.array([1, 2, 0])}})
    >>> model(jnp.array([[[[10.0, 11.0, 12.0]]]])).tolist()
    [[[[11.0, 12.0, 10.0]]]]
    """
    if not isinstance(model, nnx.bridge.ToNNX):
        raise ValueError(
            f"set_variables takes a module of flax.nnx.bridge.ToNNX, got {type(model).__name__}: go through "
            "nnx.iter_modules for those inside it"
        )
    leaves = {}
    kept = {name: tree for name, tree in collections_of(variables, "set_variables").items() if name not in SOWN}
    for (collection, *path), leaf in flatten_dict(kept).items():
        if tuple(path) in leaves:
            raise ValueError(f"{'/'.join(path)} is in two collections, which flax.nnx cannot keep apart: leave out one")
        leaves[tuple(path)] = nnx.variable_type_from_name(collection, allow_register=True)(leaf)
    for name in [name for name in vars(model) if not name.startswith(("to_nnx__", "_pytree__"))]:
        delattr(model, name)
    for name, tree in unflatten_dict(leaves).items():
        setattr(model, name, nnx.data(tree))
    return model


def set_progress(model: nnx.Module, share: Array | float) -> None:
    """Tells all modules inside one how much of the training is done, for linen see ``with_progress``.

    Args:
        model: holds modules of ``nnx.bridge.ToNNX``, or is one.
        share: from 0 to 1, such as ``(step + 1) / steps``.
    """
    told = nnx.state(model, nnx.variable_type_from_name(PROGRESS, allow_register=True))
    nnx.update(model, jax.tree.map(lambda old: jnp.full_like(old, share), told))
