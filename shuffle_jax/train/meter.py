"""Means of what steps report, and the rate of images."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field

import jax

from shuffle_jax.typing import PyTree


class NonFiniteLoss(ArithmeticError):
    """The loss became NaN or infinite."""


@dataclass
class Meter:
    """Means of step metrics, fetched one step late so that the device always has work."""

    batch_size: int
    sums: dict[str, float] = field(default_factory=dict)
    count: int = 0
    pending: tuple[int, PyTree] | None = None
    began: float | None = None
    timed: int = 0

    def add(self, step: int | None = None, values: PyTree = None) -> None:
        """Fetches the values that wait and keeps the new ones waiting."""
        pending, self.pending = self.pending, None if step is None else (step, values)
        if pending is None:
            return
        earlier, found = pending[0], {name: float(value) for name, value in jax.device_get(pending[1]).items()}
        for name in ("loss", "penalty", "gradient_norm"):
            if not math.isfinite(found[name]):
                raise NonFiniteLoss(f"the {name.replace('_', ' ')} is {found[name]} at step {earlier}")
        self.sums = {name: self.sums.get(name, 0.0) + value for name, value in found.items()}
        self.count += 1
        # The clock starts after a first step, which compiles or follows an evaluation.
        if self.began is None:
            self.began = time.perf_counter()
        else:
            self.timed += 1

    def take(self) -> dict[str, float]:
        """The means since the last call, and images per second where a step was timed."""
        means = {name: total / self.count for name, total in self.sums.items()}
        if self.timed and self.began is not None:
            means["images_per_second"] = self.timed * self.batch_size / (time.perf_counter() - self.began)
        self.sums, self.count = {}, 0
        self.began, self.timed = time.perf_counter(), 0
        return means

    def restart(self) -> None:
        """Stops the clock until the next step is done."""
        self.began, self.timed = None, 0
