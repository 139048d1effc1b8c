"""Measures operations and networks on this machine: `python -m experiments.benchmark`.

Each table is measured in turn, and in it the candidates in turn, round after round, so that whatever else the machine
does meets all of them alike. A line gives the median time and, over the rounds, the minimum, median and maximum of its
ratio to the first line of its table. The tables `mixers-1` and `mixers-128` say instead what each mixer adds to a
network: milliseconds, the bytes that the compiler counts, and the time that moving what must be moved would take at the
bandwidth of a copy. The tables that compare with torch need the extra `bench`. Let nothing else run meanwhile.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from experiments.benchmark import cases
from experiments.benchmark.cases import Dtype, Workload
from experiments.benchmark.measuring import Table, in_columns
from experiments.benchmark.tables import tables
from experiments.cli import main, nearest, parse, print_table, quiet_libraries
from shuffle_jax.sharding import cores

BUSY = 0.5
"""Load average above which the machine counts as busy."""

INSTALL_TORCH = "pip install -c constraints.txt -e '.[bench]' adds it"


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
    """Only these tables, by the names that stand before their titles; by default all of them."""

    json: Path = Path("runs/benchmark.json")
    """Where to write the times of every round, in seconds."""


def run(arguments: Sequence[str] | None = None) -> None:
    """Parses the command line, measures and prints."""
    options = parse(Arguments, arguments, prog="python -m experiments.benchmark", description=__doc__)
    quiet_libraries()
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # the other side needs memory as well
    load = os.getloadavg()[0]
    work = Workload(options.batch_size, options.image_size, options.width)
    check(options, work)
    chosen = select(options, work)
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.open("a").close()  # a place that cannot be written is found now, and not after the measuring

    about = machine() | {"load_average": round(load, 2)}
    print(", ".join(f"{name.replace('_', ' ')} {value}" for name, value in about.items()))
    if load > BUSY:
        print(f"The machine is busy (load average {load:.2f} before the start): times and ratios will scatter.")
    results: dict[str, dict[str, Any]] = {}
    refused: list[str] = []
    for number, (name, table) in enumerate(chosen.items(), start=1):
        print(f"\n[{number}/{len(chosen)}] {name}: {table.title}", flush=True)
        try:
            times = table.measure(options.rounds)
        except ArithmeticError as error:  # the other tables are as good as before
            print(f"not measured: {error}")
            refused.append(name)
            continue
        print_table(*in_columns(table, times))
        results[name] = {"title": table.title, table.unit: times}
        settings = {key: str(value) for key, value in vars(options).items()}
        options.json.write_text(json.dumps({"about": about, "options": settings, "tables": results}, indent=1) + "\n")
    if refused:
        raise ArithmeticError(f"not measured: {', '.join(refused)}; the reason stands in the place of the table")
    print(f"\nThe times of every round are in {options.json}")


def select(options: Arguments, work: Workload) -> dict[str, Table]:
    """The tables to measure, by name; on a GPU those in bfloat16 stand behind those in float32.

    Raises:
        ValueError: the chosen tables need torch, and it is not installed.
    """
    dtypes: Sequence[Dtype] = ("float32", "bfloat16") if jax.default_backend() == "gpu" else ("float32",)
    chosen: dict[str, Table] = {}
    without_torch = importlib.util.find_spec("torch") is None
    left_out = []
    for dtype in [options.dtype] if options.dtype else dtypes:
        for name, table in tables(dataclasses.replace(work, dtype=dtype)).items():
            if options.only and name not in options.only:
                continue
            if name.startswith("torch") and without_torch:
                left_out.append(name)
            elif name != "import" or name not in chosen:
                chosen[name if name == "import" or dtype == "float32" else f"{name} {dtype}"] = table
    if left_out:
        message = f"torch is not installed, so there is no {', '.join(dict.fromkeys(left_out))}: {INSTALL_TORCH}"
        if not chosen:
            raise ValueError(message)
        print(message)
    return chosen


def check(options: Arguments, work: Workload) -> None:
    """Raises ValueError for what cannot be measured, before anything is."""
    for name in ("rounds", "batch_size", "image_size"):
        if getattr(options, name) < 1:
            raise ValueError(f"{name} must be at least 1, got {getattr(options, name)}")
    names = tables(work)
    for name in options.only:
        if name not in names:
            raise ValueError(f"there is no table {name!r}; near: {nearest(name, names)} (all: {', '.join(names)})")
    images = jax.ShapeDtypeStruct((1, work.image_size, work.image_size, 3), jnp.float32)
    jax.eval_shape(cases.shufflenet(work, "shuffle").init, jax.random.key(0), images)


def machine() -> dict[str, str | int]:
    """What the numbers depend on."""
    known = {
        "device": jax.devices()[0].device_kind,
        "processor": processor(),
        "cores": cores(),
        "python": platform.python_version(),
        "jax": jax.__version__,
    }
    return known | ({"torch": version("torch")} if importlib.util.find_spec("torch") else {})


def processor() -> str:
    """The name of the processor, where the system tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


if __name__ == "__main__":
    main(run)
