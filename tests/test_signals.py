"""Signals are heard while the main thread is in C, as when XLA compiles."""

from __future__ import annotations

import hashlib
import os
import signal
import socket
import threading
import time

import pytest

from shuffle_jax.signals import Interruption, heard


def test_a_signal_is_acknowledged_before_python_comes_to_handle_it(monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[str] = []
    noted: list[int] = []

    class Stream:
        def write(self, text: str) -> None:
            written.append(text)
            noted.append(interruption.signal)

        def flush(self) -> None:
            pass

    monkeypatch.setattr("sys.stderr", Stream())
    rounds, took = 10_000, 0.0
    while took < 0.2:  # what computes so long in C, without Python's lock
        rounds, begun = 2 * rounds, time.perf_counter()
        hashlib.pbkdf2_hmac("sha256", b"", b"", rounds)
        took = time.perf_counter() - begun
    for _ in range(5):  # on a busy machine the signal may come too late
        written.clear()
        noted.clear()
        with Interruption("stopping after this step") as interruption:
            timer = threading.Timer(0.02, os.kill, (os.getpid(), signal.SIGINT))
            timer.start()
            hashlib.pbkdf2_hmac("sha256", b"", b"", rounds)
            timer.join()
            assert interruption.signal == signal.SIGINT
            with pytest.raises(KeyboardInterrupt):
                os.kill(os.getpid(), signal.SIGINT)
                time.sleep(1.0)
        assert "".join(written) == "stopping after this step; Ctrl-C again stops now\n"
        if noted[0] == 0:
            break
    assert noted[0] == 0
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_whoever_heard_signals_before_hears_them_too_and_again_afterwards() -> None:
    reader, writer = socket.socketpair()
    with reader, writer:
        reader.settimeout(5.0)
        writer.setblocking(False)
        before = signal.set_wakeup_fd(writer.fileno())
        try:
            numbers: list[int] = []
            with Interruption("") as interruption, heard(numbers.append):
                os.kill(os.getpid(), signal.SIGTERM)
                assert reader.recv(1)[0] == signal.SIGTERM == interruption.signal
            assert numbers == [signal.SIGTERM]
            assert signal.set_wakeup_fd(writer.fileno()) == writer.fileno()
        finally:
            signal.set_wakeup_fd(before)


def test_another_thread_than_the_main_one_leaves_signals_alone() -> None:
    found: list[object] = []

    def run() -> None:
        with Interruption("") as interruption:
            found.extend((signal.getsignal(signal.SIGINT), interruption.signal))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert found == [signal.default_int_handler, 0]
