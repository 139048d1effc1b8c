"""The constraint on relaxed permutations, as the last link of an optax chain: for any optimiser and any tree."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from shuffle_jax.ops.precision import at_least_float32
from shuffle_jax.ops.relaxation import clamp_normalize, tangent
from shuffle_jax.typing import Matrix, PyTree


def keep_bistochastic(
    constrain: Callable[[Matrix], Matrix] = clamp_normalize, along: bool = False
) -> optax.GradientTransformationExtraArgs:
    """Replaces an update ``u`` of M by ``N(M + u) - M``, N a normalisation such as one clamp-column-row pass.

    Put it last in a chain, so that the parameters after ``optax.apply_updates`` are nonnegative, with rows that sum to
    1 and columns that nearly do. It applies to every leaf: ``(..., c, c)`` matrices; select leaves by ``optax.masked``
    or ``optax.multi_transform``. N works in float32 at least, and the update has the type of its parameter. A leaf
    without an update (None) stays without.

    Args:
        constrain: N; :func:`shuffle_jax.ops.bistochastic.clamp_normalize` with one pass, as the method's public
            re-implementations do, or :func:`shuffle_jax.ops.bistochastic.balance`.
        along: take from u what would change sums of rows and columns, :func:`shuffle_jax.ops.bistochastic.tangent`,
            before N: ``N(M + tangent(u)) - M``. N then only makes good what the clamp cuts off, and a descent whose
            matrices are positive stands still at stationary points of the loss alone. Where entries are 0 the
            normalisation may still undo a step that goes down. It is this project's.

    Returns:
        A stateless optax transformation that needs the parameters.

    Raises:
        ValueError: by the transformation's update, if it is not given the parameters, or a leaf is no floating-point
            array of square matrices.

    >>> optimizer = optax.chain(optax.sgd(0.5), keep_bistochastic())
    >>> matrix = jnp.full((2, 2), 0.5)
    >>> updates, _ = optimizer.update(jnp.array([[-1.0, 1.0], [1.0, -1.0]]), optimizer.init(matrix), matrix)
    >>> optax.apply_updates(matrix, updates).tolist()
    [[1.0, 0.0], [0.0, 1.0]]

    Source: Lyu, Zhang, Qi and Xin, AutoShuffleNet, 2020.
    """

    def constrained(path: tuple, update: Matrix | None, parameter: Matrix) -> Matrix | None:
        if update is None:
            return None
        _check(path, parameter)
        wide = at_least_float32(parameter)
        step = update.astype(wide.dtype)
        return constrain(wide + (tangent(step) if along else step)).astype(parameter.dtype) - parameter

    def update(updates: PyTree, params: PyTree | None) -> PyTree:
        if params is None:
            raise ValueError("keep_bistochastic constrains parameters: pass them to optimizer.update(..., params)")
        return jax.tree.map_with_path(constrained, updates, params, is_leaf=lambda leaf: leaf is None)

    return optax.with_extra_args_support(optax.stateless(update))


def _check(path: tuple, parameter: Matrix) -> None:
    """Says which leaf is no relaxed permutation; the constraint would turn it into something else, in silence."""
    shape, dtype = parameter.shape, parameter.dtype
    if len(shape) >= 2 and shape[-1] == shape[-2] and jnp.issubdtype(dtype, jnp.floating):
        return
    name = jax.tree_util.keystr(path, simple=True, separator="/") or "the parameter"
    raise ValueError(
        f"{name} of shape {shape} and type {dtype} holds no square floating-point matrices for keep_bistochastic: "
        "select the relaxed permutations by optax.masked"
    )
