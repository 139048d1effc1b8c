"""The wheel as somebody else's project gets it: built, installed into an environment of its own, and used there."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

USE = """
import importlib.util, sys
from pathlib import Path

import jax, jax.numpy as jnp
import shuffle_jax
from shuffle_jax.deploy.hardening import harden
from shuffle_jax.models import ShuffleNetV2
from shuffle_jax.nn import AutoShuffle

assert Path(shuffle_jax.__file__).is_relative_to(sys.prefix), shuffle_jax.__file__
assert importlib.util.find_spec("experiments") is None  # commands are run in a checkout
network = ShuffleNetV2(classes=10, width=0.5, stem="small", mixer=AutoShuffle)
variables = jax.jit(network.init)(jax.random.key(0), jnp.zeros((1, 8, 8, 3)))
print(len(harden(variables).permutations))
"""


def run(*words, **options):
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True, check=False, **options)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.mark.slow
def test_the_wheel_is_installed_with_what_it_needs_and_nothing_else(tmp_path):
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    run(*pip, "wheel", "--quiet", "--no-deps", "--wheel-dir", tmp_path, ROOT)
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.partition("/")[0].partition("-")[0] for name in names} == {"shuffle_jax"}
    assert "shuffle_jax/py.typed" in names and not [name for name in names if "test" in name]
    run(sys.executable, "-m", "venv", tmp_path / "venv")
    python = tmp_path / "venv" / "bin" / "python"
    run(python, "-m", "pip", "install", "--quiet", "-c", ROOT / "constraints.txt", wheel)
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    assert run(python, "-c", USE, cwd=tmp_path, env=clean) == "16\n"
    installed = run(python, "-m", "pip", "list", "--format=freeze").lower()
    assert not [name for name in ("torch", "tensorflow", "onnx", "wandb", "pytest") if f"{name}==" in installed]
