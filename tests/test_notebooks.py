"""The notebooks run from top to bottom, are kept with what they show, and equal their scripts."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
SCRIPTS = sorted((ROOT / "notebooks").glob("*.py"))
cells = runpy.run_path(str(ROOT / "tools" / "write_notebooks.py"))["cells"]

SAYS = {
    "tour": ["certified True", "same values, other places: True", "one function: True"],
    "own_network": [
        "first/mixer: certified True",
        "third/mixer: certified True",
        "kept: none",
        "for cpu, cuda, tpu",
    ],
    "own_pictures": ["4/4", "% of 200 test pictures", "for cpu, cuda, tpu", "pictures/val/rings/000.png"],
    "dynamic_convolution": ["with the 0's own kernel differ by", "DynamicConv, gates: change by", "DYConv: 9"],
    "shift_invariance": ["APS: 100.0% of the digits", "multiples of 8, got 12 x 8", "wrap {}"],
    "permutations": [
        "row-argmax is a permutation: False",
        "certified up to 0.1",
        "reaches the matrix: True",
        "median 2.0",
        "penalty none: ",
        "of 32 starts recover the ladder",
        "tangent: 32 of 32 starts recover the graph",
    ],
}
"""What the cells print, among other things."""

PICTURES = {
    "tour": 4,
    "own_network": 2,
    "own_pictures": 3,
    "dynamic_convolution": 2,
    "shift_invariance": 3,
    "permutations": 6,
}


def read(path):
    import nbformat

    return nbformat.read(path, as_version=4)


def outputs(notebook):
    return [output for cell in notebook.cells for output in cell.get("outputs", [])]


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_cell_runs(path, tmp_path, monkeypatch):
    import nbclient

    monkeypatch.setenv("MPLBACKEND", "module://matplotlib_inline.backend_inline")  # figures as a reader gets them
    notebook = read(path)
    nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    text = "".join(output.get("text", "") for output in outputs(notebook))
    assert [words for words in SAYS[path.stem] if words not in text] == []
    assert sum("image/png" in output.get("data", {}) for output in outputs(notebook)) == PICTURES[path.stem]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_what_is_kept_was_executed_in_order(path):
    notebook = read(path)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1)), "run make notebook"
    assert sum("image/png" in output.get("data", {}) for output in outputs(notebook)) == PICTURES[path.stem]
    assert not [o for o in outputs(notebook) if o.output_type == "error" or o.get("name") == "stderr"]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_a_script_and_its_notebook_have_the_same_cells(script):
    notebook = read(script.with_suffix(".ipynb"))
    assert [(cell.cell_type, cell.source) for cell in notebook.cells] == cells(script.read_text()), "run make notebook"


def test_a_script_is_cut_into_cells():
    script = "# %% [markdown]\n# # Title\n#\n# Text.\n\n# %%\nx = 1  # one\n\n\ny = 2\n\n# %%\nx\n"
    assert cells(script) == [("markdown", "# Title\n\nText."), ("code", "x = 1  # one\n\n\ny = 2"), ("code", "x")]
    with pytest.raises(ValueError, match=r"begins with 'import this': begin it with a line # %%"):
        cells("import this\n" + script)


def test_there_are_notebooks():
    assert set(SAYS) == set(PICTURES) == {path.stem for path in NOTEBOOKS}
    assert SCRIPTS
