"""Runs as a whole: their names, who trains one, and what is left of one that failed to start or is to be resumed."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

import jax

from shuffle_jax import files
from shuffle_jax.distributed import is_lost
from shuffle_jax.run import Run


def check_resumable(run: Run, command: str) -> None:
    """Raises a ValueError unless there is a checkpoint to go on from; ``command`` resumes the run."""
    run.config()
    if run.steps():
        return
    if run.is_barely_begun():
        raise ValueError(
            f"{run.path} was stopped before its first checkpoint, there is nothing to resume; start it afresh "
            f"with: {command} --afresh"
        )
    raise ValueError(
        f"{run.path} has no checkpoints any more, and its records are left as they are: restore "
        f"{run.checkpoints} from a copy, or train it anew in another folder with: {command} --afresh"
    )


@contextlib.contextmanager
def held(run: Run) -> Iterator[None]:
    """Keeps other processes from training the run; the folder must be there.

    Raises:
        ValueError: another process does; the message says which.
    """
    with files.held(run.lock) as mine:
        if not mine:
            run.check_idle()
            raise ValueError(f"{run.path} was being trained by another process until now: try again")
        yield


@contextlib.contextmanager
def begun(run: Run) -> Iterator[None]:
    """Makes the folder and holds it; if what follows fails before anything was trained, it is removed again.

    Raises:
        ValueError: another process trains there.
    """
    made, keep = [path for path in (run.path, *run.path.parents) if not path.exists()], run.exists()
    run.path.mkdir(parents=True, exist_ok=True)
    with held(run):
        try:
            yield
        except BaseException as error:
            if not (keep or _is_worth_keeping(run, error)):
                _remove(run.path, made)
            raise


def _is_worth_keeping(run: Run, error: BaseException) -> bool:
    """Whether a new run that ended by an error has come to something."""
    # Numbers that went wrong are an outcome, too, and where another process was lost one looks at what there is.
    if isinstance(error, ArithmeticError) or (jax.process_count() > 1 and is_lost(error)):
        return True
    with contextlib.suppress(ValueError):  # records that were cut short
        return bool(run.steps()) or run.profile.exists() or run.recorded("train", "test") > 0
    return True


def _remove(folder: Path, made: list[Path]) -> None:
    """Removes a folder and those above that were made for it, or of one that was there before what is in it."""
    for path in made[:1] or folder.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # others may have put something there
        for path in made[1:]:
            path.rmdir()


def next_free(path: Path) -> Path:
    """The path itself if nothing is there, else the first of ``path-2``, ``path-3``, ... that is free."""
    number, candidate = 1, path
    while candidate.exists():
        number += 1
        candidate = path.with_name(f"{path.name}-{number}")
    return candidate


def newest(path: Path) -> Path | None:
    """The run that was started last among ``path``, ``path-2``, ..., of those that have checkpoints if any has."""
    runs = [p.parent for p in path.parent.glob(f"{path.name}*/config.json") if _is_numbered(p.parent.name, path.name)]
    runs = [run for run in runs if Run(run).steps()] or runs
    return max(runs, key=lambda run: (run / "config.json").stat().st_mtime_ns, default=None)


def _is_numbered(name: str, stem: str) -> bool:
    return name == stem or (name.startswith(f"{stem}-") and name[len(stem) + 1 :].isdigit())
