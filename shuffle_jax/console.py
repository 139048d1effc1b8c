"""What a person sees of a training run: a progress bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from rich.console import Console as RichConsole
    from rich.progress import Progress

NUMBERS = {
    "loss": "loss {:5.3f}",
    "accuracy": "accuracy {:5.3f}",
    "top1": "top-1 {:5.3f}",
    "top5": "top-5 {:5.3f}",
}
"""The numbers of a record that a person follows, and how they are written."""

LAYERS = {"permutation": "penalty", "dynamic": "permutations", "knowledge": "gain"}
"""The number that is followed of the records of layers, by kind; what it is over these stands behind the others."""

EVERY = 10.0
"""Seconds between two plain lines on the training: a file shall be read, and not hold every record again."""


def duration(seconds: float) -> str:
    """A length of time as a person reads it.

    >>> duration(42.4), duration(205.0), duration(7384.0)
    ('42 s', '3 min 25 s', '2 h 3 min')
    """
    if round(seconds) < 120:
        return f"{seconds:.0f} s"
    if seconds < 7200:
        return f"{seconds // 60:.0f} min {seconds % 60:.0f} s"
    return f"{seconds // 3600:.0f} h {seconds % 3600 // 60:.0f} min"


class Console:
    """Tells a person how far the run is: a progress bar on a terminal, plain lines elsewhere.

    Of the records of training a plain line is written every ``EVERY`` seconds and before every evaluation. Behind the
    numbers of an evaluation stand those of the layers at that step: ``P/Pmax``, the mean penalty of the learned
    permutations, and ``permutations``, how many different ones the dynamic layers make for the images that are looked
    at, in the layer of the fewest and in that of the most.

    Args:
        total_steps: the length of the whole run.
        steps_per_epoch: how many steps make an epoch.
        resumed_at: the steps that are already done.
        console: where to write; standard output by default.
        now: the time in seconds.
    """

    def __init__(
        self,
        total_steps: int,
        steps_per_epoch: int,
        resumed_at: int = 0,
        console: RichConsole | None = None,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        import rich.console

        self._now = now
        self._total_steps, self._steps_per_epoch = total_steps, steps_per_epoch
        self._began: tuple[float, int] | None = None
        self._shown, self._held = -math.inf, ""
        self._epoch_width = len(str(math.ceil(total_steps / steps_per_epoch)))
        self._step_width = len(str(total_steps))
        self._layers: dict[str, dict[str, tuple[int, float]]] = {kind: {} for kind in LAYERS}
        self._console = rich.console.Console() if console is None else console
        self._progress: Progress | None = None
        if self._console.is_terminal:
            self._start_progress(total_steps, resumed_at)

    def write(self, record: Mapping[str, Any]) -> None:
        """Shows one record; those of layers are kept and shown with the evaluation of the same step."""
        kind, step = record["kind"], int(record["step"])
        epoch = step // self._steps_per_epoch
        if kind in LAYERS:
            if LAYERS[kind] in record:  # factors that are learned once for all images make no permutations
                self._layers[kind][record["layer"]] = step, float(record[LAYERS[kind]])
            return
        place = f"epoch {epoch:{self._epoch_width}d}  step {step:{self._step_width}d}"
        numbers = self._numbers(record)
        if kind != "train":
            self.message(f"{place}  {record.get('network', record.get('split', kind))}  {numbers}")
        elif self._progress is not None:
            self._progress.update(self._task, completed=step, epoch=epoch, numbers=numbers)
        else:
            self._held = f"{place}  {numbers}{self._left(step)}"
            if self._now() - self._shown >= EVERY:
                self._show_held()

    def doing(self, what: str) -> None:
        """Says in the bar what goes on beside training steps, until the next numbers; plain lines do not."""
        if self._progress is not None:
            self._progress.update(self._task, numbers=what)

    def message(self, text: str) -> None:
        """Prints a line, above the progress bar where there is one."""
        if self._progress is None:
            self._show_held()
            self._print_plain(text)
        else:
            self._console.print(text, highlight=False, markup=False)

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
        """Prints a table, the first column to the left and the others to the right; the progress bar ends.

        Args:
            title: the line above.
            columns: the headings.
            rows: one value for each heading; floats are shown with four decimals.
        """
        cells = [
            [f"{cell:.4f}" if isinstance(cell, float | np.floating) else str(cell) for cell in row] for row in rows
        ]
        if self._progress is None:
            widths = [max(map(len, column)) for column in zip(columns, *cells, strict=True)]
            self._print_plain(title)
            for row in [list(columns), *cells]:
                padded = [f"{row[0]:<{widths[0]}}"]
                padded += [f"{cell:>{width}}" for cell, width in zip(row[1:], widths[1:], strict=True)]
                self._print_plain("  ".join(padded).rstrip())
            return
        from rich.table import Table

        self.close()
        table = Table(title=title)
        for index, column in enumerate(columns):
            table.add_column(column, justify="left" if index == 0 else "right")
        for row in cells:
            table.add_row(*row)
        self._console.print(table)

    def close(self) -> None:
        """Ends the progress bar and gives the terminal back; a second call does nothing."""
        self._show_held()
        if self._progress is not None:
            self._progress.stop()

    def _start_progress(self, total_steps: int, resumed_at: int) -> None:
        from rich import progress as bars
        from rich.table import Column

        # "epoch 3", "135/1350", 39 letters of numbers, "1:02:03". On a narrow terminal the bar gives way, then the
        # time, then the last of the numbers.
        epoch_width, steps_width = 6 + self._epoch_width, 2 * self._step_width + 1
        room = self._console.width - (epoch_width + 1 + steps_width + 1 + 39)
        columns: list[bars.ProgressColumn] = [
            bars.TextColumn("epoch {task.fields[epoch]}", table_column=Column(no_wrap=True, min_width=epoch_width)),
            bars.MofNCompleteColumn(table_column=Column(no_wrap=True, min_width=steps_width)),
            bars.TextColumn("{task.fields[numbers]}", table_column=Column(no_wrap=True)),
        ]
        if room >= 8 + 4:
            columns.insert(1, bars.BarColumn(bar_width=min(room - 8 - 1, 40)))
        if room >= 8:
            columns.append(bars.TimeRemainingColumn(compact=True))
        self._progress = bars.Progress(
            *columns,
            console=self._console,
            speed_estimate_period=600.0,  # Seconds; logging events may be minutes apart.
        )
        epoch = resumed_at // self._steps_per_epoch
        self._task = self._progress.add_task(
            "", total=total_steps, completed=resumed_at, epoch=epoch, numbers="compiling"
        )
        self._progress.start()

    def _numbers(self, record: Mapping[str, Any]) -> str:
        """The numbers of a record that a person follows, e.g. ``loss 0.412  accuracy 0.894  img/s 812``."""
        parts = [text.format(float(record[key])) for key, text in NUMBERS.items() if key in record]
        if record["kind"] == "test":
            for kind in LAYERS:
                values = [value for step, value in self._layers[kind].values() if step == record["step"]]
                parts += [_over_layers(kind, values)] if values else []
        if "images_per_second" in record:
            parts.append(f"img/s {float(record['images_per_second']):.0f}")
        return "  ".join(parts)

    def _left(self, step: int) -> str:
        """How long the rest will take, by the steps since the first record."""
        now, (began, first) = self._now(), self._began or (0.0, step)
        if self._began is None:
            self._began = now, step
        if step <= first or step >= self._total_steps:
            return ""
        return f"  {duration((now - began) * (self._total_steps - step) / (step - first))} left"

    def _show_held(self) -> None:
        if self._held:
            self._print_plain(self._held)
            self._shown, self._held = self._now(), ""

    def _print_plain(self, text: str) -> None:
        # Not rich's print: it wraps at 80 columns, and a log file has none.
        print(text, file=self._console.file, flush=True)


def _over_layers(kind: str, values: Sequence[float]) -> str:
    if kind == "permutation":
        return f"P/Pmax {np.mean(values):.2f}"
    if kind == "knowledge":
        return f"gain {np.mean(values):.3f}"
    fewest, most = f"{min(values):.0f}", f"{max(values):.0f}"
    return f"permutations {fewest}" if fewest == most else f"permutations {fewest} to {most}"
