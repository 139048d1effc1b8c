"""What a person gets wrong, and what a machine does: one line, exit code 2, and nothing lost or overwritten."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from PIL import Image

from experiments import (
    alignment,
    compare,
    consistency,
    convert,
    count,
    evaluate,
    export,
    graph_matching,
    predict,
    prepare,
    reach,
    search,
    train,
    two_layer_network,
)
from experiments.benchmark import __main__ as benchmark
from experiments.cli import command as commands
from experiments.cli import main
from experiments.cli.help import option_names
from experiments.cli.nearest import MEANING
from experiments.presets import PRESETS
from shuffle_jax.train import experiment

COMMANDS = {"train": train.run, "evaluate": evaluate.run, "count": count.run}
FEW = ["--epochs", "3", "--data.test-fraction", "0.9", "--batch-size", "44", "--optimizer.warmup-epochs", "0.5"]
FAMILY = ["--network.family", "tests.experiments.outside:TwoLayers", "--network.mixer", "identity"]
QUICK = [*FEW, *FAMILY, "--evaluate-every", "1", "--keep", "3", "--devices", "1"]
LAST = 12
"""Steps of such a run; it saves at 4, 8 and 12."""


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A finished run."""
    path = tmp_path_factory.mktemp("whole") / "run"
    train.run(["digits", *QUICK, "--run", str(path)])
    return path


@pytest.fixture
def copy(whole, tmp_path):
    """A copy of it, to spoil."""
    return Path(shutil.copytree(whole, tmp_path / "copy"))


@pytest.fixture
def pictures(tmp_path):
    """Four pictures each of two classes, and one each to test on."""
    root = tmp_path / "pictures"
    for split, number in (("train", 4), ("val", 1)):
        for level, name in enumerate(("ant", "bee")):
            (root / split / name).mkdir(parents=True)
            for i in range(number):
                Image.new("RGB", (9, 9), (level, i, 0)).save(root / split / name / f"{i}.png")
    return root


def run(capsys, name, *arguments):
    """A command in this process: its exit code, and what it wrote to standard error."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as end:
        main(lambda: (COMMANDS[name](list(map(str, arguments))), sys.exit(0)))
    return end.value.code, capsys.readouterr().err


def content(path):
    """Every file below a folder, with what is in it."""
    return {p.relative_to(path): p.read_bytes() for p in path.rglob("*") if p.is_file()}


# Words of the command line, and numbers that do not fit each other


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("train digitz", "there is no preset 'digitz'; near: digits, "),
        (
            "train",
            f"no preset is named: choose one of the {len(PRESETS)} that python -m experiments.train --help lists, such",
        ),
        (
            "train --lr 3 digits",
            "the preset must come first, got --lr: python -m experiments.train digits --lr ... (see ",
        ),
        ("train digits --network.widht 1", "there is no option --network.widht; near: --network.width, "),
        ("train digits --widht=1", "there is no option --widht; near: --network.width, "),
        ("train digits --label_smothing 0", "there is no option --label_smothing; near: --label-smoothing, "),
        ("train digits --lr 0.1", "there is no option --lr; near: --optimizer.learning-rate\n"),
        ("train digits --data pictures", "there is no option --data; near: --data.root, --data.data-dir\n"),
        ("train digits --network.mixer shufle", "--network.mixer has no choice 'shufle'; near: shuffle, "),
        ("train digits --epochs many", "--epochs: invalid literal for int()"),
        ("train digits --epochs 0", "epochs must be at least 1, got 0"),
        ("train digits --epochs", "Missing value for argument '--epochs'"),
        ("train digits 7", "no option takes '7'"),
        ("train folder", "--data.root PATH"),
        ("train cifar10-auto --data.data-dir no", "cifar10 is not prepared in no (there is nothing): run `python -m "),
        ("train cifar100-resnet --data.data-dir no", "`python -m experiments.prepare cifar100 --data-dir no` where"),
        ("train imagenet-mobilenet --data.data-dir no", "run `python -m experiments.prepare imagenet2012 --data-dir "),
        ("train digits --data.name mine --data.data-dir no", "mine is not prepared in no"),
        ("train folder --data.name ../mine", "name must be such as cifar10, cifar10:3.0.2 or "),
        ("train digits --data.name x --data.root=y", "--data.name a set of tensorflow-datasets: give one of them"),
        ("train cifar10-auto --data.root", "Missing value for argument '--data.root'"),
        ("train imagenet-resnet --data.root nowhere", "no folder nowhere; set --data.root to the folder that holds "),
        ("train folder --data.root x --data.holdout 2", "holdout must be between 0 and 1"),
        (
            "train folder --data.root x --augment.resized-crop 0.3",
            "of --augment.resized-crop and --augment.crop-padding one must be 0",
        ),
        ("train folder --data.root x --data.broken keep", "--data.broken has no choice 'keep'; near: "),
        ("evaluate", "Missing from python -m experiments.evaluate: PATH"),
        ("evaluate x --checkpiont best", "there is no option --checkpiont; near: --checkpoint, "),
        ("evaluate nowhere", "there is no run in nowhere"),
        ("evaluate --wrogn 3", "there is no option --wrogn; near: --wrong, "),
        ("count --layerz x", "there is no option --layerz; near: --layers, "),
        ("train digits --network.width 0.7", "has no width 0.7: choose one of [0.5, 1.0, 1.5, 2.0]"),
        ("train digits --network.family shufflenet_v1 --network.groups 5", "5 groups"),
        ("train digits --devices 3", "devices must be from 1 to 2, the devices of this machine, got 3"),
        ("train digits --devices 0", "devices must be from 1 to 2, the devices of this machine, got 0"),
        ("train digits --batch-size 1", "--batch-size must be a multiple of 2, "),
        ("train digits --batch-size 45", "--batch-size must be a multiple of 2, "),
        (
            "train digits --batch-size 5000",
            "--batch-size must be at most 1438, the images of the training split, got 5000",
        ),
        ("train digits --resume", "there is no run to resume in runs/digits"),
        ("train digits --resume --run nowhere", "there is no run in nowhere"),
    ],
)
def test_wrong_words_and_numbers(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    code, errors = run(capsys, *arguments.split())
    assert code == 2
    assert message in errors
    assert errors.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


# Pictures


def empty_class(root):
    (root / "train" / "cat").mkdir()
    return "no .jpg, .jpeg or .png image in {root}/train/cat"


def no_train(root):
    shutil.rmtree(root / "train")
    return "no folder {root}/train"


def missing_class(root):
    shutil.rmtree(root / "train" / "bee")
    return "{root}/val/bee is not among the 1 known classes"


def truncated(root):
    path = root / "train" / "bee" / "2.png"
    path.write_bytes(path.read_bytes()[:40])
    return "cannot read image {root}/train/bee/2.png: "


def bomb(root):
    Image.new("1", (20_000, 10_000)).save(root / "train" / "ant" / "1.png")  # a few kB on disk
    return "cannot read image {root}/train/ant/1.png: "


def link_to_nowhere(root):
    (root / "train" / "ant" / "9.png").symlink_to("missing.png")
    return "cannot read image {root}/train/ant/9.png: "


def image_outside(root):
    Image.new("RGB", (9, 9)).save(root.parent / "secret.png")
    (root / "train" / "ant" / "9.png").symlink_to(root.parent / "secret.png")
    return "{root}/train/ant/9.png is a link to {root.parent}/secret.png, outside of {root}"


def class_outside(root):
    shutil.move(root / "val" / "bee", root.parent / "bee")
    (root / "val" / "bee").symlink_to("../../bee")
    return "{root}/val/bee is a link to {root.parent}/bee, outside of {root}"


@pytest.mark.parametrize(
    "spoil",
    [empty_class, no_train, missing_class, truncated, bomb, link_to_nowhere, image_outside, class_outside],
)
def test_wrong_pictures(tmp_path, pictures, capsys, spoil):
    message = spoil(pictures).format(root=pictures)
    few = ["--batch-size", 4]
    code, errors = run(capsys, "train", "folder", "--data.root", pictures, "--run", tmp_path / "run", *few)
    assert code == 2
    assert message in errors
    assert errors.count("\n") == 1
    assert not (tmp_path / "run").exists()


# Runs


def changed(path, **fields):
    """Rewrites the configuration of a run."""
    about = json.loads((path / "config.json").read_text())
    about["config"]["network"].update(fields)
    (path / "config.json").write_text(json.dumps(about))


def not_resumed(path):
    message = f"{path} exists and is not empty: name another --run, or continue it with: "
    return ["train", "digits", *QUICK, "--run", path], message


def resumed_as_another(path):
    command = ["train", "digits", *QUICK, "--epochs", 9, "--run", path, "--resume"]
    return command, f"{path} cannot go on to --epochs 9: in a training of so many epochs the learning rate"


def other_network(path):
    changed(path, width=1.0)
    return ["evaluate", path], "is of another network than the run's config.json says ("


def other_network_resumed(path):
    changed(path, width=1.0)
    command = ["train", "digits", *QUICK, "--network.width", 1.0, "--run", path, "--resume"]
    return command, "; 6 arrays differ)"


def configuration_torn(path):
    (path / "config.json").write_text('{"config": {')
    return ["evaluate", path], "config.json does not hold the configuration and the classes of a run (JSONDecodeError"


def configuration_of_something_else(path):
    (path / "config.json").write_text("[1, 2]")
    return ["train", "digits", "--run", path, "--resume"], "config.json does not hold the configuration"


def other_classes(path):
    text = (path / "config.json").read_text()
    (path / "config.json").write_text(text.replace('"9"', '"nine"'))
    return ["evaluate", path], "the classes of digits must be ('0', '1', "


def metrics_spoilt(path):
    with (path / "metrics.jsonl").open("a") as file:
        file.write("}\n{}\n")
    return ["train", "digits", *QUICK, "--run", path, "--resume"], "not a JSON object"


def newest_damaged_and_named(path):
    (path / "checkpoints" / str(LAST) / "default" / "_METADATA").unlink()
    return ["evaluate", path, "--checkpoint", LAST], "is damaged (default/_METADATA is missing): choose one of [4, 8]"


def all_damaged(path):
    for step in (path / "checkpoints").iterdir():
        shutil.rmtree(step / "default")
    return ["evaluate", path], "every checkpoint in "


def all_damaged_and_resumed(path):
    all_damaged(path)
    return ["train", "digits", *QUICK, "--run", path, "--resume"], "4: default/_METADATA is missing; 8: "


def no_checkpoint(path):
    shutil.rmtree(path / "checkpoints")
    return ["evaluate", path], "there is no checkpoint in"


def no_such_step(path):
    return ["evaluate", path, "--checkpoint", 5], "has no checkpoint of step 5: choose one of [4, 8, 12]"


def no_such_name(path):
    return ["evaluate", path, "--checkpoint", "newest"], 'checkpoint must be "last", "best" or a step, got \'newest\''


def numbers_below_a_file(path):
    return ["evaluate", path, "--json", path / "config.json" / "x.json"], "config.json: "


def run_below_a_file(path):
    command = ["train", "digits", *QUICK, "--run", path / "config.json" / "run"]
    return command, f"{path}/config.json"


@pytest.mark.parametrize(
    "spoil",
    [
        not_resumed,
        resumed_as_another,
        other_network,
        other_network_resumed,
        configuration_torn,
        configuration_of_something_else,
        other_classes,
        metrics_spoilt,
        newest_damaged_and_named,
        all_damaged,
        all_damaged_and_resumed,
        no_checkpoint,
        no_such_step,
        no_such_name,
        numbers_below_a_file,
        run_below_a_file,
    ],
)
def test_wrong_runs(copy, capsys, spoil):
    arguments, message = spoil(copy)
    before = content(copy)
    code, errors = run(capsys, *arguments)
    assert code == 2
    lines = errors.splitlines()
    assert message in lines[-1]
    # The warning about the damaged checkpoint is one line of its own.
    assert len(lines) == 1 + (spoil is newest_damaged_and_named), errors
    assert content(copy) == before


def test_a_run_killed_before_its_configuration_was_whole_can_be_started_again(tmp_path, capsys):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json.tmp").write_text('{"config": {')
    code, errors = run(capsys, "train", "digits", *QUICK, "--run", tmp_path / "run")
    assert (code, errors) == (0, "")
    assert json.loads((tmp_path / "run" / "config.json").read_text())["classes"]
    assert not (tmp_path / "run" / "config.json.tmp").exists()


# Damaged checkpoints are passed over


def cut_short(step):
    for path in (step / "default" / "ocdbt.process_0" / "d").iterdir():
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def file_missing(step):
    (step / "default" / "manifest.ocdbt").unlink()


def metadata_garbage(step):
    (step / "default" / "_METADATA").write_bytes(b"\xff\x00{")


def metrics_garbage(step):
    (step / "metrics" / "metrics").write_text("top1")


def emptied(step):
    shutil.rmtree(step)
    step.mkdir()


def arrays(run):
    """The arrays of the last checkpoint, as they are stored."""
    from shuffle_jax.run import Run
    from shuffle_jax.train.config import read_config

    shapes = experiment.prepare(read_config(Run(run))).state_shapes()
    state = experiment.read_state(Run(run), str(LAST), shapes)
    return jax.tree.leaves(jax.device_get((state.params, state.opt_state, state.step)))


@pytest.mark.parametrize("damage", [cut_short, file_missing, metadata_garbage, metrics_garbage, emptied])
@pytest.mark.fast_cases(2)
def test_the_checkpoint_before_a_damaged_one_is_used(whole, copy, capsys, damage):
    damage(copy / "checkpoints" / str(LAST))
    before = content(copy)
    capsys.readouterr()
    evaluate.run([str(copy), "--devices", "1"])
    printed = capsys.readouterr()
    assert "step 8, " in printed.out
    assert printed.err.startswith("warning: damaged checkpoints in ") and printed.err.count("\n") == 1
    assert printed.err.endswith("left out; the newest whole one is 8\n")
    assert content(copy) == before

    spoilt = content(copy / "checkpoints" / str(LAST))
    code, errors = run(capsys, "train", "digits", *QUICK, "--run", copy, "--resume")
    assert code == 0
    assert errors.endswith(f"moved to {copy / 'damaged'}; the newest whole one is 8\n") and errors.count("\n") == 1
    assert content(copy / "damaged" / str(LAST)) == spoilt
    for a, b in zip(arrays(copy), arrays(whole), strict=True):
        np.testing.assert_array_equal(a, b)


# The machine

CHILD = """
import resource, sys
from experiments import train
from experiments.cli import main
resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, resource.RLIM_INFINITY))
main(lambda: train.run(sys.argv[1:]))
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("limit", "file"),
    [(100, "config.json"), (1_000, "metrics.jsonl"), (20_000, "checkpoints"), (80_000, "figures")],
)
def test_a_full_disk_is_one_line_and_loses_nothing(whole, tmp_path, capsys, limit, file):
    """A limit on the size of files stands for a full disk: the system refuses in the middle of a write as well."""
    path = tmp_path / "run"
    resumed = [] if file == "config.json" else ["--resume"]
    if resumed:  # from the first of three checkpoints
        shutil.copytree(whole, path)
        for step in (8, LAST):
            shutil.rmtree(path / "checkpoints" / str(step))
    arguments = ["digits", *QUICK, "--run", str(path)]
    environment = {
        **os.environ,
        "PYTHONPATH": str(Path(__file__).parents[2]),
        "JAX_ENABLE_COMPILATION_CACHE": "false",  # or it keeps the half of an entry
    }
    done = subprocess.run(
        [sys.executable, "-c", CHILD.format(limit=limit), *arguments, *resumed],
        check=False,
        capture_output=True,
        text=True,
        timeout=300,
        env=environment,
    )
    assert done.returncode == 2, done.stderr
    assert f"{path / file}: File too large; make room" in done.stderr
    assert done.stderr.count("\n") == 1, done.stderr
    if resumed:
        assert (path / "checkpoints" / "4" / "default" / "_METADATA").exists()

    code, errors = run(capsys, "train", *arguments, *resumed)
    assert (code, errors) == (0, "")
    assert sorted(p.name for p in (path / "checkpoints").iterdir()) == ["12", "4", "8"]  # no half of one
    for a, b in zip(arrays(path), arrays(whole), strict=True):
        np.testing.assert_array_equal(a, b)


def test_ctrl_c_before_the_first_step_is_one_line(tmp_path, monkeypatch, capsys):
    original = experiment.load

    def load(*arguments):
        os.kill(os.getpid(), signal.SIGINT)
        return original(*arguments)

    monkeypatch.setattr(experiment, "load", load)
    code, errors = run(capsys, "train", "digits", *QUICK, "--run", tmp_path / "run")
    assert (code, errors) == (130, "interrupted\n")
    assert not (tmp_path / "run").exists()


def test_an_interrupt_that_a_callback_swallows_prints_no_page():
    said = []
    for kind in (KeyboardInterrupt, RuntimeError):
        commands._only_named(said.append, SimpleNamespace(object=print, exc_type=kind))
    assert [failure.exc_type for failure in said] == [RuntimeError]


@pytest.mark.slow
def test_ctrl_c_while_compiling_is_answered_and_a_second_one_ends_the_process(tmp_path):
    """Before that it said what is trained on what; programs are kept where the user has such things."""
    environment = {
        **os.environ,
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
        "PYTHONPATH": str(Path(__file__).parents[2]),
    }
    del environment["JAX_COMPILATION_CACHE_DIR"]
    command = [sys.executable, "-m", "experiments.train", "digits"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, cwd=tmp_path, env=environment, **pipes) as process:
        try:
            opening = []
            while not opening or not opening[-1].startswith("compiling"):
                opening.append(process.stdout.readline())
                assert opening[-1], process.stderr.read()
            process.send_signal(signal.SIGINT)
            answer = process.stderr.readline()
            process.send_signal(signal.SIGINT)
            rest, errors = process.communicate(timeout=60)
        finally:
            process.kill()
    said = "".join(opening)
    assert "1,438 images to train on, 359 to test on, 10 classes, 8 x 8 x 1" in said and "1,100 steps" in said
    assert "351,610 parameters and 230,400 more in training" in said
    assert answer == "compiling; stopping after the first step, which is saved; Ctrl-C again stops now\n"
    assert (process.returncode, errors, rest) == (130, "interrupted\n", "")
    assert list((tmp_path / "cache" / "shuffle_jax").iterdir())


# Tracebacks


@pytest.mark.parametrize("place", [0, 1, 2])
def test_traceback_anywhere_brings_it_back(place, monkeypatch, capsys):
    words = ["--layers", "nothing"]
    words.insert(place, "--traceback")
    monkeypatch.setattr(sys, "argv", ["count", *words])
    with pytest.raises(SystemExit) as end:
        main(count.run)
    assert end.value.code == 2
    errors = capsys.readouterr().err
    assert errors.startswith("Traceback (most recent call last):")
    assert errors.splitlines()[-1].startswith("there is no network 'nothing'; near: ")


@pytest.mark.parametrize(
    ("module", "options"),
    [
        (train, ""),
        (evaluate, "--checkpoint STR --twin --layers --devices --json"),
        (count, "--csv --layers NAME --match TEXT --groups"),
        (alignment, "--methods NAME --images --orders --channels --depth --steps --seeds --results FILE --figure FILE"),
        (reach, "--csv --match TEXT --network NAME --run --field --figure FILE"),
        (graph_matching, "--qaplib --graphs --embedded --methods --starts --seconds --csv --out"),
        (
            two_layer_network,
            "--weights --widths --channels --teachers --starts --steps --seed --csv --figure FILE",
        ),
        (export, "--checkpoint STR --fold --platforms"),
        (predict, "--raw --top INT --json --logits --broken --batch-size --checkpoint"),
        (consistency, "--checkpoint STR --images --shifts --crops --untrained --dtypes --json"),
        (convert, "--classes --root --image-size --crop --mean --std --batch-size"),
        (compare, "--out --into --known --minutes --results"),
        (search, ""),
        (prepare, "--data-dir --module --manual-dir"),
        (benchmark, "--rounds --batch-size --image-size --width --dtype --only --json"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_help_names_every_option_and_tells_of_traceback(module, options, capsys):
    with pytest.raises(SystemExit) as end:
        module.run(["--help"])
    assert end.value.code == 0
    printed = capsys.readouterr()
    shown = " ".join(printed.out.replace("│", " ").split())
    name = module.__name__.removesuffix(".__main__")
    for part in (f"python -m {name}", "--traceback", *re.findall(r"--[a-z-]+(?: [A-Z]+)?", options)):
        assert part in shown, part
    assert "--no-csv" not in shown and printed.err == ""


def page(capsys, *words):
    with pytest.raises(SystemExit) as end:
        train.run([*words])
    assert end.value.code == 0
    return capsys.readouterr().out


def test_help_shows_everyday_options_presets_by_their_data_and_all_on_request(capsys):
    short, whole = page(capsys, "digits", "--help"), page(capsys, "digits", "--help-all")
    shown, everything = option_names(short), option_names(whole)
    assert everything.keys() >= shown.keys() - {"--help-all", "--data.root", "--data.name"}
    assert {"--epochs", "--network.mixer", "--data.root"} <= shown.keys() and "--network.dcd.latent" in everything
    assert "penalty options" in short and "network.dcd options" not in short
    hidden = int(re.search(r"(\d+) more options: python -m experiments.train digits --help-all", short)[1])
    assert hidden > 50 and len(short.splitlines()) < 150
    # What a word may have meant, and what is shown, is there: of a folder, of a set, or in another command.
    folder = option_names(page(capsys, "folder", "--data.root", "x", "--help-all"))
    known = everything | folder | option_names(page(capsys, "digits", "--data.name", "x", "--help-all"))
    assert set(train.EVERYDAY) <= known.keys()
    others = {"out", "json", "checkpoint", "top", "seconds", "methods", "csv", "platforms", "traceback"}
    assert MEANING.keys() - {name[2:] for name in known} - {name.rpartition(".")[2] for name in known} == others
    first = page(capsys, "--help")
    assert "python -m experiments.train folder --data.root " in first
    assert all(re.search(rf"^    {name} ", first, re.M) for name in PRESETS)


def test_a_defect_shows_its_traceback():
    def defect():
        raise TypeError("an integer is no string")

    with pytest.raises(TypeError, match="an integer is no string"):
        main(defect)


def test_every_preset_has_a_name_that_is_near_itself(capsys):
    for name in PRESETS:
        _, errors = run(capsys, "train", f"{name}x")
        assert f"near: {name}" in errors
