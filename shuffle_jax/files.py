"""Files that are there whole or not at all, files that one process holds, and disk errors that say which file."""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
from collections.abc import Iterator, Mapping
from datetime import datetime
from pathlib import Path
from zipfile import BadZipFile

import numpy as np

try:
    import fcntl
except ImportError:  # Windows: nothing is held there
    fcntl = None  # type: ignore[assignment]

_held: set[int] = set()
"""Descriptors of the files that this process holds."""


@contextlib.contextmanager
def held(path: Path) -> Iterator[bool]:
    """Holds a file that one process can hold at a time, and removes it at the end.

    The hold ends with the process, however it ends; what a killed one left is taken over. On a file system without
    locks nothing is held.

    Args:
        path: of the file; it says who holds it.

    Yields:
        Whether it is held; False if another process holds it, which :func:`holder` names.
    """
    descriptor = _hold(path)
    if descriptor is None:
        yield False
        return
    try:
        yield True
    finally:
        with contextlib.suppress(OSError):
            path.unlink()  # before it is let go: who opened it meanwhile sees that it is gone, see _hold
        _held.discard(descriptor)
        os.close(descriptor)


def holder(path: Path) -> str | None:
    """Who holds a file by :func:`held`, such as ``"process 12 on host a since 2026-11-28 17:40:03"``, or None."""
    try:
        with path.open("rb") as file:
            if fcntl is None or not _is_locked(file.fileno()):
                return None
            who = json.loads(file.read() or b"{}")
    except (OSError, ValueError):
        return None
    if not who:  # it is just being written
        return "another process"
    return f"process {who['pid']} on {who['host']} since {who['since']}"


def _is_locked(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    fcntl.flock(descriptor, fcntl.LOCK_UN)
    return False


def _hold(path: Path) -> int | None:
    """A descriptor that holds the file, None if another process has one."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            if fcntl is not None:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return None
        except OSError:  # a file system without locks
            break
        if fcntl is None or (path.exists() and os.path.samestat(os.fstat(descriptor), path.stat())):
            break
        os.close(descriptor)  # of a file that was removed since it was opened
    who = {"pid": os.getpid(), "host": socket.gethostname(), "since": datetime.now().isoformat(" ", "seconds")}
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, json.dumps(who).encode(), 0)
    _held.add(descriptor)
    return descriptor


def _let_go() -> None:
    """In a forked child, which would hold what its parent holds beyond the parent's end."""
    for descriptor in _held:
        os.close(descriptor)
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go)


def replace_file(path: Path, content: bytes) -> None:
    """Writes a file in one move: a crash or a full disk leaves the old content or the new, never a part."""
    with replacing(path) as temporary, temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A path to write to, which then takes the place of ``path``; what could not be written whole is removed."""
    partial = temporary(path)
    with naming(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield partial
            os.replace(partial, path)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise


def temporary(path: Path) -> Path:
    """Where a file is written before it takes its place."""
    return path.with_name(path.name + ".tmp")


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Errors of the disk name ``path`` where the system does not say which file it was."""
    try:
        yield
    except OSError as error:
        if error.filename is None and error.errno is not None:
            error.filename = str(path)
        raise


@contextlib.contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Errors of the disk, which libraries raise as many kinds of exceptions, as OSError with a path."""
    try:
        yield
    except Exception as error:
        number = _error_number(error)
        if number is None:
            raise
        raise OSError(number, os.strerror(number), str(path)) from error


def _error_number(error: BaseException | None) -> int | None:
    """The system's error behind an exception: an OSError's, or the one in a message of tensorstore."""
    while error is not None:
        if isinstance(error, OSError) and error.errno is not None:
            return error.errno
        told = re.search(r"os_error_code='(\d+)'", str(error))
        if told:
            return int(told[1])
        error = error.__cause__ or error.__context__
    return None


def load_arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a .npz file.

    Raises:
        ValueError: the file holds something else.
    """
    try:
        with np.load(path, allow_pickle=False) as file:  # objects could run code
            return {key: file[key] for key in file.files}
    except (ValueError, TypeError, EOFError, BadZipFile) as error:
        raise ValueError(f"{path} does not hold plain arrays ({error}): restore or remove it") from error


def save_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes arrays to a .npz file, in one move."""
    with replacing(path) as partial, partial.open("wb") as file:
        np.savez_compressed(file, allow_pickle=False, **arrays)
