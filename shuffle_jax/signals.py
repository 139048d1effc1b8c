"""Signals that are heard at once, also while the main thread compiles and Python's own handlers have to wait."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType

AGAIN = "Ctrl-C again stops now"


@contextlib.contextmanager
def heard(hear: Callable[[int], object]) -> Iterator[None]:
    """Has a function called with every signal that comes, in a thread of its own and within milliseconds.

    The function of ``signal.signal`` is called by the main thread between two of Python's instructions, and one of
    them may be the compilation of a network. What heard the signals before hears them as well. In any other thread than
    the main one, which alone can ask for signals, nothing is heard.

    Args:
        hear: gets the number of a signal; only of those for which Python has a handler.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    reader, writer = socket.socketpair()
    writer.setblocking(False)
    before = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)

    def listen() -> None:
        while numbers := reader.recv(64):
            for number in numbers:
                if before >= 0:
                    with contextlib.suppress(OSError):
                        os.write(before, bytes([number]))
                hear(number)

    thread = threading.Thread(target=listen, daemon=True, name="signals")
    thread.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        writer.close()  # what was sent before is still read
        thread.join(1.0)
        reader.close()


class Interruption:
    """The first SIGINT or SIGTERM is noted and acknowledged; a second SIGINT raises KeyboardInterrupt.

    A context manager; outside of the main thread signals do what they did before.

    Attributes:
        signal: the number of the signal that came, 0 for none.
        answer: what is acknowledged, on standard error.
    """

    def __init__(self, answer: str) -> None:
        self.signal, self.answer = 0, answer
        self._acknowledged = False
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Interruption:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._stack.callback(signal.signal, number, signal.signal(number, self._note))
            self._stack.enter_context(heard(self._acknowledge))
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.signal and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal = number

    def _acknowledge(self, number: int) -> None:
        if number in (signal.SIGINT, signal.SIGTERM) and not self._acknowledged:
            self._acknowledged = True
            print(f"{self.answer}; {AGAIN}", file=sys.stderr, flush=True)
