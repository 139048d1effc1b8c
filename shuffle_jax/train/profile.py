"""A trace of some steps of a training, for TensorBoard and XProf."""

from __future__ import annotations

import contextlib
from pathlib import Path
from types import TracebackType

import jax

from shuffle_jax.typing import PyTree


class Profile:
    """Writes what the host and the devices do between two steps; a context manager that ends a trace begun.

    It goes to ``plugins/profile/<time>/<host>.xplane.pb`` in the folder, with the steps marked by their numbers.

    Args:
        folder: of the trace, for each process its own.
        steps: the first and the last step of the trace; None for no trace.
        total: steps of the whole training.

    Raises:
        ValueError: the steps are none of the training.
    """

    def __init__(self, folder: Path, steps: tuple[int, int] | None, total: int) -> None:
        if steps is not None and not 1 <= steps[0] <= steps[1] <= total:
            raise ValueError(
                f"a trace of steps {steps[0]} to {steps[1]} was asked for: give two steps from 1 to {total}, ascending"
            )
        self._folder, self._steps, self._running = folder, steps, False

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
