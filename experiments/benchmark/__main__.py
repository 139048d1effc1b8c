"""Measures operations and networks on this machine: `python -m experiments.benchmark`.

In each table the candidates run in turn, round after round, so that whatever else the machine does meets all of them
alike. Where torch or ONNX Runtime stands beside us, every engine has a process of its own, the same number of threads,
the same weights and images; they take turns, no two compute at a time, and nothing is timed before their outputs agree.
A line gives median, least and longest time and, over the rounds, the minimum, median and maximum of its ratio to the
first line of its table, with the aim for it where there is one. Below the table stands how many rounds were disturbed:
in which others used more than a quarter of a core. The tables "torch-..." need the extra `bench`. Let nothing else run
meanwhile.

Every table is written down at once. After Ctrl-C, or the end of --minutes, the same command with --resume goes on.
"""

from __future__ import annotations

import dataclasses
import math
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from experiments.benchmark import aims, cases, machine
from experiments.benchmark.cases import Dtype, Workload
from experiments.benchmark.effort import Effort, OutOfTime
from experiments.benchmark.results import Results
from experiments.benchmark.showing import Table, disturbances
from experiments.benchmark.suite import suite_tables
from experiments.benchmark.tables import tables
from experiments.cli import main, nearest, parse, print_table, quiet_libraries

BUSY = 0.5
"""Load average above which the machine counts as busy."""

INSTALL = "pip install -c constraints.txt -e '.[bench]' adds it"


@dataclass(frozen=True)
class Arguments:
    """What to measure, and how much."""

    rounds: int = 15
    """Rounds of each table. At least 9 of "import", at most 3 of "compile"."""

    batch_size: int = 64
    """Images of a step or an inference; the tables "mixers-1" and "mixers-128" have their own."""

    image_size: int = 32
    """Height and width of the images."""

    width: float = 1.0
    """Of ShuffleNetV2."""

    dtype: Dtype | None = None
    """Type of the computation; by default float32, and on a GPU bfloat16 after it."""

    only: tuple[str, ...] = ()
    """Only these tables, by the names that stand before their titles, or by patterns such as "torch-*"; by default all
    of them."""

    aims: bool = False
    """Only the tables that have an aim, each with the batch that it is for."""

    tests: bool = False
    """Before the tables the tests of the operations, on the device that is measured."""

    compile_torch: bool = False
    """Have torch.compile stand beside torch on a CPU as well, where it compiles for minutes and needs a C++ compiler;
    on a GPU it does in any case."""

    json: Path = Path("runs/benchmark.json")
    """Where to write the times of every round, in seconds, with date, machine and versions."""

    resume: bool = False
    """Keep what that file has of the same tables, rounds, machine and versions, and measure the others."""

    minutes: float | None = None
    """When so many are over nothing is begun, and the table that is measured is left."""

    def __post_init__(self) -> None:
        for name in ("rounds", "batch_size", "image_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.minutes is not None and not 0 < self.minutes < math.inf:
            raise ValueError(f"minutes must be positive, got {self.minutes}")


def run(arguments: Sequence[str] | None = None) -> None:
    """Parses the command line, measures and prints."""
    started = time.monotonic()
    options = parse(Arguments, arguments, prog="python -m experiments.benchmark", description=__doc__)
    quiet_libraries()
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # other engines need memory as well
    load = os.getloadavg()[0]
    check(options)
    chosen = select(options)
    results = Results(options.json, machine.about(), options.rounds, options.resume)
    effort = Effort(options.rounds, math.inf if options.minutes is None else started + 60 * options.minutes)

    print(", ".join(f"{name.replace('_', ' ')} {value}" for name, value in results.machine.items()))
    if load > BUSY:
        print(f"The machine is busy (load average {load:.2f} before the start): times and ratios will scatter.")
    measure_all(chosen, results, effort, {"load_average": round(load, 2)})


def measure_all(chosen: dict[str, Table], results: Results, effort: Effort, about: dict[str, Any]) -> None:
    """Measures, prints and writes every table that is not known.

    Raises:
        ArithmeticError: some were refused, or the time was over before the first was done.
    """
    refused: list[str] = []
    measured = 0
    for number, (name, table) in enumerate(chosen.items(), start=1):
        result, note = results.known(name, table.title), ", known"
        print(f"\n[{number}/{len(chosen)}] {name}: {table.title}{note if result else ''}", flush=True)
        if result is None:
            try:
                effort.left()
                result = table.measure(effort)
            except ArithmeticError as error:  # the other tables are as good as before
                print(f"not measured: {error}")
                refused.append(name)
                continue
            except OutOfTime:
                missing = len(chosen) - number + 1 + len(refused)
                if not measured:
                    raise ArithmeticError(f"the minutes were over before {name} was done: give more") from None
                print(f"the minutes are over; {missing} of {len(chosen)} are missing, --resume goes on with them")
                break
            results.add(name, {"title": table.title} | about | result)
            measured += 1
        print_table(*table.show(table, result))
        if (sentence := disturbances(result)) is not None:
            print(sentence)
    if refused:
        raise ArithmeticError(f"not measured: {', '.join(refused)}; the reason stands in the place of the table")
    print(f"\nThe times of every round are in {results.path}")


def select(options: Arguments) -> dict[str, Table]:
    """The tables to measure, by name; on a GPU those in bfloat16 stand behind those in float32.

    Raises:
        ValueError: the chosen tables need torch, and it is not installed.
    """
    device = jax.default_backend()
    dtypes: Sequence[Dtype] = ("float32", "bfloat16") if device == "gpu" else ("float32",)
    chosen = suite_tables(device) if options.tests else {}
    left_out = []
    for dtype in [options.dtype] if options.dtype else dtypes:
        for name, table in wanted(options, dtype).items():
            if name.startswith("torch") and not machine.is_there("torch"):
                left_out.append(name)
            elif name != "import" or name not in chosen:
                chosen[name if name == "import" or dtype == "float32" else f"{name} {dtype}"] = table
    if left_out:
        message = f"torch is not installed, so there is no {', '.join(dict.fromkeys(left_out))}: {INSTALL}"
        if not chosen:
            raise ValueError(message)
        print(message)
    elif any(name.startswith("torch-inference") for name in chosen) and not machine.is_there("onnxruntime"):
        print(f"ONNX Runtime is not installed, so torch alone stands beside us in inference: {INSTALL}")
    return chosen


def wanted(options: Arguments, dtype: Dtype) -> dict[str, Table]:
    """The tables that are asked for, in one type."""
    work = workload(options, dtype)
    found = tables(work, options.compile_torch)
    if options.aims:
        batches = {aims.batch_size(name) for name in aims.aimed()}
        by_batch = {b: tables(dataclasses.replace(work, batch_size=b), options.compile_torch) for b in batches}
        found = {name: by_batch[aims.batch_size(name)][name] for name in aims.aimed()}
    if not options.only:
        return found
    return {name: table for name, table in found.items() if any(fnmatchcase(name, one) for one in options.only)}


def workload(options: Arguments, dtype: Dtype = "float32") -> Workload:
    """What the options ask for."""
    return Workload(options.batch_size, options.image_size, options.width, dtype, jax.default_backend())


def check(options: Arguments) -> None:
    """Raises ValueError for what cannot be measured, before anything is."""
    work = workload(options)
    names = aims.aimed() if options.aims else tables(work)
    for name in options.only:
        if not any(fnmatchcase(one, name) for one in names):
            raise ValueError(f"there is no table {name!r}; near: {nearest(name, names)} (all: {', '.join(names)})")
    images = jax.ShapeDtypeStruct((1, work.image_size, work.image_size, 3), jnp.float32)
    jax.eval_shape(cases.shufflenet(work, "shuffle").init, jax.random.key(0), images)


if __name__ == "__main__":
    main(run)
