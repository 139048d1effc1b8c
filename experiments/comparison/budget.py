"""The time that a command may take: what trains when it is over is stopped as by a signal, and goes on another time."""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType

AGAIN = 1.0
"""Seconds between two signals: a training that has not begun does not heed the first."""


@contextlib.contextmanager
def limited(minutes: float | None) -> Iterator[threading.Event]:
    """Sends this process SIGTERM when the time is over, again and again until the end of the context.

    A training saves and stops then. Where nothing trains the signal does nothing; one that somebody else sends, before
    the time is over, ends the process there as it does without a limit.

    Args:
        minutes: counted from here; None for no limit.

    Yields:
        What is set when the time is over.
    """
    over, ended = threading.Event(), threading.Event()
    if minutes is None:
        yield over
        return

    def watch() -> None:
        if ended.wait(60 * minutes):
            return
        over.set()
        print(f"the {minutes:g} minutes are over", file=sys.stderr, flush=True)
        while not ended.is_set():
            signal.raise_signal(signal.SIGTERM)
            ended.wait(AGAIN)

    def heed(number: int, frame: FrameType | None) -> None:
        if not over.is_set():
            raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, heed)
    thread = threading.Thread(target=watch, daemon=True, name="budget")
    thread.start()
    try:
        yield over
    finally:
        ended.set()
        thread.join()  # no signal comes after this
        signal.signal(signal.SIGTERM, before)
