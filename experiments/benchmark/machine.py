"""What the system tells of itself: what numbers depend on, who else computes, how much memory this process holds."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import platform
import threading
import time
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

PROC = Path("/proc")

ENGINES = ("torch", "onnxruntime")
"""What stands beside JAX."""


class Spent(NamedTuple):
    """Seconds of processor time so far, on the cores that this process may use.

    Attributes:
        others: of all other processes and of the kernel.
        stolen: that a hypervisor gave to other machines.
    """

    others: float
    stolen: float


def spent() -> Spent | None:
    """Who else has computed so far; None where the system does not tell.

    From the lines of /proc/stat for these cores: user, nice, system, irq and softirq, less what this process has used;
    and steal. The system counts in steps of 10 ms, so a difference of two is right to about one step for each core.
    """
    try:
        lines = (PROC / "stat").read_text().splitlines()
        tick = 1 / os.sysconf("SC_CLK_TCK")
        mine = {f"cpu{core}" for core in os.sched_getaffinity(0)}
    except (OSError, AttributeError, ValueError):
        return None
    own = time.process_time()
    rows = [list(map(int, values)) for name, *values in map(str.split, lines) if name in mine]
    if not rows or any(len(row) < 8 for row in rows):
        return None
    busy = sum(user + nice + system + irq + soft for user, nice, system, _, _, irq, soft, *_ in rows)
    return Spent(busy * tick - own, sum(row[7] for row in rows) * tick)


def running_threads() -> int | None:
    """How many threads of this process run or wait for a core, beside the one that asks; None if nobody tells."""
    found = 0
    try:
        for task in (PROC / "self" / "task").iterdir():
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it has just ended
                state = (task / "stat").read_text().rpartition(")")[2].split()[0]
                found += state == "R" and int(task.name) != threading.get_native_id()
    except OSError:
        return None
    return found


def resident(peak: bool = False) -> int | None:
    """Bytes of this process in memory, or the most that they have been; None where the system does not tell.

    Not ``ru_maxrss``: a new process inherits that of the one that starts it.
    """
    try:
        lines = (PROC / "self" / "status").read_text().splitlines()
    except OSError:
        return None
    sizes = [line.split()[1] for line in lines if line.startswith("VmHWM:" if peak else "VmRSS:")]
    return 1024 * int(sizes[0]) if sizes else None


def forget_peak() -> bool:
    """Sets the peak of the resident memory to what is resident; whether the system allows it."""
    try:
        (PROC / "self" / "clear_refs").write_text("5")
    except OSError:
        return False
    return True


def about() -> dict[str, str | int]:
    """What the numbers depend on."""
    import jax

    from shuffle_jax.sharding import cores

    known: dict[str, str | int] = {
        "device": jax.devices()[0].device_kind,
        "processor": processor(),
        "cores": cores(),
        "python": platform.python_version(),
        "jax": jax.__version__,
    }
    return known | {name: version(name) for name in ENGINES if is_there(name)}


def processor() -> str:
    """The name of the processor, where the system tells."""
    try:
        lines = (PROC / "cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def is_there(package: str) -> bool:
    """Whether a package is installed."""
    return importlib.util.find_spec(package) is not None
