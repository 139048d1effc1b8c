"""What all commands share: one clear line for a mistake, and libraries that keep quiet."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable

WRONG_INPUT, FAILED = 2, 1


def main(run: Callable[[], None]) -> None:
    """Runs a command and ends the process with an exit code.

    Mistakes in the input end with one line on standard error and code 2, a run that went wrong by its numbers with
    code 1, a signal with 128 plus its number. Everything else is a defect and shows its traceback.

    Args:
        run: the command; reads ``sys.argv``.
    """
    try:
        run()
    except (ValueError, FileNotFoundError) as error:
        sys.exit(_report(str(error), WRONG_INPUT))
    except ArithmeticError as error:
        sys.exit(_report(str(error), FAILED))
    except KeyboardInterrupt:
        sys.exit(_report("interrupted", 130))
    except BrokenPipeError:
        # Whoever read the output has seen enough. Keep Python from complaining when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except Exception as error:
        signal = getattr(error, "signal", None)
        if signal is None:
            raise
        sys.exit(_report(f"{error}; continue with --resume", 128 + signal))


def quiet_libraries() -> None:
    """Silences the informative messages of JAX, orbax and XLA; warnings and errors stay."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "1")
    for name in ("absl", "jax", "orbax"):
        logging.getLogger(name).setLevel(logging.ERROR)


def _report(message: str, code: int) -> int:
    print(message, file=sys.stderr, flush=True)
    return code
