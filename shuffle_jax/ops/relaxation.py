"""Relaxed permutations: nonnegative matrices that can be trained by gradient descent.

Every relaxation is called as ``relax(parameters, temperature=1.0, ...)`` and gives ``(..., c, c)`` nonnegative matrices
in float32 at least. Their hard counterparts are in :mod:`shuffle_jax.ops.rounding`; what tells how far they are from
one is in :mod:`shuffle_jax.ops.penalty`.

====================  ==================  ==========================  ===============  ==============================
relaxation            parameters          sums to 1                   cost             becomes hard
====================  ==================  ==========================  ===============  ==============================
softmax_rows          ``(c, c)`` logits   rows                        c^2              T -> 0: argmax of each row
sinkhorn              ``(c, c)`` logits   rows; columns nearly        iterations c^2   T -> 0: assignment(logits)
converged_sinkhorn    ``(c, c)`` logits   rows; columns to tolerance  passes c^2       T -> 0: assignment(logits)
gumbel_sinkhorn       ``(c, c)`` logits   rows; columns nearly        iterations c^2   T -> 0: a random assignment
soft_sort             ``(c,)`` scores     rows                        c^2              T -> 0: argsort(scores)
clamp_normalize       ``(c, c)`` entries  rows; columns nearly        passes c^2       a penalty; T -> 0: see there
orthostochastic       ``(c, c)`` entries  rows and columns            c^3              a penalty; T -> 0: see there
====================  ==================  ==========================  ===============  ==============================
"""

from __future__ import annotations

import math
from functools import partial

import jax
import jax.numpy as jnp

from shuffle_jax.ops.bistochastic import balance, clamp_normalize, random_bistochastic, tangent
from shuffle_jax.ops.converged_sinkhorn import converged_sinkhorn
from shuffle_jax.ops.mesh import each_device
from shuffle_jax.ops.orthogonal import orthostochastic
from shuffle_jax.ops.precision import at_least_float32
from shuffle_jax.ops.shape import check_matrix
from shuffle_jax.typing import Array, Float, Key, Matrix

__all__ = [
    "balance",
    "clamp_normalize",
    "converged_sinkhorn",
    "gumbel_sinkhorn",
    "orthostochastic",
    "random_bistochastic",
    "sinkhorn",
    "soft_sort",
    "softmax_rows",
    "tangent",
]


def softmax_rows(
    logits: Float[Array, "*batch d c"], temperature: float | Float[Array, ""] = 1.0
) -> Float[Array, "*batch d c"]:
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
    """Nearly doubly stochastic matrices by Sinkhorn's iteration, at any temperature.

    ``L <- L - logsumexp_columns(L)``, then ``L <- L - logsumexp_rows(L)``, repeated; ``M = exp(L)``. Rows end exactly
    normalised; columns converge geometrically, the slower the smaller T: check with
    :func:`~shuffle_jax.ops.rounding.certificate` or
    :func:`~shuffle_jax.ops.invariants.assert_doubly_stochastic`. As ``T -> 0`` the limit is the permutation of
    :func:`~shuffle_jax.ops.rounding.assignment`. Cost O(iterations c^2), most of it in products with vectors, and under
    a gradient the memory of two vectors for every pass and a matrix for every few; :func:`converged_sinkhorn` needs no
    number of iterations and one matrix.

    The first pass is in logarithms, and the next ones scale ``K = exp(L)`` as ``diag(u) K diag(w)``: ``w = 1 / K^T u``,
    ``u = 1 / K w``. Once one pass is done all column sums are between 1 / c and c, and stay there, so that in r further
    ones no entry grows by more than ``c^(2 r)``: what is too small for K stays below ``10^-8``. After as many passes
    (seven of c = 116, 25 of c = 4 in float32) the logarithms take up u and w, and it starts anew. So small temperatures
    neither overflow nor lose an entry that would have become a large one.

    Args:
        logits: ``(..., c, c)`` real matrices.
        temperature: T > 0.
        iterations: number of column and row passes, at least 1.

    Returns:
        ``(..., c, c)`` positive matrices, in float32 at least.

    Raises:
        ValueError: iterations is below 1, or the matrices are not square, or not of floating point.

    >>> m = sinkhorn(jnp.array([[4.0, 1.0], [1.0, 2.0]]))
    >>> bool(jnp.allclose(m.sum(0), 1.0, atol=1e-5)) and bool(jnp.allclose(m.sum(1), 1.0, atol=1e-5))
    True

    Source: Sinkhorn and Knopp, 1967; in a network, Mena et al., Gumbel-Sinkhorn, 2018.
    """
    check_matrix(logits)
    if iterations < 1:
        raise ValueError(f"sinkhorn needs at least 1 iteration, not {iterations}")
    return _passes(at_least_float32(logits) / temperature, iterations)


def gumbel_sinkhorn(
    logits: Matrix,
    temperature: float | Float[Array, ""] = 1.0,
    iterations: int = 20,
    noise: float | Float[Array, ""] = 1.0,
    *,
    key: Key,
) -> Matrix:
    """Random, nearly doubly stochastic matrices: Sinkhorn's iteration on logits with Gumbel noise.

    ``M = sinkhorn(L + noise G, T)``, the entries of G independent with the distribution ``-log(-log(U))``. As
    ``T -> 0`` the limit is the permutation of ``assignment(L + noise G)``: a random one. A larger ``L_ij`` makes every
    permutation with ``p[i] = j`` likelier. But from three rows on the permutations are not in the order of their sums
    of logits, as those drawn in proportion to ``exp(sum)`` would be: one that shares entries with others shares their
    noise, and wins less often. The gradient goes through the noise, not to it. Cost as :func:`sinkhorn`.

    Args:
        logits: ``(..., c, c)`` real matrices; each of a batch gets its own noise. Under ``vmap`` split the key.
        temperature: T > 0.
        iterations: number of column and row passes, at least 1.
        noise: scale of G; 0 for :func:`sinkhorn` itself.
        key: random key. ``jax.random.gumbel(key, logits.shape)`` is G for logits in float32.

    Returns:
        ``(..., c, c)`` positive matrices, in float32 at least.

    Raises:
        ValueError: iterations is below 1, or the matrices are not square, or not of floating point.

    >>> logits = jnp.zeros((3, 3))
    >>> m = gumbel_sinkhorn(logits, 0.1, key=jax.random.key(0))
    >>> bool(jnp.allclose(m, gumbel_sinkhorn(logits, 0.1, key=jax.random.key(0))))
    True
    >>> bool(jnp.allclose(m, gumbel_sinkhorn(logits, 0.1, key=jax.random.key(1))))
    False

    Source: Mena, Belanger, Linderman and Snoek, Learning Latent Permutations with Gumbel-Sinkhorn Networks, 2018.
    """
    check_matrix(logits)
    logits = at_least_float32(logits)
    gumbel = jax.random.gumbel(key, logits.shape, logits.dtype)
    return sinkhorn(logits + jnp.asarray(noise, logits.dtype) * gumbel, temperature, iterations)


def soft_sort(
    scores: Float[Array, "*batch c"], temperature: float | Float[Array, ""] = 1.0, descending: bool = False
) -> Matrix:
    """Row-stochastic matrices that sort: ``M_ij = softmax_j(-|sort(s)_i - s_j| / T)``.

    With ``p = argsort(s)``, ``M x`` approximates ``x[p]``, and ``M s`` the sorted scores. Every row is largest at
    ``j = p[i]`` whatever T is, and as ``T -> 0`` it tends to that one-hot row. The columns are free. Equal scores share
    their rows equally, so that row-argmax is no permutation there and :func:`~shuffle_jax.ops.rounding.assignment` is.
    With c parameters in place of ``c^2`` every permutation can be reached. Cost O(c^2).

    Args:
        scores: s, ``(..., c)`` finite real vectors.
        temperature: T > 0, in the units of the scores.
        descending: the largest score first, as in ``jnp.argsort``.

    Returns:
        ``(..., c, c)`` matrices with rows summing to 1, in float32 at least.

    Raises:
        ValueError: the scores are a scalar, or not of floating point.

    >>> soft_sort(jnp.array([3.0, 1.0, 2.0]), temperature=0.01).round(2).tolist()
    [[0.0, 1.0, 0.0], [0.0, 0.0, 1.0], [1.0, 0.0, 0.0]]

    Source: Prillo and Eisenschlos, SoftSort, 2020, who sort in descending order.
    """
    if scores.ndim < 1:
        raise ValueError("soft_sort sorts vectors and not a scalar: give (..., c)")
    if not jnp.issubdtype(scores.dtype, jnp.floating):
        raise ValueError(f"scores of {scores.dtype} are not of floating point: convert them to float32")
    scores = at_least_float32(scores)
    ordered = each_device(lambda scores: jnp.sort(scores, axis=-1, descending=descending), (scores,))
    return softmax_rows(-jnp.abs(ordered[..., :, None] - scores[..., None, :]), temperature)


# Compiled here, so that a call outside of jit does not compile the loops each time anew.
@partial(jax.jit, static_argnums=1)
def _passes(scores: Matrix, iterations: int) -> Matrix:
    def several(log_matrix: Matrix, _: None) -> tuple[Matrix, None]:
        rows, columns = _scaling(jnp.exp(log_matrix), most)
        return log_matrix + jnp.log(rows)[..., :, None] + jnp.log(columns)[..., None, :], None

    log_matrix = jax.nn.log_softmax(jax.nn.log_softmax(scores, axis=-2), axis=-1)
    most = _most_passes(log_matrix)
    times, left = divmod(iterations - 1, most)
    if times:
        log_matrix, _ = jax.lax.scan(several, log_matrix, length=times)
    matrix = jnp.exp(log_matrix)
    if not left:
        return matrix
    # As a product, u w^T has products for gradients, and no sums along the last axis.
    return matrix * jnp.einsum("...i,...j->...ij", *_scaling(matrix, left), precision="highest")


def _scaling(matrix: Matrix, passes: int) -> tuple[Float[Array, "*batch c"], Float[Array, "*batch c"]]:
    """The vectors u and w of ``diag(u) K diag(w)`` after so many passes over columns and rows."""

    def one_pass(scaling: tuple[Array, Array], _: None) -> tuple[tuple[Array, Array], None]:
        # Products and not sums, which XLA on CPU does not vectorise along the last axis.
        columns = 1 / jnp.einsum("...ij,...i->...j", matrix, scaling[0], precision="highest")
        return (1 / jnp.einsum("...ij,...j->...i", matrix, columns, precision="highest"), columns), None

    ones = 1 + 0 * jax.lax.stop_gradient(matrix[..., 0])  # ones_like forgets over which devices it is split
    return jax.lax.scan(one_pass, (ones, ones), length=passes)[0]


def _most_passes(matrix: Matrix) -> int:
    """How many passes may scale a matrix before what it has lost as too small could matter."""
    grows = 2 * math.log(max(matrix.shape[-1], 2))
    return max(int(math.log(1e-8 / float(jnp.finfo(matrix.dtype).tiny)) / grows), 1)
