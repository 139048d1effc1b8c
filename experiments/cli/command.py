"""How a command runs and ends: one clear line for a mistake, an exit code, quiet libraries."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

from experiments.cli.allocator import keep_freed_memory
from experiments.cli.typed import as_typed
from shuffle_jax.signals import AGAIN, heard

WRONG_INPUT, FAILED, INTERRUPTED = 2, 1, 130
PATIENCE, GRACE = 0.5, 3.0
"""Seconds after which a person hears that Ctrl-C was heard, and after which a second one ends the process."""

TRACEBACK = "--traceback"

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
NOT_ALLOWED = (errno.EACCES, errno.EPERM, errno.EROFS)
NOT_A_FOLDER = (errno.ENOTDIR, errno.EEXIST, errno.EISDIR)


def main(run: Callable[[], None], end: Callable[[int], Any] | None = None) -> None:
    """Runs a command and ends the process with an exit code.

    Mistakes in the input and files that cannot be read or written end with one line on standard error and code 2, a
    run that went wrong by its numbers with code 1, a signal with 128 plus its number. Everything else is a defect and
    shows its traceback. With ``--traceback`` in ``sys.argv`` all of them show it, before the line.

    Args:
        run: the command; reads ``sys.argv``.
        end: what ends the process with the code, also with 0; by default Python does.
    """
    keep_freed_memory()
    before = sys.unraisablehook
    sys.unraisablehook = partial(_only_named, before)
    ended = threading.Event()
    try:
        with heard(partial(_interrupted, [], ended)):
            try:
                code = _code(run)
            finally:
                ended.set()
    except Exception:  # a defect
        if end is None:
            raise
        traceback.print_exc()
        code = FAILED
    if code or end:  # The hook stays: callbacks of a save that failed come as late as the end of the process.
        try:
            (end or sys.exit)(code)
        finally:
            if code > 128 and _is_command():
                _exit_now(code)
    sys.unraisablehook = before


def _code(run: Callable[[], None]) -> int:
    """Runs a command, reports what goes wrong, and returns the exit code."""
    try:
        run()
    except BrokenPipeError:
        # Whoever read the output has seen enough. Keep Python from complaining when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:
        return _report(_about_file(error), WRONG_INPUT)
    except ValueError as error:
        return _report(as_typed(str(error), sys.argv[1:]), WRONG_INPUT)
    except ArithmeticError as error:
        return _report(str(error), FAILED)
    except KeyboardInterrupt:
        return _report("interrupted", INTERRUPTED)
    except Exception as error:
        number = getattr(error, "signal", None)
        if number is None:
            raise
        return _report(f"{error}; continue with: {getattr(error, 'command', '')}", 128 + number)
    return 0


def _interrupted(before: list[int], ended: threading.Event, number: int) -> None:
    """Answers Ctrl-C where Python cannot, as it compiles; a training answers for itself, but for the second one.

    Nothing is lost by an end in the middle: what is written is written whole or not at all.
    """
    if number != signal.SIGINT:
        return
    before.append(number)
    if len(before) > 1:
        if not ended.wait(GRACE):
            if sys.stdout.isatty():
                os.write(1, b"\x1b[?25h\n")  # the cursor, which a progress bar had hidden
            os.write(2, b"interrupted\n")
            os._exit(INTERRUPTED)
    elif signal.getsignal(number) is signal.default_int_handler and not ended.wait(PATIENCE):
        print(f"interrupted: ends when the compilation that goes on is done; {AGAIN}", file=sys.stderr, flush=True)


def _is_command() -> bool:
    """Whether this process is a command, and no program that calls one."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    return spec is not None and spec.name.startswith("experiments.")


def _exit_now(code: int) -> None:
    """Ends a process that was told to stop: an orderly end waits for what XLA still compiles, and crashes then."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)


def quiet_libraries() -> None:
    """Silences what libraries say beside their exceptions; with ``--traceback`` their errors stay."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "1")
    for name in ("absl", "asyncio", "jax", "orbax"):
        logging.getLogger(name).setLevel(logging.ERROR if TRACEBACK in sys.argv else logging.CRITICAL)
    if TRACEBACK not in sys.argv:  # of a save that was being started when the disk was full
        warnings.filterwarnings("ignore", message="coroutine .* was never awaited", category=RuntimeWarning)


def _only_named(before: Callable[[Any], object], failure: Any) -> None:
    """Keeps what fails in a callback of a C++ library off standard error: those have no object to name.

    A save that meets a full disk would otherwise print a page for each array, beside the exception that it raises
    where it is awaited. So would a second Ctrl-C that falls into the collection of garbage; it ends the command anyway.
    """
    named = failure.object is not None and not issubclass(failure.exc_type, KeyboardInterrupt)
    if named or TRACEBACK in sys.argv:
        before(failure)


def _about_file(error: OSError) -> str:
    """What went wrong with which file, and what to do about it."""
    if error.errno is None:
        return str(error)
    if error.errno in NO_ROOM:
        remedy = "make room and try again; what was saved before is as it was"
    elif error.errno in NOT_ALLOWED:
        remedy = "change its permissions, or name another place"
    elif error.errno in NOT_A_FOLDER:
        remedy = "a file is in the way of a folder, or a folder of a file: name another place"
    else:
        remedy = "check the path"
    where = "" if error.filename is None else f"{os.fsdecode(error.filename2 or error.filename)}: "
    return f"{where}{error.strerror or os.strerror(error.errno)}; {remedy}"


def _report(message: str, code: int) -> int:
    if TRACEBACK in sys.argv:
        traceback.print_exc()
    print(" ".join(line.strip() for line in message.splitlines() if line.strip()), file=sys.stderr, flush=True)
    return code
