"""Rotations from free parameters, and the doubly stochastic matrices of their squared entries."""

from __future__ import annotations

import jax.numpy as jnp

from shuffle_jax.ops.bistochastic import clamp_normalize
from shuffle_jax.ops.precision import at_least_float32
from shuffle_jax.ops.shape import check_matrix
from shuffle_jax.typing import Array, Float, Matrix


def cayley(parameters: Matrix) -> Matrix:
    """Rotations by Cayley's transform of the skew-symmetric part: ``C = (I - S)^-1 (I + S)``, ``S = (A - A^T) / 2``.

    S turns planes by the angles ``2 atan(s)``, ``i s`` its eigenvalues. ``I - S`` is never singular, and
    ``dC = 2 (I - S)^-1 dS (I - S)^-1`` is at most twice ``dS``. A half turn, the eigenvalue -1, lies at infinity. Cost
    O(c^3): one linear system.

    Args:
        parameters: A, ``(..., c, c)`` real matrices; only ``A - A^T`` counts. In float32 the error is about
            ``1e-8 |S|`` where S is large: beyond 10^6 nothing is left.

    Returns:
        ``(..., c, c)`` orthogonal matrices of determinant 1, in float32 at least.

    Raises:
        ValueError: the matrices are not square, or not of floating point.

    >>> cayley(jnp.array([[0.0, 1.0], [-1.0, 0.0]])).round(6).tolist()
    [[0.0, 1.0], [-1.0, 0.0]]

    Source: Cayley, 1846.
    """
    check_matrix(parameters)
    parameters = at_least_float32(parameters)
    skew = (parameters - jnp.swapaxes(parameters, -1, -2)) / 2
    identity = jnp.broadcast_to(jnp.eye(skew.shape[-1], dtype=skew.dtype), skew.shape)
    return jnp.linalg.solve(identity - skew, identity + skew)


def rotation(parameters: Matrix) -> Matrix:
    """Every rotation, as the square of one by half the angles: ``Q = C^2``, ``C = cayley(A)``.

    A half turn is the square of a quarter turn, which lies at ``s = 1``: with S, as in :func:`cayley`, of norm at most
    1 every matrix of determinant 1 is reached, where Cayley's transform alone has those with an eigenvalue -1, most
    signed permutations among them, at infinity, and a descent crawls there. ``dQ`` is at most four times ``dS``.

    It was chosen among five ways. The condition is that of the derivative on the ``c (c - 1) / 2`` directions, at
    random starts and at permutations, for c = 16; the error is the largest entry of ``|Q Q^T - I|`` and the time that
    of one value with its gradient on one core, for c = 16, 58 and 116 in float32; hard are those of 16 random linear
    assignments, c = 12, whose normalised penalty fell below 0.01 in 500 steps of Adam at a rate of 0.03:

    ========================  ============  =============  =============  ====================  =======
    way                       cond., start  cond., perm.   error          time                  hard
    ========================  ============  =============  =============  ====================  =======
    Cayley                    6 to 7        15 to 49       5e-7           0.04, 0.12, 0.50 ms   9 of 16
    Cayley squared            4 to 8        6              6e-7           0.04, 0.14, 0.59 ms   all
    exponential of S          2 to 3        5              8e-7           0.06, 0.28, 1.25 ms   all
    polar factor, SVD         21 to 30      1              1e-6           0.05, 0.34, 1.35 ms   15 [1]_
    polar factor, 25 steps    21 to 30      1              2e-3 [2]_      0.15, 1.05, 6.12 ms   15
    ========================  ============  =============  =============  ====================  =======

    The exponential is as good and twice as dear, five times in a batch. The polar factor of a free matrix is the best
    conditioned at permutations and the worst at starts, with an infinite gradient at singular matrices.

    .. [1] As Newton and Schulz's, which is the same function.
    .. [2] Steps of Newton and Schulz; 1e-7 for c = 16 and 58. They need the more, the worse the matrix's condition.

    Args:
        parameters: A, ``(..., c, c)`` real matrices, as in :func:`cayley`.

    Returns:
        ``(..., c, c)`` orthogonal matrices of determinant 1, in float32 at least.

    Raises:
        ValueError: the matrices are not square, or not of floating point.

    >>> rotation(jnp.array([[0.0, 1.0], [-1.0, 0.0]])).round(6).tolist()
    [[-1.0, 0.0], [0.0, -1.0]]
    """
    half = cayley(parameters)
    return jnp.matmul(half, half, precision="highest")


def orthostochastic(parameters: Matrix, temperature: float | Float[Array, ""] = 1.0) -> Matrix:
    """Doubly stochastic matrices without iteration, the squared entries of a rotation: ``M_ij = Q_ij^2``.

    ``Q = rotation(A)``. Rows and columns of Q have length 1, so that those of M sum to 1. At another temperature the
    entries are raised to 1/T and normalised once, :func:`~shuffle_jax.ops.bistochastic.clamp_normalize`; then the
    columns sum to 1 only nearly.

    Every permutation is reached, at parameters with ``|S|_2 <= 1``, for the sign of one row makes the determinant of
    its matrix 1. So hardness is no matter of scale, as it is for logits: what makes M hard is a penalty of
    :mod:`shuffle_jax.ops.penalty`, or the loss, and a low T sharpens what is there. Not every doubly stochastic matrix
    is reached: ``J / c`` only where there is a Hadamard matrix of size c.

    Start at normal entries of standard deviation ``0.7 / sqrt(c)``, for which ``|S|_2`` is about 1 and the diagonal of
    M no larger than the rest. A = 0 is the identity, and at a permutation every gradient vanishes: it is a stationary
    point of any loss. Steps that carry S far beyond norm 1 lead to the same matrices, where they change slowly.

    Cost O(c^3).

    Args:
        parameters: A, ``(..., c, c)`` real matrices, as in :func:`cayley`.
        temperature: T > 0.

    Returns:
        ``(..., c, c)`` nonnegative matrices, in float32 at least.

    Raises:
        ValueError: the matrices are not square, or not of floating point.

    >>> orthostochastic(jnp.array([[0.0, 0.4142136], [-0.4142136, 0.0]])).round(3).tolist()  # an eighth turn, twice
    [[0.0, 1.0], [1.0, 0.0]]

    Source: this project's; orthostochastic matrices are as old as Horn, 1954.
    """
    return clamp_normalize(jnp.square(rotation(parameters)), temperature)
