"""From relaxed matrices to index vectors, and what can be said about the step."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from shuffle_jax.constraint import RELAXED
from shuffle_jax.deploy.recalibration import recalibrate  # noqa: F401 (it was here)
from shuffle_jax.nn.collections import (
    PERMUTATIONS,
    collections_of,
    one_by_one,
    relaxed_leaves,
    relaxed_permutations,
)
from shuffle_jax.ops.penalty import normalized_l1_minus_l2
from shuffle_jax.ops.permutation import is_permutation
from shuffle_jax.ops.rounding import argmax, assignment, certificate
from shuffle_jax.typing import Array, Float, Matrix, PyTree


class Diagnosis(NamedTuple):
    """How near one relaxed matrix is to a permutation; see :func:`shuffle_jax.ops.rounding.certificate`.

    Attributes:
        penalty: P / P_max, in [0, 1] on doubly stochastic matrices; 0 at a permutation.
        residual: largest ``|sum - 1|`` over rows and columns.
        max_row_slack: largest ``|M_i:|_1 - |M_i:|_2``.
        certified: row-argmax is proved to be a permutation.
        argmax_valid: row-argmax is one, proved or not.
        l1_bound: if certified, ``sum |M - P*|`` is at most this.
    """

    penalty: Float[Array, ""]
    residual: Float[Array, ""]
    max_row_slack: Float[Array, ""]
    certified: Array
    argmax_valid: Array
    l1_bound: Float[Array, ""]


class Hardened(NamedTuple):
    """What :func:`harden` returns.

    Attributes:
        variables: of the same network, without relaxed matrices; index vectors stand in "permutations".
        permutations: int32 index vectors by layer.
        diagnoses: of each relaxed matrix by layer.
    """

    variables: dict[str, PyTree]
    permutations: dict[str, np.ndarray]
    diagnoses: dict[str, Diagnosis]


def diagnose(matrix: Matrix) -> Diagnosis:
    """The diagnosis of one relaxed matrix ``(..., c, c)``; jit- and vmap-able, cost O(c^2)."""
    proof = certificate(matrix)
    return Diagnosis(
        penalty=normalized_l1_minus_l2(matrix),
        residual=proof.residual,
        max_row_slack=proof.row_slack.max(-1),
        certified=proof.guaranteed,
        argmax_valid=is_permutation(argmax(matrix)),
        l1_bound=proof.l1_bound,
    )


def diagnose_all(params: PyTree) -> dict[str, Diagnosis]:
    """The diagnosis of every relaxed permutation of a network, by the path of its layer.

    Args:
        params: as :func:`shuffle_jax.nn.collections.relaxed_permutations` takes it.
    """
    matrices = relaxed_permutations(params)
    diagnoses = _diagnoses(matrices)
    return {layer: diagnoses[layer] for layer in matrices}  # jit sorts them by name


@jax.jit
def _diagnoses(matrices: dict[str, Matrix]) -> dict[str, Diagnosis]:
    return {layer: diagnose(matrix) for layer, matrix in matrices.items()}


def harden(variables: dict[str, PyTree]) -> Hardened:
    """Replaces every relaxed permutation by the index vector of its linear assignment.

    The result is valid whatever the matrix; where the matrix is certified it is the row-argmax. The network applied to
    the new variables runs a gather in each mixer and no matrix product: the work of a fixed shuffle.

    Args:
        variables: of a network or of a mixer by itself: "params", "batch_stats" and others, which are kept; see
            :func:`shuffle_jax.nn.collections.collections_of`. Stacked layers (``nn.scan``) are hardened one by one;
            their collection "permutations" needs an axis as "params" has one.

    Returns:
        New variables with the index vectors, and a diagnosis per layer. Networks without relaxed permutations are
        returned as they are.

    Raises:
        ValueError: these are no variables by collection.
    """
    variables = collections_of(variables, "harden")
    params, permutations = variables.get("params", {}), variables.get(PERMUTATIONS, {})
    diagnoses = jax.device_get(diagnose_all(params))
    indices = jax.device_get({path: _assignment(matrix) for path, matrix in relaxed_leaves(params).items()})
    if not indices:
        return Hardened(variables, {}, {})
    for path, index in indices.items():
        params = _without(params, (*path, RELAXED))
        permutations = _with(permutations, (*path, "index"), jnp.asarray(index))
    hardened = {**variables, "params": params, PERMUTATIONS: permutations}
    return Hardened(hardened, one_by_one(indices, 1), diagnoses)


_assignment = jax.jit(assignment)


def _without(tree: PyTree, path: tuple[str, ...]) -> PyTree:
    """The tree without one leaf, and without the branches that it leaves empty."""
    name, *rest = path
    below = _without(tree[name], tuple(rest)) if rest else None
    kept = {key: value for key, value in tree.items() if key != name}
    return {**kept, name: below} if below else kept


def _with(tree: PyTree, path: tuple[str, ...], leaf: Array) -> PyTree:
    """The tree with one leaf set."""
    name, *rest = path
    return {**tree, name: _with(tree.get(name, {}), tuple(rest), leaf) if rest else leaf}
