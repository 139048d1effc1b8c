"""The constraint on relaxed permutations, as the last link of an optax chain: for any optimiser and any tree."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from shuffle_jax.ops.precision import at_least_float32
from shuffle_jax.ops.relaxation import clamp_normalize, tangent
from shuffle_jax.typing import Matrix, PyTree

RELAXED = "relaxed_permutation"
"""The name of every parameter that is a relaxed permutation; the optimiser keeps those leaves bistochastic."""


def keep_bistochastic(
    constrain: Callable[[Matrix], Matrix] = clamp_normalize, along: bool = False, every: bool = False
) -> optax.GradientTransformationExtraArgs:
    """Replaces an update ``u`` of M by ``N(M + u) - M``, N a normalisation such as one clamp-column-row pass.

    Put it last in a chain, so that the parameters after ``optax.apply_updates`` are nonnegative, with rows that sum to
    1 and columns that nearly do. N works in float32 at least, and the update has the type of its parameter. A leaf
    without an update (None) stays without.

    M are ``(..., c, c)`` matrices: the leaves named ``relaxed_permutation``, :func:`is_relaxed`. All others go by as
    they are, such as a square kernel. What has no names is meant as a whole: an array, a list of arrays; and so is what
    ``optax.masked`` or ``optax.multi_transform`` leave of a tree.

    Args:
        constrain: N; :func:`shuffle_jax.ops.bistochastic.clamp_normalize` with one pass, as the method's public
            re-implementations do, or :func:`shuffle_jax.ops.bistochastic.balance`.
        along: take from u what would change sums of rows and columns, :func:`shuffle_jax.ops.bistochastic.tangent`,
            before N: ``N(M + tangent(u)) - M``. N then only makes good what the clamp cuts off, and a descent whose
            matrices are positive stands still at stationary points of the loss alone. Where entries are 0 the
            normalisation may still undo a step that goes down. It is this project's.
        every: constrain every leaf, whatever its name.

    Returns:
        A stateless optax transformation that needs the parameters.

    Raises:
        ValueError: by the transformation's update, if it is not given the parameters, a leaf to be constrained is no
            floating-point array of square matrices, or no leaf of a tree with names is a relaxed permutation.

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
        chosen = jax.tree.map(lambda _: True, params) if every or _is_chosen(params) else _named(params)
        # Over the updates, for a parameter without one may be anything.
        return jax.tree.map_with_path(
            lambda path, u, m, on: constrained(path, u, m) if on else u,
            updates,
            params,
            chosen,
            is_leaf=lambda leaf: leaf is None,
        )

    return optax.with_extra_args_support(optax.stateless(update))


def is_relaxed(params: PyTree) -> PyTree:
    """Which leaves of a tree are relaxed permutations, by their name: a mask such as ``optax.masked`` takes."""
    return jax.tree.map_with_path(lambda path, _: parameter_name(path) == RELAXED, params)


def names(path: Sequence[Any]) -> tuple[str, ...]:
    """The names on the way to a leaf, as ``jax.tree_util.tree_leaves_with_path`` gives it; numbers within lists.

    The ``value`` of a box in which Flax keeps an array (``flax.nnx.Param``, ``flax.linen.Partitioned``) is no name.
    """
    boxed = bool(path) and path[-1] == jax.tree_util.GetAttrKey("value")
    return tuple(jax.tree_util.keystr((key,), simple=True) for key in (path[:-1] if boxed else path))


def parameter_name(path: Sequence[Any]) -> str:
    """The last name on the way to a leaf: of one in a list, that of the list; empty if there is none."""
    return next((name for name in reversed(names(path)) if not name.isdigit()), "")


def _is_chosen(params: PyTree) -> bool:
    """Whether a tree is meant as a whole: nothing in it has a name, or others were taken out of it."""
    nodes = jax.tree.leaves(params, is_leaf=lambda node: isinstance(node, optax.MaskedNode))
    if any(isinstance(node, optax.MaskedNode) for node in nodes):
        return True
    return not any(parameter_name(path) for path, _ in jax.tree.leaves_with_path(params))


def _named(params: PyTree) -> PyTree:
    """Which leaves are relaxed permutations; at least one is."""
    chosen = is_relaxed(params)
    if not any(jax.tree.leaves(chosen)):
        path, _ = jax.tree.leaves_with_path(params)[0]
        raise ValueError(
            f"no leaf is named {RELAXED} for keep_bistochastic, got {'/'.join(names(path))}: select the relaxed "
            "permutations by optax.masked, or take every leaf by keep_bistochastic(every=True)"
        )
    return chosen


def _check(path: tuple, parameter: Matrix) -> None:
    """Says which leaf is no relaxed permutation; the constraint would turn it into something else, in silence."""
    shape, dtype = parameter.shape, parameter.dtype
    if len(shape) >= 2 and shape[-1] == shape[-2] and jnp.issubdtype(dtype, jnp.floating):
        return
    raise ValueError(
        f"{'/'.join(names(path)) or 'the parameter'} of shape {shape} and type {dtype} holds no square floating-point "
        "matrices for keep_bistochastic: select the relaxed permutations by optax.masked"
    )
