"""Tables on standard output: narrow and with a bold heading on a terminal, plain aligned text elsewhere."""

from __future__ import annotations

from collections.abc import Sequence


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str | int]]) -> None:
    """Prints a table. Integers stand to the right, with commas between thousands, texts to the left.

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
