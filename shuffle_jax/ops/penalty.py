"""Penalties that vanish exactly on permutations, and the entropy of rows, which tells how far they are.

Three are numbers in [0, 1] on the doubly stochastic matrices of any size, 0 at the permutations alone and 1 at
``J / c`` alone: :func:`normalized_l1_minus_l2`, :func:`normalized_orthogonality` and :func:`row_entropy`. For c = 1
they are 0.
"""

from __future__ import annotations

import math

import jax.numpy as jnp

from shuffle_jax.ops.precision import at_least_float32
from shuffle_jax.ops.shape import check_matrix
from shuffle_jax.typing import Array, Float, Matrix


def l1_minus_l2(matrix: Matrix) -> Float[Array, "*batch"]:
    """The exact penalty of AutoShuffleNet.

    ``P(M) = sum_i (|M_i:|_1 - |M_i:|_2) + sum_j (|M_:j|_1 - |M_:j|_2)``

    P is nonnegative, and for a doubly stochastic M it is zero iff M is a permutation. On nonnegative matrices it is
    invariant under permutations of rows and columns and concave on the Birkhoff polytope. The gradient is
    ``2 - M_ij / |M_i:|_2 - M_ij / |M_:j|_2`` for nonnegative entries. It is finite everywhere: a quotient with a norm
    of zero counts as zero, and an entry of zero has the slope 2 of the nonnegative side, which keeps it at zero.

    The l1 norm is kept even where rows are known to sum to 1: division by the sum cancels the radial part of the
    gradient, and the l1 term does the work.

    Args:
        matrix: ``(..., c, c)`` matrices, usually nonnegative.

    Returns:
        ``(...)`` values in ``[0, P_max]`` on doubly stochastic matrices, see :func:`max_l1_minus_l2`.

    >>> float(l1_minus_l2(jnp.eye(3)))
    0.0

    Source: Lyu, Zhang, Qi and Xin, AutoShuffleNet, 2020.
    """
    magnitude = jnp.where(matrix >= 0, matrix, -matrix)  # |M| with the slope 1 at 0; jnp.abs leaves it open
    rows = magnitude.sum(-1) - safe_norm(matrix, axis=-1)
    columns = magnitude.sum(-2) - safe_norm(matrix, axis=-2)
    return (rows + columns).sum(-1)


def max_l1_minus_l2(channels: int) -> float:
    """The largest value of :func:`l1_minus_l2` on the Birkhoff polytope, reached at ``J / c``.

    ``P_max = 2 c (1 - c^(-1/2))``

    Args:
        channels: c, at least 1.

    Returns:
        A nonnegative number.

    >>> max_l1_minus_l2(4)
    4.0
    """
    return 2 * channels * (1 - 1 / math.sqrt(channels))


def normalized_l1_minus_l2(matrix: Matrix) -> Float[Array, "*batch"]:
    """:func:`l1_minus_l2` over its maximum: 0 at a permutation, 1 at ``J / c``.

    Args:
        matrix: ``(..., c, c)`` matrices.

    Returns:
        ``(...)`` values, in [0, 1] on doubly stochastic matrices; 0 for c = 1.

    >>> round(float(normalized_l1_minus_l2(jnp.full((4, 4), 0.25))), 6)
    1.0
    """
    return l1_minus_l2(matrix) / (max_l1_minus_l2(matrix.shape[-1]) or 1.0)


def orthogonality(matrix: Matrix) -> Float[Array, "*batch"]:
    """How far the rows are from orthonormal, ``|M M^T - I|_F^2 / c``.

    A nonnegative square matrix with ``M M^T = I`` is a permutation, so that on row-stochastic matrices this vanishes
    there and nowhere else; :func:`~shuffle_jax.ops.rounding.orthogonality_certificate` says how small it must be. The
    gradient is ``4 (M M^T - I) M / c``. Cost O(c^3), in float32 at least.

    Args:
        matrix: ``(..., c, c)`` matrices.

    Returns:
        ``(...)`` values, from 0 to c - 1 on row-stochastic matrices (c equal one-hot rows).

    >>> float(orthogonality(jnp.array([[1.0, 0.0], [1.0, 0.0]])))
    1.0

    Source: the orthogonal regularisation of Gong, Yin, Li, Guo and Xu, Dynamic Shuffle, 2023; its scale is this
    project's.
    """
    matrix = at_least_float32(matrix)
    product = jnp.matmul(matrix, jnp.swapaxes(matrix, -1, -2), precision="highest")
    identity = jnp.broadcast_to(jnp.eye(matrix.shape[-1], dtype=matrix.dtype), product.shape)
    return jnp.square(product - identity).sum((-2, -1)) / matrix.shape[-1]


def normalized_orthogonality(matrix: Matrix) -> Float[Array, "*batch"]:
    """:func:`orthogonality` over its maximum on doubly stochastic matrices: 0 at a permutation, 1 at ``J / c``.

    ``|M M^T - I|_F^2 / (c - 1) = sum_i (1 - sigma_i^2)^2 / (c - 1)``

    A doubly stochastic M has the largest singular value ``sigma_1 = 1``, whose term vanishes; the other c - 1 lie in
    [0, 1], and all are 1 for a permutation alone and all 0 for ``J / c`` alone. Cost O(c^3), in float32 at least.

    Args:
        matrix: ``(..., c, c)`` matrices.

    Returns:
        ``(...)`` values, in [0, 1] on doubly stochastic matrices; 0 for c = 1. Up to c on row-stochastic ones.

    Raises:
        ValueError: the matrices are not square, or not of floating point.

    >>> float(normalized_orthogonality(jnp.full((4, 4), 0.25)))
    1.0

    Source: as :func:`orthogonality`; the scale is this project's.
    """
    check_matrix(matrix)
    size = matrix.shape[-1]
    return orthogonality(matrix) * (size / max(size - 1, 1))


def row_entropy(matrix: Matrix) -> Float[Array, "*batch"]:
    """The mean entropy of the rows over its maximum, ``-1/c sum_ij M_ij log M_ij / log c``.

    The sum runs over all entries: where the columns sum to 1 as well, it is their mean entropy, too, and zero iff M is
    a permutation.

    Args:
        matrix: ``(..., c, c)`` row-stochastic matrices.

    Returns:
        ``(...)`` values in [0, 1]: 0 for one-hot rows, 1 for uniform ones; 0 for c = 1.

    >>> float(row_entropy(jnp.full((4, 4), 0.25)))
    1.0
    """
    matrix = at_least_float32(matrix)
    size = matrix.shape[-1]
    positive = matrix > 0
    logarithm = jnp.log(jnp.where(positive, matrix, 1))  # 0 log 0 counts as 0, also in the gradient
    return -(matrix * logarithm).sum((-2, -1)) / (size * math.log(size) if size > 1 else 1.0)


def mutual_information(matrices: Float[Array, "m *batch c c"]) -> Float[Array, "*batch"]:
    """How much of the rows' entropy is between images, ``I = H(mean_m M) - mean_m H(M)``, H as :func:`row_entropy`.

    Read as the law of a column given an image, a row tells I log c nats about the image on average: none where all
    images have the same matrix, whatever its entropy, and all where every image has a permutation and each column of
    each row is as frequent as the others. The mean is over all images of a batch, also of one split over devices.

    Args:
        matrices: ``(m, ..., c, c)`` row-stochastic matrices of m images.

    Returns:
        ``(...)`` values in [0, 1]; 0 for m = 1 or c = 1.

    >>> float(mutual_information(jnp.array([[[1.0, 0.0], [0.0, 1.0]], [[0.0, 1.0], [1.0, 0.0]]])))
    1.0
    """
    matrices = at_least_float32(matrices)
    return row_entropy(matrices.mean(0)) - row_entropy(matrices).mean(0)


def safe_norm(array: Float[Array, "..."], axis: int) -> Float[Array, "..."]:
    """The Euclidean norm along an axis, with gradient zero (and not NaN) where the norm is zero.

    >>> float(safe_norm(jnp.array([3.0, 4.0]), axis=0))
    5.0
    """
    square = jnp.square(array).sum(axis)
    positive = square > 0
    # The inner `where` keeps sqrt away from 0, whose infinite slope would turn the masked gradient into NaN.
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, square, 1)), 0)
