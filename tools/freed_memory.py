"""Measures what it saves that commands keep freed memory: `python tools/freed_memory.py [--family mobilenet_v2]`.

Trains on random images of 32 x 32 in processes of their own, in turn with the memory of a step given back to the
system, as glibc does by itself, and kept (experiments/cli/allocator.py). A line gives the time of a step, minimum,
median, maximum, and the time of the system and the page faults for one.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
WARM, STEPS = 5, 20


def train(family: str, keep: bool) -> None:
    """Trains and prints."""
    from experiments.cli.allocator import keep_freed_memory

    if keep and not keep_freed_memory():
        sys.exit("nothing is kept here: there is an accelerator, or another C library than glibc")
    import jax
    import jax.numpy as jnp
    import optax

    from experiments.benchmark.cases import CLASSES, Workload, random_batch, train_step
    from shuffle_jax.models import NetworkConfig, build
    from shuffle_jax.train.optimizer import OptimizerConfig, make_optimizer
    from shuffle_jax.train.state import init_state

    work = Workload(batch_size=64, image_size=32)
    mixer = "shuffle" if family.startswith("shufflenet") else "identity"
    network = build(NetworkConfig(family=family, mixer=mixer), CLASSES)
    optimizer = make_optimizer(OptimizerConfig(), optax.constant_schedule(1e-3))
    state = jax.jit(lambda: init_state(jax.random.key(0), network, jnp.zeros((1, 32, 32, 3)), optimizer))()
    step, batch = train_step(network), random_batch(work)
    times = []
    for number in range(WARM + STEPS):
        if number == WARM:
            before = resource.getrusage(resource.RUSAGE_SELF)
        began = time.perf_counter()
        state, _ = jax.block_until_ready(step(state, batch))
        times.append(1e3 * (time.perf_counter() - began))
    after, times = resource.getrusage(resource.RUSAGE_SELF), times[WARM:]
    print(
        f"{family}, {'kept' if keep else 'given back'}: "
        f"{min(times):.0f} / {statistics.median(times):.0f} / {max(times):.0f} ms a step, "
        f"{1e3 * (after.ru_stime - before.ru_stime) / STEPS:.0f} ms of the system, "
        f"{(after.ru_minflt - before.ru_minflt) / STEPS:,.0f} page faults",
        flush=True,
    )


def main() -> None:
    """Parses the command line and measures in turn."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--family", default="mobilenet_v2", help="mobilenet_v2 or shufflenet_v2")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--child", choices=["keep", "give"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        train(options.family, options.child == "keep")
        return
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    for _ in range(options.rounds):
        for child in ("give", "keep"):
            command = [sys.executable, __file__, "--family", options.family, "--child", child]
            subprocess.run(command, env=environment, check=True)


if __name__ == "__main__":
    main()
