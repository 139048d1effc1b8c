"""From relaxed matrices to index vectors, and what can be said about the step."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from shuffle_jax.nn.collections import PENALTIES, PERMUTATIONS, RELAXED, relaxed_permutations
from shuffle_jax.nn.normalization import MOMENTUM
from shuffle_jax.ops.penalty import normalized_l1_minus_l2
from shuffle_jax.ops.permutation import is_permutation
from shuffle_jax.ops.rounding import argmax, assignment, certificate
from shuffle_jax.typing import Array, Float, Images, Matrix, PyTree


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


@jax.jit
def diagnose_all(params: PyTree) -> dict[str, Diagnosis]:
    """The diagnosis of every relaxed permutation of a network, by the path of its layer."""
    return {layer: diagnose(matrix) for layer, matrix in relaxed_permutations(params).items()}


def harden(variables: dict[str, PyTree]) -> Hardened:
    """Replaces every relaxed permutation by the index vector of its linear assignment.

    The result is valid whatever the matrix; where the matrix is certified it is the row-argmax. The network applied to
    the new variables runs a gather in each mixer and no matrix product: the work of a fixed shuffle.

    Args:
        variables: of a network: "params", "batch_stats" and others, which are kept.

    Returns:
        New variables with the index vectors, and a diagnosis per layer. Networks without relaxed permutations are
        returned as they are.
    """
    matrices = relaxed_permutations(variables["params"])
    diagnoses = jax.device_get(diagnose_all(variables["params"]))
    indices = jax.device_get({layer: _assignment(matrix) for layer, matrix in matrices.items()})

    params, permutations = variables["params"], variables.get(PERMUTATIONS, {})
    for layer, index in indices.items():
        path = layer.split("/")
        params = _without(params, (*path, RELAXED))
        permutations = _with(permutations, (*path, "index"), jnp.asarray(index))
    hardened = {**variables, "params": params}
    return Hardened(hardened | ({PERMUTATIONS: permutations} if permutations else {}), indices, diagnoses)


_assignment = jax.jit(assignment)


def recalibrate(network: nn.Module, variables: dict[str, PyTree], images: Iterable[Images]) -> dict[str, PyTree]:
    """Estimates the running statistics of all batch norms anew from batches of images.

    With the mean ``m_b`` and variance ``v_b`` of batch b, all of one size, the statistics become those of the union:
    ``mean_b m_b`` and ``mean_b v_b + var_b m_b``.

    Args:
        network: called as ``network(images, train=True)``.
        variables: of the network, hardened or not.
        images: normalised batches ``(n, h, w, c)``, at least one.

    Returns:
        Variables with new "batch_stats"; the others are kept, as are those of a network without batch norms.

    Raises:
        ValueError: there are no images.
    """
    if not variables.get("batch_stats"):
        return variables
    zeros = jax.tree.map(jnp.zeros_like, variables["batch_stats"])

    @jax.jit
    def batch_statistics(variables: dict[str, PyTree], images: Images) -> PyTree:
        # From statistics of zero, one update gives the share 1 - MOMENTUM of the batch's own.
        kept = [name for name in variables if name != "params"]  # a module may write into its own
        rngs = {"dropout": jax.random.key(0)}
        _, updated = network.apply(
            {**variables, "batch_stats": zeros}, images, train=True, mutable=[*kept, PENALTIES], rngs=rngs
        )
        return jax.tree.map(lambda s: s / (1 - MOMENTUM), updated["batch_stats"])

    found = [batch_statistics(variables, batch) for batch in images]
    if not found:
        raise ValueError("recalibrate needs at least one batch of images to estimate the statistics from")

    def union(*statistics: dict[str, Array]) -> dict[str, Array]:
        means = jnp.stack([s["mean"] for s in statistics])
        variances = jnp.stack([s["var"] for s in statistics])
        return {"mean": means.mean(0), "var": variances.mean(0) + means.var(0)}

    merged = jax.tree.map(union, *found, is_leaf=lambda node: "mean" in node)
    return {**variables, "batch_stats": merged}


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
