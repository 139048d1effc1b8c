"""What a person would use instead: scipy's Frank-Wolfe (FAQ) for quadratic assignment, from many random starts."""

from __future__ import annotations

import math
import multiprocessing
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from typing import Literal, NamedTuple

import numpy as np

from shuffle_jax.problems.instance import Instance

Baseline = Literal["faq", "faq+2opt"]
"""scipy's FAQ alone, and each of its ends improved by scipy's exchanges of two."""


class Starts(NamedTuple):
    """What random starts led to.

    Attributes:
        permutations: of each start, ``(starts, n)``.
        seconds: when each was done, of the time that counts.
    """

    permutations: np.ndarray
    seconds: np.ndarray


@contextmanager
def workers(count: int) -> Iterator[ProcessPoolExecutor | None]:
    """Processes that have imported scipy before any time counts; None for none."""
    if not count:
        yield None
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(count, mp_context=context) as pool:
        list(pool.map(_warm, range(count)))
        yield pool


def run(
    instance: Instance,
    kind: Baseline,
    pool: ProcessPoolExecutor,
    count: int,
    seed: int,
    seconds: float = math.inf,
    starts: int | None = None,
) -> Starts:
    """Random starts of a baseline, shared among processes, until the time is over or so many are done.

    Args:
        instance: what to minimise; a matching is handed to scipy as a maximum.
        kind: the baseline.
        pool: from :func:`workers`.
        count: how many processes it has.
        seed: of the first start; every process counts on from a place of its own.
        seconds: after which no process begins another start.
        starts: how many at most, in all.
    """
    shares = [None if starts is None else len(range(i, starts, count)) for i in range(count)]
    tasks = [
        pool.submit(_starts, instance.a, instance.b, instance.goal, kind, (seed, i), seconds, share)
        for i, share in enumerate(shares)
    ]
    done = [task.result() for task in tasks]
    found = Starts(np.concatenate([one.permutations for one in done]), np.concatenate([one.seconds for one in done]))
    order = np.argsort(found.seconds, kind="stable")
    return Starts(found.permutations[order], found.seconds[order])


def _warm(_: int) -> None:
    from scipy.optimize import quadratic_assignment
    from threadpoolctl import threadpool_limits

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the command, which ends its processes
    threadpool_limits(1)  # one process a core, and no more threads than that
    quadratic_assignment(np.eye(3), np.eye(3), options={"rng": np.random.default_rng(0)})
    time.sleep(0.2)  # so that every process gets its turn


def _starts(
    a: np.ndarray, b: np.ndarray, goal: str, kind: Baseline, seed: tuple[int, int], seconds: float, starts: int | None
) -> Starts:
    """In one process."""
    from scipy.optimize import quadratic_assignment

    rng = np.random.default_rng(seed)
    maximize = goal == "matching"
    found: list[np.ndarray] = []
    ends: list[float] = []
    begun = time.perf_counter()
    while len(found) < (math.inf if starts is None else starts):
        if found and time.perf_counter() - begun >= seconds:
            break
        result = quadratic_assignment(a, b, options={"maximize": maximize, "P0": "randomized", "rng": rng})
        if kind == "faq+2opt":
            guess = np.stack([np.arange(len(a)), result.col_ind], axis=1)
            options = {"maximize": maximize, "partial_guess": guess, "rng": rng}
            result = quadratic_assignment(a, b, method="2opt", options=options)
        found.append(result.col_ind)
        ends.append(time.perf_counter() - begun)
    return Starts(np.array(found).reshape(len(found), len(a)), np.array(ends))
