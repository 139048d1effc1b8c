"""The names that modules share with what trains, hardens and counts them, and how a module reads and writes there."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.core import FrozenDict, unfreeze
from flax.traverse_util import unflatten_dict

from shuffle_jax.constraint import RELAXED, names
from shuffle_jax.typing import Array, Float, PyTree

PENALTIES = "penalties"
"""The collection into which modules sow scalars for the loss."""

PERMUTATIONS = "permutations"
"""The collection of index vectors. Not trained; saved with the network."""

PROGRESS = "progress"
"""The collection of scalars ``share``: how much of the training is done, from 0 to 1. The training step sets them.

They are 1 where nobody does: in a loop of your own give every step :func:`with_progress`.
"""

DIAGNOSTICS = "diagnostics"
"""The collection into which dynamic layers sow what they do to a batch. Nothing is computed unless it is asked for."""

FACTORS = "factors"
"""The collection into which they sow the factors themselves, on request."""

STATIC = "static_logits"
"""The name of parameters from which static factors are made; freezing turns them into index vectors."""


SOWN = (PENALTIES, DIAGNOSTICS, FACTORS)
"""What layers only tell, and is no state of a network."""

COLLECTIONS = ("params", "batch_stats", PERMUTATIONS, PROGRESS, PENALTIES, DIAGNOSTICS, FACTORS)
"""Every collection that modules of the library have."""


def sow_last(module: nn.Module, collection: str, name: str, value: Array | float) -> None:
    """Sows a value: the last one if the module is called again, and not all of them; none at initialisation."""
    if not module.is_initializing():
        module.sow(collection, name, value, reduce_fn=lambda _, new: new, init_fn=lambda: jnp.zeros((), jnp.float32))


def training_progress(module: nn.Module) -> Float[Array, ""]:
    """How much of the training is done, from 0 to 1; 1 where nobody says, as in a network that is finished."""
    if module.is_initializing() or module.has_variable(PROGRESS, "share"):
        return module.variable(PROGRESS, "share", jnp.ones, (), jnp.float32).value
    return jnp.ones((), jnp.float32)


def penalty_sum(variables: PyTree) -> Float[Array, ""]:
    """The sum of the penalties that modules have sown, which a loss adds with its weight; 0 if there are none.

    Args:
        variables: what ``apply(..., mutable=["penalties", ...])`` gives beside the output; also a module of
            ``flax.nnx.bridge.ToNNX`` that was called so, another that holds some, or its state.

    >>> float(penalty_sum({"penalties": {"mixer": {"l1_minus_l2": jnp.full((), 0.5)}}, "batch_stats": {}}))
    0.5
    """
    sown = collections_of(variables, "penalty_sum").get(PENALTIES, {})
    return sum(map(jnp.sum, jax.tree.leaves(sown)), start=jnp.zeros((), jnp.float32))


def with_progress(variables: Mapping[str, PyTree], share: Array | float) -> dict[str, PyTree]:
    """The variables of a network that is told how much of the training is done.

    Args:
        variables: by collection; those of a network that does not ask stay as they are.
        share: from 0 to 1, such as ``(step + 1) / steps``.

    >>> with_progress({"params": {}, "progress": {"share": jnp.ones(())}}, 0.25)["progress"]["share"].item()
    0.25
    """
    if PROGRESS not in variables:
        return dict(variables)
    return {**variables, PROGRESS: jax.tree.map(lambda old: jnp.full_like(old, share), variables[PROGRESS])}


def relaxed_permutations(params: PyTree) -> dict[str, Float[Array, "c c"]]:
    """Every relaxed permutation of a network, by the path of its layer, in the order of the paths.

    Args:
        params: the collection "params" of a network, or all its collections; also a module or the state of flax.nnx.

    Returns:
        A dictionary such as ``{"stage2_0/mixer": (116, 116) matrix, ...}``; the path of a mixer by itself is empty. Of
        stacked layers (``nn.scan``) each has its own, ``"layers/mixer[0]"``.
    """
    return one_by_one(relaxed_leaves(params), 2)


def relaxed_leaves(params: PyTree) -> dict[tuple[str, ...], Array]:
    """What :func:`relaxed_permutations` gives, stacked layers together and by path."""
    if isinstance(params, Mapping) and "params" in params:
        params = params["params"]
    paths = [(names(path), leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(params)]
    return {path[:-1]: leaf for path, leaf in paths if path[-1:] == (RELAXED,)}


def one_by_one(leaves: Mapping[tuple[str, ...], Any], axes: int) -> dict[str, Any]:
    """Leaves by the name of their layer: of stacked layers each with the place in the stack, ``"layers/mixer[0]"``.

    Args:
        leaves: by the path of the layer, or their shapes; all axes before the last few are those of stacks.
        axes: of a leaf of one layer.
    """
    found = {}
    for path, leaf in leaves.items():
        name, stack = "/".join(path), leaf.shape[: leaf.ndim - axes]
        for place in np.ndindex(stack):
            one = f"{name}[{','.join(map(str, place))}]" if stack else name
            if isinstance(leaf, jax.ShapeDtypeStruct):
                found[one] = jax.ShapeDtypeStruct(leaf.shape[len(stack) :], leaf.dtype)
            else:
                found[one] = leaf[place] if stack else leaf
    return found


def _collection(kind: type) -> str:
    """The collection of a type of variables of flax.nnx; of a type that no collection has, the name of the type."""
    from flax import nnx

    try:
        return nnx.variable_name_from_type(kind)
    except ValueError:
        return kind.__name__


def collections_of(variables: PyTree, asked_by: str) -> dict[str, PyTree]:
    """The variables of a network as plain dictionaries by collection, from whatever holds them.

    Args:
        variables: what ``init`` of a linen module gives, frozen or not; or a module of ``flax.nnx.bridge.ToNNX``, or
            its state.
        asked_by: the function that they were given to, for its error.

    Raises:
        ValueError: they are no such thing, or "params" alone.
    """
    nnx = sys.modules.get("flax.nnx")  # nobody who has not imported it holds its objects
    if nnx is not None and isinstance(variables, (nnx.Module, nnx.State)):
        state = nnx.to_flat_state(nnx.state(variables) if isinstance(variables, nnx.Module) else variables)
        return unflatten_dict(
            {
                (_collection(type(leaf)), *map(str, path)): leaf.get_value()
                for path, leaf in state
                if isinstance(leaf, nnx.Variable) and not isinstance(leaf, nnx.RngState)
            }
        )
    if isinstance(variables, FrozenDict):
        variables = unfreeze(variables)
    if isinstance(variables, dict) and (not variables or set(variables) & set(COLLECTIONS)):
        return unfreeze(variables) if any(isinstance(tree, FrozenDict) for tree in variables.values()) else variables
    given = f"a dictionary of {', '.join(map(str, list(variables)[:3]))}" if isinstance(variables, Mapping) else ""
    raise ValueError(
        f'{asked_by} takes all variables of a network by collection, as init gives them, {{"params": ...}}; got '
        f"{given or type(variables).__name__}"
    )
