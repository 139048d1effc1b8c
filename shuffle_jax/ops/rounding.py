"""From a relaxed matrix to a hard permutation, and what can be said about the step."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from shuffle_jax.ops.linear_assignment import finite, minimize
from shuffle_jax.ops.order import last, to_integers
from shuffle_jax.ops.penalty import l1_minus_l2
from shuffle_jax.ops.permutation import to_matrix
from shuffle_jax.ops.precision import at_least_float32
from shuffle_jax.typing import Array, Bool, Float, Int, Matrix, Permutation


def argmax(matrix: Matrix) -> Int[Array, "*batch c"]:
    """The largest entry of every row, ``p[i] = argmax_j M_ij``.

    This need not be a permutation: see :func:`certificate` for when it must be, and
    :func:`~shuffle_jax.ops.permutation.is_permutation` for whether it is. Cost O(c^2).

    Args:
        matrix: ``(..., c, c)`` matrices.

    Returns:
        ``(..., c)`` int32 indices.

    >>> argmax(jnp.array([[0.9, 0.1], [0.6, 0.4]])).tolist()
    [0, 0]
    """
    return jnp.argmax(matrix, axis=-1).astype(jnp.int32)


def assignment(matrix: Matrix) -> Permutation:
    """The permutation nearest to a matrix: ``argmax_p sum_i M[i, p[i]]``, a linear assignment.

    For a doubly stochastic M this is the vertex of the Birkhoff polytope with the least Frobenius distance. The
    result is always a permutation: row-argmax where that is one, for no other sum is larger; else an optimal one, by
    :func:`~shuffle_jax.ops.linear_assignment.minimize`, which says how exactly. O(c^3). No gradient passes.

    Args:
        matrix: ``(..., c, c)`` matrices of finite numbers. Under ``jit``, where that cannot be checked, the least
            finite entry of a matrix is taken for what is not finite.

    Returns:
        ``(..., c)`` int32 permutations.

    Raises:
        ValueError: the matrices are not square, not of a floating-point type, or seen to hold what is not finite.

    >>> assignment(jnp.array([[0.9, 0.1], [0.6, 0.4]])).tolist()
    [0, 1]
    """
    return minimize(-matrix)


def greedy(matrix: Matrix) -> Permutation:
    """The permutation of the largest entry, then of the largest in the other rows and columns, and so on.

    ::

        (i_k, j_k) = argmax M[i, j] over i not in i_1 .. i_{k-1} and j not in j_1 .. j_{k-1},    p[i_k] = j_k

    Always a permutation, and row-argmax where that is one. For nonnegative matrices its sum is at least half of that
    of :func:`assignment`: an entry of the optimum shares its row or column with an entry that was chosen before it
    and is no smaller, and each chosen entry stands so for two at most. For matrices with negative entries nothing of
    the kind holds. Among equal entries the first comes first, row by row.

    All entries that are largest in both their row and their column are taken at once, which gives the same: O(c^2)
    for each of at most c rounds, few where entries are random and many where many are equal: then :func:`assignment`
    is faster. No gradient passes.

    Args:
        matrix: ``(..., c, c)`` matrices of finite numbers. Under ``jit``, where that cannot be checked, the least
            finite entry of a matrix is taken for what is not finite.

    Returns:
        ``(..., c)`` int32 permutations.

    Raises:
        ValueError: the matrices are not square, not of a floating-point type, or seen to hold what is not finite.

    >>> greedy(jnp.array([[0.9, 0.8], [0.7, 0.1]])).tolist(), assignment(jnp.array([[0.9, 0.8], [0.7, 0.1]])).tolist()
    ([0, 1], [1, 0])

    Source: the bound is that of greedy matching, Avis, A survey of heuristics for the weighted matching problem, 1983;
    the rounds are those of Preis, Linear time 1/2-approximation algorithm for maximum weighted matching, 1999.
    """
    return _cheapest_first(finite(-matrix))


@jax.jit  # also where the caller does not: a loop outside of jit is compiled at each call
def _cheapest_first(cost: Matrix) -> Permutation:
    order = to_integers(jnp.where(cost == 0, 0, cost))  # -0 would come before 0
    size, end = cost.shape[-1], last(cost.dtype)
    row, column = (jax.lax.broadcasted_iota(jnp.int32, cost.shape, cost.ndim + axis) for axis in (-2, -1))

    def round_(state: tuple[Array, Array]) -> tuple[Array, Array]:
        chosen, order = state
        first_column = jnp.where(order == order.min(-1, keepdims=True), column, size).min(-1, keepdims=True)
        first_row = jnp.where(order == order.min(-2, keepdims=True), row, size).min(-2, keepdims=True)
        taken = (column == first_column) & (row == first_row) & (order != end)
        rows, columns = taken.any(-1, keepdims=True), taken.any(-2, keepdims=True)
        return jnp.where(rows, first_column, chosen), jnp.where(rows | columns, end, order)

    none = jnp.full_like(order[..., :1], -1, jnp.int32)
    return jax.lax.while_loop(lambda state: jnp.any(state[0] < 0), round_, (none, order))[0][..., 0]


def straight_through(matrix: Matrix, permutation: Permutation) -> Matrix:
    """Hard in the forward pass, relaxed in the backward pass: ``P + M - stop_gradient(M)``.

    Args:
        matrix: ``(..., c, c)`` relaxed matrices, which receive the gradient.
        permutation: ``(..., c)`` their rounding, by :func:`argmax` or :func:`assignment`.

    Returns:
        ``(..., c, c)`` matrices equal to :func:`~shuffle_jax.ops.permutation.to_matrix` of the permutation, exactly.

    >>> straight_through(jnp.array([[0.9, 0.1], [0.2, 0.8]]), jnp.array([0, 1])).tolist()
    [[1.0, 0.0], [0.0, 1.0]]

    Source: Bengio, Leonard and Courville, 2013.
    """
    hard = jax.lax.stop_gradient(to_matrix(permutation, matrix.dtype))
    # In this order the forward value is exact: M - M is zero, while M + (P - M) would miss P by a rounding error.
    return hard + (matrix - jax.lax.stop_gradient(matrix))


def round_straight_through(matrix: Matrix) -> Matrix:
    """The nearest permutation in the forward pass, relaxed in the backward pass.

    ``straight_through(M, assignment(M))``: the value is the matrix of a permutation, the gradient that of M itself.

    Args:
        matrix: ``(..., c, c)`` relaxed matrices, which receive the gradient.

    Returns:
        ``(..., c, c)`` permutation matrices of the same type.

    Raises:
        ValueError: as :func:`assignment`.

    >>> round_straight_through(jnp.array([[0.9, 0.1], [0.6, 0.4]])).tolist()
    [[1.0, 0.0], [0.0, 1.0]]

    Source: as :func:`straight_through`.
    """
    return straight_through(matrix, assignment(matrix))


class Certificate(NamedTuple):
    """What :func:`certificate` states of a nonnegative matrix ``M`` of size c. All fields have its leading axes.

    Attributes:
        row_slack: ``(..., c)``, ``|M_i:|_1 - |M_i:|_2``; ``1 - |M_i:|_2`` where rows sum to 1. Zero iff one-hot.
        column_slack: ``(..., c)``, the same of the columns. All slacks together sum to the penalty P(M).
        residual: largest ``|sum - 1|`` over rows and columns; 0 for a doubly stochastic matrix.
        guaranteed: row-argmax is proved to be a permutation P*.
        l1_bound: if guaranteed, ``sum |M - P*|`` is at most this.
        frobenius_bound: if guaranteed, ``|M - P*|_F`` is at most this.
    """

    row_slack: Float[Array, "*batch c"]
    column_slack: Float[Array, "*batch c"]
    residual: Float[Array, "*batch"]
    guaranteed: Bool[Array, "*batch"]
    l1_bound: Float[Array, "*batch"]
    frobenius_bound: Float[Array, "*batch"]


def certificate(matrix: Matrix) -> Certificate:
    """Proves, where it can, that row-argmax of a nonnegative matrix is a permutation near it.

    The largest entry of a row is at least ``|M_i:|_2^2 / |M_i:|_1``. If that exceeds half the largest column sum in
    every row, no two rows can share a column::

        guaranteed = min_i |M_i:|_2^2 / |M_i:|_1  >  max_j |M_:j|_1 / 2

    For doubly stochastic M this says that every slack is below ``1 - 1/sqrt(2) = 0.2929``. With
    ``R = sum_i |1 - |M_i:|_1| + sum_j |1 - |M_:j|_1|``, which is 0 for doubly stochastic M, then::

        sum |M - P*|  <=  2 P(M) + R / 2          |M - P*|_F  <=  sqrt(2) P(M) + R / 2

    The test is sufficient and not necessary; it costs O(c^2). A penalty near zero alone proves nothing: rows may be
    one-hot and share a column, which only the column sums reveal.

    Args:
        matrix: ``(..., c, c)`` nonnegative matrices.

    Returns:
        A :class:`Certificate`.

    >>> c = certificate(jnp.array([[0.9, 0.1], [0.1, 0.9]]))
    >>> bool(c.guaranteed), round(float(c.l1_bound), 3)
    (True, 0.756)

    Source: derived here from the penalty of Lyu, Zhang, Qi and Xin, AutoShuffleNet, 2020, who prove exactness and
    error bounds of their own.
    """
    matrix = at_least_float32(matrix)
    row_sum, column_sum = matrix.sum(-1), matrix.sum(-2)
    row_square = jnp.square(matrix).sum(-1)
    row_slack = row_sum - jnp.sqrt(row_square)
    column_slack = column_sum - jnp.sqrt(jnp.square(matrix).sum(-2))
    row_error, column_error = jnp.abs(1 - row_sum), jnp.abs(1 - column_sum)
    least_peak = row_square / jnp.where(row_sum > 0, row_sum, 1)
    penalty, excess = l1_minus_l2(matrix), (row_error + column_error).sum(-1) / 2
    return Certificate(
        row_slack=row_slack,
        column_slack=column_slack,
        residual=jnp.maximum(row_error.max(-1), column_error.max(-1)),
        guaranteed=least_peak.min(-1) > column_sum.max(-1) / 2,
        l1_bound=2 * penalty + excess,
        frobenius_bound=2**0.5 * penalty + excess,
    )


class OrthogonalityCertificate(NamedTuple):
    """What :func:`orthogonality_certificate` states of a nonnegative matrix. All fields have its leading axes.

    Attributes:
        residual: the largest entry of ``|M M^T - I|``.
        guaranteed: row-argmax is proved to be a permutation.
    """

    residual: Float[Array, "*batch"]
    guaranteed: Bool[Array, "*batch"]


def orthogonality_certificate(matrix: Matrix) -> OrthogonalityCertificate:
    """Proves, where it can, that row-argmax of a nonnegative matrix with nearly orthonormal rows is a permutation.

    With ``e = max |M M^T - I|`` and the largest row sum r, the largest entry of every row is at least ``(1 - e) / r``.
    Two rows with theirs in one column would have a product of at least its square, which may not exceed e::

        guaranteed = e < 1  and  (1 - e)^2 / r^2 > e

    For row-stochastic matrices this says ``e < (3 - sqrt 5) / 2 = 0.382``, and ``|M M^T - I|_F^2 < 0.146`` suffices. Of
    columns nothing need be known. The test is sufficient and not necessary (for exactly row-stochastic matrices e < 4/9
    would do); it costs O(c^3).

    Args:
        matrix: ``(..., c, c)`` nonnegative matrices.

    Returns:
        An :class:`OrthogonalityCertificate`.

    >>> c = orthogonality_certificate(jnp.array([[0.9, 0.1], [0.1, 0.9]]))
    >>> bool(c.guaranteed), round(float(c.residual), 2)
    (True, 0.18)

    Source: derived here for the orthogonal regularisation of Gong et al., Dynamic Shuffle, 2023.
    """
    matrix = at_least_float32(matrix)
    product = jnp.matmul(matrix, jnp.swapaxes(matrix, -1, -2), precision="highest")  # a proof is not rounded
    identity = jnp.broadcast_to(jnp.eye(matrix.shape[-1], dtype=matrix.dtype), product.shape)
    residual = jnp.abs(product - identity).max((-2, -1))
    least_peak = (1 - residual) / matrix.sum(-1).max(-1)
    return OrthogonalityCertificate(residual, (residual < 1) & (jnp.square(least_peak) > residual))
