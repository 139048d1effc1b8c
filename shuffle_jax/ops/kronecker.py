"""Mixing channels by a Kronecker product of two small matrices, without ever forming the large one.

The channels lie in G groups of ``p q``, group by group, each a table of p rows of q. One pair of matrices, ``outer`` A
for the rows and ``inner`` B within them, mixes every group, and a cross-group shuffle follows::

    M = S_G (I_G kron A kron B)        y[(i q' + j) G + k] = sum_ab A[i, a] B[j, b] x[k p q + a q + b]

For permutations A and B so is M, ``S_G`` alone for identities: with two groups the fixed shuffle of ShuffleNetV2.

Factors are one pair for all images ``(p', p)``, one for each image ``(n, p', p)``, or one for each image and group
``(n, G, p', p)``; a leading axis of length 1 stands for all. Two contractions cost ``p q q' + p p' q'`` multiply-adds
for each position and group, where the matrix itself would cost ``p q p' q'``. Gradients can be differentiated again;
there are no forward-mode derivatives.

Source: Gong, Yin, Li, Guo and Xu, Dynamic Shuffle, 2023, whose abstract alone is known to us; the forms are this
project's.
"""

from __future__ import annotations

import math

from shuffle_jax.ops import kronecker_forms as forms
from shuffle_jax.ops.mesh import varying_alike
from shuffle_jax.ops.permutation import check_groups
from shuffle_jax.typing import Array, Float, Int, Num


def factor_pair(size: int) -> tuple[int, int]:
    """The two factors of a number that are nearest to each other, the smaller first.

    Args:
        size: ``p q``, at least 1.

    Returns:
        (p, q) with ``p <= q``; p is 1 if the size is a prime number.

    >>> factor_pair(24), factor_pair(58), factor_pair(7)
    ((4, 6), (2, 29), (1, 7))
    """
    if size < 1:
        raise ValueError(f"{size} has no pair of factors: give a whole number from 1")
    p = next(p for p in range(math.isqrt(size), 0, -1) if size % p == 0)
    return p, size // p


def group_factors(channels: int, groups: int, factors: tuple[int, int] | None = None) -> tuple[int, int]:
    """The sizes p and q of the factors for so many channels and groups.

    Args:
        channels: c.
        groups: G, a divisor of c.
        factors: (p, q) if they are given; by default :func:`factor_pair` of c / G.

    Raises:
        ValueError: G does not divide c, or p q is not c / G.

    >>> group_factors(48, groups=2)
    (4, 6)
    """
    check_groups(channels, groups)
    size = channels // groups
    if factors is None:
        return factor_pair(size)
    p, q = factors
    if min(p, q) < 1 or p * q != size:
        pairs = [(p, size // p) for p in range(1, size + 1) if size % p == 0]
        raise ValueError(f"factors of {p} and {q} do not make the {size} channels of a group: choose one of {pairs}")
    return p, q


def index(outer: Int[Array, "*batch p"], inner: Int[Array, "*batch q"], groups: int = 1) -> Int[Array, "*batch c"]:
    """The index vector of the whole permutation, ``r[(i q + j) G + k] = k p q + outer[i] q + inner[j]``.

    Args:
        outer: ``(..., p)`` index vectors, one for all groups.
        inner: ``(..., q)`` index vectors.
        groups: G.

    Returns:
        ``(..., p q G)`` int32 vectors, those of :func:`shuffle_jax.ops.permutation.channel_shuffle` for identities.

    >>> import jax.numpy as jnp
    >>> index(jnp.array([0, 1]), jnp.array([1, 0]), groups=2).tolist()
    [1, 5, 0, 4, 3, 7, 2, 6]
    """
    return forms.index(outer[..., None, :], inner[..., None, :], groups)


def permute(
    x: Num[Array, "n *space c"], outer: Int[Array, "*outer p"], inner: Int[Array, "*inner q"], groups: int = 1
) -> Num[Array, "n *space c"]:
    """Permutes channels by hard factors: one gather, with index :func:`index` for each image.

    Repeated indices repeat channels. The gradient is the transpose, ``dx[r[i]] += dy[i]``: a gather by the inverse if
    all factors of the batch are permutations, else two products with their matrices.

    Args:
        x: ``(n, ..., c)`` with ``c = G p q``.
        outer: ``(p,)``, ``(n, p)`` or ``(n, G, p)`` index vectors.
        inner: ``(q,)``, ``(n, q)`` or ``(n, G, q)`` index vectors.
        groups: G.

    Returns:
        Array like x.

    Raises:
        ValueError: the factors do not fit the channels, the images or the groups.

    >>> import jax.numpy as jnp
    >>> permute(jnp.arange(6)[None], jnp.array([1, 0]), jnp.array([0, 2, 1])).tolist()
    [[3, 5, 4, 0, 2, 1]]
    """
    outer, inner = _lead(outer, 1), _lead(inner, 1)
    _check(x, outer[..., None, :], inner[..., None, :], groups)
    rows = x.reshape(x.shape[0], math.prod(x.shape[1:-1]), x.shape[-1])
    return forms.permute(groups, False, *varying_alike(rows, outer, inner)).reshape(x.shape)


def mix(
    x: Float[Array, "n *space c"],
    outer: Float[Array, "*outer p_out p_in"],
    inner: Float[Array, "*inner q_out q_in"],
    groups: int = 1,
) -> Float[Array, "n *space d"]:
    """Mixes channels by soft factors, ``y = S_G (I_G kron A kron B) x`` at every position.

    The contraction with B is a matrix product on every platform. That with A, and the shuffle, are on CPU one pass of
    p multiply-adds for each value (A is too small for a product to be fast); elsewhere they are a product as well. The
    memory is that of the arrays of channels.

    Args:
        x: ``(n, ..., c)`` with ``c = G p q``.
        outer: A, ``(p', p)``, ``(n, p', p)`` or ``(n, G, p', p)``; cast to the type of x.
        inner: B, ``(q', q)``, ``(n, q', q)`` or ``(n, G, q', q)``; cast to the type of x.
        groups: G.

    Returns:
        ``(n, ..., d)`` with ``d = G p' q'``.

    Raises:
        ValueError: the factors do not fit the channels, the images or the groups.

    >>> import jax.numpy as jnp
    >>> mix(jnp.array([[1.0, 2.0, 3.0, 4.0]]), jnp.array([[0.0, 1.0], [1.0, 0.0]]), jnp.array([[0.5, 0.5]])).tolist()
    [[3.5, 1.5]]
    """
    outer, inner = (_lead(factor, 2).astype(x.dtype) for factor in (outer, inner))
    _check(x, outer, inner, groups)
    tables = _tables(x, groups, outer.shape[-1], inner.shape[-1])
    y = forms.mix(*varying_alike(tables, outer, inner))
    channels = math.prod(y.shape[2:])
    return y.reshape(*y.shape[:2], channels).reshape(*x.shape[:-1], channels)  # in two steps, see mesh.py


def straight_through(
    x: Float[Array, "n *space c"],
    outer: Float[Array, "*outer p p"],
    inner: Float[Array, "*inner q q"],
    groups: int = 1,
) -> Float[Array, "n *space c"]:
    """Hard in the forward pass, with the gradient of :func:`mix` at the hard factors.

    Forward it is :func:`permute` by the row-argmax of both factors. The gradient is what
    :func:`~shuffle_jax.ops.rounding.straight_through` of both would give::

        dx = M^T dy        dA = A* R_A        dB = B* R_B        for A*, B* the hard factors
        R_A[a, a'] = sum dx[k, a, b] x[k, a', b]        R_B[b, b'] = sum dx[k, a, b] x[k, a, b']

    over positions, groups and the other axis of the tables: one gather and two correlations, no product with the
    matrices. That holds for permutations; if a row-argmax of the batch is none, its gradient is computed by products.

    Args:
        x: ``(n, ..., c)`` with ``c = G p q``.
        outer: A, ``(p, p)``, ``(n, p, p)`` or ``(n, G, p, p)``; its gradient is in its own type.
        inner: B, ``(q, q)``, ``(n, q, q)`` or ``(n, G, q, q)``.
        groups: G.

    Returns:
        Array like x.

    Raises:
        ValueError: the factors are not square, or do not fit the channels, the images or the groups.

    >>> import jax.numpy as jnp
    >>> straight_through(jnp.array([[1.0, 2.0]]), jnp.ones((1, 1)), jnp.array([[0.3, 0.7], [0.6, 0.4]])).tolist()
    [[2.0, 1.0]]
    """
    outer, inner = _lead(outer, 2), _lead(inner, 2)
    _check(x, outer, inner, groups)
    for factor in (outer, inner):
        if factor.shape[-1] != factor.shape[-2]:
            raise ValueError(f"a factor of shape {factor.shape[2:]} has no permutation: give a square one")
    tables = _tables(x, groups, outer.shape[-1], inner.shape[-1])
    return forms.straight_through(*varying_alike(tables, outer, inner)).reshape(x.shape)


def multiply_adds(groups: int, outer: tuple[int, int], inner: tuple[int, int]) -> int:
    """Multiply-adds of :func:`mix` at one position, as it computes them: B first, ``G (p q q' + p p' q')``.

    Args:
        groups: G.
        outer: (p', p).
        inner: (q', q).

    >>> multiply_adds(2, (4, 4), (6, 6))
    480
    """
    return groups * outer[1] * inner[0] * (inner[1] + outer[0])


def _lead(factor: Array, axes: int) -> Array:
    """Leading axes for the image and the group, of length 1 where they are missing."""
    match factor.ndim - axes:
        case 0:
            return factor[None, None]
        case 1:
            return factor[:, None]
        case 2:
            return factor
    raise ValueError(
        f"a factor has {axes} axes, and at most one before them for images and one for groups, "
        f"not the shape {factor.shape}"
    )


def _check(x: Array, outer: Array, inner: Array, groups: int) -> None:
    if x.ndim < 2:
        raise ValueError(f"features of shape {x.shape} have no axis of images: give (n, ..., c)")
    group_factors(x.shape[-1], groups, (outer.shape[-1], inner.shape[-1]))
    for factor in (outer, inner):
        images, copies = factor.shape[:2]
        if images not in (1, x.shape[0]) or copies not in (1, groups):
            raise ValueError(
                f"factors for {images} images and {copies} groups do not fit {x.shape[0]} images in {groups} groups: "
                "give one pair for all, one for each image, or one for each image and group"
            )


def _tables(x: Array, groups: int, p: int, q: int) -> forms.Tables:
    positions = math.prod(x.shape[1:-1])
    return x.reshape(x.shape[0], positions, x.shape[-1]).reshape(x.shape[0], positions, groups, p, q)
