"""The search command: what it decides, writes and goes on with, and what it says to mistakes."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from experiments import search
from experiments.train import parse as parse_training
from shuffle_jax.analysis.sizes import Rule, decisions
from shuffle_jax.records import read_records
from shuffle_jax.run import Run
from shuffle_jax.train import loop
from shuffle_jax.train.config import to_json

HERE = Path(__file__).parent
SIZED = ["digits", "--network.family", "sized:Sized", "--network.mixer", "identity", "--data.test-fraction", "0.9"]
RULE = ["--start", "8", "--rule.least", "4", "--rule.most", "16"]


@pytest.fixture(autouse=True)
def importable(monkeypatch):
    monkeypatch.syspath_prepend(str(HERE))


@pytest.fixture
def trained(monkeypatch):
    """Trains nothing, and measures of each epoch what it is told to; returns the folders and configurations."""
    calls = []

    def train(config, path, resume, afresh, devices):
        calls.append((path.name, config))
        rng = np.random.default_rng([*config.network.sizes, config.seed])
        path.mkdir(parents=True)
        (path / "config.json").write_text(json.dumps({"config": to_json(config)}))
        lines = []
        for epoch in range(1, config.epochs + 1):
            for layer in ("one", "two"):
                sides = {f"{side}_rank": rng.choice([0.1, 0.2, 0.3]) for side in ("inputs", "outputs")}
                rest = {f"{side}_{what}": 1.0 for side in ("inputs", "outputs") for what in ("condition", "gain")}
                lines.append({"kind": "knowledge", "step": 10 * epoch, "layer": layer, **sides, **rest})
        lines.append({"kind": "test", "step": 10 * config.epochs, "top1": 0.5, "loss": 1.0})
        lines.append({"kind": "result", "network": "relaxed", "step": 10 * config.epochs, "top1": 0.5, "loss": 1.0})
        (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))

    monkeypatch.setattr(loop, "train", train)
    monkeypatch.setattr(search, "save_figure", lambda figure, path: None)
    monkeypatch.setattr(search, "sizes_figure", lambda names, trials: None)
    return calls


def run(out, *more):
    search.run([*SIZED, *RULE, "--out", str(out), "--epochs", "3", *more])


def table(out):
    with (out / "sizes.csv").open() as file:
        return list(csv.DictReader(file))


def test_sizes_follow_the_ranks_and_the_last_ones_can_be_trained(trained, tmp_path, capsys):
    out = tmp_path / "found"
    run(out, "--trials", "5", "--augment.flip", "--seed=7")
    rows = table(out)
    assert len(rows) == 5 * 2
    ranks = np.zeros((5, 2, 3))
    for trial in range(5):
        for record in read_records(Run(out / f"trial-{trial + 1:02d}").metrics)[:6]:
            epoch = record["step"] // 10 - 1
            if record["layer"] == "one":
                ranks[trial, 0, epoch] += record["outputs_rank"] / 2
            else:
                ranks[trial, 0, epoch] += record["inputs_rank"] / 2
                ranks[trial, 1, epoch] = record["outputs_rank"]
    states = decisions((8, 8), ranks, np.ones((5, 2)), Rule(least=4, most=16))
    assert [int(row["channels"]) for row in rows] == [state.size for after in states[:5] for state in after]
    assert [(row["operation"], row["phi"]) for row in rows] == [
        (str(state.operation), f"{state.phi:g}") for after in states[1:] for state in after
    ]
    assert len({row["channels"] for row in rows}) >= 2
    sizes = tuple(state.size for state in states[4])
    assert [(name, config.network.sizes, config.seed) for name, config in trained] == [
        (f"trial-{i + 1:02d}", tuple(state.size for state in states[i]), 7 + i) for i in range(5)
    ]
    assert all(config.optimizer == search.ADAS for _, config in trained)
    words = [f"@{out / 'train.txt'}", "--epochs", "9"]
    config = parse_training(words).config
    assert (config.network.sizes, config.network.family, config.augment.flip) == (sizes, "sized:Sized", True)
    assert (config.epochs, config.seed, config.optimizer.kind, config.data.test_fraction) == (9, 0, "sgd", 0.9)
    assert f"@{out / 'train.txt'}" in capsys.readouterr().out


@pytest.mark.slow
def test_a_search_goes_on_and_may_have_more_trials(trained, tmp_path, monkeypatch):
    whole, out = tmp_path / "whole", tmp_path / "stopped"
    run(whole, "--trials", "4")
    train, left = loop.train, iter(range(2))

    def dies(*arguments, **options):
        if next(left, None) is None:
            raise KeyboardInterrupt
        train(*arguments, **options)

    monkeypatch.setattr(loop, "train", dies)
    with pytest.raises(KeyboardInterrupt):
        run(out, "--trials", "3")
    monkeypatch.setattr(loop, "train", train)
    del trained[:]
    run(out, "--trials", "3")
    run(out, "--trials", "4")
    assert [name for name, _ in trained] == ["trial-03", "trial-04"]
    for name in ("sizes.csv", "train.txt", "search.json"):
        assert (out / name).read_bytes() == (whole / name).read_bytes()


@pytest.mark.slow
def test_another_search_and_anything_else_in_the_folder_are_left_alone(trained, tmp_path, mistake):
    run(tmp_path / "search", "--trials", "1")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    words = [*SIZED, *RULE, "--trials", "1", "--out", tmp_path / "search", "--epochs", "3"]
    said = "holds another search, config.epochs: 3 -> 4: name another --out"
    assert said in mistake(search.run, [*words[:-1], "4"])
    assert "rule.delta: 0.0075 -> 0.01: name" in mistake(search.run, [*words, "--rule.delta", "0.01"])
    assert "start: 8 -> 12: name" in mistake(search.run, [*words, "--start", "12"])
    (tmp_path / "search" / "trial-02").mkdir()
    assert f"trials must be at least 2, those of {tmp_path / 'search'}, got 1" in mistake(search.run, words)
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.tex").write_text("precious")
    assert "exists and holds no search: name another --out" in mistake(search.run, [*SIZED, "--out", other])
    (other / "thesis.tex").rename(other / "search.json")
    assert "does not hold a search" in mistake(search.run, [*SIZED, "--out", other])
    (other / "search.json").unlink()
    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([*SIZED, "--start", "300"], "start must be from 32 to 256, the least and most of a size, got 300"),
        (["@nowhere/train.txt"], "nowhere/train.txt: No such file or directory"),
        (["digits-addressnet"], "addressnet has no sizes to search: choose resnet, shufflenet_v2 or mobilenet_v2"),
        ([*SIZED, "--optimizer.kind", "sgd"], "--optimizer.kind must be adas in a search, which"),
        ([*SIZED, "--trials", "0"], "trials must be at least 1, got 0"),
        ([*SIZED, "--rule.phi", "1"], "phi must be above 0 and below 1, got 1"),
        ([*SIZED, "--start=9", "--rule.least=9", "--rule.most=9"], "most must leave room for a multiple of 2 from 9"),
        (["digits-resnet", "--network.depth", "50"], "ResNet-50 has no sizes of its own"),
        (["digits", "--rule.gama", "1"], "there is no option --rule.gama; near: --rule.gamma"),
    ],
)  # fmt: skip
@pytest.mark.fast_cases(2)
def test_mistakes_are_one_line_and_nothing_is_written(words, said, mistake, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert said in mistake(search.run, words)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_killed_search_ends_like_one_that_was_not(tmp_path):
    options = ["--trials", "3", "--epochs", "2", "--batch-size", "44", "--evaluate-every", "1", *RULE]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    command = [sys.executable, "-m", "experiments.search", *SIZED, *options, "--out"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (HERE, HERE.parents[1])))}
    search.run([*SIZED, *options, "--out", str(whole)])
    process = subprocess.Popen([*command, str(killed)], env=environment, stdout=subprocess.DEVNULL)
    second, give_up = killed / "trial-02" / "metrics.jsonl", time.monotonic() + 300
    while not second.exists() and process.poll() is None and time.monotonic() < give_up:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert table(killed)[-1]["trial"] == "1"
    search.run([*SIZED, *options, "--out", str(killed)])
    for name in ("sizes.csv", "train.txt", "search.json"):
        assert (whole / name).read_bytes() == (killed / name).read_bytes()
    assert (killed / "sizes.png").stat().st_size > 10_000
    for trial in ("trial-01", "trial-02", "trial-03"):
        measured = [
            [r for r in read_records(Run(folder / trial).metrics) if r["kind"] == "knowledge"]
            for folder in (whole, killed)
        ]
        assert measured[0] == measured[1] != []
