"""Files that are there whole or not at all, and disk errors that say which file."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from pathlib import Path


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
