"""The constraint form of relaxed permutations: nonnegative matrices brought back to sums of 1 by division.

They take a matrix that drifted off the constraint set, after an optimiser's step say, where those of
:mod:`shuffle_jax.ops.relaxation` take free parameters.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from shuffle_jax.ops.permutation import random, to_matrix
from shuffle_jax.ops.precision import at_least_float32
from shuffle_jax.ops.shape import check_matrix
from shuffle_jax.typing import Array, Bool, Float, Int, Key, Matrix


def clamp_normalize(matrix: Matrix, temperature: float | Float[Array, ""] = 1.0, passes: int = 1) -> Matrix:
    """The clamp-column-row normalisation that keeps AutoShuffle's matrices near the Birkhoff polytope.

    ``M <- max(M, 0)^(1/T)``, then ``passes`` times ``M_ij <- M_ij / sum_k M_kj`` (columns) and
    ``M_ij <- M_ij / sum_k M_ik`` (rows). A column or row that sums to zero is left at zero. It is a normalisation and
    not the Euclidean projection: rows end summing to 1, columns approximately. Cost O(passes c^2).

    The method has T = 1; the power is this project's. It is taken in logarithms, so that no row underflows to zero:
    as ``T -> 0`` and passes grow, the limit is the permutation with the largest product of entries, the
    :func:`~shuffle_jax.ops.rounding.assignment` of ``log M``. After one pass it is each row's own choice, which need
    not be a permutation.

    Args:
        matrix: ``(..., c, c)`` real matrices.
        temperature: T > 0; the number 1 takes no power.
        passes: how often columns and rows are divided by their sums; the method's training loop uses 1.

    Returns:
        ``(..., c, c)`` nonnegative matrices.

    Raises:
        ValueError: the matrices are not square, or not of floating point.

    >>> clamp_normalize(jnp.array([[2.0, -1.0], [2.0, 4.0]])).tolist()
    [[1.0, 0.0], [0.3333333432674408, 0.6666666865348816]]

    Source: Lyu, Zhang, Qi and Xin, AutoShuffleNet, 2020; one pass after every optimiser step, as its public
    re-implementations do.
    """
    check_matrix(matrix)
    matrix = jnp.maximum(at_least_float32(matrix), 0)
    if not (isinstance(temperature, int | float) and temperature == 1):
        return _normalize_power(matrix, temperature, passes)

    def one_pass(matrix: Matrix, _: None) -> tuple[Matrix, None]:
        return _divide_by_sum(_divide_by_sum(matrix, axis=-2), axis=-1), None

    if passes == 1:
        return one_pass(matrix, None)[0]
    return jax.lax.scan(one_pass, matrix, length=passes)[0]


def tangent(direction: Matrix) -> Matrix:
    """The part of a direction along the doubly stochastic matrices: that which changes no row sum and no column sum.

    ``D_ij - mean_k D_ik - mean_k D_kj + mean_kl D_kl``, the orthogonal projection onto matrices whose rows and columns
    sum to 0. A step along it has nothing left to normalise but what the clamp at 0 cuts off. Without it a normalisation
    undoes the other part by scaling rows and columns, and a descent may stand still where it should not: at
    ``D_ij = M_ij (a_i + b_j)``, while the minima of a function with the slope D have ``D_ij = a_i + b_j``. Where
    entries are 0 the division may still undo a step that goes down. O(c^2).

    Args:
        direction: ``(..., c, c)`` real matrices, such as gradients.

    Returns:
        ``(..., c, c)`` matrices, in float32 at least.

    Raises:
        ValueError: the matrices are not square, or not of floating point.

    >>> tangent(jnp.array([[3.0, 1.0], [0.0, 0.0]])).tolist()
    [[0.5, -0.5], [-0.5, 0.5]]

    Source: an orthogonal projection; its use before the normalisation is this project's.
    """
    check_matrix(direction)
    direction = at_least_float32(direction)
    direction = direction - direction.mean(-1, keepdims=True)
    return direction - direction.mean(-2, keepdims=True)


def balance(matrix: Matrix, floor: float = 1e-6, tolerance: float = 1e-2, max_passes: int = 100) -> Matrix:
    """Clamps at a positive floor and divides by column and row sums until the columns sum to 1 as well.

    ``M <- max(M, floor)``, then columns and rows as in :func:`clamp_normalize` until every ``|sum_i M_ij - 1|`` is at
    most the tolerance. A positive matrix can always be scaled to a doubly stochastic one (Sinkhorn and Knopp, 1967).
    Entries clamped at 0 never come back, and once the others leave no permutation possible (six rows that share five
    columns, say) no scaling is doubly stochastic: :func:`clamp_normalize` then stays at fractions of 1/5. The floor
    lets such a matrix out. Cost O(passes c^2); few passes are taken near the constraint set. Forward-mode
    differentiable alone, and without a temperature: it is meant for the end of an optimiser step and no relaxation of
    free parameters, which :func:`~shuffle_jax.ops.converged_sinkhorn.converged_sinkhorn` is.

    Args:
        matrix: ``(..., c, c)`` real matrices; the loop runs until all are balanced.
        floor: smallest entry before scaling, above 0.
        tolerance: largest deviation of a column sum from 1. Row sums are exact to rounding.
        max_passes: where to stop in any case.

    Returns:
        ``(..., c, c)`` positive matrices.

    Raises:
        ValueError: the floor is not positive, or the matrices are not square, or not of floating point.

    >>> balance(jnp.array([[1.0, 0.0], [1.0, 0.0]]), tolerance=1e-4).round(2).tolist()
    [[0.5, 0.5], [0.5, 0.5]]

    Source: the scaling is Sinkhorn and Knopp, 1967; its use after every step in place of one pass is this project's.
    """
    check_matrix(matrix)
    if floor <= 0:
        raise ValueError(f"the floor is {floor}: give a positive number, or use clamp_normalize")

    def unbalanced(carry: tuple[Matrix, Int[Array, ""]]) -> Bool[Array, ""]:
        matrix, passes = carry
        return (jnp.abs(matrix.sum(-2) - 1).max() > tolerance) & (passes < max_passes) | (passes == 0)

    def one_pass(carry: tuple[Matrix, Int[Array, ""]]) -> tuple[Matrix, Int[Array, ""]]:
        matrix, passes = carry
        return _divide_by_sum(_divide_by_sum(matrix, axis=-2), axis=-1), passes + 1

    start = jnp.maximum(at_least_float32(matrix), floor), jnp.zeros((), jnp.int32)
    return jax.lax.while_loop(unbalanced, one_pass, start)[0]


def random_bistochastic(
    key: Key, channels: int, candidates: int | None = None, passes: int = 20
) -> Float[Array, "c c"]:
    """A random, nearly doubly stochastic matrix: uniform entries on [0, 1], normalised.

    By default every entry is drawn. For c channels the rows are then averages of all c inputs: the matrix lies close to
    ``J / c`` and shrinks the variance of what it mixes about c times. With ``candidates = k`` only the entries of k
    random permutations are drawn, the others are 0: a row averages at most k inputs.

    Never start at ``J / c`` itself: there every gradient of the penalty is the same for all entries, and nothing breaks
    the tie.

    Args:
        key: random key.
        channels: c.
        candidates: k, at least 1; None for all c.
        passes: passes of :func:`clamp_normalize`.

    Returns:
        ``(c, c)`` float32 matrix; rows sum to 1, and columns to within 1e-5 after the default number of passes if all
        entries were drawn. Few candidates converge more slowly.

    Raises:
        ValueError: candidates is below 1.

    >>> m = random_bistochastic(jax.random.key(0), 8)
    >>> bool(jnp.abs(m.sum(0) - 1).max() < 1e-5)
    True
    >>> int((random_bistochastic(jax.random.key(0), 8, candidates=2) > 0).sum(1).max())
    2
    """
    if candidates is not None and candidates < 1:
        raise ValueError(f"candidates is {candidates}: give 1 or more, or None for all")
    entry_key, support_key = jax.random.split(key)
    matrix = jax.random.uniform(entry_key, (channels, channels), jnp.float32)
    if candidates is not None:
        keys = jax.random.split(support_key, candidates)
        drawn = jax.vmap(lambda k: to_matrix(random(k, channels)))(keys)
        matrix = matrix * drawn.max(0)
    return clamp_normalize(matrix, passes=passes)


def _divide_by_sum(matrix: Matrix, axis: int) -> Matrix:
    total = matrix.sum(axis, keepdims=True)
    return matrix / jnp.where(total > 0, total, 1)


def _normalize_power(matrix: Matrix, temperature: float | Float[Array, ""], passes: int) -> Matrix:
    """Columns and rows of ``M^(1/T)`` divided by their sums, all in logarithms."""

    def one_pass(log_matrix: Matrix, _: None) -> tuple[Matrix, None]:
        return _subtract_log_sum(_subtract_log_sum(log_matrix, axis=-2), axis=-1), None

    positive = matrix > 0
    # The inner `where` keeps the logarithm and its slope finite where the outer one takes none of them.
    log_matrix = jnp.where(positive, jnp.log(jnp.where(positive, matrix, 1)) / temperature, -jnp.inf)
    return jnp.exp(jax.lax.scan(one_pass, log_matrix, length=passes)[0])


def _subtract_log_sum(log_matrix: Matrix, axis: int) -> Matrix:
    peak = jax.lax.stop_gradient(log_matrix.max(axis, keepdims=True))
    peak = jnp.where(jnp.isfinite(peak), peak, 0)  # a row or column of zeros
    total = jnp.exp(log_matrix - peak).sum(axis, keepdims=True)
    return log_matrix - peak - jnp.log(jnp.where(total > 0, total, 1))
