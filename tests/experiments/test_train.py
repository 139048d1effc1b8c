"""The commands as a person types them: train, Ctrl-C, resume, evaluate, and mistakes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from experiments import evaluate, train

QUICK = ["--epochs", "2", "--data.test-fraction", "0.9", "--batch-size", "44", "--optimizer.warmup-epochs", "0.5"]
SHALLOW = [
    "--network.family",
    "resnet",
    "--network.depth",
    "10",
    "--network.width",
    "0.125",
    "--network.mixer",
    "identity",
]
"""The network that compiles soonest, where another process must compile it."""


def command(name, *arguments):
    return [sys.executable, "-m", f"experiments.{name}", *map(str, arguments)]


def finish(name, *arguments, cwd):
    return subprocess.run(
        command(name, *arguments), check=False, cwd=cwd, capture_output=True, text=True, timeout=500, env=here()
    )


def here():
    return {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Pictures of two classes that a network tells apart at once: dark and bright, of mixed sizes and formats."""
    root = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for split, count in (("train", 24), ("val", 5)):
        for label, level in (("bright", 200), ("dark", 30)):
            (root / split / label).mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(level, level + 50, (9 + i % 4, 12, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / split / label / f"{i}.{'png' if i % 2 else 'jpg'}")
    return root


@pytest.fixture(scope="module")
def run(folder, tmp_path_factory):
    """A finished run on them, trained in this process."""
    path = tmp_path_factory.mktemp("runs") / "pictures"
    options = "--network.family tests.experiments.outside:Mixed --data.image-size 8 --network.stem small"
    options += " --augment.crop-padding 1"
    start = "--network.auto-start shuffle --network.auto-noise 0.1 --penalty.weight 0 --optimizer.warmup-epochs 1"
    sizes = "--epochs 20 --batch-size 16 --evaluate-every 5"
    train.run(["folder", "--data.root", str(folder), "--run", str(path), *f"{options} {start} {sizes}".split()])
    return path


@pytest.mark.slow
def test_a_folder_of_pictures_is_learned_and_its_classes_kept(run):
    about = json.loads((run / "config.json").read_text())
    assert about["classes"] == ["bright", "dark"]
    results = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    relaxed, hardened = [r for r in results if r["kind"] == "result"]
    assert relaxed["top1"] == 1.0
    assert hardened["top5"] == 1.0
    assert len(list((run / "figures").glob("*.png"))) == 4


def test_evaluate_agrees_with_the_end_of_training(run, tmp_path, capsys):
    evaluate.run([str(run), "--layers", "--json", str(tmp_path / "numbers.json"), "--twin", str(run)])
    printed = capsys.readouterr().out
    numbers = json.loads((tmp_path / "numbers.json").read_text())
    results = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for result in results[-2:]:
        found = numbers["networks"][result["network"]]
        assert found["top1"] == result["top1"]
        assert found["loss"] == pytest.approx(result["loss"], rel=1e-4)
    assert set(numbers["networks"]) == {"relaxed", "hardened", "fixed shuffle, same weights", f"twin: {run}"}
    assert list(numbers["permutations"]) == ["mixer"]
    assert "10 test images" in printed and "of 1 permutations certified" in printed


def test_evaluate_takes_the_best_checkpoint_or_a_step(run, capsys):
    evaluate.run([str(run), "--checkpoint", "best"])
    assert "step 60" in capsys.readouterr().out
    with pytest.raises(FileNotFoundError, match="has no checkpoint of step 5"):
        evaluate.run([str(run), "--checkpoint", "5"])
    with pytest.raises(ValueError, match=r"checkpoint must be .* or a step, got 'newest'"):
        evaluate.run([str(run), "--checkpoint", "newest"])


@pytest.mark.slow
def test_ctrl_c_saves_and_resume_finishes(tmp_path):  # SIGTERM and SIGKILL: tests/train/test_kill.py
    process = subprocess.Popen(
        command("train", "digits", *QUICK, *SHALLOW, "--epochs", 400),
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=here(),
    )
    assert process.stdout is not None
    for line in process.stdout:  # wait until it trains
        if "loss" in line:
            break
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 128 + signal.SIGINT
    assert errors.startswith("stopped at step") and errors.rstrip().endswith("continue with --resume")
    assert errors.count("\n") == 1
    assert list((tmp_path / "runs" / "digits" / "checkpoints").iterdir())

    other = finish("train", "digits", *QUICK, *SHALLOW, "--resume", cwd=tmp_path)
    assert other.returncode == 2
    assert "was started with another configuration (epochs: 400 -> 2)" in other.stderr


def test_help_reads_without_training(capsys):
    with pytest.raises(SystemExit) as end:
        train.run(["digits", "--help"])
    assert end.value.code == 0
    printed = " ".join(capsys.readouterr().out.split())
    for word in ("--penalty.weight", "--network.mixer", "--resume", "peak, reached after the warm-up"):
        assert word in printed
