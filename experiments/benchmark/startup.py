"""What it takes before the first step: compilation without a cache, and imports. Each in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from experiments.benchmark.effort import Effort, Times

if TYPE_CHECKING:
    from experiments.benchmark.cases import Workload

COMPILE = """
import time
from experiments.benchmark.cases import Workload, lower_training
work, mixer = {work!r}, {mixer!r}
started = time.perf_counter()
lowered = lower_training(work, mixer)
traced = time.perf_counter()
lowered.compile()
print(traced - started, time.perf_counter() - traced)
"""
MIXERS = {"fixed shuffle": "shuffle", "learned, relaxed": "auto"}
IMPORTS = {"import jax": "import jax", "import jax, shuffle_jax.ops": "import jax, shuffle_jax.ops"}
LEAST_IMPORTS, MOST_COMPILATIONS = 9, 3


def compile_times(work: Workload, effort: Effort) -> dict[str, Times]:
    """Seconds of tracing and of compiling the training step with a fixed and with learned shuffles, in turn.

    The processes are new and the persistent cache is off, so that nothing is reused. A compilation takes seconds and
    varies little: there are at most ``MOST_COMPILATIONS`` rounds.
    """
    times: Times = {f"{label}, {part}": [] for label in MIXERS for part in ("compiling", "tracing")}
    for _ in range(min(effort.rounds, MOST_COMPILATIONS)):
        for label, mixer in MIXERS.items():
            effort.left()
            tracing, compiling = map(float, run_python(COMPILE.format(work=work, mixer=mixer)).split()[-2:])
            times[f"{label}, tracing"].append(tracing)
            times[f"{label}, compiling"].append(compiling)
    return {"seconds": times}


def import_times(effort: Effort) -> dict[str, Times]:
    """Seconds that a new interpreter takes for JAX alone and for ``shuffle_jax.ops`` as well, in turn.

    An import is short and varies much: there are at least ``LEAST_IMPORTS`` rounds, after one that is not counted and
    leaves the files in memory.
    """
    times: Times = {label: [] for label in IMPORTS}
    for warm in [False] + [True] * max(effort.rounds, LEAST_IMPORTS):
        for label, code in IMPORTS.items():
            effort.left()
            started = time.perf_counter()
            run_python(code)
            if warm:
                times[label].append(time.perf_counter() - started)
    return {"seconds": times}


def run_python(code: str) -> str:
    """What a new interpreter prints for this code, without JAX's persistent compilation cache.

    Raises:
        RuntimeError: the code failed; with its last line on standard error.
    """
    root = str(Path(__file__).parents[2])
    paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths), "JAX_ENABLE_COMPILATION_CACHE": "false"}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        last = done.stderr.strip().rpartition("\n")[2]
        raise RuntimeError(f"a measuring process ended with code {done.returncode}: {last}")
    return done.stdout
