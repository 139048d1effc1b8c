"""Relaxed permutations: nonnegative matrices that can be trained by gradient descent.

Each function maps free parameters (or a matrix that drifted off the constraint set) to a nonnegative matrix whose rows
sum to 1. Their hard counterparts are in :mod:`shuffle_jax.ops.rounding`.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from shuffle_jax.ops.permutation import random, to_matrix
from shuffle_jax.ops.precision import at_least_float32
from shuffle_jax.typing import Array, Bool, Float, Int, Key, Matrix


def softmax_rows(logits: Matrix, temperature: float | Float[Array, ""] = 1.0) -> Matrix:
    """Row-stochastic matrices by a softmax of every row: ``M_ij = exp(L_ij / T) / sum_k exp(L_ik / T)``.

    The columns are free: nothing keeps two rows from choosing the same column. As ``T -> 0`` the rows tend to the
    one-hot vectors of :func:`~shuffle_jax.ops.rounding.argmax`. Cost O(c^2); computed in float32 at least.

    Args:
        logits: ``(..., c, c)`` real matrices.
        temperature: T > 0.

    Returns:
        ``(..., c, c)`` matrices with entries in (0, 1) and rows summing to 1.

    >>> softmax_rows(jnp.array([[0.0, 0.0], [0.0, 0.0]])).tolist()
    [[0.5, 0.5], [0.5, 0.5]]
    """
    return jax.nn.softmax(at_least_float32(logits) / temperature, axis=-1)


def sinkhorn(logits: Matrix, temperature: float | Float[Array, ""] = 1.0, iterations: int = 20) -> Matrix:
    """Nearly doubly stochastic matrices by Sinkhorn's iteration in the log domain.

    ``L <- L - logsumexp_columns(L)``, then ``L <- L - logsumexp_rows(L)``, repeated; ``M = exp(L)``. Logarithms keep
    small temperatures from overflowing. Rows end exactly normalised; columns converge geometrically, the slower the
    smaller T: check with :func:`~shuffle_jax.ops.rounding.certificate` or
    :func:`~shuffle_jax.ops.invariants.assert_doubly_stochastic`. As ``T -> 0`` the limit is the permutation of
    :func:`~shuffle_jax.ops.rounding.assignment`. Cost O(iterations c^2), in time and, under a gradient, in memory.

    Args:
        logits: ``(..., c, c)`` real matrices.
        temperature: T > 0.
        iterations: number of column and row passes, at least 1.

    Returns:
        ``(..., c, c)`` positive matrices, in float32 at least.

    Raises:
        ValueError: iterations is below 1.

    >>> m = sinkhorn(jnp.array([[4.0, 1.0], [1.0, 2.0]]))
    >>> bool(jnp.allclose(m.sum(0), 1.0, atol=1e-5)) and bool(jnp.allclose(m.sum(1), 1.0, atol=1e-5))
    True

    Source: Sinkhorn and Knopp, 1967; in a network, Mena et al., Gumbel-Sinkhorn, 2018.
    """
    if iterations < 1:
        raise ValueError(f"sinkhorn needs at least 1 iteration, not {iterations}")

    def one_pass(log_matrix: Matrix, _: None) -> tuple[Matrix, None]:
        log_matrix = jax.nn.log_softmax(log_matrix, axis=-2)
        return jax.nn.log_softmax(log_matrix, axis=-1), None

    log_matrix, _ = jax.lax.scan(one_pass, at_least_float32(logits) / temperature, length=iterations)
    return jnp.exp(log_matrix)


def clamp_normalize(matrix: Matrix, passes: int = 1) -> Matrix:
    """The clamp-column-row normalisation that keeps AutoShuffle's matrices near the Birkhoff polytope.

    ``M <- max(M, 0)``, then ``passes`` times ``M_ij <- M_ij / sum_k M_kj`` (columns) and
    ``M_ij <- M_ij / sum_k M_ik`` (rows). A column or row that sums to zero is left at zero. It is a normalisation and
    not the Euclidean projection: rows end summing to 1, columns approximately. Cost O(passes c^2).

    Args:
        matrix: ``(..., c, c)`` real matrices.
        passes: how often columns and rows are divided by their sums; the method's training loop uses 1.

    Returns:
        ``(..., c, c)`` nonnegative matrices.

    >>> clamp_normalize(jnp.array([[2.0, -1.0], [2.0, 4.0]])).tolist()
    [[1.0, 0.0], [0.3333333432674408, 0.6666666865348816]]

    Source: Lyu, Zhang, Qi and Xin, AutoShuffleNet, 2020; one pass after every optimiser step, as its public
    re-implementations do.
    """

    def one_pass(matrix: Matrix, _: None) -> tuple[Matrix, None]:
        return _divide_by_sum(_divide_by_sum(matrix, axis=-2), axis=-1), None

    matrix = jnp.maximum(at_least_float32(matrix), 0)
    if passes == 1:
        return one_pass(matrix, None)[0]
    return jax.lax.scan(one_pass, matrix, length=passes)[0]


def balance(matrix: Matrix, floor: float = 1e-6, tolerance: float = 1e-2, max_passes: int = 100) -> Matrix:
    """Clamps at a positive floor and divides by column and row sums until the columns sum to 1 as well.

    ``M <- max(M, floor)``, then columns and rows as in :func:`clamp_normalize` until every ``|sum_i M_ij - 1|`` is at
    most the tolerance. A positive matrix can always be scaled to a doubly stochastic one (Sinkhorn and Knopp, 1967).
    Entries clamped at 0 never come back, and once the others leave no permutation possible (six rows that share five
    columns, say) no scaling is doubly stochastic: :func:`clamp_normalize` then stays at fractions of 1/5. The floor
    lets such a matrix out. Cost O(passes c^2); few passes are taken near the constraint set. Forward-mode
    differentiable alone: it is meant for the end of an optimiser step.

    Args:
        matrix: ``(..., c, c)`` real matrices; the loop runs until all are balanced.
        floor: smallest entry before scaling, above 0.
        tolerance: largest deviation of a column sum from 1. Row sums are exact to rounding.
        max_passes: where to stop in any case.

    Returns:
        ``(..., c, c)`` positive matrices.

    Raises:
        ValueError: the floor is not positive.

    >>> balance(jnp.array([[1.0, 0.0], [1.0, 0.0]]), tolerance=1e-4).round(2).tolist()
    [[0.5, 0.5], [0.5, 0.5]]

    Source: the scaling is Sinkhorn and Knopp, 1967; its use after every step in place of one pass is this project's.
    """
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
    matrix = jax.random.uniform(entry_key, (channels, channels))
    if candidates is not None:
        keys = jax.random.split(support_key, candidates)
        drawn = jax.vmap(lambda k: to_matrix(random(k, channels)))(keys)
        matrix = matrix * drawn.max(0)
    return clamp_normalize(matrix, passes)


def _divide_by_sum(matrix: Matrix, axis: int) -> Matrix:
    total = matrix.sum(axis, keepdims=True)
    return matrix / jnp.where(total > 0, total, 1)
