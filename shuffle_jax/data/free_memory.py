"""How much memory is free, on the devices and on the host."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from jax.sharding import Mesh

GUESS = 4 << 30
"""Bytes taken to be free where nothing says how many are."""


def free_device_memory(mesh: Mesh) -> int:
    """Bytes that are free on each of the devices of this process.

    A device that counts its memory says so itself. The memory of a CPU is that of the host: its devices share it,
    each with a copy of its own beside the one that was read. Of other devices it is a guess.
    """
    devices = list(mesh.local_devices)
    if devices[0].platform == "cpu":
        return free_host_memory() // (len(devices) + 1)
    counts = [device.memory_stats() or {} for device in devices]
    return min(count["bytes_limit"] - count["bytes_in_use"] if "bytes_limit" in count else GUESS for count in counts)


def free_host_memory(proc: Path = Path("/proc"), cgroups: Path = Path("/sys/fs/cgroup")) -> int:
    """Bytes of the host that this process may still use.

    What Linux calls available, and no more than the control groups of this process leave, by which containers and
    batch systems limit it. On other systems half of the memory there is, and a guess where that is not known.

    Args:
        proc: where Linux says what is available.
        cgroups: where it says what is left to control groups.
    """
    available = _fields(proc / "meminfo").get("MemAvailable:")
    if available is None:
        names = getattr(os, "sysconf_names", {})
        known = "SC_PHYS_PAGES" in names and "SC_PAGE_SIZE" in names
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2 if known else GUESS
    return min([1024 * available, *_left_to_groups(proc, cgroups)])


def _left_to_groups(proc: Path, cgroups: Path) -> Iterator[int]:
    """What each control group leaves of its limit; files in memory that can be dropped are not counted as used."""
    for line in _lines(proc / "self/cgroup"):
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            root, limit, used, dropped = cgroups, "memory.max", "memory.current", "inactive_file"
        elif "memory" in controllers.split(","):
            root, limit, used = cgroups / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes"
            dropped = "total_inactive_file"
        else:
            continue
        group = root / path.lstrip("/")
        for folder in (group, *group.parents):
            if folder.is_relative_to(root):  # in a container the path may be that of the host, and only the root exist
                most, now = _number(folder / limit), _number(folder / used)
                if most is not None and now is not None:
                    yield max(0, most - now + _fields(folder / "memory.stat").get(dropped, 0))


def _fields(path: Path) -> dict[str, int]:
    """The numbers behind the first words of lines."""
    words = (line.split() for line in _lines(path))
    return {word[0]: int(word[1]) for word in words if len(word) > 1 and word[1].isdigit()}


def _number(path: Path) -> int | None:
    """The one number of a file; None where there is no file, or no limit in it."""
    lines = _lines(path)
    return int(lines[0]) if lines and lines[0].isdigit() else None


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:
        return []
