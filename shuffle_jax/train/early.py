"""Hardening while the training goes on: from when its learned permutations have settled, a network has no matrices.

Whether they have is looked at after every epoch, from the state alone, so that a run that is resumed hardens at the
same step. They all go at once: every other set of arrays is another program, which takes as long to compile as the
first.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import Mesh, NamedSharding

from shuffle_jax.constraint import RELAXED
from shuffle_jax.nn.collections import PERMUTATIONS, relaxed_leaves
from shuffle_jax.ops.permutation import to_matrix
from shuffle_jax.ops.rounding import argmax, certificate
from shuffle_jax.sharding import replicated
from shuffle_jax.train.frozen import frozen
from shuffle_jax.train.state import TrainState
from shuffle_jax.typing import Array, Int, PyTree

NONE = -1
"""In place of the indices of a matrix that is not certified."""


def unsettled(state: TrainState, freeze: Sequence[str] = ()) -> TrainState:
    """The state before the first step, to count epochs from; as it is without relaxed permutations.

    Args:
        state: before the first step.
        freeze: patterns of what does not train.

    Raises:
        ValueError: a pattern matches relaxed permutations alone, and nothing once they are hardened.
    """
    index = {path: jnp.full(leaf.shape[:-1], NONE, jnp.int32) for path, leaf in relaxed_leaves(state.params).items()}
    if not index:
        return state
    for pattern in freeze:
        try:
            frozen(_without_matrices(state.params), [pattern])
        except ValueError:
            raise ValueError(
                f"penalty.settle must be 0 where optimizer.freeze keeps permutations alone, got {pattern!r}: they are "
                "hardened at the end"
            ) from None
    return state.replace(settling={"epochs": jnp.zeros((), jnp.int32), "index": unflatten_dict(index)})


def looked_at(state: TrainState, mesh: Mesh) -> tuple[TrainState, int]:
    """The state after an epoch, and for how many all its matrices have been certified and their argmax the same."""
    settling = _looked_at(replicated(mesh))(state.params, state.settling)
    return state.replace(settling=settling), int(settling["epochs"])


def hardened(state: TrainState) -> TrainState:
    """The state without matrices, also in what the optimiser and the average keep: index vectors stand in their place.

    Args:
        state: one of :func:`looked_at`, or its shapes.
    """
    assert state.settling is not None, "its matrices are not looked at"
    permutations = flatten_dict(state.collections.get(PERMUTATIONS, {}))
    found = {(*path, "index"): leaf for path, leaf in flatten_dict(state.settling["index"]).items()}
    return state.replace(
        params=_without_matrices(state.params),
        opt_state=_without_matrices(state.opt_state),
        average=_without_matrices(state.average),
        collections={**state.collections, PERMUTATIONS: unflatten_dict(permutations | found)},
        settling=None,
    )


def with_matrices(variables: dict[str, PyTree], like: PyTree) -> dict[str, PyTree]:
    """The variables with a matrix for each index vector that was one: the inverse of :func:`hardened`.

    Args:
        variables: of a network, from some step of its training.
        like: its parameters before the first step, or their shapes.
    """
    params, permutations = flatten_dict(variables["params"]), flatten_dict(variables.get(PERMUTATIONS, {}))
    for path in relaxed_leaves(like):
        if (*path, RELAXED) not in params:
            params[*path, RELAXED] = to_matrix(jnp.asarray(permutations.pop((*path, "index"))))
    kept = {name: tree for name, tree in variables.items() if name not in ("params", PERMUTATIONS)}
    own = {"params": unflatten_dict(params), PERMUTATIONS: unflatten_dict(permutations)}
    return {**kept, **{name: tree for name, tree in own.items() if tree or name == "params"}}


@lru_cache
def _looked_at(sharding: NamedSharding) -> Callable[[PyTree, PyTree], PyTree]:
    """The jitted step of :func:`looked_at`, whose result lies where the state does."""
    return jax.jit(_settling, out_shardings=sharding)


def _settling(params: PyTree, before: PyTree) -> PyTree:
    old = flatten_dict(before["index"])
    new = {path: _certified(matrix) for path, matrix in relaxed_leaves(params).items()}
    same = jnp.stack([jnp.all((old[path] == index) & (index != NONE)) for path, index in new.items()]).all()
    return {"epochs": jnp.where(same, before["epochs"] + 1, 0), "index": unflatten_dict(new)}


def _certified(matrix: Array) -> Int[Array, "*batch c"]:
    """The permutation that a matrix is certified to be near, else ``NONE`` everywhere."""
    return jnp.where(certificate(matrix).guaranteed[..., None], argmax(matrix), NONE)


def _without_matrices(tree: PyTree) -> PyTree:
    """A tree without what has the name of relaxed permutations, and without branches that this leaves empty."""
    if isinstance(tree, Mapping):
        kept = {name: _without_matrices(branch) for name, branch in tree.items() if name != RELAXED}
        return {
            name: branch for name, branch in kept.items() if not isinstance(branch, Mapping) or branch or not tree[name]
        }
    if isinstance(tree, tuple):
        found = [_without_matrices(branch) for branch in tree]
        return type(tree)(*found) if hasattr(tree, "_fields") else tuple(found)
    return tree
