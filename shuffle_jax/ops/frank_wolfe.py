"""Frank-Wolfe over the doubly stochastic matrices: quadratic assignment, a linear assignment in every step."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from shuffle_jax.ops import quadratic_assignment as qap
from shuffle_jax.ops.permutation import inner, to_matrix
from shuffle_jax.ops.precision import at_least_float32
from shuffle_jax.ops.rounding import assignment
from shuffle_jax.typing import Array, Int, Matrix


def frank_wolfe(
    matrix: Matrix, pair: qap.Pair, iterations: int = 30, size: int | Int[Array, ""] | None = None
) -> Matrix:
    """Descends on the quadratic assignment objective ``f(M) = <A, M B M^T>`` by exact steps towards vertices.

    ``Q = argmin_P <f'(M), P>`` over permutations, a linear assignment with ``f'(M) = A M B^T + A^T M B``; then
    ``M <- M + t (Q - M)`` with the t in [0, 1] for which f is least, in closed form since f is quadratic. f never
    rises. It is indefinite: the end is a stationary point that depends on the start, often but not always a vertex, so
    start often and round by :func:`~shuffle_jax.ops.rounding.assignment`. O(iterations c^3), all matrices at once.

    To match graphs by ``|A P - P B|_F^2`` hand over ``-A``.

    Args:
        matrix: ``(..., c, c)`` doubly stochastic matrices.
        pair: A and B, ``(c, c)`` finite numbers in float32 at least, such as from
            :func:`~shuffle_jax.ops.quadratic_assignment.as_pair`.
        iterations: 0 or more; most descents stand still before 30.
        size: of the problem, a number that may be traced, where A and B are filled up with zeros and M with the
            identity, which then stays. c by default.

    Returns:
        ``(..., c, c)`` doubly stochastic matrices, in float32 at least.

    Raises:
        ValueError: A and B are not square matrices of the size of M, or iterations is negative.

    >>> a = jnp.array([[0.0, 1.0, 0.0], [1.0, 0.0, 5.0], [0.0, 5.0, 0.0]])
    >>> b = jnp.array([[0.0, 1.0, 4.0], [1.0, 0.0, 2.0], [4.0, 2.0, 0.0]])
    >>> assignment(frank_wolfe(jnp.array([[0.2, 0.5, 0.3], [0.5, 0.2, 0.3], [0.3, 0.3, 0.4]]), (a, b))).tolist()
    [2, 1, 0]

    Source: Vogelstein, Conroy, Lyzinski et al., Fast approximate quadratic programming for graph matching, 2015.
    """
    if iterations < 0:
        raise ValueError(f"iterations is {iterations}: give 0 or more")
    a, b = qap.checked(pair, matrix.shape[-1])

    def step(matrix: Matrix, _: None) -> tuple[Matrix, None]:
        gradient = qap.assignment_slope(matrix, (a, b))
        direction = to_matrix(assignment(-_apart(gradient, size)), matrix.dtype) - matrix
        slope = (gradient * direction).sum((-2, -1))
        curvature = qap.assignment_objective(direction, (a, b))
        convex = curvature > 0
        inside = jnp.clip(-slope / jnp.where(convex, 2 * curvature, 1), 0, 1)
        length = jnp.where(convex, inside, (slope + curvature < 0).astype(matrix.dtype))
        return matrix + length[..., None, None] * direction, None

    return jax.lax.scan(step, at_least_float32(matrix), length=iterations)[0]


def _apart(cost: Matrix, size: int | Int[Array, ""] | None) -> Matrix:
    """Costs by which what fills up is cheapest in its own place.

    A row of the problem in a column of the filling leaves a column of the problem to a row of the filling. Each costs
    the largest cost of all, so that the same row in that column costs less, and the filling in its place nothing.
    """
    if size is None:
        return cost
    largest = jnp.abs(cost).max((-2, -1), keepdims=True)
    outside = jnp.where(jnp.eye(cost.shape[-1], dtype=bool), 0, jnp.where(largest > 0, largest, 1))
    return jnp.where(inner(cost.shape[-1], size), cost, outside)
