"""How every test runs: as two CPU devices, under JAX's strict settings, compilations kept between runs.

This file stands at the root and not in tests/ because the doctests of shuffle_jax/ must run under it as
well, also when only they are asked for. The settings go through the environment, before JAX is imported, so
that the processes which tests start inherit them.
"""

from __future__ import annotations

import ctypes
import gc
import os
import runpy
import signal
import sys
from collections import Counter
from pathlib import Path

import hypothesis
import pytest

assert "jax" not in sys.modules, "a pytest plugin imported jax before conftest.py could configure it"

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["JAX_NUMPY_DTYPE_PROMOTION"] = "strict"
os.environ["JAX_NUMPY_RANK_PROMOTION"] = "raise"
os.environ["MPLBACKEND"] = "Agg"  # figures need no display

# Every compilation is kept, however short: most tests are nothing else. `pytest --cache-clear` empties it.
# Processes that run at the same time keep their own: JAX would read an entry that another one is still writing.
worker = os.environ.get("PYTEST_XDIST_WORKER", "")
os.environ["JAX_COMPILATION_CACHE_DIR"] = str(Path(__file__).parent / ".pytest_cache" / "d" / f"jax{worker}")
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"

# Most of a test is compilation, and a third of that is LLVM making programs fast that run once. The passes of XLA stay:
# what is fused and what a program holds is as users get it. `make test-all` runs the slow tests with them, as users do.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")

# A shell that starts the tests in the background has Ctrl-C ignored, and processes inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Two devices, never more: a collective over more devices than cores can dead-lock.
DEVICES = "--xla_force_host_platform_device_count"
if DEVICES not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {DEVICES}=2".strip()

hypothesis.settings.register_profile(
    "shuffle_jax",
    deadline=None,  # the first example of a shape compiles
    max_examples=20,
    derandomize="CI" in os.environ,
)
hypothesis.settings.load_profile("shuffle_jax")

TESTS = Path(__file__).parent / "tests"
if os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] == "1":  # the slow tests run the library as users do
    runpy.run_path(str(TESTS / "annotations.py"))["install"]()

LONGEST_FIRST = ("train", "experiments", "deploy", "models", "data", "nn", "ops", "analysis", "problems")
"""Folders of tests/, whose files go to the processes in this order: a long file that begins last is waited for."""


@pytest.hookimpl(tryfirst=True)  # before -m chooses
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Sorts by folder, doctests last; of a test with ``fast_cases(n)`` all cases but the first n are slow."""
    cases: Counter[tuple[Path, str]] = Counter()
    for item in items:
        if (mark := item.get_closest_marker("fast_cases")) is not None:
            place = item.path, item.nodeid.partition("[")[0]
            cases[place] += 1
            if cases[place] > mark.args[0]:
                item.add_marker(pytest.mark.slow)
    order = [TESTS / folder for folder in LONGEST_FIRST] + [TESTS]
    items.sort(key=lambda item: next((i for i, at in enumerate(order) if at in item.path.parents), len(order)))


def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    """Lets go of what a file compiled, and of what glibc keeps of it: at the end it would be gigabytes."""
    if "jax" in sys.modules and (nextitem is None or item.path != nextitem.path):
        sys.modules["jax"].clear_caches()
        gc.collect()
        if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "malloc_trim"):
            libc.malloc_trim(0)
