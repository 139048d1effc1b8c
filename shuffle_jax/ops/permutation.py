"""Permutations of channels as index vectors, and the fixed shuffles of the literature.

One convention holds everywhere: a permutation is an int32 vector ``p`` of length ``c`` that says where each output
channel comes from, ``y[..., i] = x[..., p[i]]``. As a matrix it has ``P[i, p[i]] = 1`` and acts as ``y = P x``.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from shuffle_jax.ops.mesh import varying_alike, whole
from shuffle_jax.typing import Array, Bool, Float, Int, Integer, Key, Permutation


def identity(channels: int) -> Int[Array, " c"]:
    """The permutation that moves nothing, ``p[i] = i``.

    Args:
        channels: c, at least 1.

    Returns:
        int32 vector of length c.

    >>> identity(3).tolist()
    [0, 1, 2]
    """
    return jnp.arange(channels, dtype=jnp.int32)


def channel_shuffle(channels: int, groups: int) -> Int[Array, " c"]:
    """The fixed shuffle of ShuffleNet: read a ``groups x (c / groups)`` table column by column.

    ``p[i] = (i mod g) (c / g) + floor(i / g)``

    Args:
        channels: c.
        groups: g, a divisor of c. Both g = 1 and g = c give the identity.

    Returns:
        int32 vector of length c.

    Raises:
        ValueError: g does not divide c.

    >>> channel_shuffle(6, groups=2).tolist()
    [0, 3, 1, 4, 2, 5]

    Source: Zhang et al., ShuffleNet, 2017, section 3.1.
    """
    check_groups(channels, groups)
    return identity(channels).reshape(groups, channels // groups).T.reshape(channels)


def channel_shift(channels: int, groups: int) -> Int[Array, " c"]:
    """The channel shift of AddressNet as an index vector: ``p[i] = (i + c / (2 g)) mod c``.

    Args:
        channels: c.
        groups: g; 2 g divides c.

    Returns:
        int32 vector of length c.

    Raises:
        ValueError: 2 g does not divide c.

    >>> channel_shift(8, groups=2).tolist()
    [2, 3, 4, 5, 6, 7, 0, 1]

    Source: He, Liu, Zhong and Ma, AddressNet, 2019.
    """
    return jnp.roll(identity(channels), -half_group(channels, groups))


def random(key: Key, channels: int) -> Int[Array, " c"]:
    """A uniformly drawn permutation.

    Args:
        key: random key.
        channels: c.

    Returns:
        int32 vector of length c.

    >>> sorted(random(jax.random.key(0), 4).tolist())
    [0, 1, 2, 3]
    """
    return jax.random.permutation(key, identity(channels))


def random_inner(key: Key, channels: int, size: int | Int[Array, ""] | None = None) -> Int[Array, " c"]:
    """A uniformly drawn permutation of the first entries, which leaves all others in their place.

    Args:
        key: random key.
        channels: c.
        size: how many are permuted, from 0 to c, a number that may be traced; all by default.

    Returns:
        int32 vector of length c with ``p[i] = i`` from ``size`` on.

    >>> p = random_inner(jax.random.key(0), 5, 3).tolist()
    >>> sorted(p[:3]), p[3:]
    ([0, 1, 2], [3, 4])
    """
    moves = identity(channels) < (channels if size is None else size)
    return jnp.argsort(jnp.where(moves, jax.random.uniform(key, (channels,)), 2)).astype(jnp.int32)


def inner(channels: int, size: int | Int[Array, ""] | None = None) -> Bool[Array, "c c"]:
    """Which entries of a matrix are in its first rows and columns: ``i < size`` and ``j < size``.

    Args:
        channels: c.
        size: how many rows and columns, a number that may be traced; all by default.

    Returns:
        ``(c, c)`` booleans.

    >>> inner(3, 2).tolist()
    [[True, True, False], [True, True, False], [False, False, False]]
    """
    within = identity(channels) < (channels if size is None else size)
    return within[:, None] & within[None, :]


def invert(permutation: Permutation) -> Permutation:
    """The inverse ``q`` of a permutation: ``q[p[i]] = i``.

    Args:
        permutation: ``(..., c)`` index vectors.

    Returns:
        int32 vectors of the same shape.

    >>> invert(jnp.array([2, 0, 1])).tolist()
    [1, 2, 0]
    """
    order = jnp.argsort(permutation, axis=-1).astype(jnp.int32)
    return varying_alike(order, permutation)[0]  # which argsort itself forgets


def compose(first: Permutation, second: Permutation) -> Permutation:
    """The permutation that applies ``first``, then ``second``: ``r[i] = first[second[i]]``.

    In matrices this is ``R = P_second P_first``.

    Args:
        first: ``(..., c)`` index vectors, applied first.
        second: index vectors of the same shape, applied to the result.

    Returns:
        int32 vectors of the same shape.

    >>> compose(jnp.array([1, 2, 0]), jnp.array([2, 1, 0])).tolist()
    [0, 2, 1]
    """
    return jnp.take_along_axis(first, second, axis=-1).astype(jnp.int32)


def kron(outer: Integer[Array, "*#batch p"], inner: Integer[Array, "*#batch q"]) -> Int[Array, "*lead r"]:
    """The Kronecker product of two permutations: ``r[i q + j] = outer[i] q + inner[j]``, ``q = len(inner)``.

    ``to_matrix(kron(a, b))`` equals ``jnp.kron(to_matrix(a), to_matrix(b))``.

    Args:
        outer: ``(..., p)`` index vectors; moves blocks of q channels.
        inner: ``(..., q)`` index vectors; moves channels within every block.

    Returns:
        ``(..., p q)`` int32 vectors.

    >>> kron(jnp.array([1, 0]), jnp.array([0, 2, 1])).tolist()
    [3, 5, 4, 0, 2, 1]
    """
    size = inner.shape[-1]
    product = outer[..., :, None] * size + inner[..., None, :]
    return product.reshape(*product.shape[:-2], outer.shape[-1] * size).astype(jnp.int32)


def to_matrix(permutation: Permutation, dtype: DTypeLike = jnp.float32) -> Float[Array, "*batch c c"]:
    """The matrix of a permutation, ``P[i, j] = 1 if j == p[i] else 0``, so that ``P x`` equals ``x[p]``.

    Args:
        permutation: ``(..., c)`` index vectors.
        dtype: type of the entries.

    Returns:
        ``(..., c, c)`` matrices of zeros and ones.

    >>> to_matrix(jnp.array([1, 0])).tolist()
    [[0.0, 1.0], [1.0, 0.0]]
    """
    return jax.nn.one_hot(permutation, permutation.shape[-1], dtype=dtype)


def is_permutation(index: Permutation) -> Bool[Array, "*batch"]:
    """Whether every value 0 .. c-1 occurs exactly once along the last axis.

    Args:
        index: ``(..., c)`` integers, of any range.

    Returns:
        Booleans of shape ``(...)``.

    >>> bool(is_permutation(jnp.array([0, 2, 2]))), bool(is_permutation(jnp.array([2, 0, 1])))
    (False, True)
    """
    expected = jnp.broadcast_to(jnp.arange(index.shape[-1], dtype=index.dtype), index.shape)
    return jnp.all(jnp.sort(index, axis=-1) == expected, axis=-1)


def count_distinct(index: Int[Array, "n c"]) -> Int[Array, ""]:
    """How many different vectors there are among n, by comparing all pairs: O(n^2 c) in time, O(n^2) in memory.

    Args:
        index: ``(n, c)`` integers.

    Returns:
        An int32 from 1 to n; 0 for n = 0.

    >>> int(count_distinct(jnp.array([[0, 1], [1, 0], [0, 1]])))
    2
    """
    equal = jnp.all(index[:, None] == whole(index)[None, :], axis=-1)
    return (~jnp.any(jnp.tril(equal, -1), axis=-1)).sum(dtype=jnp.int32)  # those that none before is equal to


def half_group(channels: int, groups: int) -> int:
    """Half of the channels of a group, by which the channel shift rotates: ``c / (2 g)``.

    Raises:
        ValueError: 2 g does not divide c.
    """
    if groups < 1 or channels % (2 * groups):
        fitting = [g for g in range(1, min(channels, 64) + 1) if channels % (2 * g) == 0]
        remedy = f"choose one of {fitting}" if fitting else "give an even number of channels"
        raise ValueError(f"{channels} channels cannot be shifted by half of one of {groups} groups: {remedy}")
    return channels // (2 * groups)


def check_groups(channels: int, groups: int) -> None:
    """Raises a ValueError unless ``groups`` is a positive divisor of ``channels``."""
    if groups < 1 or channels % groups:
        divisors = [g for g in range(1, min(channels, 64) + 1) if channels % g == 0]
        raise ValueError(f"{channels} channels cannot be split into {groups} groups: choose one of {divisors}")
