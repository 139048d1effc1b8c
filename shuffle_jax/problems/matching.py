"""Two graphs matched within seconds: exactly where they are the same graph, else from a spectral start by the solver.

What is here is NumPy's and scipy's: nothing is compiled for graphs that match exactly or nearly so.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import permutations

import numpy as np

from shuffle_jax.problems.instance import Instance
from shuffle_jax.problems.solver import DEFAULT, Improvement, Solution, SolverConfig, solve
from shuffle_jax.typing import Float, Int

EXACT_SHARE = 0.3
"""Of the time, at most, for a permutation that matches exactly."""

WIDTH = 0.2
"""Of the spectral start, in units of the spread of eigenvalues: as its authors have it."""

MOST_STEPS = 50
"""Of the linear assignments that follow the spectral start; they stand still before."""

MOST_TRIED = 7
"""Nodes of which all 5,040 permutations are tried, in the time of none."""

MOST_SEARCHED = 1_000
"""Nodes up to which the solver searches: of twice as many its first steps alone take minutes."""

MOST_ENTRIES = 250_000
"""Of the tables of all searches of one core: with more, a round takes longer than a second or two."""


def match(
    instance: Instance,
    seconds: float = 3.0,
    seed: int = 0,
    config: SolverConfig = DEFAULT,
    near: Callable[[Solution, float], object] = lambda found, seconds: None,
) -> Solution:
    """A permutation that matches two graphs: :func:`isomorphism`, else :func:`aligned`, improved by the solver.

    Of at most :data:`MOST_TRIED` nodes all permutations are tried, and the one returned is the best there is. Without
    the solver go those of which :func:`bound` shows that none is better, as of a graph and a part of it, and graphs of
    more than :data:`MOST_SEARCHED` nodes.

    Args:
        instance: a matching.
        seconds: how long to search, after the solver is compiled; less where no match is better.
        seed: of the solver.
        config: of the solver; of large graphs it makes fewer searches side by side.
        near: told of a near match and for how many seconds the solver will search from there, before it is compiled.

    Returns:
        A :class:`~shuffle_jax.problems.solver.Solution`. Without the solver it has no rounds and no steps.

    Raises:
        ValueError: the instance is no matching, or seconds is not positive.

    >>> from shuffle_jax.problems.generators import moebius_ladder, relabelled
    >>> instance = relabelled(moebius_ladder(8))
    >>> instance.recovered(match(instance).permutation)
    True
    """
    if instance.goal != "matching":
        raise ValueError(f"{instance.name} is an assignment and no matching: call solve")
    if not seconds > 0:
        raise ValueError(f"seconds must be positive, got {seconds}")
    begun = time.perf_counter()
    found = isomorphism(instance.a, instance.b, EXACT_SHARE * seconds)
    if found is None and instance.size <= MOST_TRIED:
        found = _best_of_all(instance)
    elif found is None:
        found = aligned(instance.a, instance.b)
    value, took = instance.value(found), time.perf_counter() - begun
    solution = Solution(found, value, (Improvement(took, value),), took, 0.0, 0, 0)
    least = bound(instance)
    if instance.size <= MOST_TRIED or instance.size > MOST_SEARCHED or value <= least:
        return solution
    left = max(seconds - took, seconds / 2)
    near(solution, left)
    config = replace(config, searches=max(1, min(config.searches, MOST_ENTRIES // instance.size**2)))
    return solve(instance, left, seed, config, enough=least, initial=found)


def bound(instance: Instance) -> float:
    """What no permutation is below: ``sum_k (a_k - b_k)^2`` of all entries of A and of B, each in ascending order.

    >>> bound(Instance("one edge and none", np.array([[0, 1], [1, 0]]), np.zeros((2, 2)), "matching"))
    2.0
    """
    a, b = (np.sort(matrix, axis=None) for matrix in (instance.a, instance.b))
    return math.fsum(np.square(a - b).tolist())


def _best_of_all(instance: Instance) -> Int[np.ndarray, " n"]:
    tried = np.array(list(permutations(range(instance.size))), np.int32)
    moved = instance.b[tried[:, :, None], tried[:, None, :]]
    best: Int[np.ndarray, " n"] = tried[np.square(instance.a - moved).sum((1, 2)).argmin()]
    return best


def isomorphism(
    a: Float[np.ndarray, "n n"], b: Float[np.ndarray, "n n"], seconds: float = 1.0
) -> Int[np.ndarray, " n"] | None:
    """A permutation with ``A[i, k] = B[p[i], p[k]]``, or None if there is none or none was found in time.

    Nodes are coloured by what they see: their own entry, and the entries to nodes of each colour, until no colour falls
    apart. Where nodes of one colour are left, one is paired with each of its colour in turn, and the colouring goes on.
    Most graphs take one colouring, O(n^2 log n) a pass; strongly regular ones many.

    Args:
        a: A, finite numbers.
        b: B.
        seconds: after which it gives up.

    Returns:
        ``(n,)`` int32, or None.

    >>> path = np.array([[0, 1, 0], [1, 0, 1], [0, 1, 0]])
    >>> isomorphism(path, path[[1, 0, 2]][:, [1, 0, 2]]).tolist()
    [1, 0, 2]

    Source: colour refinement is of Weisfeiler and Leman, 1968; with pairs fixed in turn, of McKay, 1981.
    """
    size, end = len(a), time.perf_counter() + seconds
    both = np.stack([np.stack([m, m.T], axis=-1) for m in (a, b)])
    # Two entries, there and back, as one number: equal where both are equal.
    codes = np.unique(both.reshape(-1, 2), axis=0, return_inverse=True)[1].reshape(2, size, size)
    own = np.diagonal(codes, axis1=1, axis2=2)

    def paired(colours: Int[np.ndarray, "2 n"]) -> Int[np.ndarray, " n"] | None:
        colours = _refined(codes, colours)
        counts = np.bincount(colours[0], minlength=2 * size)
        if not np.array_equal(counts, np.bincount(colours[1], minlength=2 * size)):
            return None
        p = np.empty(size, np.int32)
        p[np.argsort(colours[0], kind="stable")] = np.argsort(colours[1], kind="stable")
        if np.array_equal(codes[0], codes[1][np.ix_(p, p)]):  # often so where nodes are left that look alike
            return p
        shared = np.where(counts > 1, counts, size + 1)
        if shared.min() > size:
            return None
        colour = shared.argmin()
        first = np.flatnonzero(colours[0] == colour)[0]
        for other in np.flatnonzero(colours[1] == colour):
            if time.perf_counter() > end:
                return None
            split = colours.copy()
            split[0, first] = split[1, other] = 2 * size - 1
            if (found := paired(split)) is not None:
                return found
        return None

    return paired(own)


def _refined(codes: Int[np.ndarray, "2 n n"], colours: Int[np.ndarray, "2 n"]) -> Int[np.ndarray, "2 n"]:
    """Colours from 0 on, of both graphs together, that no further look at the neighbours tells apart."""
    colours = np.unique(colours, return_inverse=True)[1].reshape(colours.shape)
    while True:
        count = colours.max() + 1
        seen = np.sort(codes * count + colours[:, None, :], axis=-1)
        rows = np.concatenate([colours[..., None], seen], axis=-1)
        finer = np.unique(rows.reshape(-1, rows.shape[-1]), axis=0, return_inverse=True)[1].reshape(colours.shape)
        if finer.max() + 1 == count:
            return colours
        colours = finer


def aligned(a: Float[np.ndarray, "n n"], b: Float[np.ndarray, "n n"]) -> Int[np.ndarray, " n"]:
    """A permutation that puts most edges of one graph over those of another that is nearly the same: O(n^3), no search.

    All pairs of eigenvectors are weighed by how near their eigenvalues are,
    ``X = sum_ij u_i u_i^T J v_j v_j^T / ((l_i - m_j)^2 + w^2)``, and X is rounded by a linear assignment. Then
    ``P <- argmax_Q <A P B^T + A^T P B, Q>`` as long as more edges meet.

    Args:
        a: A, finite numbers.
        b: B.

    Returns:
        ``(n,)`` int32.

    >>> graph = np.triu(np.random.default_rng(0).random((30, 30)) < 0.2, 1)
    >>> p = np.random.default_rng(1).permutation(30)
    >>> bool((aligned((graph | graph.T)[np.ix_(p, p)] + 0.0, (graph | graph.T) + 0.0) == p).all())
    True

    Source: Fan, Mao, Wu and Xu, Spectral Graph Matching and Regularized Quadratic Relaxations, 2022. The steps that
    follow are this project's choice.
    """
    from scipy.optimize import linear_sum_assignment

    def rounded(similarity: Float[np.ndarray, "n n"]) -> Int[np.ndarray, " n"]:
        return linear_sum_assignment(similarity, maximize=True)[1].astype(np.int32)

    a, b = (matrix / (np.abs(matrix).max() or 1.0) for matrix in (a, b))
    (own, u), (other, v) = (np.linalg.eigh(_standardised(matrix + matrix.T)) for matrix in (a, b))
    weights = 1 / (np.subtract.outer(own, other) ** 2 + WIDTH**2)
    p = rounded(u @ (weights * np.outer(u.sum(0), v.sum(0))) @ v.T)
    best, most = p, -np.inf
    for _ in range(MOST_STEPS):
        meet = float((a * b[np.ix_(p, p)]).sum())
        if meet <= most:
            break
        best, most = p, meet
        p = rounded(a @ b.T[p] + a.T @ b[p])
    return best


def _standardised(matrix: Float[np.ndarray, "n n"]) -> Float[np.ndarray, "n n"]:
    """With mean 0 and eigenvalues of about -2 to 2."""
    centred = matrix - matrix.mean()
    return centred / ((centred.std() or 1.0) * len(matrix) ** 0.5)
