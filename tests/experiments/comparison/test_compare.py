"""The comparison as a person runs it: trained once, resumed, rendered again, and mistakes answered before training."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import time
import tomllib
from pathlib import Path

import pytest

from experiments import compare
from experiments.comparison.ledger import Ledger, as_json
from experiments.comparison.plan import EXAMPLE, Comparison, plan, read
from experiments.comparison.questions import operand
from experiments.comparison.table import block
from shuffle_jax import data, models
from shuffle_jax.data import DeviceBatches
from shuffle_jax.run import Run
from shuffle_jax.train import experiment, loop
from shuffle_jax.train import trained as ends

ROOT = Path(__file__).parents[3]

FAMILY = "--network.family tests.experiments.outside:Mixed --network.width 1"
QUICK = "--epochs 2 --data.test-fraction 0.9 --batch-size 44 --optimizer.warmup-epochs 0.5"
FILE = f"""
title = "Two mixers"
text = "A try."
seeds = [3, 4]
each_seed = "--seed {{seed}} --data.seed {{seed}} {QUICK} {FAMILY}"
[variants]
"fixed shuffle" = "digits --network.mixer shuffle"
"learned (Auto)" = "digits"
"broken" = "digits --optimizer.learning-rate 1e30"
"""


@pytest.fixture(scope="module", autouse=True)
def no_figures():
    """Runs draw none: each takes as long as the training here, and they have tests of their own."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(ends, "save_run_figures", lambda run: [])
        yield


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("comparison") / "two.toml"
    path.write_text(FILE)
    return path


@pytest.fixture(scope="module")
def read_data():
    """The data sets that are read, as they are."""
    read_data = []

    def load(config, classes=None):
        read_data.append(config)
        return data.load(config, classes)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(experiment, "load", load)
        yield read_data


@pytest.fixture(scope="module")
def out(file, read_data, tmp_path_factory):
    """A finished comparison, of three variants on two splits of the data."""
    path = tmp_path_factory.mktemp("out") / "two"
    compare.run([str(file), "--out", str(path)])
    seeds = [config.seed for config in read_data]
    assert seeds == [3, 4, 4, 4]  # once for the networks that are checked first, and not again for what they train on
    return path


def records(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def results(out):
    return json.loads((out / "results.json").read_text())


def gathered(file, out):
    """The results that are known from a folder."""
    ledger = Ledger(read(file), plan(read(file), out), out)
    ledger.gather()
    return ledger.results()


@pytest.mark.slow
def test_results_are_those_of_the_runs(out):
    found = results(out)
    assert [v["label"] for v in found["variants"]] == ["fixed shuffle", "learned (Auto)", "broken"]
    assert found["seeds"] == [3, 4] and set(found["versions"]) >= {"jax", "shuffle_jax"} and len(found["devices"]) == 1
    fixed, learned, broken = (v["runs"] for v in found["variants"])
    for runs, slug in ((fixed, "fixed-shuffle"), (learned, "learned-auto")):
        assert [one["seed"] for one in runs] == [3, 4]
        for one in runs:
            written = records(out / f"{slug}-{one['seed']}")
            said = {r["network"]: {"top1": r["top1"], "loss": r["loss"]} for r in written if r["kind"] == "result"}
            assert one["relaxed"] == said["relaxed"] and one["hardened"] == said.get("hardened")
            last = [r for r in written if r["kind"] == "permutation" and r["step"] == 8]
            assert one["permutations"] == len(last) == (slug == "learned-auto")
            assert one["certified"] == sum(r["certified"] for r in last)
            # The preset evaluates every second epoch: one record and one evaluation, after two epochs of four steps.
            assert one["curves"] == {
                name: [[r["step"] / 4, float(f"{r[field]:.4g}")] for r in written if r["kind"] == kind]
                for name, kind, field in (("train_loss", "train", "loss"), ("top1", "test", "top1"))
            }
            assert [[epoch for epoch, _ in curve] for curve in one["curves"].values()] == [[2], [2]]
    assert not any("curves" in one for one in broken)
    assert all("is nan at step" in one["failed"] or "is inf at step" in one["failed"] for one in broken)
    configs = [json.loads((out / f"learned-auto-{seed}" / "config.json").read_text())["config"] for seed in (3, 4)]
    assert [(c["seed"], c["data"]["seed"], c["epochs"]) for c in configs] == [(3, 3, 2), (4, 4, 2)]
    assert (out / "table.md").read_text().count("\nFailed: broken, seed") == 2
    assert all((out / name).stat().st_size > 10_000 for name in ("figure.png", "curves.png"))
    lines = [line.strip() for line in (out / "results.json").read_text().splitlines()]
    assert '"seeds": [3, 4],' in lines and sum(line.startswith('"top1": [[2, ') for line in lines) == 4


@pytest.mark.slow
def test_every_variant_has_the_costs_of_its_network_after_hardening(out):
    parameters, multiply_adds = (1 * 4 + 4) + (4 * 10 + 10), 8 * 8 * 1 * 4 + 4 * 10  # The mixer is a gather.
    for variant in results(out)["variants"]:  # A run that failed has a network as well.
        assert (variant["parameters"], variant["multiply_adds"]) == (parameters, multiply_adds)
    header, _, *lines = (out / "table.md").read_text().splitlines()[:5]
    assert header.endswith("| certified | parameters | multiply-adds |")
    assert all(line.endswith(" | 58 | 296 |") for line in lines)


@pytest.mark.slow
def test_runs_of_an_early_version_have_no_costs_and_are_read(file, out, tmp_path, capsys):
    copy = tmp_path / "copy"
    shutil.copytree(out, copy)
    for config in copy.glob("learned-auto-*/config.json"):
        about = json.loads(config.read_text())
        del about["preprocessing"]
        config.write_text(json.dumps(about))
    (copy / "results.json").unlink()
    found = gathered(file, copy)
    said = capsys.readouterr().err
    assert said.startswith("no parameters and multiply-adds of 'learned (Auto)': ") and said.count("\n") == 1
    assert [("parameters" in v, "multiply_adds" in v) for v in found["variants"]] == [(1, 1), (0, 0), (0, 0)]
    assert [v["runs"] for v in found["variants"]][:2] == [v["runs"] for v in results(out)["variants"]][:2]
    assert "multiply-adds" not in block(found)


@pytest.mark.slow
def test_a_variant_whose_seeds_have_networks_of_different_costs_has_none(file, out, monkeypatch, capsys):
    sizes, build = iter(range(1, 9)), models.build
    monkeypatch.setattr(models, "build", lambda config, classes: build(config, classes + next(sizes)))
    assert ["parameters" in variant for variant in gathered(file, out)["variants"]] == [False, False, True]
    of = "no parameters and multiply-adds of {!r}: its seeds have networks of 2 different costs"
    expected = [of.format(label) for label in ("fixed shuffle", "learned (Auto)")]
    assert capsys.readouterr().err.splitlines()[:2] == expected


@pytest.mark.slow
def test_other_networks_of_a_run_come_into_the_results(file, out, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(out, copy)
    with (copy / "learned-auto-3" / "metrics.jsonl").open("a") as metrics:
        for network, top1 in (("frozen", 0.25), ("soft", 0.5)):
            record = {"kind": "result", "step": 8, "network": network, "loss": 2.0, "top1": top1, "top5": 1.0}
            metrics.write(json.dumps(record) + "\n")
    fixed, learned, _ = gathered(file, copy)["variants"]
    assert learned["runs"][0]["others"] == {"soft": {"top1": 0.5, "loss": 2.0}, "frozen": {"top1": 0.25, "loss": 2.0}}
    assert not any("others" in one for one in [*fixed["runs"], learned["runs"][1]])


@pytest.mark.slow
def test_finished_runs_are_kept_and_only_the_others_are_trained(file, out, tmp_path, monkeypatch):
    copy, trained = tmp_path / "copy", []
    shutil.copytree(out, copy)
    (copy / "results.json").unlink()  # in which those that failed are known

    def fail(config, path, *, resume, afresh, devices, dataset):
        trained.append((path.name, resume))
        raise loop.NonFiniteLoss("the loss is bad; try another")

    monkeypatch.setattr(loop, "train", fail)
    compare.run([str(file), "--out", str(copy)])
    assert trained == [("broken-3", True), ("broken-4", True)]
    assert results(copy)["variants"][:2] == results(out)["variants"][:2]
    failed = [{**run, "failed": "the loss is bad"} for run in results(out)["variants"][2]["runs"]]
    assert results(copy)["variants"][2]["runs"] == failed


@pytest.mark.slow
def test_a_document_holds_the_results_between_its_markers(file, out, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(compare, "train_missing", None)  # nothing trains
    document = tmp_path / "document.md"
    begin, end = "<!-- begin compare: two -->", "<!-- end compare: two -->"
    document.write_text(f"# Before\n\n{begin}\nold\n{end}\n\nAfter ü\n", encoding="utf-8")
    given = ["--results", str(out / "results.json")]
    for into in (["--out", str(tmp_path / "again")], []):
        compare.run([*given, "--into", str(document), *into])
        text = document.read_text(encoding="utf-8")
        assert text == f"# Before\n\n{begin}\n{block(results(out))}{end}\n\nAfter ü\n"
    for name in ("table.md", "figure.png", "curves.png"):
        assert (tmp_path / "again" / name).read_bytes() == (out / name).read_bytes()
    said = capsys.readouterr().out
    assert said.count((out / "table.md").read_text()) == 2
    assert said.count(f"\nresults, table, figure and curves in {tmp_path / 'again'}\n") == 1

    early = results(out)  # of a version that kept no curves
    for one in early["variants"][0]["runs"] + early["variants"][1]["runs"]:
        del one["curves"]
    (tmp_path / "early.json").write_text(json.dumps(early))
    compare.run(["--results", str(tmp_path / "early.json"), "--out", str(tmp_path / "early")])
    assert sorted(path.name for path in (tmp_path / "early").iterdir()) == ["figure.png", "table.md"]
    assert (tmp_path / "early" / "table.md").read_bytes() == (out / "table.md").read_bytes()
    assert capsys.readouterr().out.endswith(f"\nresults, table and figure in {tmp_path / 'early'}\n")

    for broken in ("nothing", f"{begin}\n", f"{end}\n{begin}\n", f"{begin}{end}{begin}{end}"):
        document.write_text(broken)
        for arguments in (given, [str(file), "--out", str(tmp_path / "new")]):
            with pytest.raises(ValueError, match="has not one pair of lines <!-- begin compare: two -->"):
                compare.run([*arguments, "--into", str(document)])
        assert document.read_text() == broken
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.slow
def test_a_signal_stops_the_comparison_and_the_same_command_goes_on(out, tmp_path, monkeypatch, capsys, late):
    path, short = tmp_path / "stopped", tmp_path / "two.toml"
    lines = FILE.replace("seeds = [3, 4]", "seeds = [3]").splitlines(keepends=True)
    short.write_text("".join(line for line in lines if "broken" not in line))
    command = [str(short), "--out", str(path)]
    batches, figures = DeviceBatches.train, ends.save_run_figures

    def kill():
        os.kill(os.getpid(), signal.SIGTERM)

    def during(self, start=0):
        for k, batch in enumerate(batches(self, start), start=start + 1):
            if k == 6:
                kill()
            yield batch

    def after(run):
        kill()
        return figures(run)

    with monkeypatch.context() as patched:
        patched.setattr(*((ends, "save_run_figures", after) if late else (DeviceBatches, "train", during)))
        with pytest.raises(SystemExit) as stop:
            compare.run(command)
    assert stop.value.code == 128 + signal.SIGTERM
    assert capsys.readouterr().err.endswith("; the same command goes on\n")
    assert compare.finished(path / "fixed-shuffle-3") == late
    assert not (path / "learned-auto-3").exists() and (path / "results.json").exists() == late
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL and signal.set_wakeup_fd(-1) == -1

    compare.run(command)
    found, whole = ([one["runs"][0] for one in results(where)["variants"][:2]] for where in (path, out))
    if not late:  # The mean that holds the stop speaks of the steps after it.
        stopped, whole_epoch = (each[0]["curves"]["train_loss"].pop() for each in (found, whole))
        assert stopped[0] == whole_epoch[0] == 2
    assert found == whole


@pytest.mark.slow
def test_the_end_of_the_time_stops_the_comparison_and_the_same_command_goes_on(out, tmp_path, monkeypatch, capsys):
    path, short = tmp_path / "stopped", tmp_path / "two.toml"
    short.write_text("".join(line for line in FILE.splitlines(keepends=True) if "broken" not in line))
    command = [str(short), "--out", str(path)]
    batches = DeviceBatches.train

    def slow(self, start=0):
        for k, batch in enumerate(batches(self, start), start=start + 1):
            if k == 6:
                time.sleep(4)
            yield batch

    with monkeypatch.context() as patched:
        patched.setattr(DeviceBatches, "train", slow)
        patched.setattr(compare, "check", lambda planned, missing: {})  # so that the time is over in the first run
        compare.run([*command, "--minutes", "0.05"])
    said = capsys.readouterr()
    assert said.out.endswith("\n4 of 4 runs are missing; the same command goes on\n") and "are over" in said.err
    assert Run(path / "fixed-shuffle-3").steps() and not (path / "learned-auto-3").exists()
    assert not (path / "results.json").exists() and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL

    compare.run(command)
    found, whole = results(path), results(out)
    # The mean that holds the stop speaks of the steps after it.
    stopped, whole_epoch = (each["variants"][0]["runs"][0]["curves"].pop("train_loss") for each in (found, whole))
    assert len(stopped) == len(whole_epoch)
    assert found["variants"] == whole["variants"][:2]
    assert {name: found[name] for name in ("versions", "devices", "seeds")} == {
        name: whole[name] for name in ("versions", "devices", "seeds")
    }


def test_json_loses_layout_and_nothing_else():
    text = 'a [\n 1,  2\n] "[\n{'
    nasty = {text: text, "n": [[1, 2.5], [2, "nan"], [3, "-inf"]], "m": [[], {}, [text, [1]], [[1, [2]], [3]]]}
    assert json.loads(as_json(nasty)) == nasty
    assert as_json({"a": [[1, 2.5], [2, 3.0]], "b": 1}) == '{\n "a": [[1, 2.5], [2, 3.0]],\n "b": 1\n}\n'


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("title =", "titel =", "has an unknown field 'titel'; near: title"),
        ('text = "A try."', "", "has no field 'text': give title, text, seeds, each_seed, variants"),
        ("seeds = [3, 4]", "seeds = [3, 3]", "seeds must be a list of different whole numbers, got [3, 3]"),
        ("seeds = [3, 4]", 'seeds = "3"', "seeds must be a list of different whole numbers, got '3'"),
        ("seeds = [3, 4]", "seeds = [3, 4", "is not TOML: "),
        ('"digits"', "7", "variants must be a table from labels to command lines, got "),
        ("mixer shuffle", "mixer shufle", "variant 'fixed shuffle': "),
        ("mixer shuffle", "mixxer shuffle", "variant 'fixed shuffle': "),
        ("mixer shuffle", "mixer 'shuffle", "variant 'fixed shuffle': No closing quotation"),
        ("mixer shuffle", "mixer shuffle --resume", "leave out --run and --resume, they are chosen here"),
        ("mixer shuffle", "mixer shuffle --profile 1 2", "leave out --input, --distributed and --profile"),
        ("mixer shuffle", "mixer shuffle --input.pipeline memory", "leave out --input, --distributed and --profile"),
        ("rate 1e30", "rate 1e30 --batch-size 45", "variant 'broken': batch_size must be a multiple of 2"),
        ("--network.mixer shuffle", "", "'learned (Auto)' with seed 3 are the same run: leave one out"),
        ("--seed {seed} --data.seed {seed}", "", "are the same run: leave one out, or write {seed} where"),
        ('"broken"', '"Learned Auto"', "'Learned Auto' share the folder"),
    ],
)
def test_mistakes_are_one_line_before_anything_is_trained(tmp_path, mistake, old, new, message):
    path = tmp_path / "two.toml"
    assert old in FILE
    text = FILE.replace(old, new)
    path.write_text(text.replace(QUICK, QUICK.replace("--batch-size 44 ", "")) if "45" in new else text)
    assert message in mistake(compare.run, [path, "--out", tmp_path / "out"])
    assert not (tmp_path / "out").exists()


def test_help_names_the_keys_of_a_file_and_its_example_is_one(tmp_path, capsys):
    with pytest.raises(SystemExit):
        compare.run(["--help"])
    shown = capsys.readouterr().out
    assert all(f"  {field.name}: " in shown for field in dataclasses.fields(Comparison) if field.name != "name")
    assert all(line in shown for line in EXAMPLE.splitlines())
    (tmp_path / "mixers.toml").write_text(EXAMPLE)
    planned = plan(read(tmp_path / "mixers.toml"), tmp_path)
    assert [(one.label, one.seed) for one in planned][::3] == [("fixed shuffle", 1), ("learned", 1)]
    assert all(one.config.data.seed == one.config.seed == one.seed for one in planned)


@pytest.mark.slow
def test_a_folder_with_another_run_is_left_alone(file, out, tmp_path):
    path = tmp_path / "two.toml"
    path.write_text(FILE.replace("--epochs 2", "--epochs 3"))
    before = records(out / "fixed-shuffle-3")
    with pytest.raises(ValueError, match=r"fixed-shuffle-3 was started with another configuration \(--epochs: 2 -> 3"):
        compare.run([str(path), "--out", str(out)])
    assert records(out / "fixed-shuffle-3") == before
    for arguments in ([], [str(file), "--results", str(out / "results.json")]):
        with pytest.raises(ValueError, match=r"name either the \.toml file of a comparison or, with --results"):
            compare.run(arguments)


@pytest.mark.slow
def test_a_run_killed_before_its_end_is_not_finished(out, tmp_path):
    lines = (out / "learned-auto-3" / "metrics.jsonl").read_text().splitlines(keepends=True)
    assert compare.finished(out / "learned-auto-3") and not compare.finished(tmp_path)
    for kept in ("".join(lines[:-1]), "".join(lines)[:-20]):  # without the last line, and within it
        (tmp_path / "metrics.jsonl").write_text(kept)
        assert not compare.finished(tmp_path)


def test_the_digits_comparison_is_of_other_splits_than_the_settings_were_chosen_on(tmp_path):
    comparison = read(ROOT / "experiments" / "comparisons" / "digits.toml")
    assert comparison.seeds == (1, 2, 3, 4, 5) and len(comparison.variants) == 6
    planned = plan(dataclasses.replace(comparison, seeds=(1, 2)), tmp_path)  # the others go the same way
    assert {one.config.data.seed for one in planned} == {1, 2}
    assert all(one.config.seed == one.config.data.seed == one.seed for one in planned)
    mixers = {one.label: one.config.network.mixer for one in planned}
    assert sorted(mixers.values()) == ["auto", "auto", "dynamic_hard", "identity", "random", "shuffle"]
    random = [one.config.network.random.seed for one in planned if one.config.network.mixer == "random"]
    assert random == [1, 2]
    base = {dataclasses.replace(one.config, network=planned[2].config.network) for one in planned[:4]}
    assert len(base) == 2  # the fixed and the learned shuffle differ in the mixer alone


@pytest.mark.slow  # reading 18 command lines takes seconds
def test_the_campaign_trains_nothing_that_no_question_is_about(tmp_path):
    comparison = read(ROOT / "experiments" / "campaign.toml")
    asked = {
        label
        for pair in comparison.questions.values()
        for label in (operand(text, comparison.variants)[0] for text in pair)
    }
    assert asked == {*comparison.variants}
    one = dataclasses.replace(comparison, seeds=comparison.seeds[:1])
    configs = [planned.config for planned in plan(one, tmp_path)]
    assert len(configs) == 18 and {(c.data.image_size, c.data.per_class) for c in configs} == {(32, None)}


COMMITTED = sorted((ROOT / "experiments" / "comparisons").glob("*.toml"))


@pytest.mark.parametrize("toml", COMMITTED, ids=lambda path: path.stem)
def test_a_page_shows_the_committed_results(toml):
    found = json.loads(toml.with_suffix(".json").read_text(encoding="utf-8"))
    command, _, page = toml.read_text(encoding="utf-8").partition("\n")[0].removeprefix("# ").rpartition(" --into ")
    assert command == found["command"]
    text = (ROOT / page).read_text(encoding="utf-8")
    assert compare.inserted(ROOT / page, toml.stem, block(found)) == text
    stated = tomllib.loads(toml.read_text(encoding="utf-8"))
    assert {v["label"]: v["command"] for v in found["variants"]} == stated["variants"]
    for key in ("title", "text", "seeds", "each_seed"):
        assert found[key] == stated[key]
    assert found.get("questions", {}) == stated.get("questions", {})
