"""Measures what saving costs the training on a slow disk: `python tools/slow_disk.py`.

A disk is made slow by a library between this program and the system, compiled with `cc` and preloaded, that lets every
write take as long as it would at a given rate. ShuffleNetV2 1.0x is trained on random images and saved every few steps,
once on the disk as it is and once on the slow one. A line gives the time of a step while nothing is written, of one
while a checkpoint is being written, of the call that saves, and of the whole write.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]

SHIM = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <string.h>
#include <stdio.h>
#include <sys/uio.h>
#include <unistd.h>

/* Waits as long as a disk of SLOW_BYTES_PER_SECOND takes for some bytes, if they go below SLOW_FOLDER. */
static void wait_for(int file, size_t bytes) {
    const char *rate = getenv("SLOW_BYTES_PER_SECOND"), *folder = getenv("SLOW_FOLDER");
    char link[64], path[4096];
    if (!rate || !folder || bytes == 0) return;
    snprintf(link, sizeof link, "/proc/self/fd/%d", file);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length <= 0) return;
    path[length] = 0;
    if (strncmp(path, folder, strlen(folder)) == 0) usleep((useconds_t)(1e6 * bytes / atof(rate)));
}

ssize_t write(int file, const void *data, size_t bytes) {
    static ssize_t (*real)(int, const void *, size_t);
    if (!real) real = dlsym(RTLD_NEXT, "write");
    wait_for(file, bytes);
    return real(file, data, bytes);
}

ssize_t pwrite(int file, const void *data, size_t bytes, off_t offset) {
    static ssize_t (*real)(int, const void *, size_t, off_t);
    if (!real) real = dlsym(RTLD_NEXT, "pwrite");
    wait_for(file, bytes);
    return real(file, data, bytes, offset);
}

ssize_t writev(int file, const struct iovec *parts, int count) {
    static ssize_t (*real)(int, const struct iovec *, int);
    if (!real) real = dlsym(RTLD_NEXT, "writev");
    size_t bytes = 0;
    for (int i = 0; i < count; i++) bytes += parts[i].iov_len;
    wait_for(file, bytes);
    return real(file, parts, count);
}
"""


def train_and_save(folder: Path, steps: int, saves: int) -> dict[str, list[float]]:
    """Seconds of the parts: steps with no write going on, steps during one, calls of save, whole writes."""
    import jax
    import jax.numpy as jnp
    import numpy as np
    import optax

    from experiments.benchmark.cases import Workload, random_batch, shufflenet, train_step
    from shuffle_jax.train.checkpoint import Checkpoints
    from shuffle_jax.train.optimizer import OptimizerConfig, make_optimizer
    from shuffle_jax.train.state import init_state

    work = Workload(batch_size=8)
    network, optimizer = (
        shufflenet(work, "shuffle"),
        make_optimizer(OptimizerConfig(), optax.constant_schedule(1e-3)),
    )
    state = init_state(jax.random.key(0), network, jnp.zeros((1, 32, 32, 3)), optimizer)
    step, batch = train_step(network), random_batch(work)
    found: dict[str, list[float]] = {"step": [], "step_while_writing": [], "save": [], "write": []}
    found["megabytes"] = [sum(np.prod(leaf.shape) for leaf in jax.tree.leaves((state.params, state.opt_state))) * 4e-6]

    with Checkpoints(folder, keep=1) as checkpoints:

        def timed(steps: int, into: list[float]) -> None:
            nonlocal state
            for _ in range(steps):
                began = time.perf_counter()
                state, _ = step(state, batch)
                jax.block_until_ready(state)
                into.append(time.perf_counter() - began)

        timed(3, [])
        checkpoints.save(state)  # the first one makes threads and folders
        checkpoints.wait()
        for _ in range(saves):
            timed(steps, found["step"])
            saved = folder / str(int(state.step))
            began = time.perf_counter()
            checkpoints.save(state)
            found["save"].append(time.perf_counter() - began)
            while not saved.exists():
                timed(1, found["step_while_writing"])
            checkpoints.wait()
            found["write"].append(time.perf_counter() - began)
    return found


def measure(rate: float | None, steps: int, saves: int) -> dict[str, list[float]]:
    """What :func:`train_and_save` finds in a process of its own, on a disk that writes ``rate`` bytes a second."""
    with tempfile.TemporaryDirectory(prefix="slow_disk_") as temporary:
        folder = Path(temporary).resolve()
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": os.environ.get("JAX_PLATFORMS", "cpu")}
        if rate is not None:
            (folder / "slow.c").write_text(SHIM)
            library = folder / "slow.so"
            subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", library, folder / "slow.c", "-ldl"], check=True)
            environment |= {"LD_PRELOAD": str(library), "SLOW_BYTES_PER_SECOND": str(rate)}
            environment |= {"SLOW_FOLDER": str(folder / "checkpoints")}
        command = [sys.executable, __file__, "--child", str(folder / "checkpoints")]
        command += ["--steps", str(steps), "--saves", str(saves)]
        done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    """Parses the command line, measures both disks and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes-per-second", type=float, default=2.0, help="of the slow disk")
    parser.add_argument("--steps", type=int, default=30, help="between two saves")
    parser.add_argument("--saves", type=int, default=5)
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(train_and_save(options.child, options.steps, options.saves)))
        return
    for name, rate in (
        ("as it is", None),
        (f"{options.megabytes_per_second:g} MB/s", options.megabytes_per_second * 1e6),
    ):
        found = measure(rate, options.steps, options.saves)
        print(f"disk {name}, a state of {found['megabytes'][0]:.1f} MB; ms, minimum / median / maximum:")
        for part in ("step", "step_while_writing", "save", "write"):
            times = [1e3 * value for value in found[part]]
            spread = f"{min(times):.1f} / {statistics.median(times):.1f} / {max(times):.1f}" if times else "none"
            print(f"  {part.replace('_', ' '):20s} {spread}  ({len(times)})", flush=True)


if __name__ == "__main__":
    main()
