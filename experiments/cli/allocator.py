"""What commands ask of the C library's memory allocator, before anything is computed."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

ACCELERATORS = ("/dev/nvidiactl", "/dev/kfd", "/dev/accel0", "/dev/vfio/vfio")
"""Files of drivers by which a machine shows a GPU or a TPU."""

TRIM_THRESHOLD, MMAP_MAX, ARENA_MAX = -1, -4, -8
"""Names of glibc's parameters in malloc.h."""


def keep_freed_memory() -> bool:
    """Has memory that is freed stay with this process, where XLA computes on the CPU and glibc allocates.

    XLA takes the memory of every step anew. Large blocks glibc asks of the system and gives back each time, and the
    system clears every page again when it is first touched: docs/results/training.md has what that costs. With
    one arena, no mapped blocks and no trimming, a step finds the memory of the one before.

    It has to come before any thread that allocates: those keep the arenas they have. With a GPU or a TPU nothing is
    changed: steps do not take the host's memory there, and threads that decode images would wait for one another.

    Returns:
        Whether it was done.
    """
    if os.environ.get("JAX_PLATFORMS") != "cpu" and any(Path(path).exists() for path in ACCELERATORS):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # another C library
        return False
    return all(mallopt(name, value) == 1 for name, value in ((ARENA_MAX, 1), (MMAP_MAX, 0), (TRIM_THRESHOLD, -1)))
