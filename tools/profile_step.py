"""Where the time of a training step goes on the CPU: `python tools/profile_step.py [--family resnet --depth 18 ...]`.

Takes steps on random images on one core, where operations follow one another and their times add up to the step's, and
adds up, for each kind of operation, the least time that each of them took. Beside products of matrices stands their
rate, and beside the sum how long the step took without the profiler.
"""

from __future__ import annotations

import argparse
import collections
import gzip
import json
import math
import os
import re
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

STEPS = 9
INSTRUCTION = re.compile(r"\s*(?:ROOT )?%(\S+) = (\(.*?\)|\S+) ([\w\-]+)\(([^)]*)\)(.*)")
"""Name, type (of several results in brackets), operation, operands and the rest."""

KINDS = {
    # What a kind's name is in the path of an operation, the first that is there.
    "conv_general_dilated": "convolutions",
    "dot_general": "products",
    "depthwise": "depthwise convolutions",
    "norm": "norms",
    "stem": "the rest of the stem",
    "concatenate": "concatenations, splits",
    "split": "concatenations, splits",
    "select": "activations, sums",
    "max": "activations, sums",
    "min": "activations, sums",
    "add": "activations, sums",
}


def main() -> None:
    """Parses the command line, trains and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--family", default="shufflenet_v2")
    parser.add_argument("--depth", type=int)
    parser.add_argument("--mixer", default="shuffle")
    parser.add_argument("--stem", default="small")
    parser.add_argument("--image-size", type=int, default=32)
    parser.add_argument("--batch-size", type=int, default=64)
    options = parser.parse_args()
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})  # before JAX counts the cores
    os.environ |= {"JAX_PLATFORMS": "cpu"}
    sys.path.insert(0, str(Path(__file__).parents[1]))
    from experiments.cli.allocator import keep_freed_memory

    keep_freed_memory()
    own = ("family", "depth", "mixer", "stem")
    times, text, alone = profile({name: getattr(options, name) for name in own}, options.batch_size, options.image_size)
    show(times, text, alone)


def profile(network: dict[str, Any], batch_size: int, image_size: int) -> tuple[dict[str, float], str, float]:
    """The least milliseconds of each operation, the compiled program, and the least of a step without the profiler."""
    import jax
    import jax.numpy as jnp
    import optax

    from experiments.benchmark.cases import CLASSES, Workload, random_batch, train_step
    from shuffle_jax.models import NetworkConfig, build
    from shuffle_jax.train.optimizer import OptimizerConfig, make_optimizer
    from shuffle_jax.train.state import init_state

    work = Workload(batch_size=batch_size, image_size=image_size)
    built = build(NetworkConfig(**{name: value for name, value in network.items() if value is not None}), CLASSES)
    optimizer = make_optimizer(OptimizerConfig(), optax.constant_schedule(1e-3))
    images = jnp.zeros((1, image_size, image_size, 3))
    state = jax.jit(lambda: init_state(jax.random.key(0), built, images, optimizer))()
    batch = random_batch(work)
    step = train_step(built).lower(state, batch).compile()  # type: ignore[attr-defined]
    alone = []
    for _ in range(STEPS):
        began = time.perf_counter()
        state, _ = jax.block_until_ready(step(state, batch))
        alone.append(1e3 * (time.perf_counter() - began))
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            for _ in range(STEPS):
                state, _ = jax.block_until_ready(step(state, batch))
        (path,) = Path(folder).rglob("*.trace.json.gz")
        events = json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]
    return own_times(events), step.as_text(), min(alone)


def own_times(events: list[dict]) -> dict[str, float]:
    """The least milliseconds that each operation took in a step, without those that ran inside it."""
    runs = collections.defaultdict(list)
    threads = collections.defaultdict(list)
    for event in events:
        if "hlo_op" in (event.get("args") or {}):
            threads[event["pid"], event["tid"]].append(event)
    for found in threads.values():
        outer: list[tuple[float, list[float]]] = []  # when each that still runs ends, and its own time
        for event in sorted(found, key=lambda e: (e["ts"], -e["dur"])):
            while outer and outer[-1][0] <= event["ts"]:
                outer.pop()
            run = [event["dur"] / 1e3]
            runs[event["args"]["hlo_op"]].append(run)
            if outer:
                outer[-1][1][0] -= run[0]
            outer.append((event["ts"] + event["dur"], run))
    return {name: least(times) for name, times in runs.items()}


def least(times: list[list[float]]) -> float:
    """The least of the steps; what is run several times in a step, in a loop, counts as often."""
    each = max(1, len(times) // STEPS)
    return min(sum(time for (time,) in times[k : k + each]) for k in range(0, len(times) - each + 1, each))


def show(times: dict[str, float], text: str, alone: float) -> None:
    """Prints a line for each kind, the longest first."""
    found = {match[1]: match for match in map(INSTRUCTION.match, text.splitlines()) if match}
    total: dict[str, float] = collections.defaultdict(float)
    operations: dict[str, list[float]] = collections.defaultdict(list)
    for name, milliseconds in times.items():
        kind = kind_of(found[name])
        total[kind] += milliseconds
        operations[kind].append(multiply_adds(found, name))
    whole = sum(total.values())
    print(f"a step takes {alone:.0f} ms on one core, its operations in the profile {whole:.0f} ms")
    for kind, milliseconds in sorted(total.items(), key=lambda item: -item[1]):
        # Only where all are products of two matrices.
        rate = f"  {2e-6 * sum(operations[kind]) / milliseconds:.0f} GFLOP/s" if all(operations[kind]) else ""
        print(f"{milliseconds:8.1f} ms {100 * milliseconds / whole:3.0f}%  {kind}{rate}")


def kind_of(instruction: re.Match) -> str:
    """A part of :data:`KINDS`, forward or of the gradient."""
    name, _, operation, _, rest = instruction.groups()
    path = (re.findall(r'op_name="([^"]*)"', rest) or [""])[0]
    product = operation == "dot" or name.startswith("ynn")
    if product and not path:  # XLA makes them of others, and gives them no name.
        return "convolutions, gradient by kernels"
    last = path.rpartition("/")[2]
    part = next((kind for word, kind in KINDS.items() if word in path), "others")
    if product and part != "convolutions" and "reduce" not in last:
        part = "products"
    return f"{part}, {'gradient' if 'transpose(' in path else 'forward'}"


def multiply_adds(found: dict[str, re.Match], name: str) -> float:
    """Of a product of two matrices (m, k), (k, n): the root of ``m k`` times ``k n`` times ``m n``; else 0."""
    operands = [found[operand][2] for operand in re.findall(r"%([\w.\-]+)", found[name][4]) if operand in found]
    shapes = [re.findall(r"\d+", shape.partition("[")[2].partition("]")[0]) for shape in (*operands, found[name][2])]
    if len(shapes) != 3 or any(len(shape) != 2 for shape in shapes):
        return 0
    return math.sqrt(math.prod(math.prod(map(int, shape)) for shape in shapes))


if __name__ == "__main__":
    main()
