"""What commands print and draw: tables, comma-separated values, and figures as files."""

from __future__ import annotations

import csv
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FORMATS = (".png", ".pdf", ".svg")
"""What a figure can be written as."""


def print_rows(columns: Sequence[str], rows: Sequence[Sequence[str | int]], as_csv: bool) -> None:
    """Prints a table for people, or comma-separated values for programs."""
    if as_csv:
        write_csv(sys.stdout, columns, rows)
    else:
        print_table(columns, rows)
    sys.stdout.flush()


def write_csv(file: TextIO, columns: Sequence[str], rows: Sequence[Sequence[str | int]]) -> None:
    """Writes comma-separated values with a header."""
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)


def check_figure_file(path: Path | None) -> None:
    """Raises ValueError unless a figure can be written under this name."""
    if path is not None and path.suffix not in FORMATS:
        raise ValueError(f"the name of a figure must end with {', '.join(FORMATS)}, got {path.name!r}")


def save_figure(figure: Figure, path: Path) -> None:
    """Writes a figure in the format of its name, whole or not at all."""
    from shuffle_jax.files import replacing

    with replacing(path) as temporary:
        figure.savefig(temporary, format=path.suffix[1:])


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str | int]]) -> None:
    """Prints a table: narrow and with a bold heading on a terminal, plain aligned text elsewhere.

    Integers stand to the right, with commas between thousands, texts to the left.

    Args:
        columns: the headings.
        rows: at least one; one value for each heading.
    """
    from rich.console import Console
    from rich.table import Table

    numbers = [isinstance(cell, int) for cell in rows[0]]
    cells = [[f"{cell:,}" if isinstance(cell, int) else cell for cell in row] for row in rows]
    console = Console(highlight=False, markup=False)
    if console.is_terminal:
        table = Table(box=None, collapse_padding=True, pad_edge=False)
        for column, number in zip(columns, numbers, strict=True):
            table.add_column(
                column.replace("_", "\n"), justify="right" if number else "left", no_wrap=number, overflow="fold"
            )
        for row in cells:
            table.add_row(*row)
        console.print(table)
        return
    # Not rich's: it wraps at 80 columns, and a file has none.
    widths = [max(map(len, column)) for column in zip(columns, *cells, strict=True)]
    for row in [list(columns), *cells]:
        aligned = [f"{c:>{w}}" if n else f"{c:<{w}}" for c, w, n in zip(row, widths, numbers, strict=True)]
        print("  ".join(aligned).rstrip())
