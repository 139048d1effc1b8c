"""What is measured while a network trains: means of steps, records of the run, a trace of some steps."""

from __future__ import annotations

import contextlib
import io
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import TYPE_CHECKING, Any, Self

import jax
import numpy as np

from shuffle_jax.console import Console
from shuffle_jax.records import JsonLines, Record, TensorBoard, read_records, truncate_after
from shuffle_jax.run import Run
from shuffle_jax.trackers import Tracker, TrackerName
from shuffle_jax.typing import PyTree

if TYPE_CHECKING:
    from rich.console import Console as RichConsole


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


class MetricWriter:
    """Hands every record of a run to its JSON lines, its TensorBoard events, the console and a tracker.

    A context manager: leaving it, also by an exception, closes all of them. What an interrupted run wrote after
    the step it is resumed from is removed first; a run that starts at step 0 starts with nothing.

    Args:
        run: the run.
        total_steps: the length of the whole run.
        steps_per_epoch: how many steps make an epoch.
        resumed_at: the step of the checkpoint that the run continues from, 0 for a new run.
        console: where to show progress; standard output by default.
        track: the tracker, if there is one.
        config: what the tracker is told of the run, as plain values.
    """

    def __init__(
        self,
        run: Run,
        total_steps: int,
        steps_per_epoch: int,
        resumed_at: int = 0,
        console: RichConsole | None = None,
        track: TrackerName | None = None,
        config: Mapping[str, Any] = MappingProxyType({}),
    ) -> None:
        self.resumed = resumed_at > 0
        self._before, self._started = _spent(run.metrics) if self.resumed else 0.0, time.perf_counter()
        # Records of the checkpoint's own step were written before it; a new run writes step 0 itself.
        first_step = resumed_at + 1 if resumed_at else 0
        truncate_after(run.metrics, first_step - 1)
        with contextlib.ExitStack() as stack:
            self._lines = JsonLines(run.metrics)
            stack.callback(self._lines.close)
            self._tensorboard = TensorBoard(run.tensorboard, first_step)
            stack.callback(self._tensorboard.close)
            self.console = Console(total_steps, steps_per_epoch, resumed_at, console)
            stack.callback(self.console.close)
            self._tracker = Tracker(track, run, config)
            stack.callback(self._tracker.close)
            self._stack = stack.pop_all()

    @property
    def seconds(self) -> float:
        """The time that the run has taken, over all of its processes in turn."""
        return self._before + self.seconds_here

    @property
    def seconds_here(self) -> float:
        """The time since this was made."""
        return time.perf_counter() - self._started

    def write(self, record: Record) -> None:
        """Writes one record to all of them, with the time that the run has taken where it is none of a layer."""
        timed = {} if "layer" in record else {"seconds": round(self.seconds, 1)}
        self._lines.write({**record, **timed})
        self._tensorboard.write(record)
        self.console.write(record)
        self._tracker.write(record)

    def matrices(self, step: int, matrices: Mapping[str, np.ndarray]) -> None:
        """Shows relaxed matrices, arrays (c, c) by layer, in TensorBoard."""
        self._tensorboard.matrices(step, matrices)

    def close(self) -> None:
        """Closes all, each even when another fails; a second call does nothing."""
        self._stack.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _spent(path: Path) -> float:
    """The time that a run has taken until now; 0 where its records do not say it, as those of earlier versions."""
    return max((record.get("seconds", 0.0) for record in read_records(path)), default=0.0) if path.exists() else 0.0


class NoMetrics(MetricWriter):
    """Records of a process whose numbers another one writes: nothing is kept or shown."""

    def __init__(self) -> None:
        import rich.console

        self.console = Console(1, 1, console=rich.console.Console(file=io.StringIO()))
        self.resumed, self._before, self._started = False, 0.0, time.perf_counter()

    def write(self, record: Record) -> None:
        """Forgets the record."""

    def matrices(self, step: int, matrices: Mapping[str, np.ndarray]) -> None:
        """Forgets the matrices."""

    def close(self) -> None:
        """Does nothing."""


class Profile:
    """Writes what the host and the devices do between two steps; a context manager that ends a trace begun.

    It goes to ``plugins/profile/<time>/<host>.xplane.pb`` in the folder, with the steps marked by their numbers.

    Args:
        folder: of the traces; of several processes each has one of its own in it, as a file is named by the host.
        steps: the first and the last step of the trace; None for no trace.
        total: steps of the whole training.

    Raises:
        ValueError: the steps are none of the training.
    """

    def __init__(self, folder: Path, steps: tuple[int, int] | None, total: int) -> None:
        if steps is not None and not 1 <= steps[0] <= steps[1] <= total:
            raise ValueError(f"profile must be two ascending steps from 1 to {total}, got {steps[0]} and {steps[1]}")
        self._folder = folder / f"process{jax.process_index()}" if jax.process_count() > 1 else folder
        self._steps, self._running = steps, False

    def step(self, step: int) -> contextlib.AbstractContextManager[object]:
        """Around a step: begins the trace at the first, or at the first that a resumed run comes to."""
        if self._steps is None or not self._steps[0] <= step <= self._steps[1]:
            return contextlib.nullcontext()
        if not self._running:
            jax.profiler.start_trace(self._folder)
            self._running = True
        return jax.profiler.StepTraceAnnotation("train", step_num=step)

    def after(self, step: int, state: PyTree) -> None:
        """Behind a step: ends the trace at the last one, when the devices are done with it."""
        if self._running and self._steps is not None and step >= self._steps[1]:
            jax.block_until_ready(state)
            self._stop()

    def __enter__(self) -> Profile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._running:
            self._stop()

    def _stop(self) -> None:
        self._running = False
        jax.profiler.stop_trace()
