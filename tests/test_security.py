"""No code comes out of data: nothing that the library reads can run something.

Weights, runs and exported models may come from other people. What could run code hidden in them is not used at all, and
the one format that can carry objects, NumPy's, is read without them.
"""

from __future__ import annotations

import ast
import pickle
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from shuffle_jax.analysis.run_figures import save_run_figures

ROOT = Path(__file__).parents[1]
FILES = sorted(path for folder in ("shuffle_jax", "experiments") for path in (ROOT / folder).rglob("*.py"))

MODULES = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}
BUILTINS = {"eval", "exec", "compile", "__import__"}
CALLS = {"torch.load", "yaml.load", "os.system", "os.popen"}
METHODS = {"extractall"}
LITERAL = {"numpy.load": ("allow_pickle", False)}
"""Calls that need this argument, written out."""
NEVER = {"shell": True, "allow_pickle": True}
"""Arguments that no call has; a value that is not written out counts as this one."""


def findings(source: str) -> Iterator[str]:
    """What a file does that could run code from data, with its line."""
    tree = ast.parse(source)
    names: dict[str, str] = {}  # what each imported name stands for
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imported = [alias.name for alias in node.names]
            # "import a.b" binds a, "import a.b as c" binds c to a.b.
            names |= {
                alias.asname or top(alias.name): alias.name if alias.asname else top(alias.name) for alias in node.names
            }
        elif isinstance(node, ast.ImportFrom):
            imported = [node.module or ""]
            names |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
        else:
            continue
        for module in imported:
            if top(module) in MODULES:
                yield f"line {node.lineno}: imports {module}"
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and node.id in BUILTINS and node.id not in names:
            yield f"line {node.lineno}: uses {node.id}"
        if isinstance(node, ast.Attribute) and node.attr in METHODS:
            yield f"line {node.lineno}: uses {node.attr}"
        if isinstance(node, ast.Attribute | ast.Name) and dotted(node, names) in CALLS:
            yield f"line {node.lineno}: uses {dotted(node, names)}"
        if isinstance(node, ast.Call):
            given = {k.arg: getattr(k.value, "value", None) for k in node.keywords}
            name = dotted(node.func, names)
            if name in LITERAL:
                argument, value = LITERAL[name]
                if given.get(argument) is not value:
                    yield f"line {node.lineno}: {name} without {argument}={value}"
            for argument, value in NEVER.items():
                if argument in given and given[argument] is not (not value):
                    yield f"line {node.lineno}: {name} with {argument}"


def top(module: str) -> str:
    """The package of a module."""
    return module.partition(".")[0]


def dotted(node: ast.expr, names: dict[str, str]) -> str:
    """A name with its module, such as "numpy.load" for ``np.load``."""
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value, names)}.{node.attr}"
    return names.get(node.id, node.id) if isinstance(node, ast.Name) else "?"


@pytest.mark.parametrize("path", FILES, ids=[str(path.relative_to(ROOT)) for path in FILES])
def test_no_file_can_run_code_from_data(path):
    assert list(findings(path.read_text(encoding="utf-8"))) == []


@pytest.mark.parametrize(
    "bad",
    [
        "import pickle",
        "import dill as d",
        "from cPickle import loads",
        "def f():\n    import joblib",
        "from joblib.numpy_pickle import load",
        "import marshal, os",
        "import shelve",
        "eval(text)",
        "exec(text)",
        "run = compile",
        "__import__(name)",
        "import numpy as np\nnp.load(path)",
        "import numpy as np\nnp.load(path, None, True)",
        "import numpy as np\nnp.load(path, allow_pickle=flag)",
        "import numpy\nnumpy.load(path, allow_pickle=True)",
        "from numpy import load\nload(path)",
        "from numpy import load as read\nread(path)",
        "array_like.load(path, allow_pickle=True)",
        "import torch\ntorch.load(path)",
        "from torch import load\nload(path)",
        "import yaml\nyaml.load(text, yaml.Loader)",
        "import subprocess\nsubprocess.run(text, shell=True)",
        "from subprocess import run\nrun(text, shell=1)",
        "import os\nos.system(text)",
        "import tarfile\ntarfile.open(path).extractall()",
        "import zipfile\nwith zipfile.ZipFile(path) as file:\n    file.extractall(folder)",
    ],
)
def test_the_search_finds(bad):
    assert list(findings(bad))


@pytest.mark.parametrize(
    "good",
    [
        "import numpy as np\nnp.load(path, allow_pickle=False)",
        "import numpy as np\nnp.savez(path, allow_pickle=False)",
        "import re\nre.compile(text)",
        "step.lower(x).compile()",
        "import ast\nast.literal_eval(text)",
        "network.eval()",
        "import subprocess\nsubprocess.run([text], shell=False)",
        "import json\njson.load(file)",
    ],
)
def test_the_search_leaves_alone(good):
    assert list(findings(good)) == []


def test_there_is_something_to_search():
    assert len(FILES) > 30


class Trap:
    """Writes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.fixture
def sprung(tmp_path):
    return tmp_path / "sprung"


@pytest.fixture
def trap(tmp_path, sprung):
    """An array that runs code when NumPy reads it with pickles allowed."""
    array = np.empty((1, 1), object)
    array[0, 0] = Trap(sprung)
    path = tmp_path / "proof.npz"
    np.savez(path, mixer=array)
    with np.load(path, allow_pickle=True) as file:
        assert file["mixer"].shape == (1, 1)
    assert sprung.exists()  # the trap works
    sprung.unlink()
    return array


@pytest.mark.parametrize("file", ["snapshots/0.npz", "permutations.npz", "dynamic/0.npz"])
def test_runs_with_objects_for_arrays_are_refused_and_nothing_is_run(tmp_path, trap, sprung, file):
    path = tmp_path / "run" / file
    path.parent.mkdir(parents=True)
    np.savez(path, mixer=trap)
    with pytest.raises(ValueError, match=rf"{path} does not hold plain arrays \(.*\): restore or remove it$"):
        save_run_figures(tmp_path / "run")
    assert not sprung.exists()


def test_a_pickle_in_the_place_of_arrays_is_refused_and_not_run(tmp_path, sprung):
    path = tmp_path / "run" / "permutations.npz"
    path.parent.mkdir()
    path.write_bytes(pickle.dumps(Trap(sprung)))
    with pytest.raises(ValueError, match="does not hold plain arrays"):
        save_run_figures(tmp_path / "run")
    assert not sprung.exists()
    pickle.loads(path.read_bytes())
    assert sprung.exists()  # the trap works
