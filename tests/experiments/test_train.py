"""The commands as a person types them: train, Ctrl-C, resume, evaluate, and mistakes."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from experiments import evaluate, train
from shuffle_jax.data import Preprocessing
from shuffle_jax.models import NetworkConfig
from shuffle_jax.run import Run
from shuffle_jax.train.config import TrainConfig, to_json
from shuffle_jax.train.start import read_start

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


@pytest.mark.slow
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


@contextlib.contextmanager
def lived(path, name, *words):
    """A training, once it trains."""
    log = path / "log"
    with log.open("w") as file:
        process = subprocess.Popen(
            command(name, *words), cwd=path, stdout=file, stderr=subprocess.PIPE, text=True, env=here()
        )
    try:
        while "loss" not in log.read_text():
            assert process.poll() is None, process.communicate()
            time.sleep(0.1)
        yield process
    finally:
        process.kill()
        process.communicate()


@pytest.mark.slow
def test_ctrl_c_saves_and_resume_finishes(tmp_path):  # SIGTERM and SIGKILL: tests/train/test_kill.py
    with lived(tmp_path, "train", "digits", *QUICK, *SHALLOW, "--epochs", 400) as process:
        time.sleep(0.2)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=120)
    assert process.returncode == 128 + signal.SIGINT
    said, how = errors.splitlines()[-1].split("; continue with: python -m experiments.")
    assert said.startswith("stopped at step") and how == "train --resume runs/digits"
    checkpoints = tmp_path / "runs" / "digits" / "checkpoints"
    stopped = max(int(path.name) for path in checkpoints.iterdir())

    name, *words = shlex.split(how)
    with lived(tmp_path, name, *words) as process:  # one that resumes it
        second = finish(name, *words, cwd=tmp_path)
        other = finish("train", "digits", *QUICK, *SHALLOW, "--resume", cwd=tmp_path)
        read = finish("evaluate", "runs/digits", cwd=tmp_path)
        process.send_signal(signal.SIGINT)
        process.wait(120)
    assert (second.returncode, other.returncode, read.returncode) == (2, 2, 0), (second, other, read)
    for refused in (second, other):
        assert f"runs/digits is being trained by process {process.pid} on " in refused.stderr.splitlines()[-1]
    assert "step " in read.stdout and "damaged" not in read.stderr
    assert process.returncode == 128 + signal.SIGINT
    assert max(int(path.name) for path in checkpoints.iterdir()) > stopped

    moved = checkpoints.rename(tmp_path / "elsewhere")
    before = (tmp_path / "runs" / "digits" / "metrics.jsonl").read_bytes()
    gone = finish(name, *words, cwd=tmp_path)
    assert gone.returncode == 2 and gone.stderr.startswith("runs/digits has no checkpoints any more")
    assert (tmp_path / "runs" / "digits" / "metrics.jsonl").read_bytes() == before
    moved.rename(checkpoints)
    other = finish("train", "digits", *QUICK, *SHALLOW, "--resume", cwd=tmp_path)
    assert other.returncode == 2
    assert "was started with another configuration (--epochs: 400 -> 2)" in other.stderr


def test_help_reads_without_training(capsys):
    with pytest.raises(SystemExit) as end:
        train.run(["digits", "--help"])
    assert end.value.code == 0
    printed = " ".join(capsys.readouterr().out.split())
    for word in ("--penalty.weight", "--network.mixer", "--resume", "peak, reached after the warm-up"):
        assert word in printed


def test_a_run_is_resumed_by_its_folder_and_what_is_typed_beside_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    started = train.parse(["digits", *QUICK, *SHALLOW, "--seed", "3"]).config
    assert started.optimizer.warmup_share == 1.0  # who says how long the warm-up is means it
    path = Path("runs/my run")
    Run(path).start(to_json(started), ["a"], Preprocessing(8, 1, (0.3,), (0.4,)))
    for words in (["--resume", str(path)], [f"--resume={path}"], ["--resume", "--run", str(path)]):
        options = train.parse([*words, "--devices", "1"])
        assert (options.config, options.run, options.resume, options.devices) == (started, path, True, 1)
    assert train.parse(["--resume", str(path), "--epochs", "9"]).config == dataclasses.replace(started, epochs=9)
    options = train.parse(["digits", "--resume", str(path)])
    assert (options.run, options.resume, options.config.epochs) == (path, True, train.parse(["digits"]).config.epochs)
    for words, message in (
        (["--resume"], "--resume needs the folder of a run, such as --resume runs/digits"),
        (["--resume", "a", "--run", "b"], "--resume names the run a, --run the run b: give one of them"),
        (["--resume", "nowhere"], "there is no run in nowhere: it has no config.json"),
    ):
        with pytest.raises(ValueError, match=f"^{message}$"):
            train.parse(words)

    assert train._folder(train.parse(["--resume", str(path), "--afresh"])) == (path, True)
    Run(path).metrics.write_text('{"kind": "test", "step": 9}\n')  # an evaluation, whose checkpoint is gone
    assert train._folder(train.parse(["--resume", str(path), "--afresh"])) == (Path("runs/my run-2"), False)
    with pytest.raises(ValueError, match="--afresh goes with --resume"):
        train._folder(train.parse(["digits", "--afresh"]))


def test_fine_tuning_takes_network_and_size_of_images_from_the_run(tmp_path):
    network = NetworkConfig("resnet", depth=10, mixer="identity")
    Run(tmp_path / "a").start(
        to_json(TrainConfig(network=network)), ["a"], Preprocessing(48, 3, (0.5,) * 3, (0.2,) * 3, 0.9)
    )
    words = ["folder", "--data.root", "there", "--start-from", str(tmp_path / "a")]
    config = train.parse(words).config
    assert config.network == network and config.start_from == tmp_path / "a"
    assert (config.data.image_size, config.data.crop) == (48, 0.9)
    assert config.epochs == train.parse(words[:3]).config.epochs
    other = train.parse([*words, "--network.dropout", "0.5", "--data.image-size", "32"]).config
    assert other.network == dataclasses.replace(network, dropout=0.5) and other.data.image_size == 32
    with pytest.raises(
        ValueError, match=r"^--start-from must name the folder of a run, got .*experiments.convert makes"
    ):
        train.parse([*words[:-1], str(tmp_path / "b")])


@pytest.mark.slow
def test_a_run_made_longer_equals_one_that_was_as_long_from_the_start(tmp_path, monkeypatch, capsys):
    """Where the learning rate had been the same so far. One that lost what it had before a checkpoint starts afresh."""
    monkeypatch.chdir(tmp_path)
    words = [*QUICK[2:-2], "--optimizer.warmup-epochs", "0", "--optimizer.schedule", "step", "--devices", "1"]
    words += ["--network.family", "tests.experiments.outside:TwoLayers", "--network.mixer", "identity"]
    words += ["--optimizer.step-boundaries", "0.9", "--evaluate-every", "1"]
    for run, epochs in (("whole", 3), ("grown", 2)):
        train.run(["digits", *words, "--epochs", str(epochs), "--run", run])
    with pytest.raises(ValueError, match=r"cannot go on to --epochs 3: .* would have been another from step 8 on"):
        train.run(["--resume", "grown", "--devices", "1", "--epochs", "3"])
    assert json.loads(Path("grown/config.json").read_text())["config"]["epochs"] == 2
    shutil.rmtree("grown/checkpoints/8")  # before the rate fell
    train.run(["--resume", "grown", "--devices", "1", "--epochs", "3"])
    whole, grown = (read_start(Path(run)) for run in ("whole", "grown"))
    assert whole.step == grown.step == 12
    jax.tree.map(np.testing.assert_array_equal, grown.variables, whole.variables)
    assert Path("grown/config.json").read_text() == Path("whole/config.json").read_text()

    shutil.rmtree("grown/checkpoints")
    Path("grown/metrics.jsonl").write_text("")
    capsys.readouterr()
    train.run(["--resume", "grown", "--devices", "1", "--afresh"])  # killed before its first checkpoint
    jax.tree.map(np.testing.assert_array_equal, read_start(Path("grown")).variables, whole.variables)
