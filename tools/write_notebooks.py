"""Writes the notebooks that are kept as scripts: `python tools/write_notebooks.py [NAME ...]`, then execute them.

A line `# %%` begins a cell of code, `# %% [markdown]` a cell of text, whose lines are comments.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Collection
from pathlib import Path

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"


def cells(script: str) -> list[tuple[str, str]]:
    """The cells of a script, each as its kind, "code" or "markdown", and its text."""
    parts = re.split(r"^# %%(.*)\n", script, flags=re.MULTILINE)
    if parts[0].strip():
        raise ValueError(f"the script begins with {parts[0].splitlines()[0]!r}: begin it with a line # %%")
    found = []
    for head, body in zip(parts[1::2], parts[2::2], strict=True):
        text = re.sub(r"^# ?", "", body.strip(), flags=re.MULTILINE) if "[markdown]" in head else body.strip()
        found.append(("markdown" if "[markdown]" in head else "code", text))
    return found


def write(names: Collection[str] = ()) -> None:
    """Writes a notebook beside each script, or beside those named, without outputs."""
    import nbformat
    from nbformat import v4

    make = {"code": v4.new_code_cell, "markdown": v4.new_markdown_cell}
    for script in [NOTEBOOKS / f"{name}.py" for name in names] or sorted(NOTEBOOKS.glob("*.py")):
        notebook = v4.new_notebook(
            metadata={"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}},
            cells=[make[kind](text, id=f"cell-{i}") for i, (kind, text) in enumerate(cells(script.read_text()))],
        )
        nbformat.write(notebook, script.with_suffix(".ipynb"))


if __name__ == "__main__":
    write(sys.argv[1:])
