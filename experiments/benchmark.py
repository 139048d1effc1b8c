"""Measures operations and networks on this machine: `python -m experiments.benchmark`.

Each table is measured in turn, and in it the candidates in turn, round after round, so that whatever else the machine
does meets all of them alike. A line gives the median time and, over the rounds, the minimum, median and maximum of its
ratio to the first line of its table. The tables that compare with torch need the extra `bench`. Let nothing else run
meanwhile.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import math
import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from experiments import benchmark_cases as cases
from experiments import mixing_cases
from experiments.benchmark_cases import Cases, Dtype, Workload, cores
from experiments.cli import main, nearest, parse, quiet_libraries
from experiments.startup import Times, compile_times, import_times
from experiments.table import print_table

SHORTEST = 0.05
"""Seconds that a case takes at least in a round: shorter ones are repeated."""

PAUSE = 0.02
"""Seconds of rest before a case: threads of the case before it may still spin, and torch's take ours their cores."""

BUSY = 0.5
"""Load average above which the machine counts as busy."""

INSTALL_TORCH = "pip install -c constraints.txt -e '.[bench]' adds it"


@dataclass(frozen=True)
class Arguments:
    """What to measure, and how much."""

    rounds: int = 15
    """Rounds of each table. At least 9 of "import", at most 3 of "compile"."""

    batch_size: int = 64
    """Images of a step or an inference."""

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


@dataclass(frozen=True)
class Table:
    """One table.

    Attributes:
        title: its heading.
        measure: from the rounds to the seconds of each candidate in each round.
        images: how many images each candidate takes; None where that means nothing.
    """

    title: str
    measure: Callable[[int], Times]
    images: int | None = None


def run(arguments: Sequence[str] | None = None) -> None:
    """Parses the command line, measures and prints."""
    options = parse(Arguments, arguments, prog="python -m experiments.benchmark", description=__doc__)
    quiet_libraries()
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # the other side needs memory as well
    load = os.getloadavg()[0]
    work = Workload(options.batch_size, options.image_size, options.width)
    check(options, work)
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.open("a").close()  # a place that cannot be written is found now, and not after the measuring

    about = machine() | {"load_average": round(load, 2)}
    print(", ".join(f"{name.replace('_', ' ')} {value}" for name, value in about.items()))
    if load > BUSY:
        print(f"The machine is busy (load average {load:.2f} before the start): times and ratios will scatter.")
    chosen = select(options, work)
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
        print_table(*columns(times, table.images))
        results[name] = {"title": table.title, "seconds": times}
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


def tables(work: Workload) -> dict[str, Table]:
    """Every table for one workload."""
    single = dataclasses.replace(work, batch_size=1)
    channels = f"moving 116 channels, {work.batch_size} images, {work.dtype}"
    network = f"ShuffleNetV2 {work.width}x, {work.image_size}x{work.image_size}, {work.dtype}"
    batch = f"batch {work.batch_size}"

    def table(title: str, candidates: Callable[..., Cases], work: Workload, images: bool = True) -> Table:
        return Table(title, lambda rounds: measure(candidates(work), rounds), work.batch_size if images else None)

    forward, backward = (partial(cases.moving_channels, backward=b) for b in (False, True))
    return {
        "permute": table(f"{channels}, forward", forward, work, images=False),
        "permute-gradient": table(f"{channels}, forward and backward", backward, work, images=False),
        "depthwise": table("depthwise 3x3, forward and backward", cases.depthwise, work, images=False),
        "grouped": table("grouped 1x1 in 3 groups, forward and backward", cases.grouped_pointwise, work, images=False),
        **mixing_tables(work),
        "inference": table(f"{network}, inference, {batch}", cases.inference, work),
        "inference-1": table(f"{network}, inference, batch 1", cases.inference, single),
        "training": table(f"{network}, training step, {batch}", cases.training, work),
        "torch-inference": table(f"{network}, inference, {batch}", torch_inference, work),
        "torch-inference-1": table(f"{network}, inference, batch 1", torch_inference, single),
        "torch-training": table(f"{network}, training step without augmentation, {batch}", torch_training, work),
        "compile": Table(f"{network}, training step, before it can run", partial(compile_times, work)),
        "import": Table("a new interpreter that imports", import_times),
    }


def mixing_tables(work: Workload) -> dict[str, Table]:
    """The tables of Kronecker products and of 1x1 layers, one for each stage of the network."""

    def table(title: str, candidates: Callable[..., Cases], channels: int, backward: bool) -> Table:
        title = f"{title}, {work.batch_size} images, {work.dtype}, {'forward and backward' if backward else 'forward'}"
        return Table(title, lambda rounds: measure(candidates(work, channels, backward), rounds))

    found: dict[str, Table] = {}
    for channels in mixing_cases.CHANNELS:
        for suffix, backward in (("", False), ("-gradient", True)):
            title, half = f"mixing {channels} channels", channels // 2
            found[f"kronecker-{channels}{suffix}"] = table(title, mixing_cases.kronecker_mixing, channels, backward)
            title = f"1x1 layer of {half} channels"
            found[f"pointwise-{half}{suffix}"] = table(title, mixing_cases.static_dynamic, channels, backward)
    return found


def torch_inference(work: Workload) -> Cases:
    """Logits of a batch, torch's and ours."""
    from experiments import peer_cases

    return peer_cases.inference(work)


def torch_training(work: Workload) -> Cases:
    """A training step, torch's and ours."""
    from experiments import peer_cases

    return peer_cases.training(work)


def measure(cases: Cases, rounds: int) -> Times:
    """Seconds of each case in each round, the cases in turn, after one run of each that compiles.

    A case shorter than ``SHORTEST`` runs several times in a round, one run after the other; its time is their average.
    """
    repeats = {}
    for name, case in cases.items():
        jax.block_until_ready(case())
        started = time.perf_counter()
        jax.block_until_ready(case())
        repeats[name] = max(1, math.ceil(SHORTEST / (time.perf_counter() - started)))
    times: Times = {name: [] for name in cases}
    for _ in range(rounds):
        for name, case in cases.items():
            time.sleep(PAUSE)
            started = time.perf_counter()
            for _ in range(repeats[name]):
                jax.block_until_ready(case())
            times[name].append((time.perf_counter() - started) / repeats[name])
    return times


def columns(times: Times, images: int | None) -> tuple[list[str], list[list[str | int]]]:
    """The table's headings, and a row for each case: median time, images per second, ratio to the first case."""
    headings = ["", "median_ms", *(["images/s"] if images else []), "ratio_min", "ratio_median", "ratio_max"]
    first = next(iter(times.values()))
    rows: list[list[str | int]] = []
    for name, values in times.items():
        median = statistics.median(values)
        ratios = [value / base for value, base in zip(values, first, strict=True)]
        spread = (min(ratios), statistics.median(ratios), max(ratios))
        speed = [round(images / median)] if images else []
        time_ms = f"{1e3 * median:.0f}" if median >= 0.1 else f"{1e3 * median:.3g}"
        rows.append([name, time_ms, *speed, *(f"{ratio:.2f}" for ratio in spread)])
    return headings, rows


def check(options: Arguments, work: Workload) -> None:
    """Raises ValueError for what cannot be measured, before anything is."""
    for name in ("rounds", "batch_size", "image_size"):
        if getattr(options, name) < 1:
            raise ValueError(f"{name} is {getattr(options, name)}: give 1 or more")
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
