"""Reading the record of a run: one JSON object a line, as ``metrics.jsonl`` holds it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from shuffle_jax.typing import Float

Records = Sequence[Mapping[str, Any]]

NON_FINITE = {"nan": float("nan"), "inf": float("inf"), "-inf": float("-inf")}
"""How non-finite numbers are spelt: JSON has none, so they are written as these strings."""


def read_records(path: Path | str) -> list[dict[str, Any]]:
    """Reads a file of JSON lines, in the order they were written.

    The strings ``"nan"``, ``"inf"`` and ``"-inf"`` come back as floats. A last line that was cut short, as a
    run killed while writing leaves it, is ignored; so are empty lines.

    Args:
        path: the file.

    Returns:
        One dictionary a line.

    Raises:
        ValueError: a line other than a torn last one is not a JSON object.
        FileNotFoundError: there is no such file.
    """
    # A write that stopped in the middle of a multi-byte character must not keep the rest from being read.
    lines = Path(path).read_text(encoding="utf-8", errors="replace").split("\n")
    records = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            if number == len(lines):  # No newline behind it: the write was interrupted.
                break
            raise ValueError(
                f"{path}, line {number}: not a JSON object ({error}); remove the line or restore the file"
            ) from error
        if not isinstance(record, dict):
            raise ValueError(f"{path}, line {number}: not a JSON object ({type(record).__name__}); remove the line")
        records.append({key: _number(value) for key, value in record.items()})
    return records


def series(
    records: Records, kind: str, field: str, scale: float = 1.0
) -> tuple[Float[np.ndarray, " r"], Float[np.ndarray, " r"]]:
    """One number over time.

    Args:
        records: those of a run.
        kind: which of them to take.
        field: the name of the number; records without it are passed over.
        scale: what to multiply steps with, see ``clock``.

    Returns:
        The times and the numbers, both float64 (r,).
    """
    pairs = [(r["step"] * scale, r[field]) for r in records if r["kind"] == kind and field in r]
    times, numbers = np.array(pairs, np.float64).reshape(-1, 2).T
    return times, numbers


def clock(records: Records) -> tuple[float, str]:
    """What to multiply steps with, and the unit that gives: epochs where a record tells both."""
    for record in reversed(records):
        if record["step"] and record.get("epoch"):
            return record["epoch"] / record["step"], "epoch"
    return 1.0, "step"


def _number(value: Any) -> Any:
    """``value``, or the float that it spells when it is one of the non-finite strings."""
    return NON_FINITE.get(value, value) if isinstance(value, str) else value
