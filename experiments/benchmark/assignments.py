"""What the benchmark measures of linear assignments: ours beside SciPy's and optax's, one and a batch."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.benchmark.cases import Cases, Workload
from shuffle_jax.ops import rounding
from shuffle_jax.ops.relaxation import sinkhorn
from shuffle_jax.typing import Matrix, Permutation

SIZES = (58, 116, 232, 464, 976)
"""Channels of the branches and stages of ShuffleNetV2 1.0x, and of the last stage of 2.0x."""


class Problem(NamedTuple):
    """What to assign.

    Attributes:
        size: rows and columns of a matrix.
        batch: matrices.
        kind: what is in them.
    """

    size: int
    batch: int
    kind: str


RANDOM, NEAR, INTEGERS = "uniform", "near a permutation", "integers from 0 to 9"
PROBLEMS = {
    "20-batch": Problem(20, 64, RANDOM),  # as in a search from many starts
    "50-batch": Problem(50, 64, RANDOM),
    **{f"{size}": Problem(size, 1, RANDOM) for size in SIZES},
    **{f"{size}-batch": Problem(size, 16, RANDOM) for size in SIZES},  # as many as a network has mixers
    **{f"{size}-near": Problem(size, 16, NEAR) for size in SIZES},
    **{f"{size}-integers": Problem(size, 16, INTEGERS) for size in SIZES[:3]},  # of larger ones optax takes minutes
}

OPTAX = "optax, in a loop"
OPTAX_UP_TO = 16 * 464**3
"""Batch times cube of the size: beyond it optax takes many seconds."""


def assignments(work: Workload, problem: Problem) -> Cases:
    """The nearest permutations of a batch of matrices; of all but the last the sums are equal.

    SciPy runs in a loop, on arrays of float64 that are made beforehand, for in this type it computes.
    """
    from scipy.optimize import linear_sum_assignment

    matrices = jnp.asarray(entries(problem), jnp.dtype(work.dtype))
    own = np.asarray(matrices, np.float64)
    ways: dict[str, Callable[[Matrix], Permutation]] = {
        OPTAX: by_optax,
        "rounding.assignment": rounding.assignment,
        "rounding.greedy": rounding.greedy,
    }
    if problem.batch * problem.size**3 > OPTAX_UP_TO:
        del ways[OPTAX]
    return {
        "scipy, in a loop": lambda: np.stack([linear_sum_assignment(one, maximize=True)[1] for one in own]),
        **{name: partial(jax.jit(way), matrices) for name, way in ways.items()},
    }


def entries(problem: Problem) -> np.ndarray:
    """The matrices, the same at each call; doubly stochastic ones near a permutation that row-argmax misses."""
    size, batch, kind = problem
    rng = np.random.default_rng(0)
    if kind == INTEGERS:
        return rng.integers(0, 10, (batch, size, size))
    if kind == RANDOM:
        return rng.random((batch, size, size))
    index = rng.permuted(np.broadcast_to(np.arange(size), (batch, size)), axis=-1)
    logits = 0.75 * np.log(size) * np.eye(size)[index] + rng.standard_normal((batch, size, size))
    return np.asarray(jax.jit(sinkhorn)(jnp.asarray(logits, jnp.float32)))


def by_optax(matrices: Matrix) -> Permutation:
    """Assignments by optax, which takes one matrix at a time, here in float32 as ours."""
    from optax.assignment import hungarian_algorithm

    def one(matrix: Matrix) -> Permutation:
        rows, columns = hungarian_algorithm(-matrix)
        return jnp.zeros(matrix.shape[-1], jnp.int32).at[rows].set(columns.astype(jnp.int32))

    return jax.lax.map(one, matrices.astype(jnp.float32))
