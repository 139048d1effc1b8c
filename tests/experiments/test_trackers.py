"""Trackers against their real libraries, without a network; and that none of them ends a run."""

from __future__ import annotations

import json
import sqlite3
import sys

import numpy as np
import pytest

from experiments import train
from shuffle_jax.run import Run, resume_command
from shuffle_jax.train.metrics import MetricWriter

CONFIG = {"network": {"mixer": "auto", "auto": {"candidates": 4}}, "seed": 3}
RECORDS = [
    {"kind": "train", "step": 4, "epoch": 1.0, "loss": 2.5},
    {"kind": "permutation", "step": 8, "layer": "layers/mixer[0]", "certified": True},
    {"kind": "result", "step": 8, "network": "hardened", "split": "test", "top1": 0.75},
]


needs = pytest.importorskip  # the extra track, which the development tools do without: it brings 60 packages


@pytest.fixture
def offline(monkeypatch, tmp_path):
    """Every tracker writes into a folder of its own, and none of them asks a server."""
    folders = {name: tmp_path / name for name in ("wandb", "mlflow", "trackio")}
    for folder in folders.values():
        folder.mkdir()
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(folders["wandb"]))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", folders["mlflow"].as_uri())
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("TRACKIO_DIR", str(folders["trackio"]))
    return folders


def tracked(path, track, records=RECORDS, resumed_at=0):
    """A run of a few records, with a figure and a permutation at its end."""
    run = Run(path)
    run.figures.mkdir(parents=True, exist_ok=True)
    with MetricWriter(run, 8, 4, resumed_at, track=track, config=CONFIG) as metrics:
        for record in records:
            metrics.write(record)
        if records[-1]["kind"] == "result":
            from matplotlib import image

            image.imsave(run.figures / "curves.png", np.zeros((4, 4)))
            run.save_permutations({"mixer": np.int32([1, 0])})
    return json.loads(run.tracking.read_text())[track]


@pytest.mark.slow
def test_mlflow_has_configuration_numbers_figures_and_permutations_and_goes_on(offline, tmp_path):
    MlflowClient = needs("mlflow").MlflowClient
    key = tracked(tmp_path / "run", "mlflow", RECORDS[:1])
    assert MlflowClient().get_run(key).info.status == "KILLED"
    assert tracked(tmp_path / "run", "mlflow", RECORDS[1:], resumed_at=4) == key
    run = MlflowClient().get_run(key)
    assert run.info.status == "FINISHED" and run.info.run_name == "run"
    assert run.data.params == {"network.mixer": "auto", "network.auto.candidates": "4", "seed": "3"}
    assert run.data.metrics == {
        "train/loss": 2.5,
        "permutation/layers/mixer_0_/certified": 1.0,
        "result/hardened/top1": 0.75,
    }
    assert [m.step for m in MlflowClient().get_metric_history(key, "result/hardened/top1")] == [8]
    names = {file.path for where in (None, "figures") for file in MlflowClient().list_artifacts(key, where)}
    assert names == {"figures", "figures/curves.png", "permutations.npz"}


@pytest.mark.slow
def test_trackio_has_configuration_numbers_figures_and_permutations_and_goes_on(offline, tmp_path):
    needs("trackio")
    key = tracked(tmp_path / "run", "trackio", RECORDS[:1])
    assert tracked(tmp_path / "run", "trackio", RECORDS[1:], resumed_at=4) == key
    with sqlite3.connect(offline["trackio"] / "shuffle_jax.db") as data:
        rows = data.execute("select run_name, step, metrics from metrics").fetchall()
        (config,) = data.execute("select config from configs").fetchone()
        (artifact,) = data.execute("select name from artifacts").fetchone()
    assert {name for name, _, _ in rows} == {key}
    numbers = {(step, name): value for _, step, found in rows for name, value in json.loads(found).items()}
    assert numbers[4, "train/loss"] == 2.5 and numbers[8, "result/hardened/top1"] == 0.75
    assert any(name == "figures/curves" for _, name in numbers)
    assert json.loads(config)["network.auto.candidates"] == 4
    assert artifact == f"permutations-{key}"


@pytest.mark.slow
def test_wandb_keeps_a_run_offline_with_figures_and_permutations(offline, tmp_path):
    needs("wandb")
    key = tracked(tmp_path / "run", "wandb")
    (folder,) = (offline["wandb"] / "wandb").glob(f"offline-run-*-{key}")
    assert (folder / f"run-{key}.wandb").stat().st_size > 0
    assert [path.suffix for path in (folder / "files" / "media" / "images" / "figures").iterdir()] == [".png"]
    content = (folder / f"run-{key}.wandb").read_bytes()
    assert all(name in content for name in (b"result/hardened/top1", b"network.auto.candidates", b"permutations-"))


@pytest.mark.slow
def test_a_run_is_tracked_from_the_command_line(offline, tmp_path):
    needs("trackio")
    small = "--network.family tests.experiments.outside:Mixed --network.width 1 --network.mixer shuffle"
    words = f"digits --epochs 1 --data.test-fraction 0.9 --batch-size 44 {small} --track trackio"
    train.run([*words.split(), "--run", str(tmp_path / "run")])
    with sqlite3.connect(offline["trackio"] / "shuffle_jax.db") as data:
        found = [json.loads(row[0]) for row in data.execute("select metrics from metrics")]
    names = {name for numbers in found for name in numbers}
    figures = {f"figures/{path.stem}" for path in (tmp_path / "run" / "figures").iterdir()}
    assert names >= {"train/loss", "test/top1", "result/relaxed/top1"} | figures and figures


@pytest.mark.parametrize("fails", ["start", "log", "close"])
def test_what_a_tracker_cannot_do_is_one_line_and_ends_nothing(tmp_path, monkeypatch, capsys, fails):
    class Started:
        id = "key"

        def log(self, values, step=None):
            if fails == "log":
                raise RuntimeError("no space\nand more")

        def log_artifact(self, artifact):
            pass

        def finish(self, exit_code=0):
            raise SystemExit("it is gone")

    class Library:
        Settings = dict

        @staticmethod
        def init(**given):
            if fails == "start":
                raise RuntimeError("api_key not configured")
            print("noise")
            return Started()

    monkeypatch.setitem(sys.modules, "wandb", Library)
    with MetricWriter(Run(tmp_path), 8, 4, track="wandb") as metrics:
        for record in RECORDS[:1] * 2:
            metrics.write(record)
    reason = {"start": "api_key not configured", "log": "no space", "close": "it is gone"}[fails]
    out, err = capsys.readouterr()
    assert err == f"warning: wandb: {reason}; the run goes on without it\n" and "noise" not in out
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 2


def test_a_damaged_file_of_names_ends_nothing(tmp_path, capsys):
    Run(tmp_path).tracking.write_text("{")
    with MetricWriter(Run(tmp_path), 8, 4, track="wandb") as metrics:
        metrics.write(RECORDS[0])
    assert capsys.readouterr().err.startswith("warning: wandb: ")
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 1


def test_a_tracker_that_is_not_installed_is_named_before_anything_is_read(tmp_path, mistake, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    message = "--track wandb needs the package wandb, which is not installed: pip install wandb"
    assert message in mistake(train.run, ["digits", "--run", tmp_path / "run", "--track", "wandb"])
    assert not (tmp_path / "run").exists()


def test_a_stopped_run_goes_on_in_its_tracker(tmp_path):
    assert resume_command(tmp_path, track="mlflow").endswith(" --track mlflow")
