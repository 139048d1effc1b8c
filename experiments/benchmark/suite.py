"""The numerical tests of the library on the device that is measured, a file at a time."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from functools import partial
from pathlib import Path

from experiments.benchmark import machine
from experiments.benchmark.effort import Effort, OutOfTime
from experiments.benchmark.measuring import Result
from experiments.benchmark.showing import Rows, Table

ROOT = Path(__file__).parents[2]

FOLDER = "tests/ops"
"""What the operations compute; everything else is made of them."""

PLATFORMS = {"cpu": "cpu", "gpu": "cuda,cpu", "tpu": "tpu,cpu"}
"""What JAX is told to compute on, by the name that it gives; some tests look at programs for the CPU besides."""


def suite_tables(device: str) -> dict[str, Table]:
    """A table for each file of tests, of passed and failed ones.

    Raises:
        ValueError: the tests or pytest are not here.
    """
    files = sorted((ROOT / FOLDER).glob("test_*.py"))
    if not files or not machine.is_there("pytest"):
        raise ValueError(f"there are no tests in {ROOT / FOLDER}, or no pytest: run it in a clone after make install")
    names = [f"{FOLDER}/{file.name}" for file in files]
    return {name: Table("numerical tests", partial(run_tests, name, device), show=counts) for name in names}


def run_tests(path: str, device: str, effort: Effort) -> Result:
    """Runs the tests of a file in a process of their own, products of float32 in float32.

    Raises:
        ArithmeticError: some failed, or none ran.
        OutOfTime: the time was over.
    """
    environment = os.environ | {
        "JAX_PLATFORMS": PLATFORMS.get(device, device),
        "JAX_DEFAULT_MATMUL_PRECISION": "highest",
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
    }
    command = [sys.executable, "-m", "pytest", "-q", "-rf", "-m", "", "--tb=no", "--durations=0", path]
    left = effort.left()
    try:
        done = subprocess.run(
            command,
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=None if left == float("inf") else left,
        )
    except subprocess.TimeoutExpired:
        raise OutOfTime from None
    counted = {word: int(count) for count, word in re.findall(r"(\d+) (passed|failed|error|skipped)", done.stdout)}
    if done.returncode:
        failed = re.findall(r"^(?:FAILED|ERROR) \S*?::(\S+)", done.stdout, re.MULTILINE)
        last = (done.stdout + done.stderr).strip().rpartition("\n")[2]
        raise ArithmeticError(f"{', '.join(failed) or 'the tests'} failed: {last}")
    return {"tests": counted}


def counts(table: Table, result: Result) -> Rows:
    """How many tests passed and were skipped."""
    counted = result["tests"]
    return ["", "passed", "skipped"], [[table.title, counted.get("passed", 0), counted.get("skipped", 0)]]
