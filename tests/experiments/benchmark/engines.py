"""Engines of the tests: no library but the standard one and NumPy, so that their processes start at once."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import numpy as np

from experiments.benchmark.engine import Built


def working(file: str, name: str, output: float = 1.0, names: str = "") -> Built:
    """Cases that write down when they begin and end, and whose output is a number."""

    def case(own: str):
        with Path(file).open("a") as log:
            log.write(f"{time.monotonic_ns()} begins {own} {os.getpid()}\n")
        time.sleep(0.11)
        with Path(file).open("a") as log:
            log.write(f"{time.monotonic_ns()} ends {own} {os.getpid()}\n")

    cases = {own: (lambda own=own: case(own)) for own in (names or name).split()}
    return Built(cases, lambda: {"numbers": np.array([2.0, output])})


def raising() -> Built:
    """Cannot be built."""
    raise RuntimeError("no such\n  kernel")


def dying(code: int) -> Built:
    """Is built, and dies of its first case."""

    def die() -> None:
        os.write(2, b"something else\nout of paper\n")
        if code < 0:
            os.kill(os.getpid(), -code)
        os._exit(code)

    return Built({"dying": die}, lambda: {"numbers": np.array([2.0, 1.0])})


def spinning() -> Built:
    """Has a thread that never rests."""

    def spin() -> None:
        while True:
            pass

    threading.Thread(target=spin, daemon=True).start()
    return Built({"spinning": lambda: None})


def holding(steps: int, before: int) -> Built:
    """Takes ``before`` bytes once and gives them back, and in each step ``steps`` bytes."""
    np.ones(before, np.uint8)
    return Built({"holding": lambda: np.ones(steps, np.uint8)}, lambda: {"numbers": np.array([2.0, 1.0])})


def waiting(file: str) -> Built:
    """Says who it is, and waits to be asked."""
    Path(file).write_text(str(os.getpid()))
    return Built({})


def sleeping(file: str) -> Built:
    """Says who it is, and then takes its time."""
    built = waiting(file)
    time.sleep(600)
    return built
