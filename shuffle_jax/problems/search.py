"""The compiled part of the solver: starts by a relaxation and rounding, and tabu searches with kicks, many at once."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import Literal, NamedTuple, TypeVar

import jax
import jax.numpy as jnp

from shuffle_jax.ops import local_search, permutation
from shuffle_jax.ops import quadratic_assignment as qap
from shuffle_jax.ops.bistochastic import clamp_normalize
from shuffle_jax.ops.frank_wolfe import frank_wolfe
from shuffle_jax.ops.local_search import Tabu
from shuffle_jax.ops.rounding import assignment
from shuffle_jax.problems.descent import DescentConfig, descend
from shuffle_jax.typing import Array, Bool, Float, Int, Key, Permutation

T = TypeVar("T")


@dataclass(frozen=True)
class SolverConfig:
    """How :func:`~shuffle_jax.problems.solver.solve` searches. All of it is this project's choice."""

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


class Problem(NamedTuple):
    """A quadratic assignment, perhaps filled up, so that several sizes share their programs.

    Attributes:
        pair: A and B, with zeros from ``size`` on.
        size: n; permutations leave what follows in its place.
    """

    pair: qap.Pair
    size: Int[Array, ""]


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


def curvature(pair: qap.Pair) -> Float[Array, ""]:
    """The largest curvature of ``<A, M B M^T>``, at most ``2 |A|_2 |B|_2``, over 8: the scale of a descent."""
    return jnp.linalg.norm(pair[0], 2) * jnp.linalg.norm(pair[1], 2) / 4


GOING_ON = 2**32 - 1
"""Folded into the key of a search it gives the stream of all that follows its starts, whose numbers stay below."""


def starts(key: Key, problem: Problem, config: SolverConfig) -> Permutation:
    """Permutations to begin with, ``(searches, c)``; see :attr:`SolverConfig.start`.

    The start "penalty" knows of no filling.
    """
    pair, size = problem
    channels = len(pair[0])
    match config.start:
        case "random":
            keys = jax.random.split(key, config.searches)
            return jax.vmap(lambda k: permutation.random_inner(k, channels, size))(keys)
        case "frank_wolfe":
            within = permutation.inner(channels, size)
            entries = jax.random.uniform(key, (config.searches, channels, channels), jnp.float32)
            drawn = clamp_normalize(jnp.where(within, entries, jnp.eye(channels, dtype=jnp.float32)), passes=20)
            begun = jnp.where(within, (drawn + 1 / jnp.asarray(size, jnp.float32)) / 2, drawn)
            return assignment(frank_wolfe(begun, pair, config.iterations, size))
    ends = descend(qap.assignment_objective, pair, channels, key, config.searches, config.descent, curvature(pair))
    return assignment(ends.matrix)


@partial(jax.jit, static_argnames="config")
def begin(key: Key, problem: Problem, config: SolverConfig, initial: Permutation | None = None) -> Search:
    """New starts, or a given one and kicks of it; if exchanges alone follow, with their local optima for the best."""
    if initial is None:
        begun = starts(key, problem, config)
    else:
        keys = jax.random.split(key, config.searches)
        kicked = jax.vmap(local_search.kick, (0, None, None))(keys, initial, problem.size)
        begun = kicked.at[0].set(initial)
    if config.search == "exchange":
        begun = local_search.two_exchange(begun, problem.pair, size=problem.size)
    tabu = local_search.tabu_start(begun, problem.pair)
    return Search(tabu, Place(tabu.best, tabu.best_value), Place(tabu.best, tabu.best_value))


@partial(jax.jit, static_argnames="config")
def advance(
    search: Search, key: Key, number: Int[Array, ""], blocks: Int[Array, ""], problem: Problem, config: SolverConfig
) -> Search:
    """So many blocks more, from that number on: c steps of tabu search each, or one set of new starts in all."""
    key = jax.random.fold_in(jax.random.fold_in(key, GOING_ON), number)
    if config.search != "tabu":
        new = begin(key, problem, config).best
        return search._replace(best=_better(new, search.best))
    pair, size = problem
    patience = jnp.resize(jnp.asarray(config.patience, jnp.int32), (config.searches,))

    def block(i: Int[Array, ""], search: Search) -> Search:
        steps_key, kick_key, chance_key = jax.random.split(jax.random.fold_in(key, i), 3)
        tabu = local_search.tabu_steps(search.tabu, steps_key, pair, len(pair[0]), size=size)
        reached = Place(tabu.best, tabu.best_value)
        due = (number + i + 1) % patience == 0
        stays = (reached.value > search.home.value) & (jax.random.uniform(chance_key, due.shape) >= config.forgive)
        home = _where(due & ~stays, reached, search.home)
        keys = jax.random.split(kick_key, config.searches)
        kicked = jax.vmap(local_search.kick, (0, 0, None))(keys, home.permutation, size)
        # A fresh table for all: what was carried on by differences has drifted.
        fresh = local_search.tabu_start(jnp.where(due[:, None], kicked, tabu.table.permutation), pair)
        going = tabu._replace(table=fresh.table)
        return Search(_where(due, fresh, going), home, _better(reached, search.best))

    return jax.lax.fori_loop(0, blocks, block, search)


def _better(new: Place, old: Place) -> Place:
    return _where(new.value < old.value, new, old)


def _where(which: Bool[Array, " searches"], new: T, old: T) -> T:
    """Of two states of all searches the one or the other, search by search."""
    return jax.tree.map(lambda n, o: jnp.where(which.reshape(-1, *(1,) * (n.ndim - 1)), n, o), new, old)
