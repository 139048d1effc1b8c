"""Matching two graphs and quadratic assignment: what a permutation costs, and what an exchange of two would change.

Both problems look for a permutation of the rows and columns of B that puts it over A. In the convention of this package
``(P B P^T)[i, k] = B[p[i], p[k]]``: facility i goes to location ``p[i]``, A holds flows and B distances.
"""

from __future__ import annotations

import jax.numpy as jnp

from shuffle_jax.ops.precision import at_least_float32
from shuffle_jax.typing import Array, Bool, Float, Matrix, Permutation

Pair = tuple[Float[Array, "*pair c c"], Float[Array, "*pair c c"]]
"""The matrices A and B of a problem, of one shape."""


def matching_objective(matrix: Matrix, pair: Pair) -> Float[Array, "*batch"]:
    """How far M is from matching two graphs, ``|A M - M B|_F^2``: convex in M, and zero where ``A = P B P^T``.

    On graphs with a vertex-transitive automorphism group it is zero at the centre ``J / c`` as well: there the convex
    relaxation says nothing. Cost O(c^3).

    Args:
        matrix: ``(..., c, c)`` relaxed permutations.
        pair: A and B, ``(c, c)`` or with the leading axes of M.

    Returns:
        ``(...)`` nonnegative values.

    Raises:
        ValueError: A and B are not square matrices of the size of M.

    >>> a, b = jnp.array([[0.0, 2.0], [3.0, 0.0]]), jnp.array([[0.0, 3.0], [2.0, 0.0]])
    >>> float(matching_objective(jnp.array([[0.0, 1.0], [1.0, 0.0]]), (a, b)))
    0.0
    >>> float(matching_objective(jnp.eye(2), (a, b)))
    2.0
    """
    a, b = checked(pair, matrix.shape[-1])
    matrix = at_least_float32(matrix)
    return jnp.square(product(a, matrix) - product(matrix, b)).sum((-2, -1))


def assignment_objective(matrix: Matrix, pair: Pair) -> Float[Array, "*batch"]:
    """The quadratic assignment objective ``<A, M B M^T> = sum_ik A_ik (M B M^T)_ik``: indefinite in M. Cost O(c^3).

    For symmetric matrices and a permutation, ``|A P - P B|_F^2 = |A|_F^2 + |B|_F^2 - 2 <A, P B P^T>``: matching is
    quadratic assignment with ``-A``.

    Args:
        matrix: ``(..., c, c)`` relaxed permutations.
        pair: A and B, ``(c, c)`` or with the leading axes of M.

    Returns:
        ``(...)`` values; at a permutation, those of :func:`value`.

    Raises:
        ValueError: A and B are not square matrices of the size of M.

    >>> a, b = jnp.array([[0.0, 2.0], [3.0, 0.0]]), jnp.array([[0.0, 5.0], [7.0, 0.0]])
    >>> float(assignment_objective(jnp.eye(2), (a, b)))
    31.0

    Source: Koopmans and Beckmann, 1957.
    """
    a, b = checked(pair, matrix.shape[-1])
    matrix = at_least_float32(matrix)
    return _inner(a, product(product(matrix, b), jnp.swapaxes(matrix, -1, -2)))


def assignment_slope(matrix: Matrix, pair: Pair) -> Matrix:
    """The gradient of :func:`assignment_objective`, ``A M B^T + A^T M B``. Cost O(c^3).

    >>> a, b = jnp.array([[0.0, 2.0], [3.0, 0.0]]), jnp.array([[0.0, 5.0], [7.0, 0.0]])
    >>> assignment_slope(jnp.eye(2), (a, b)).tolist()
    [[31.0, 0.0], [0.0, 31.0]]
    """
    a, b = checked(pair, matrix.shape[-1])
    matrix = at_least_float32(matrix)
    at, bt = jnp.swapaxes(a, -1, -2), jnp.swapaxes(b, -1, -2)
    return product(product(a, matrix), bt) + product(product(at, matrix), b)


def value(permutation: Permutation, pair: Pair) -> Float[Array, "*batch"]:
    """The quadratic assignment objective of a permutation, ``sum_ik A[i, k] B[p[i], p[k]]``. Cost O(c^2).

    Args:
        permutation: ``(..., c)`` index vectors.
        pair: A and B, ``(c, c)``.

    Returns:
        ``(...)`` values, exact in float32 for integers as long as none exceeds 2^24.

    Raises:
        ValueError: A and B are not square matrices of the size of p.

    >>> a, b = jnp.array([[0.0, 2.0], [3.0, 0.0]]), jnp.array([[0.0, 5.0], [7.0, 0.0]])
    >>> value(jnp.array([[0, 1], [1, 0]]), (a, b)).tolist()
    [31.0, 29.0]
    """
    a, b = checked(pair, permutation.shape[-1], batched=False)
    return _inner(a, moved(b, permutation))


def matches(permutation: Permutation, pair: Pair, tolerance: float = 0.0) -> Bool[Array, "*batch"]:
    """Whether a permutation puts B over A: ``|A[i, k] - B[p[i], p[k]]| <= tolerance`` for all i and k.

    Args:
        permutation: ``(..., c)`` index vectors.
        pair: A and B, ``(c, c)``.
        tolerance: 0 for graphs; rounding errors for what was computed.

    Returns:
        Booleans of shape ``(...)``.

    Raises:
        ValueError: A and B are not square matrices of the size of p.

    >>> a = jnp.array([[0.0, 2.0], [3.0, 0.0]])
    >>> matches(jnp.array([[0, 1], [1, 0]]), (a, a)).tolist()
    [True, False]
    """
    a, b = checked(pair, permutation.shape[-1], batched=False)
    over = moved(b, permutation)
    return (jnp.abs(over - jnp.broadcast_to(a, over.shape)) <= tolerance).all((-2, -1))


def moved(matrix: Float[Array, "c c"], permutation: Permutation) -> Matrix:
    """Rows and columns in the order of a permutation, ``(P B P^T)[i, k] = B[p[i], p[k]]``.

    >>> moved(jnp.array([[1.0, 2.0], [3.0, 4.0]]), jnp.array([1, 0])).tolist()
    [[4.0, 3.0], [2.0, 1.0]]
    """
    return matrix[permutation[..., :, None], permutation[..., None, :]]


def exchange_deltas(permutation: Permutation, pair: Pair) -> Matrix:
    """By how much the exchange of any two entries of a permutation changes its value.

    With ``C[i, k] = B[p[i], p[k]]``, ``G = A^T C + A C^T`` and p' equal to p with ``p[r]`` and ``p[s]`` exchanged::

        value(p') - value(p) = G_rs + G_sr - G_rr - G_ss - E_rs

    where E_rs corrects the terms in which both indices are r or s. Cost O(c^3) for all pairs together, in two products.

    Args:
        permutation: ``(..., c)`` index vectors.
        pair: A and B, ``(c, c)``.

    Returns:
        ``(..., c, c)`` symmetric matrices with zeros on the diagonal.

    Raises:
        ValueError: A and B are not square matrices of the size of p.

    >>> a, b = jnp.array([[0.0, 2.0], [3.0, 0.0]]), jnp.array([[0.0, 5.0], [7.0, 0.0]])
    >>> exchange_deltas(jnp.array([0, 1]), (a, b)).tolist()
    [[0.0, -2.0], [-2.0, 0.0]]

    Source: the differences of Burkard and Rendl, 1984, for any matrices.
    """
    a, b = checked(pair, permutation.shape[-1], batched=False)
    c = moved(b, permutation)
    at, ct = a.T, jnp.swapaxes(c, -1, -2)
    g = product(at, c) + product(a, ct)
    diagonal = jnp.diagonal(g, axis1=-2, axis2=-1)
    own, other = jnp.diagonal(a), jnp.diagonal(c, axis1=-2, axis2=-1)
    a, at, row, column = (jnp.broadcast_to(m, c.shape) for m in (a, at, own[:, None], own[None, :]))
    both = pair_terms((a, at, row, column), (c, ct, *_outer(other)))
    first, second = _outer(diagonal)
    return g + jnp.swapaxes(g, -1, -2) - first - second - both


Entries = tuple[Array, Array, Array, Array]
"""The entries ``M_rs, M_sr, M_rr, M_ss`` of a matrix for pairs (r, s)."""


def pair_terms(a: Entries, c: Entries) -> Array:
    """What the sum over all k counts wrongly at k = r and k = s for an exchange of r and s; see exchange_deltas."""
    ars, asr, arr, ass = a
    crs, csr, crr, css = c
    at_r = (arr - ars) * (crs - crr) + (arr - asr) * (csr - crr)
    at_s = (asr - ass) * (css - csr) + (ars - ass) * (css - crs)
    return at_r + at_s - (arr - ass) * (css - crr) - (ars - asr) * (csr - crs)


def _outer(diagonal: Float[Array, "*batch c"]) -> tuple[Matrix, Matrix]:
    """``D_r`` and ``D_s`` for all pairs (r, s)."""
    shape = (*diagonal.shape, diagonal.shape[-1])
    return jnp.broadcast_to(diagonal[..., :, None], shape), jnp.broadcast_to(diagonal[..., None, :], shape)


def _inner(a: Float[Array, "*pair c c"], c: Matrix) -> Float[Array, "*batch"]:
    return (jnp.broadcast_to(a, c.shape) * c).sum((-2, -1))


def product(left: Array, right: Array) -> Array:
    """A product whose entries are compared and counted: accelerators would round its factors to 8 or 11 bits."""
    return jnp.matmul(left, right, precision="highest")


def checked(pair: Pair, size: int, batched: bool = True) -> Pair:
    """A and B in float32 at least; raises a ValueError unless both are square matrices of a size."""
    for name, matrix in zip("AB", pair, strict=True):
        if matrix.shape[-2:] != (size, size) or (matrix.ndim != 2 and not batched):
            raise ValueError(f"{name} has the shape {matrix.shape}: give a ({size}, {size}) matrix, as p or M is")
    a, b = (at_least_float32(jnp.asarray(matrix)) for matrix in pair)
    return a, b


def as_pair(a: Array, b: Array) -> Pair:
    """Two arrays as a pair of matrices in floating point, after a look at their shapes and values.

    Args:
        a: ``(c, c)`` finite numbers.
        b: as many.

    Returns:
        A and B in float32, or in float64 where that is enabled and either is.

    Raises:
        ValueError: they are not square, differ in size, are empty, or hold something that is not finite.
    """
    for name, matrix in (("A", a), ("B", b)):
        if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or not matrix.size:
            raise ValueError(f"{name} has the shape {matrix.shape}: give a square matrix")
    if a.shape != b.shape:
        raise ValueError(f"A is {len(a)} x {len(a)} and B {len(b)} x {len(b)}: give matrices of one size")
    arrays = jnp.asarray(a), jnp.asarray(b)
    kind = jnp.float64 if jnp.float64 in (arrays[0].dtype, arrays[1].dtype) else jnp.float32
    pair = arrays[0].astype(kind), arrays[1].astype(kind)
    for name, matrix in zip("AB", pair, strict=True):
        if not bool(jnp.isfinite(matrix).all()):
            raise ValueError(f"{name} holds a NaN or an infinity: give finite numbers")
    return pair
