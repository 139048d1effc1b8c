"""How the benchmark measures: candidates in turn, round after round, and who else computed meanwhile."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from experiments.benchmark import machine
from experiments.benchmark.effort import Effort, Times

if TYPE_CHECKING:  # what measures an engine costs no JAX
    from experiments.benchmark.cases import Case, Cases

SHORTEST = 0.1
"""Seconds that a case takes at least in a round: shorter ones are repeated."""

PAUSE = 0.02
"""Seconds of rest after each turn at least."""

PATIENCE = 5.0
"""Seconds that the threads of a process have to come to rest."""

Result = dict[str, Any]
"""What a table measured, as JSON can hold it."""


class Turn(NamedTuple):
    """One turn of one case.

    Attributes:
        seconds: of one run.
        lasted: of all its runs.
        others: seconds of processor time that others used meanwhile, which may come out below 0 by the steps in which
            the system counts; None where it does not tell.
        stolen: and that a hypervisor gave away.
    """

    seconds: float
    lasted: float
    others: float | None = None
    stolen: float = 0.0


class Program(NamedTuple):
    """A candidate whose bytes are looked at as well.

    Attributes:
        case: what runs.
        accessed: bytes that it reads and writes, as the compiler counts them; None if it does not.
        moved: bytes that it must read and write more than the first candidate; of a copy all that it does.
    """

    case: Case
    accessed: float | None
    moved: int


def measure(candidates: Callable[[], Cases], effort: Effort) -> Result:
    """Seconds of each case in each round, all in this process, the cases in turn."""
    cases = candidates()
    return take_turns({name: partial(turn, case, warm(case)) for name, case in cases.items()}, effort)


def measure_costs(candidates: Callable[[], dict[str, Program]], effort: Effort) -> Result:
    """Seconds of each program in each round, as :func:`measure` takes them, and its bytes."""
    programs = candidates()
    rounds = measure(lambda: {name: program.case for name, program in programs.items()}, effort)
    return rounds | {
        "accessed": {name: program.accessed for name, program in programs.items()},
        "moved": {name: program.moved for name, program in programs.items()},
    }


def take_turns(turns: Mapping[str, Callable[[], Turn]], effort: Effort) -> Result:
    """The candidates in turn, A B A B, round after round.

    Returns:
        ``seconds`` of one run of each candidate in each round; ``others``: how many cores others used on average while
        the candidates of a round ran, or None where the system does not tell.

    Raises:
        OutOfTime: the time was over before the last round.
    """
    seconds: Times = {name: [] for name in turns}
    others: list[float | None] = []
    for _ in range(effort.rounds):
        taken = []
        for name, take in turns.items():
            effort.left()
            taken.append(take())
            seconds[name].append(taken[-1].seconds)
        others.append(_cores_of_others(taken))
    return {"seconds": seconds, "others": others}


def _cores_of_others(taken: list[Turn]) -> float | None:
    used = [one.others for one in taken if one.others is not None]
    if len(used) < len(taken) or not taken:
        return None
    # What a hypervisor takes may count as used by this process: the two are not added up before the cut at 0.
    return (max(0.0, sum(used)) + sum(one.stolen for one in taken)) / sum(one.lasted for one in taken)


def warm(case: Case) -> int:
    """Runs a case twice, the first time to compile it; how often it runs in a turn, for ``SHORTEST``."""
    done(case)
    started = time.perf_counter()
    done(case)
    return max(1, math.ceil(SHORTEST / (time.perf_counter() - started)))


def turn(case: Case, repeats: int) -> Turn:
    """Runs a case so often, one run after the other, and then waits until the threads of this process stand still."""
    before = machine.spent()
    started = time.perf_counter()
    for _ in range(repeats):
        done(case)
    lasted = time.perf_counter() - started
    after = machine.spent()
    rest()
    if before is None or after is None:
        return Turn(lasted / repeats, lasted)
    return Turn(lasted / repeats, lasted, after.others - before.others, after.stolen - before.stolen)


def done(case: Case) -> None:
    """Runs a case, and waits for its arrays if they are JAX's; cases of others return when they are done."""
    result = case()
    if "jax" in sys.modules:
        sys.modules["jax"].block_until_ready(result)


def rest() -> bool:
    """Waits until no thread of this process runs but the one that asks, ``PATIENCE`` at most; whether none does.

    Thread pools go on spinning for some time after the last piece of work, in the hope of another one. Where the system
    does not tell, ``PAUSE`` has to do.
    """
    ends = time.monotonic() + PATIENCE
    while True:
        time.sleep(PAUSE)
        if not machine.running_threads():
            return True
        if time.monotonic() > ends:
            return False
