"""What a run measured, and what the runs beside it that differ in nothing but their seeds did."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shuffle_jax.records import read_records
from shuffle_jax.run import Run
from shuffle_jax.train.config import TrainConfig, differences, read_config, to_json

SEEDS = ("seed", "data.seed")
"""Fields in which runs of one kind may differ."""


@dataclass(frozen=True)
class Measured:
    """Top-1 accuracies of one form of a network.

    Attributes:
        name: of the form, such as "hardened".
        value: of the run itself.
        all: of all runs of its kind, its own first.
    """

    name: str
    value: float
    all: tuple[float, ...]

    def spread(self) -> str:
        """Mean, deviation and extremes in per cent; empty for one run.

        >>> Measured("hardened", 0.98, (0.98, 0.99)).spread()
        '98.50 ± 0.71 (98.00 to 99.00) over 2 seeds'
        """
        if len(self.all) < 2:
            return ""
        found = [100 * value for value in self.all]
        mean, deviation = statistics.fmean(found), statistics.stdev(found)
        return f"{mean:.2f} ± {deviation:.2f} ({min(found):.2f} to {max(found):.2f}) over {len(found)} seeds"


def measured(run: Run, step: int) -> tuple[str, list[Measured]]:
    """What the end of a run measured.

    Args:
        run: the run.
        step: of the checkpoint; other steps have no results.

    Returns:
        "test" or "validation", and each form that was evaluated; none of a run that did not end at that step.
    """
    own = _results(run, step)
    split = next((str(r.get("split", "test")) for r in own.values()), "test")
    others = [_results(other) for other in alike(run)] if own else []
    found = []
    for name, record in own.items():
        values = [record["top1"], *(other[name]["top1"] for other in others if name in other)]
        found.append(Measured(name, record["top1"], tuple(map(float, values))))
    return split, found


def alike(run: Run) -> list[Run]:
    """The runs beside a run that differ from it in nothing but their seeds, each seed once."""
    mine = read_config(run)
    seen, found = {_seeds(mine)}, []
    for path in sorted(run.path.resolve().parent.iterdir()):
        other = Run(path)
        if path == run.path.resolve() or not other.exists() or not other.metrics.exists():
            continue
        try:
            config = read_config(other)
        except ValueError:  # of another version, or no run
            continue
        lines = differences(to_json(mine), to_json(config))
        if all(line.partition(":")[0] in SEEDS for line in lines) and _seeds(config) not in seen:
            seen.add(_seeds(config))
            found.append(other)
    return found


def _seeds(config: TrainConfig) -> tuple[int, Any]:
    return config.seed, getattr(config.data, "seed", None)


def _results(run: Run, step: int | None = None) -> dict[str, dict[str, Any]]:
    records: Sequence[dict[str, Any]] = read_records(run.metrics) if run.metrics.exists() else []
    return {r["network"]: r for r in records if r["kind"] == "result" and step in (None, r["step"])}


def local_name(value: Any) -> Any:
    """A configuration as plain values, in which a path of this machine is its last name alone."""
    if isinstance(value, dict):
        paths = {"root", "data_dir", "start_from"}
        return {k: Path(v).name if k in paths and isinstance(v, str) else local_name(v) for k, v in value.items()}
    return value
