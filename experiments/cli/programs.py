"""Compiled programs, kept between runs: most of what a command takes before it computes anything."""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

UNUSED = 30 * 86400.0
"""Seconds after which a program that no command used is removed."""

LARGEST = 2 << 30
"""Bytes of all programs; more than these and the ones that were used longest ago are removed."""


def keep_programs() -> None:
    """Has JAX keep what it compiles, and use what earlier commands compiled.

    They are kept in the user's folder for such things, ``~/.cache/shuffle_jax``. JAX's own settings come first:
    ``JAX_COMPILATION_CACHE_DIR`` names another folder, and ``JAX_ENABLE_COMPILATION_CACHE=false`` keeps nothing. JAX
    finds a program by what it computes, for which devices, and by the versions of JAX and of its compiler. Instructions
    that one processor has and another has not are no part of that, so each kind of processor has a folder of its own.
    Where nothing can be written nothing is kept.
    """
    import jax

    values = jax.config.values
    if values["jax_compilation_cache_dir"] is not None or not values["jax_enable_compilation_cache"]:
        return
    folder = user_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tidy(folder)
    except OSError:
        return
    if not os.access(folder, os.W_OK):
        return
    # An entry that another process is still writing, or was killed over, is compiled again and not worth a word.
    warnings.filterwarnings("ignore", message="Error (reading|writing) persistent compilation cache entry")
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


def user_folder() -> Path:
    """The folder of this user's programs for processors of this kind."""
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "shuffle_jax" / f"programs-{_processor()}"


def tidy(folder: Path, now: float | None = None) -> None:
    """Removes the programs that were not used for long, and those used longest ago of too many.

    Args:
        folder: of programs.
        now: the time, as files have it.
    """
    found = sorted(_files(folder), reverse=True)  # the last used first
    oldest, total = (time.time() if now is None else now) - UNUSED, 0
    for used, size, path in found:
        total += size
        if used < oldest or total > LARGEST:
            with contextlib.suppress(OSError):  # another command may have removed it
                os.unlink(path)


def _files(folder: Path) -> Iterator[tuple[float, int, str]]:
    for entry in os.scandir(folder):
        with contextlib.suppress(OSError):
            about = entry.stat()
            yield max(about.st_atime, about.st_mtime), about.st_size, entry.path


def _processor() -> str:
    """A few letters by which processors with other instructions differ."""
    features = platform.processor()
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
        features = next((line for line in lines if line.startswith(("flags", "Features"))), features)
    return f"{platform.machine()}-{hashlib.sha256(features.encode()).hexdigest()[:8]}"
