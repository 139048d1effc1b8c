"""The names that modules share with what trains, hardens and counts them, and how a module reads and writes there."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from shuffle_jax.constraint import RELAXED as RELAXED
from shuffle_jax.constraint import names
from shuffle_jax.typing import Array, Float, PyTree

PENALTIES = "penalties"
"""The collection into which modules sow scalars for the loss."""

PERMUTATIONS = "permutations"
"""The collection of index vectors. Not trained; saved with the network."""

PROGRESS = "progress"
"""The collection of scalars ``share``: how much of the training is done, from 0 to 1. The training step sets them."""

DIAGNOSTICS = "diagnostics"
"""The collection into which dynamic layers sow what they do to a batch. Nothing is computed unless it is asked for."""

FACTORS = "factors"
"""The collection into which they sow the factors themselves, on request."""

STATIC = "static_logits"
"""The name of parameters from which static factors are made; freezing turns them into index vectors."""


def sow_last(module: nn.Module, collection: str, name: str, value: Array | float) -> None:
    """Sows a value: the last one if the module is called again, and not all of them."""
    module.sow(collection, name, value, reduce_fn=lambda _, new: new, init_fn=lambda: jnp.zeros(()))


def training_progress(module: nn.Module) -> Float[Array, ""]:
    """How much of the training is done, from 0 to 1; 1 where nobody says, as in a network that is finished."""
    if module.is_initializing() or module.has_variable(PROGRESS, "share"):
        return module.variable(PROGRESS, "share", jnp.ones, ()).value
    return jnp.ones(())


def relaxed_permutations(params: dict) -> dict[str, Float[Array, "c c"]]:
    """Every relaxed permutation of a network, by the path of its layer, in the order of the paths.

    Args:
        params: the collection "params" of a network.

    Returns:
        A dictionary such as ``{"stage2_0/mixer": (116, 116) matrix, ...}``.
    """
    leaves = jax.tree_util.tree_leaves_with_path(params)
    names = [([key.key for key in path], leaf) for path, leaf in leaves]
    return {"/".join(path[:-1]): leaf for path, leaf in names if path[-1] == RELAXED}
