"""What a finished run says in a comparison: its accuracies, its certificates, and how it came there.

Everything is as JSON holds it: plain numbers, those that are not finite spelt out.
"""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from dataclasses import asdict
from pathlib import Path
from typing import Any

from shuffle_jax.analysis.dynamic_use import recorded_use
from shuffle_jax.analysis.records import Records, clock
from shuffle_jax.records import read_records
from shuffle_jax.run import Run

Point = list[float | str]
"""A pair of the epoch and a number; one that is not finite is spelt out."""

KEPT = ("top1", "loss")
"""What is kept of each evaluation."""

OTHERS = {
    "recalibrated": "with batch statistics re-estimated",
    "hard": "with hard factors",
    "soft": "with soft factors",
    "repaired": "argmax repaired by assignment",
    "frozen": "frozen to one permutation for all images",
}
"""Further networks that a run may have evaluated, and their columns, which a table has if a run has them."""


def folder_result(path: Path) -> dict[str, Any] | None:
    """What the run in a folder says in the end, see :func:`run_result`; None also if there is no run."""
    metrics = Run(path).metrics
    return run_result(read_records(metrics)) if metrics.exists() else None


def run_result(records: Records) -> dict[str, Any] | None:
    """What a finished run says in the end.

    Args:
        records: those of a run.

    Returns:
        ``relaxed``, ``hardened`` (None without learned permutations), ``certified`` and ``permutations``, ``others`` if
        further networks were evaluated, ``dynamic``, what dynamic layers do, if that is recorded of any
        (:class:`shuffle_jax.analysis.dynamic_use.DynamicUse`), and ``curves`` if there are any; or None if the run is
        not finished: a result is missing, or that of the hardened network or, with dynamic layers, of the frozen one.
    """
    evaluated = {r["network"]: r for r in records if r["kind"] == "result"}
    if "relaxed" not in evaluated:
        return None
    step = evaluated["relaxed"]["step"]
    layers = [r["certified"] for r in records if r["kind"] == "permutation" and r["step"] == step]
    if layers and "hardened" not in evaluated:
        return None
    # With dynamic layers others are evaluated after it, the frozen one last, and a run may be killed between.
    if any(r["kind"] == "dynamic" for r in records) and "frozen" not in evaluated:
        return None
    numbers = {network: {key: _plain(record[key]) for key in KEPT} for network, record in evaluated.items()}
    hardened = numbers.get("hardened")
    found: dict[str, Any] = {"relaxed": numbers["relaxed"], "hardened": hardened}
    found |= {"certified": sum(layers), "permutations": len(layers)}
    others = {network: numbers[network] for network in OTHERS if network in numbers}
    use, curves = recorded_use(records, step), run_curves(records)
    dynamic = asdict(use) | {"counts": list(use.counts)} if use is not None and use.counts else {}
    more = {"others": others, "dynamic": dynamic, "curves": curves}
    return found | {name: value for name, value in more.items() if value}


def run_curves(records: Records) -> dict[str, list[Point]]:
    """How a run came to its end, epoch by epoch, the numbers to four digits.

    A record of training holds the mean over the steps since the one before. The loss of an epoch is the mean over its
    steps, each with the loss of its record. After a stop between two records the next one speaks of the steps that
    followed the stop, and stands for the others as well.

    Args:
        records: those of a run; where a step has several of one kind the last counts.

    Returns:
        ``train_loss``, a pair (epoch, loss) for each whole epoch in which a record was written, and ``top1``, a pair
        (epoch, accuracy) for each evaluation. Empty if there are no pairs, or if no record tells the epoch.
    """
    scale, unit = clock(records)
    if unit != "epoch":
        return {}
    length = round(1 / scale)
    trained = {r["step"]: r["loss"] for r in records if r["kind"] == "train"}
    tested = {r["step"]: r["top1"] for r in records if r["kind"] == "test"}
    shares: dict[int, list[tuple[float, int]]] = defaultdict(list)
    before = 0
    for step, loss in sorted(trained.items()):
        for epoch in range(before // length + 1, -(-step // length) + 1):
            shares[epoch].append((loss, min(step, epoch * length) - max(before, (epoch - 1) * length)))
        before = step
    written = {-(-step // length) for step in trained}
    whole = {epoch: share for epoch, share in shares.items() if epoch in written and epoch * length <= before}
    losses = [[epoch, _short(statistics.fmean(*zip(*share, strict=True)))] for epoch, share in whole.items()]
    accuracies = [[_whole(step / length), _short(top1)] for step, top1 in sorted(tested.items())]
    return {"train_loss": losses, "top1": accuracies} if losses or accuracies else {}


def _short(value: float) -> float | str:
    """Four digits, which are enough to draw it."""
    return _plain(float(f"{value:.4g}"))


def _whole(epoch: float) -> float:
    return int(epoch) if epoch.is_integer() else round(epoch, 3)


def _plain(value: float) -> float | str:
    """A number as JSON can hold it: one that is not finite is spelt out."""
    return value if math.isfinite(value) else str(value)
