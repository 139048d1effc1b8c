"""Quadratic assignment and graph matching within a given time: relaxed starts, then local search, many at once."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Literal, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from shuffle_jax.ops import local_search, permutation, relaxation
from shuffle_jax.ops import quadratic_assignment as qap
from shuffle_jax.ops.frank_wolfe import frank_wolfe
from shuffle_jax.ops.local_search import Tabu
from shuffle_jax.ops.rounding import assignment
from shuffle_jax.problems.descent import DescentConfig, descend
from shuffle_jax.problems.instance import Instance
from shuffle_jax.typing import Array, Bool, Float, Int, Key, Permutation

T = TypeVar("T")

ROUND_SECONDS = 0.1
"""About how long the search goes on before it looks at the clock."""

MOST_JUDGED = 4
"""Permutations that are judged exactly after a round."""


@dataclass(frozen=True)
class SolverConfig:
    """How :func:`solve` searches. All of it is this project's choice."""

    start: Literal["random", "frank_wolfe", "penalty"] = "frank_wolfe"
    """Where the searches begin: random permutations; the rounded ends of Frank-Wolfe from random matrices; those of
    gradient descent under the penalty l1 - l2."""

    search: Literal["none", "exchange", "tabu"] = "tabu"
    """What follows: nothing but more starts; descent by exchanges of two and more starts; or tabu searches, kicked off
    their way from time to time."""

    searches: int = 16
    """Side by side in one compiled loop, on each core of a CPU."""

    iterations: int = 30
    """Of Frank-Wolfe."""

    descent: DescentConfig = field(default_factory=lambda: DescentConfig(steps=300, records=2))
    """The descent of the start "penalty"."""

    patience: tuple[int, ...] = (1, 4, 16, 64)
    """A tabu search is kicked every so many times c steps; the searches take these numbers in turn. Where good
    permutations lie close together short ones do best, in rugged problems long ones."""

    forgive: float = 0.05
    """How often a search goes on from where it is although it has been at a better place."""

    threads: int | None = None
    """Each runs the searches above. By default as many as this process has cores on a CPU, and one elsewhere."""

    def __post_init__(self) -> None:
        """Says what cannot be run.

        Raises:
            ValueError: a number is out of its range.
        """
        for name, number in (("searches", self.searches), *(("patience", each) for each in self.patience)):
            if number < 1:
                raise ValueError(f"{name} is {number}: give 1 or more")
        if self.iterations < 0:
            raise ValueError(f"iterations is {self.iterations}: give 0 or more")
        if not self.patience:
            raise ValueError("patience is empty: give one number or more")
        if self.threads is not None and self.threads < 1:
            raise ValueError(f"threads is {self.threads}: give 1 or more, or None")
        if not 0 <= self.forgive <= 1:
            raise ValueError(f"forgive is {self.forgive}: give a share from 0 to 1")


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


class Place(NamedTuple):
    """Permutations and their values, as the search computes them."""

    permutation: Int[Array, "searches c"]
    value: Float[Array, " searches"]


class Search(NamedTuple):
    """The state of tabu searches with kicks.

    Attributes:
        tabu: since the last kick.
        home: where the next kick starts from.
        best: of the whole search.
    """

    tabu: Tabu
    home: Place
    best: Place


def solve(
    instance: Instance,
    seconds: float = 3.0,
    seed: int = 0,
    config: SolverConfig = SolverConfig(),
    rounds: int | None = None,
    enough: float | None = None,
) -> Solution:
    """The best permutation for an instance that can be found in the time given.

    Starts are made in a batch, by the configured relaxation and a linear assignment; then every one of them is searched
    by exchanges. Matching is quadratic assignment with -A. The search computes in float32; permutations are judged by
    the instance itself, exactly.

    Args:
        instance: what to minimise.
        seconds: how long, after compilation; it ends when another round would not fit.
        seed: of all that is random. Only with ``rounds`` the result is the same for the same seed, on one machine.
        config: what to do.
        rounds: end after so many rounds, however long they take.
        enough: end as soon as a value is this or less.

    Returns:
        A :class:`Solution`.

    Raises:
        ValueError: seconds is not positive, or rounds below 1.
    """
    if not seconds > 0 or (rounds is not None and rounds < 1):
        raise ValueError(f"{seconds} seconds and {rounds} rounds: give seconds above 0, and 1 round or more")
    before = time.perf_counter()
    pair = scaled_pair(instance)
    threads = config.threads or _cores()
    keys = [jax.random.fold_in(jax.random.key(seed), thread) for thread in range(threads)]
    blocks = _blocks_a_round(pair, config)

    start = time.perf_counter()
    found = _Found(instance, start)
    done, longest = 0, 0.0
    with ThreadPoolExecutor(threads) as pool:
        searches = list(pool.map(lambda key: jax.block_until_ready(_begin(key, pair, config)), keys))
        found.look_at(searches)
        while done < (rounds or math.inf) and not (enough is not None and found.value <= enough):
            now = time.perf_counter()
            if rounds is None and now - start + longest > seconds:
                break
            searches = list(pool.map(partial(_go_on, (pair, config), done * blocks, blocks), searches, keys))
            found.look_at(searches)
            done, longest = done + 1, max(longest, time.perf_counter() - now)
    steps = threads * config.searches * done * (blocks * instance.size if config.search == "tabu" else 1)
    return found.solution(time.perf_counter() - start, start - before, done, steps)


def scaled_pair(instance: Instance) -> qap.Pair:
    """The matrices of an instance as a quadratic assignment in float32, divided by powers of two, which rounds nothing.

    Their largest entries are then from 1/2 to 1, or 0; a matching has -A for A.
    """
    a, b = (np.ldexp(m, -math.frexp(np.abs(m).max())[1]) for m in (instance.a, instance.b))
    return qap.as_pair(_float32(-a if instance.goal == "matching" else a), _float32(b))


def starts(key: Key, pair: qap.Pair, config: SolverConfig) -> Permutation:
    """Permutations to begin with, ``(searches, c)``; see :attr:`SolverConfig.start`."""
    size = len(pair[0])
    keys = jax.random.split(key, config.searches)
    match config.start:
        case "random":
            return jax.vmap(lambda k: permutation.random(k, size))(keys)
        case "frank_wolfe":
            drawn = jax.vmap(lambda k: relaxation.random_bistochastic(k, size))(keys)
            return assignment(frank_wolfe((drawn + 1 / size) / 2, pair, config.iterations))
    scale = jnp.linalg.norm(pair[0]) * jnp.linalg.norm(pair[1]) / size
    ends = descend(qap.assignment_objective, pair, size, key, config.searches, config.descent, scale)
    return assignment(ends.matrix)


@partial(jax.jit, static_argnames="config")
def _begin(key: Key, pair: qap.Pair, config: SolverConfig) -> Search:
    """New starts; if exchanges are all that follows, with their local optima for the best."""
    begun = starts(key, pair, config)
    if config.search == "exchange":
        begun = local_search.two_exchange(begun, pair)
    tabu = local_search.tabu_start(begun, pair)
    return Search(tabu, Place(tabu.best, tabu.best_value), Place(tabu.best, tabu.best_value))


@partial(jax.jit, static_argnames="config")
def _advance(
    search: Search, key: Key, number: Int[Array, ""], blocks: Int[Array, ""], pair: qap.Pair, config: SolverConfig
) -> Search:
    """So many blocks more, from that number on: c steps of tabu search each, or one set of new starts in all."""
    key = jax.random.fold_in(key, number + 1)
    if config.search != "tabu":
        new = _begin(key, pair, config).best
        return search._replace(best=_better(new, search.best))
    patience = jnp.resize(jnp.asarray(config.patience, jnp.int32), (config.searches,))

    def block(i: Int[Array, ""], search: Search) -> Search:
        steps_key, kick_key, chance_key = jax.random.split(jax.random.fold_in(key, i), 3)
        tabu = local_search.tabu_steps(search.tabu, steps_key, pair, len(pair[0]))
        reached = Place(tabu.best, tabu.best_value)
        due = (number + i + 1) % patience == 0
        stays = (reached.value > search.home.value) & (jax.random.uniform(chance_key, due.shape) >= config.forgive)
        home = _where(due & ~stays, reached, search.home)
        kicked = jax.vmap(local_search.kick)(jax.random.split(kick_key, config.searches), home.permutation)
        # A fresh table for all: what was carried on by differences has drifted.
        fresh = local_search.tabu_start(jnp.where(due[:, None], kicked, tabu.table.permutation), pair)
        going = tabu._replace(table=fresh.table)
        return Search(_where(due, fresh, going), home, _better(reached, search.best))

    return jax.lax.fori_loop(0, blocks, block, search)


def _blocks_a_round(pair: qap.Pair, config: SolverConfig) -> int:
    """How many blocks take :data:`ROUND_SECONDS`; compiles everything on the way."""
    key = jax.random.key(0)
    search = _begin(key, pair, config)
    for _ in range(2):  # What it returns may differ in weak types from what it was first given.
        search = _go_on((pair, config), 0, 1, search, key)
    if config.search != "tabu":
        return 1
    now = time.perf_counter()
    _go_on((pair, config), 1, 4, search, key)
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
        for candidate in np.unique(np.stack(close), axis=0)[:MOST_JUDGED]:
            value = self.instance.value(candidate)
            if value < self.value:
                self.permutation, self.value = candidate, value
                self.history.append(Improvement(time.perf_counter() - self.start, value))

    def solution(self, seconds: float, compile_seconds: float, rounds: int, steps: int) -> Solution:
        assert self.permutation is not None  # the starts have been looked at
        return Solution(self.permutation, self.value, tuple(self.history), seconds, compile_seconds, rounds, steps)


def _better(new: Place, old: Place) -> Place:
    return _where(new.value < old.value, new, old)


def _where(which: Bool[Array, " searches"], new: T, old: T) -> T:
    """Of two states of all searches the one or the other, search by search."""
    return jax.tree.map(lambda n, o: jnp.where(which.reshape(-1, *(1,) * (n.ndim - 1)), n, o), new, old)


def _go_on(problem: tuple[qap.Pair, SolverConfig], number: int, blocks: int, search: Search, key: Key) -> Search:
    """In the one form of call that is compiled, awaited."""
    pair, config = problem
    return jax.block_until_ready(_advance(search, key, jnp.int32(number), jnp.int32(blocks), pair, config))


def _cores() -> int:
    """Of this process on a CPU; elsewhere one thread is enough."""
    if jax.default_backend() != "cpu":
        return 1
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
