"""Memory that a command frees is there for what it takes next, and nothing is changed beside a GPU."""

from __future__ import annotations

import subprocess
import sys

from experiments.cli import allocator

COUNT = """
import ctypes, resource, sys
import numpy as np
from experiments.cli.allocator import keep_freed_memory

if sys.argv[1] == "keep" and not keep_freed_memory():
    sys.exit("no glibc")
getattr(ctypes.CDLL(None), "prctl", lambda *_: 0)(41, 1, 0, 0, 0)  # no large pages, of which few would be counted
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    np.ones(2**26, np.uint8)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(mode):
    command = [sys.executable, "-c", COUNT, mode]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    return None if "no glibc" in done.stderr else int(done.stdout)


def test_a_block_that_was_freed_is_not_cleared_by_the_system_again():
    kept = faults("keep")
    if kept is not None:  # once and not ten times
        assert 4 * kept < faults("leave")


def test_nothing_is_changed_on_a_machine_with_an_accelerator(monkeypatch, tmp_path):
    (tmp_path / "nvidiactl").touch()
    monkeypatch.setattr(allocator, "ACCELERATORS", (str(tmp_path / "nvidiactl"),))
    monkeypatch.setattr(allocator.ctypes, "CDLL", lambda name: 1 / 0)
    monkeypatch.delenv("JAX_PLATFORMS")
    assert not allocator.keep_freed_memory()


def test_another_c_library_is_left_alone(monkeypatch):
    monkeypatch.setattr(allocator, "ACCELERATORS", ())
    monkeypatch.setattr(allocator.ctypes, "CDLL", lambda name: object())
    assert not allocator.keep_freed_memory()
