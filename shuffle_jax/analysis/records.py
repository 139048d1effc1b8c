"""Numbers over time, from the records of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from shuffle_jax.records import read_records
from shuffle_jax.typing import Float

__all__ = ["Records", "clock", "read_records", "series"]

Records = Sequence[Mapping[str, Any]]


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
