"""Runs that are known without their folders: digests, files of results, and what is trained beside them."""

from __future__ import annotations

import json
import shutil
import signal
import time
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest

from experiments import compare
from experiments.comparison import plan as planning
from experiments.comparison.budget import limited
from experiments.comparison.ledger import Ledger
from experiments.comparison.plan import digest, plan, read
from experiments.train import parse
from shuffle_jax.data import FolderConfig, Preprocessing
from shuffle_jax.models import NetworkConfig
from shuffle_jax.run import Run
from shuffle_jax.signals import Interruption
from shuffle_jax.train import loop
from shuffle_jax.train.config import to_json

FILE = """
title = "Two lengths"
text = "A try."
seeds = [3, 4]
each_seed = "--seed {seed} --network.family tests.experiments.outside:Mixed --network.width 1"
[variants]
"short" = "digits --epochs 2"
"long" = "digits --epochs 4"
"broken" = "digits --epochs 3"
"""
ORDER = [("short", 3), ("short", 4), ("long", 3), ("long", 4), ("broken", 3), ("broken", 4)]

ONE = FILE.replace("seeds = [3, 4]", "seeds = [3]").partition('"long"')[0]


@pytest.fixture(autouse=True)
def parsed_once(monkeypatch):
    """Half a second for each command line is most of what a comparison takes that trains nothing."""
    monkeypatch.setattr(planning, "parse", lambda words: _parsed(tuple(words)))


@cache
def _parsed(words):
    return parse(words)


@pytest.fixture
def trained(monkeypatch):
    """Trains nothing: a run ends at once, with an accuracy that tells its configuration. Gives the folders' names."""
    names = []

    def train(config, path, *, resume, afresh, devices, dataset):
        names.append(path.name)
        # Every run before this one is in the results already.
        known = results(path.parent)["variants"] if names[1:] else []
        kept = {(v["label"], r["seed"]) for v in known for r in v["runs"]}
        assert all(tuple_of(name) in kept for name in names[:-1])
        Run(path).start(to_json(config), tuple("0123456789"), Preprocessing(8, 1, (0.5,), (0.5,)))
        top1 = config.epochs / 10 + config.seed / 100
        record = {"kind": "result", "step": 1, "network": "relaxed", "loss": 1.0, "top1": top1, "top5": 1.0}
        Run(path).metrics.write_text("" if config.epochs == 3 else json.dumps(record) + "\n")
        if config.epochs == 3:
            raise loop.NonFiniteLoss("the loss is bad; try another")

    monkeypatch.setattr(loop, "train", train)
    monkeypatch.setattr(compare, "check", lambda planned, missing: {})
    monkeypatch.setattr(compare, "write", lambda results, out, into: None)
    return names


def tuple_of(name):
    label, seed = name.split("-")
    return label, int(seed)


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "two.toml"
    path.write_text(FILE)
    return path


def results(out):
    return json.loads((out / "results.json").read_text())


def test_runs_are_on_the_disk_one_by_one_and_known_by_the_file_alone(file, tmp_path, trained, capsys):
    compare.run([str(file), "--out", str(tmp_path / "out")])
    assert [tuple_of(name) for name in trained] == ORDER
    whole = results(tmp_path / "out")
    runs = {v["label"]: v["runs"] for v in whole["variants"]}
    assert [run["relaxed"]["top1"] for run in runs["long"]] == pytest.approx([0.43, 0.44])
    assert [run["failed"] for run in runs["broken"]] == ["the loss is bad"] * 2
    assert all("parameters" in variant for variant in whole["variants"])

    # Known to another machine but for one run that is missing, one of another configuration, and one of an early
    # version, which had no digests. So are the runs that failed.
    early, known = json.loads(json.dumps(whole)), tmp_path / "known.json"
    short, long, _ = early["variants"]
    short["runs"].pop(0)
    del short["runs"][0]["digest"]
    long["runs"][1]["digest"] = "0" * 12
    early["versions"]["jax"], early["devices"], early["date"] = "0.0.1", ["1 x other"], "2001-01-01"
    known.write_text(json.dumps(early))
    trained.clear()
    capsys.readouterr()
    command = [str(file), "--out", str(tmp_path / "part")]
    compare.run([*command, "--known", str(known)])
    assert [tuple_of(name) for name in trained] == [("short", 3), ("short", 4), ("long", 4)]
    said = capsys.readouterr()
    assert said.out.startswith(f"{known}: 3 runs taken over\n[1/3] short, seed 3, in ")
    assert said.err.splitlines()[:3] == [
        f"{known}: failed, and trained again only if removed there: broken, seeds 3, 4",
        f"{known}: 1 run not taken over, without a digest as of earlier versions",
        f"{known}: of another configuration, so trained again: long, seed 4",
    ]
    merged = results(tmp_path / "part")
    assert merged["variants"] == whole["variants"] and merged["date"] == whole["date"]
    assert merged["versions"] == whole["versions"] | {"jax": f"0.0.1 and {whole['versions']['jax']}"}
    assert merged["devices"] == sorted(["1 x other", *whole["devices"]])

    # The results in --out are known in any case, also when no folder is left.
    trained.clear()
    for folder in (tmp_path / "part").glob("*-[34]"):
        shutil.rmtree(folder)
    compare.run(command)
    assert trained == [] and results(tmp_path / "part") == merged


def test_a_file_that_holds_no_results_is_refused(file, tmp_path, trained, mistake):
    file.write_text(ONE)
    for content in ("{", "{}", "[]", '{"variants": [{}], "versions": {}, "devices": [], "date": ""}'):
        (tmp_path / "known.json").write_text(content)
        said = mistake(compare.run, [file, "--known", tmp_path / "known.json", "--out", tmp_path / "out"])
        assert "known.json does not hold the results of a comparison" in said
    said = mistake(compare.run, [file, "--known", tmp_path / "none.json", "--out", tmp_path / "out"])
    assert "none.json: No such file or directory" in said
    assert "must be positive, got 0" in mistake(compare.run, [file, "--minutes", "0"])
    assert "nothing is trained" in mistake(compare.run, ["--results", tmp_path / "known.json", "--minutes", "1"])
    assert not (tmp_path / "out").exists() and trained == []


def test_a_digest_is_of_what_the_result_depends_on():
    config = parse(["digits", "--seed", "1"]).config
    network, data, plain = config.network, config.data, digest(config)
    # If this changes, so do those of all committed results, and their runs are trained again. A new field with which
    # nothing else is done than before belongs in LATER of experiments/comparison/plan.py.
    assert plain == "08a007684d8d"
    assert digest(replace(config, keep=5)) == plain
    shift = replace(network.shift, shortcut="shift")  # of a network that this one is not
    assert digest(replace(config, network=replace(network, shift=shift))) == plain
    others = [
        *(replace(config, **{name: getattr(config, name) + 1}) for name in ("seed", "epochs", "log_every")),
        *(replace(config, network=replace(network, **new)) for new in ({"mixer": "shuffle"}, {"auto": {"noise": 9.0}})),
        *(replace(config, data=replace(data, **new)) for new in ({"seed": 1}, {"validation": 0.1})),
    ]
    assert len({plain, *map(digest, others)}) == 1 + len(others)
    # The place of a folder is another on another machine; its name says which pictures they are.
    folders = (FolderConfig(Path(root)) for root in ("cifar", "/data/cifar", "/data/other"))
    digests = [digest(replace(config, data=folder)) for folder in folders]
    assert digests[0] == digests[1] != digests[2]
    # Depth and groups are the network's own where none are given.
    resnet = NetworkConfig(family="resnet", mixer="identity")
    assert resnet != resnet.resolved()
    assert digest(replace(config, network=resnet)) == digest(replace(config, network=resnet.resolved()))


def test_time_that_is_over_stops_a_training_and_nothing_else():
    before = signal.getsignal(signal.SIGTERM)
    with limited(None) as over:
        assert not over.is_set() and signal.getsignal(signal.SIGTERM) is before
    with limited(1e-4) as over:
        assert over.wait(30)
        with Interruption("") as interruption:  # a training that begins after the first signal
            end = time.monotonic() + 30
            while not interruption.signal and time.monotonic() < end:
                time.sleep(0.01)
        assert interruption.signal == signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) is before
    with pytest.raises(SystemExit) as stop, limited(60):
        signal.raise_signal(signal.SIGTERM)  # of somebody else
    assert stop.value.code == 128 + signal.SIGTERM


def test_no_run_begins_when_the_time_is_over(file, tmp_path, trained, monkeypatch, capsys):
    file.write_text(ONE)
    monkeypatch.setattr(compare, "check", lambda planned, missing: time.sleep(0.05) or {})
    compare.run([str(file), "--out", str(tmp_path / "out"), "--minutes", "1e-5"])
    assert trained == [] and not (tmp_path / "out").exists()
    assert capsys.readouterr().out.endswith("1 of 1 runs are missing; the same command goes on\n")


def test_questions_choose_the_order(file, tmp_path, trained):
    both = FILE.replace("[3, 4]", "[3, 4, 5]").partition('"broken"')[0]
    file.write_text(both + '[questions]\n"q" = ["long", "short"]\n')
    compare.run([str(file), "--out", str(tmp_path / "out")])
    first = [(label, seed) for seed in (3, 4) for label in ("long", "short")]
    # Both differences are 20 points: it is decided, and the rest comes in the order of the file.
    rest = [("short", 5), ("long", 5)]
    assert [tuple_of(name) for name in trained] == first + rest
    assert results(tmp_path / "out")["questions"] == {"q": ["long", "short"]}


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ("questions = 3\n", "question 'questions' must be a list of two labels, got 3"),
        ('[questions]\n"q" = ["long"]\n', "question 'q' must be a list of two labels, got ['long']"),
        ('[questions]\n"q" = ["long", "shrt"]\n', "question 'q': 'shrt' names no variant; near: short"),
        ('[questions]\n"q" = ["long", "long: sft"]\n', "question 'q': 'long: sft' names no form 'sft'"),
        ('[questions]\n"q" = ["long", "long"]\n', "question 'q' must name two different things, got 'long' twice"),
        ("margin = 0\n", "margin must be points of accuracy between 0 and 100, got 0"),
        ('margin = "1"\n', "margin must be points of accuracy between 0 and 100, got '1'"),
    ],
)
def test_mistakes_in_questions_are_one_line(file, tmp_path, mistake, more, message):
    file.write_text(FILE + more if more.startswith("[") else more + FILE)
    assert message in mistake(compare.run, [file, "--out", tmp_path / "out"])


def test_validation_images_are_compared_with_validation_images_alone(file, tmp_path):
    file.write_text(ONE.replace("--epochs 2", "--epochs 2 --data.validation 0.1"))
    assert Ledger(read(file), plan(read(file), tmp_path), tmp_path).results()["measured"] == "validation"
    file.write_text(file.read_text() + '"long" = "digits --epochs 4"\n')
    with pytest.raises(ValueError, match="'long' on test images and 'short' on validation images cannot be compared"):
        plan(read(file), tmp_path)


def test_more_options_of_every_run_are_in_its_configuration_and_in_what_is_said(tmp_path, trained):
    (tmp_path / "one.toml").write_text(ONE)
    words = [str(tmp_path / "one.toml"), "--each", "--epochs 5", "--out", str(tmp_path / "out")]
    compare.run(words)
    found = results(tmp_path / "out")
    assert found["each_seed"].endswith("--network.width 1 --epochs 5")
    assert found["variants"][0]["runs"][0]["relaxed"]["top1"] == pytest.approx(0.53)
    with pytest.raises(ValueError, match="--each makes other runs than the file has: give their folder, --out"):
        compare.run(words[:3])
