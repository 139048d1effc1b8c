"""The methods that experiments.graph_matching compares, each run on one instance."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple, cast, get_args

import numpy as np

from shuffle_jax.problems.descent import DescentConfig, PenaltyKind, RelaxationKind
from shuffle_jax.problems.solver import SolverConfig

if TYPE_CHECKING:
    from concurrent.futures import ProcessPoolExecutor

    from experiments.matching.baselines import Baseline
    from experiments.matching.figures import Curves
    from shuffle_jax.problems.instance import Instance

SOLVERS = ("solver", "faq", "faq+2opt")
"""Methods beside the relaxations: ours, and scipy's."""


class Settings(NamedTuple):
    """What all methods share."""

    seed: int
    starts: int
    seconds: float
    descent: DescentConfig
    solver: SolverConfig
    exchange: bool
    pool: ProcessPoolExecutor | None
    processes: int


class Outcome(NamedTuple):
    """What a method did on an instance.

    Attributes:
        permutation: the best one.
        value: of it.
        recovered: starts that ended at an exact match, or at the best value known; None for one long search.
        starts: how many there were.
        argmax: starts whose row-argmax alone is a permutation and recovers; None where there is no matrix.
        seconds: for all starts; for methods of a given time, until the best was found.
        curves: what a relaxation recorded on its way.
    """

    permutation: np.ndarray
    value: float
    recovered: int | None
    starts: int
    argmax: int | None
    seconds: float
    curves: Curves | None = None


def check(method: str) -> None:
    """Raises a ValueError unless a method has this name."""
    from experiments.cli import nearest

    names = all_methods()
    if method not in names:
        raise ValueError(f"there is no method {method!r}; near: {nearest(method, names)}")


def all_methods() -> list[str]:
    """``sinkhorn`` is a relaxation alone, ``sinkhorn+entropy`` one with a penalty."""
    penalties = [kind for kind in get_args(PenaltyKind) if kind != "none"]
    relaxations = [name for kind in get_args(RelaxationKind) for name in (kind, *(f"{kind}+{p}" for p in penalties))]
    return [*SOLVERS, *relaxations]


def run(method: str, instance: Instance, settings: Settings) -> Outcome:
    """Runs one method on one instance; what must be compiled is compiled before the clock starts."""
    match method:
        case "solver":
            return _solver(instance, settings)
        case "faq" | "faq+2opt":
            return _baseline(method, instance, settings)
    return _descent(method, instance, settings)


def _solver(instance: Instance, settings: Settings) -> Outcome:
    from shuffle_jax.problems.solver import solve

    enough = 0.0 if instance.goal == "matching" else instance.best
    found = solve(instance, settings.seconds, settings.seed, settings.solver, enough=enough)
    return Outcome(found.permutation, found.value, None, 1, None, found.history[-1].seconds)


def _baseline(method: Baseline, instance: Instance, settings: Settings) -> Outcome:
    """For a given time on assignments; as many starts as the relaxations have on matchings."""
    from experiments.matching.baselines import run as run_baseline

    assert settings.pool is not None
    timed = instance.goal == "assignment"
    limits = {"seconds": settings.seconds} if timed else {"starts": settings.starts}
    found = run_baseline(instance, method, settings.pool, settings.processes, settings.seed, **limits)
    values = [instance.value(p) for p in found.permutations]
    best = int(np.argmin(values))
    seconds = found.seconds[best] if timed else found.seconds.max()
    return Outcome(
        found.permutations[best], values[best], _hits(instance, found.permutations), len(values), None, seconds
    )


def _descent(method: str, instance: Instance, settings: Settings) -> Outcome:
    import jax

    from experiments.matching.figures import Curves
    from shuffle_jax.ops.local_search import two_exchange
    from shuffle_jax.ops.permutation import is_permutation
    from shuffle_jax.ops.rounding import argmax, assignment
    from shuffle_jax.problems.descent import descend, recorded_steps
    from shuffle_jax.problems.solver import scaled_pair

    relaxation, _, penalty = method.partition("+")
    config = replace(
        settings.descent, relaxation=cast(RelaxationKind, relaxation), penalty=cast(PenaltyKind, penalty or "none")
    )
    objective, pair, scale = _problem(instance)
    key = jax.random.key(settings.seed)

    def all_starts(config: DescentConfig) -> tuple:
        end = descend(objective, pair, instance.size, key, settings.starts, config, scale)
        rounded = assignment(end.matrix)
        if settings.exchange:
            rounded = two_exchange(rounded, scaled_pair(instance))
        return jax.block_until_ready((end, rounded, argmax(end.matrix)))

    all_starts(replace(config, steps=config.records))  # compiles
    begun = time.perf_counter()
    end, rounded, peaks = jax.device_get(all_starts(config))
    seconds = time.perf_counter() - begun
    values = [instance.value(p) for p in rounded]
    best = int(np.argmin(values))
    valid = np.asarray(is_permutation(peaks))
    curves = Curves(recorded_steps(config), end.objective, end.penalty)
    hits = _hits(instance, rounded)
    return Outcome(rounded[best], values[best], hits, len(values), _hits(instance, peaks[valid]), seconds, curves)


def _problem(instance: Instance) -> tuple[Callable, tuple, float]:
    """The objective, its data, and a scale such that 1 / (8 scale) is a stable step."""
    import jax.numpy as jnp

    from shuffle_jax.ops.quadratic_assignment import assignment_objective, matching_objective
    from shuffle_jax.problems.search import curvature
    from shuffle_jax.problems.solver import scaled_pair

    if instance.goal == "matching":
        largest = max(np.abs(instance.a).max(), np.abs(instance.b).max()) or 1.0
        a, b = instance.a / largest, instance.b / largest
        norm = max(np.linalg.norm(a, 2), np.linalg.norm(b, 2))
        return matching_objective, (jnp.float32(a), jnp.float32(b)), float(norm**2)
    pair = scaled_pair(instance)
    return assignment_objective, pair, float(curvature(pair))


def _hits(instance: Instance, permutations: np.ndarray) -> int | None:
    """How many permutations are exact matches, or have the best value known."""
    if instance.goal == "matching":
        return sum(instance.recovered(p) for p in permutations)
    if instance.best is None:
        return None
    return sum(instance.value(p) <= instance.best for p in permutations)
