"""Quadratic assignment and graph matching within a given time: relaxed starts, then local search, many at once."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from shuffle_jax.ops import quadratic_assignment as qap
from shuffle_jax.problems.instance import Instance
from shuffle_jax.problems.search import Place, Problem, Search, SolverConfig, advance, begin
from shuffle_jax.sharding import cores
from shuffle_jax.typing import Array, Int, Key

__all__ = ["Improvement", "Solution", "SolverConfig", "scaled_pair", "solve"]

ROUND_SECONDS = 0.1
"""About how long the search goes on before it looks at the clock."""

START_SHARE = 0.2
"""Of the time, at most, for starts that a search follows; else they are random ones."""

DEFAULT = SolverConfig()

MOST_JUDGED = 4
"""Permutations that are judged exactly after a round."""


class Improvement(NamedTuple):
    """A value, and after how many seconds it was the best."""

    seconds: float
    value: float


class Solution(NamedTuple):
    """What :func:`solve` found.

    Attributes:
        permutation: ``(n,)`` int32.
        value: of the instance, as :meth:`~shuffle_jax.problems.instance.Instance.value` has it.
        history: each improvement; the last is that of the permutation.
        seconds: from the first start to the end, without compilation.
        compile_seconds: before, for what had not been compiled for this size and configuration yet.
        rounds: how often it looked at the clock.
        steps: exchanges of all tabu searches together; starts, where there are none.
    """

    permutation: np.ndarray
    value: float
    history: tuple[Improvement, ...]
    seconds: float
    compile_seconds: float
    rounds: int
    steps: int


def solve(
    instance: Instance,
    seconds: float = 3.0,
    seed: int = 0,
    config: SolverConfig = DEFAULT,
    rounds: int | None = None,
    enough: float | None = None,
    initial: Int[Array | np.ndarray, " n"] | None = None,
) -> Solution:
    """The best permutation for an instance that can be found in the time given.

    Starts are made in a batch, by the configured relaxation and a linear assignment; then every one of them is searched
    by exchanges. Where relaxed starts would take more than a fifth of the time, random ones take their place. Matching
    is quadratic assignment with -A. The search computes in float32; permutations are judged by the instance itself,
    exactly.

    Args:
        instance: what to minimise.
        seconds: how long, after compilation; it ends when another round would not fit.
        seed: of all that is random. Only with ``rounds`` the result is the same for the same seed, on one machine.
        config: what to do.
        rounds: end after so many rounds, however long they take.
        enough: end as soon as a value is this or less.
        initial: a permutation to start from, in place of the configured starts; the searches begin there and near it.

    Returns:
        A :class:`Solution`.

    Raises:
        ValueError: seconds is not positive, rounds below 1, or ``initial`` no permutation of this size.
    """
    if not seconds > 0 or (rounds is not None and rounds < 1):
        raise ValueError(f"{seconds} seconds and {rounds} rounds: give seconds above 0, and 1 round or more")
    before = time.perf_counter()
    first = None
    if initial is not None:
        instance.value(initial)  # checks it
        first = jnp.asarray(initial, jnp.int32)
    problem = filled_up(instance, config)
    if first is not None:
        first = jnp.concatenate([first, jnp.arange(instance.size, len(problem.pair[0]), dtype=jnp.int32)])
    threads = config.threads or (cores() if jax.default_backend() == "cpu" else 1)
    keys = [jax.random.fold_in(jax.random.key(seed), thread) for thread in range(threads)]
    if rounds is None and first is None:
        config = _affordable(problem, config, seconds)
    blocks = _blocks_a_round(problem, config, first)

    start = time.perf_counter()
    found = _Found(instance, start)
    done, longest = 0, 0.0
    with ThreadPoolExecutor(threads) as pool:
        searches = list(pool.map(lambda key: jax.block_until_ready(begin(key, problem, config, first)), keys))
        found.look_at(searches)
        while done < (rounds or math.inf) and not (enough is not None and found.value <= enough):
            now = time.perf_counter()
            if rounds is None and now - start + longest > seconds:
                break
            searches = list(pool.map(partial(_go_on, (problem, config), done * blocks, blocks), searches, keys))
            found.look_at(searches)
            done, longest = done + 1, max(longest, time.perf_counter() - now)
    steps = threads * config.searches * done * (blocks * len(problem.pair[0]) if config.search == "tabu" else 1)
    return found.solution(time.perf_counter() - start, start - before, done, steps)


def scaled_pair(instance: Instance, more: int = 0) -> qap.Pair:
    """The matrices of an instance as a quadratic assignment in float32, divided by powers of two, which rounds nothing.

    Their largest entries are then from 1/2 to 1, or 0; a matching has -A for A. Some rows and columns of zeros follow.
    """
    a, b = (np.ldexp(m, -math.frexp(np.abs(m).max())[1]) for m in (instance.a, instance.b))
    a, b = (np.pad(m, (0, more)) for m in (-a if instance.goal == "matching" else a, b))
    return qap.as_pair(_float32(a), _float32(b))


def filled_up(instance: Instance, config: SolverConfig = DEFAULT) -> Problem:
    """The matrices of an instance with zeros up to the next size that programs are compiled for.

    These are the multiples of 4 up to 16, of 8 up to 64, of 16 up to 128, and so on: 7 for all sizes from 12 to 56. The
    start "penalty" takes each size as it is.
    """
    size = instance.size
    step = 4 if size <= 16 else max(8, 2 ** (math.ceil(math.log2(size)) - 3))
    more = 0 if config.start == "penalty" else -size % step
    return Problem(scaled_pair(instance, more), jnp.int32(size))


def _affordable(problem: Problem, config: SolverConfig, seconds: float) -> SolverConfig:
    """The configuration, with random starts if its own take too long: from about 150 points on, with 3 seconds."""
    if config.search != "tabu" or config.start == "random":
        return config
    key = jax.random.key(0)
    jax.block_until_ready(begin(key, problem, config, None))
    now = time.perf_counter()
    jax.block_until_ready(begin(key, problem, config, None))
    affordable = time.perf_counter() - now <= START_SHARE * seconds
    return config if affordable else replace(config, start="random")


def _blocks_a_round(problem: Problem, config: SolverConfig, first: Array | None) -> int:
    """How many blocks take :data:`ROUND_SECONDS`; compiles everything on the way."""
    key = jax.random.key(0)
    search = begin(key, problem, config, first)
    for _ in range(2):  # What it returns may differ in weak types from what it was first given.
        search = _go_on((problem, config), 0, 1, search, key)
    if config.search != "tabu":
        return 1
    now = time.perf_counter()
    _go_on((problem, config), 1, 4, search, key)
    return max(1, round(4 * ROUND_SECONDS / (time.perf_counter() - now)))


def _float32(matrix: np.ndarray) -> Array:
    return jnp.asarray(matrix, jnp.float32)


class _Found:
    """The best so far, judged by the instance."""

    def __init__(self, instance: Instance, start: float) -> None:
        self.instance, self.start = instance, start
        self.permutation: np.ndarray | None = None
        self.value = math.inf
        self.history: list[Improvement] = []

    def look_at(self, searches: Sequence[Search]) -> None:
        """Judges what may be better: float32 cannot tell values apart that differ by its rounding."""
        places: list[Place] = jax.device_get([search.best for search in searches])
        least = min(place.value.min() for place in places)
        close = [p for place in places for p in place.permutation[place.value <= least + 1e-6 * abs(least)]]
        size = self.instance.size
        for candidate in np.unique(np.stack(close)[:, :size], axis=0)[:MOST_JUDGED]:
            value = self.instance.value(candidate)
            if value < self.value:
                self.permutation, self.value = candidate, value
                self.history.append(Improvement(time.perf_counter() - self.start, value))

    def solution(self, seconds: float, compile_seconds: float, rounds: int, steps: int) -> Solution:
        assert self.permutation is not None  # the starts have been looked at
        return Solution(self.permutation, self.value, tuple(self.history), seconds, compile_seconds, rounds, steps)


def _go_on(given: tuple[Problem, SolverConfig], number: int, blocks: int, search: Search, key: Key) -> Search:
    """In the one form of call that is compiled, awaited."""
    return jax.block_until_ready(advance(search, key, jnp.int32(number), jnp.int32(blocks), *given))
