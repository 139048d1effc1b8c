"""Random and regular matrices, and instances whose permutation is known because it was hidden in them."""

from __future__ import annotations

import numpy as np

from shuffle_jax.problems.instance import Instance
from shuffle_jax.typing import Float


def moebius_ladder(size: int) -> Float[np.ndarray, "n n"]:
    """The adjacency matrix of a Moebius ladder: a ring whose opposite nodes are joined.

    ``A[i, k] = 1`` where ``k - i`` is 1, -1 or n/2 modulo n. Every node has three neighbours and looks like every
    other: rotations of the ring are automorphisms (2 n in all from n = 8 on, with the reflections). All row and column
    sums of A are 3, so ``J / n``, all entries 1/n, solves ``A M = M B`` for any relabelling B: over doubly stochastic
    matrices the matching has loss zero there, and nothing in the loss leads from there to a permutation.

    Args:
        size: n, even and at least 4; n = 4 is the complete graph.

    Returns:
        ``(n, n)`` float64 zeros and ones, symmetric with a zero diagonal.

    Raises:
        ValueError: the size is odd or below 4.

    >>> moebius_ladder(6)[0].tolist()
    [0.0, 1.0, 0.0, 1.0, 0.0, 1.0]
    """
    if size < 4 or size % 2:
        raise ValueError(f"a Moebius ladder cannot have {size} nodes: give an even number, at least 4")
    apart = np.subtract.outer(np.arange(size), np.arange(size)) % size
    return np.isin(apart, (1, size - 1, size // 2)).astype(np.float64)


def erdos_renyi(size: int, probability: float = 0.5, seed: int = 0) -> Float[np.ndarray, "n n"]:
    """The adjacency matrix of a random graph in which every two nodes are joined with the same probability.

    The larger n, the surer it is that no permutation but the identity maps such a graph to itself (at a probability
    that stays away from 0 and 1); the permutation that relabels it is then the only one that matches.

    Args:
        size: n, at least 1.
        probability: of each edge, in [0, 1].
        seed: of the drawing, at least 0.

    Returns:
        ``(n, n)`` float64 zeros and ones, symmetric with a zero diagonal.

    Raises:
        ValueError: the size, the probability or the seed is out of range.

    >>> erdos_renyi(3, probability=1.0).tolist()
    [[0.0, 1.0, 1.0], [1.0, 0.0, 1.0], [1.0, 1.0, 0.0]]

    Source: Gilbert, 1959; without symmetry, Erdos and Renyi, 1963.
    """
    if not 0 <= probability <= 1:
        raise ValueError(f"an edge cannot have the probability {probability}: give one from 0 to 1")
    upper = np.triu(_generator(size, seed).random((size, size)) < probability, 1)
    return (upper | upper.T).astype(np.float64)


def gaussian(size: int, seed: int = 0) -> Float[np.ndarray, "n n"]:
    """A symmetric matrix of independent standard normal numbers on and above the diagonal.

    No two entries but mirrored ones are equal, and the spectrum has no double eigenvalue, almost surely: the
    permutation that relabels such a matrix is the only one that matches, and the easiest of all to find.

    Args:
        size: n, at least 1.
        seed: of the drawing, at least 0.

    Returns:
        ``(n, n)`` float64, symmetric.

    Raises:
        ValueError: the size or the seed is out of range.

    >>> a = gaussian(5)
    >>> bool((a == a.T).all()), len(set(a.ravel().tolist()))
    (True, 15)
    """
    upper = np.triu(_generator(size, seed).standard_normal((size, size)))
    return upper + np.triu(upper, 1).T


def relabelled(a: Float[np.ndarray, "n n"], seed: int = 0, name: str = "relabelled") -> Instance:
    """A matching instance: a matrix, and itself with its nodes in another order.

    ``A = P B P^T``, that is ``A[i, k] = B[p[i], p[k]]``, with p drawn uniformly and kept as the solution. The entries
    of B are copies of those of A, to the last bit. Other permutations solve it as well if A has automorphisms.

    Args:
        a: A, ``(n, n)`` real numbers.
        seed: of p, at least 0.
        name: of the instance.

    Returns:
        The instance, its best value 0.

    Raises:
        ValueError: A is no square matrix of finite real numbers, or the seed is negative.

    >>> instance = relabelled(moebius_ladder(8), seed=1)
    >>> instance.recovered(instance.solution), instance.value(instance.solution)
    (True, 0.0)
    """
    a = np.asarray(a)
    Instance(name, a, a, "matching")  # checks A before it is taken apart
    permutation = _generator(len(a), seed).permutation(len(a))
    inverse = np.argsort(permutation)
    return Instance(name, a, a[np.ix_(inverse, inverse)], "matching", 0.0, permutation)


def _generator(size: int, seed: int) -> np.random.Generator:
    if size < 1:
        raise ValueError(f"a matrix cannot have the size {size}: give 1 or more")
    if seed < 0:
        raise ValueError(f"the seed is {seed}: give 0 or more")
    return np.random.default_rng(seed)
