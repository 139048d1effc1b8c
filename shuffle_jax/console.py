"""What a person sees of a training run: a progress bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
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

LAYERS = {"permutation": ("penalty", "P/Pmax {:.2f}"), "dynamic": ("distinct", "distinct {:.1%}")}
"""The number that is followed of the records of layers, by kind: its mean over the layers stands behind the others."""


class Console:
    """Tells a person how far the run is: a progress bar on a terminal, one plain line an event elsewhere.

    ``P/Pmax`` is the mean over the learned permutations of the penalty last recorded for each, ``distinct`` the mean
    over dynamic layers of how many different permutations they make, over the images they see.

    Args:
        total_steps: the length of the whole run.
        steps_per_epoch: how many steps make an epoch.
        resumed_at: the steps that are already done.
        console: where to write; standard output by default.
    """

    def __init__(
        self, total_steps: int, steps_per_epoch: int, resumed_at: int = 0, console: RichConsole | None = None
    ) -> None:
        import rich.console

        self._steps_per_epoch = steps_per_epoch
        self._epoch_width = len(str(math.ceil(total_steps / steps_per_epoch)))
        self._step_width = len(str(total_steps))
        self._layers: dict[str, dict[str, float]] = {kind: {} for kind in LAYERS}
        self._console = rich.console.Console() if console is None else console
        self._progress: Progress | None = None
        if self._console.is_terminal:
            self._start_progress(total_steps, resumed_at)

    def write(self, record: Mapping[str, Any]) -> None:
        """Shows one record; those of layers are kept and shown with the next training record."""
        kind, step = record["kind"], int(record["step"])
        epoch = step // self._steps_per_epoch
        if kind in LAYERS:
            self._layers[kind][record["layer"]] = float(record[LAYERS[kind][0]])
            return
        place = f"epoch {epoch:{self._epoch_width}d}  step {step:{self._step_width}d}"
        numbers = self._numbers(record)
        if kind == "train" and self._progress is not None:
            self._progress.update(self._task, completed=step, epoch=epoch, numbers=numbers)
        else:
            label = "" if kind == "train" else f"{record.get('network', kind)}  "
            self.message(f"{place}  {label}{numbers}")

    def message(self, text: str) -> None:
        """Prints a line, above the progress bar where there is one."""
        if self._progress is None:
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
        if self._progress is not None:
            self._progress.stop()

    def _start_progress(self, total_steps: int, resumed_at: int) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        # On a narrow terminal the bar gives way, not "epoch 3", "135/1350", 49 letters of numbers, "1:02:03".
        others = (6 + self._epoch_width) + (2 * self._step_width + 1) + 49 + 7 + 4
        self._progress = Progress(
            TextColumn("epoch {task.fields[epoch]}"),
            BarColumn(bar_width=min(max(self._console.width - others, 3), 40)),
            MofNCompleteColumn(),
            TextColumn("{task.fields[numbers]}"),
            TimeRemainingColumn(compact=True),
            console=self._console,
            speed_estimate_period=600.0,  # Seconds; logging events may be minutes apart.
        )
        epoch = resumed_at // self._steps_per_epoch
        self._task = self._progress.add_task("", total=total_steps, completed=resumed_at, epoch=epoch, numbers="")
        self._progress.start()

    def _numbers(self, record: Mapping[str, Any]) -> str:
        """The numbers of a record that a person follows, e.g. ``loss 0.412  accuracy 0.894  img/s 812``."""
        parts = [text.format(float(record[key])) for key, text in NUMBERS.items() if key in record]
        if record["kind"] == "train":
            followed = ((text, list(self._layers[kind].values())) for kind, (_, text) in LAYERS.items())
            parts += [text.format(np.mean(values)) for text, values in followed if values]
        if "images_per_second" in record:
            parts.append(f"img/s {float(record['images_per_second']):.0f}")
        return "  ".join(parts)

    def _print_plain(self, text: str) -> None:
        # Not rich's print: it wraps at 80 columns, and a log file has none.
        print(text, file=self._console.file, flush=True)
