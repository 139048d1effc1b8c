"""Export and predict as a person uses them: from a run, from a file, from pictures, from arrays."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from experiments import convert, export, predict, train
from shuffle_jax.deploy.exported import sidecar
from shuffle_jax.train.experiment import prepare

SIZES = "--data.image-size 8 --network.width 0.5 --network.stem small --batch-size 2 --devices 1"


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    root = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for split, count in (("train", 4), ("val", 3)):
        for name in ("bright", "dark"):
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(0, 256, (9 + i, 12, 3), np.uint8)
                Image.fromarray(pixels).save(root / split / name / f"{i}.png")
    return root


@pytest.fixture(scope="module")
def run(pictures, few_units, draw, tmp_path_factory):
    """A run that was saved before its first step: every layer random, every mixer relaxed."""
    data = Path(shutil.copytree(pictures, tmp_path_factory.mktemp("data") / "pictures"))
    path = tmp_path_factory.mktemp("run") / "pictures"
    config = train.parse(["folder", "--data.root", str(data), *SIZES.split()]).config
    experiment = prepare(config, devices=1)
    variables = draw(experiment.network, experiment.dataset.image_shape)
    convert.write(path, config, variables, experiment.dataset.classes, experiment.preprocessing)
    shutil.rmtree(data)  # neither command needs the training images
    return path


@pytest.fixture(scope="module")
def exported(run):
    export.run([str(run), "--platforms", "cpu"])
    return run / "network.jax"


def logits_of(model, *pictures, tmp_path, options=()):
    path = tmp_path / "logits.npy"
    predict.run([str(model), *map(str, pictures), "--logits", str(path), *options])
    return np.load(path, allow_pickle=False)


def test_the_exported_file_predicts_what_the_run_predicts(run, exported, pictures, tmp_path, capsys):
    from_run = logits_of(run, pictures / "val", tmp_path=tmp_path)
    table = capsys.readouterr().out
    from_file = logits_of(exported, pictures / "val", tmp_path=tmp_path)
    assert from_run.shape == (6, 2) and from_run.dtype == np.float32
    np.testing.assert_allclose(from_file, from_run, rtol=1e-3, atol=1e-4 * np.abs(from_run).max())
    lines = table.splitlines()
    assert lines[0].split() == ["picture", "1.", "probability", "2.", "probability"]
    assert [line.split()[0] for line in lines[1:]] == [
        str(pictures / "val" / name / f"{i}.png") for name in ("bright", "dark") for i in range(3)
    ]
    for line, row in zip(lines[1:], from_run, strict=True):
        _, best, p, other, q = line.split()
        odds = np.exp(row - row.max())
        assert [best, other] == [("bright", "dark")[i] for i in np.argsort(-row)]
        assert float(p) == pytest.approx(odds.max() / odds.sum(), abs=1e-4) and float(p) + float(q) == pytest.approx(1)


@pytest.mark.slow
def test_unfolded_layers_give_the_same(run, exported, pictures, tmp_path, capsys):
    export.run([str(run), str(tmp_path / "plain.jax"), "--no-fold", "--platforms", "cpu", "--checkpoint", "best"])
    assert "step 0 of" in capsys.readouterr().out
    assert not json.loads(sidecar(tmp_path / "plain.jax").read_text())["folded"]
    found = [logits_of(path, pictures / "val", tmp_path=tmp_path) for path in (exported, tmp_path / "plain.jax")]
    np.testing.assert_allclose(*found, rtol=1e-3, atol=1e-4 * np.abs(found[0]).max())


def test_copies_are_of_layers_that_are_shared_and_are_folded(run):
    layer, norm = {"kernel": np.ones((3, 3, 4, 4))}, {"norm": {"bias": np.ones(4)}}
    before = {"anchor": layer, "stage1_0": norm, "stage1_1": norm}
    after = {f"stage1_{i}": {**norm, "conv": {"own": layer}} for i in range(2)}
    said = export.copied(before, after)
    assert said == "2 uses of shared layers have copies: 296 parameters, 152 without"
    assert export.copied(before, before) == "no shared layer has a norm right behind it: --copies made none"
    with pytest.raises(ValueError, match="--copies are made for folding: leave out --no-fold, or --copies"):
        export.run([str(run), "--copies", "--no-fold"])


def test_arrays_of_pixels_and_of_normalised_images_give_the_same(exported, pictures, tmp_path):
    about = json.loads(sidecar(exported).read_text())["preprocessing"]
    assert (about["size"], about["channels"]) == (8, 3)
    files = sorted((pictures / "val").rglob("*.png"))
    pixels = np.stack([predict.load_model(exported, "last").preprocessing.read(file) for file in files])
    np.save(tmp_path / "pixels.npy", pixels)
    np.save(tmp_path / "normal.npy", (pixels / 255 - np.array(about["mean"])) / np.array(about["std"]))
    expected = logits_of(exported, *files, tmp_path=tmp_path)
    for name, options in (("pixels", ()), ("normal", ("--raw",)), ("pixels", ("--batch-size", "4"))):
        found = logits_of(exported, tmp_path / f"{name}.npy", tmp_path=tmp_path, options=options)
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max())


def test_json_holds_the_most_probable_classes_first(exported, pictures, capsys):
    predict.run([str(exported), str(pictures / "val" / "dark"), "--json", "--top", "1"])
    records = json.loads(capsys.readouterr().out)
    assert [Path(r["picture"]).name for r in records] == ["0.png", "1.png", "2.png"]
    for record in records:
        ((name, probability),) = record["classes"].items()
        assert name in ("bright", "dark") and 0.5 <= probability <= 1


def test_folders_are_looked_through_as_for_training(tmp_path, capsys):
    for name in (
        "a.png",
        "in/b.JPG",
        "._a.png",
        ".ipynb_checkpoints/a-checkpoint.png",
        "__MACOSX/a.png",
        "c.gif",
        "d.tif",
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert predict.find([tmp_path]) == [tmp_path / "a.png", tmp_path / "in/b.JPG"]
    assert (
        capsys.readouterr().err
        == f"left out of {tmp_path}: pictures, 1 .gif, 1 .tif (name them to have them classified)\n"
    )
    assert predict.find([tmp_path / "d.tif", tmp_path / "._a.png"]) == [tmp_path / "d.tif", tmp_path / "._a.png"]


def test_an_exported_file_is_used_without_the_code_of_the_network(exported, pictures):
    code = """
import sys
from experiments import predict
predict.run(sys.argv[1:])
print("loaded", *sys.modules)
"""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    arguments = [sys.executable, "-c", code, str(exported), str(pictures / "val" / "dark" / "0.png")]
    done = subprocess.run(arguments, check=True, capture_output=True, text=True, env=environment)
    *_, loaded = done.stdout.splitlines()
    network = {"flax", "optax", "orbax", "chex", "shuffle_jax.nn", "shuffle_jax.models", "shuffle_jax.train"}
    assert not network & set(loaded.split())


def test_a_broken_picture_stops_or_is_skipped_and_named(exported, pictures, tmp_path, capsys):
    whole, broken = pictures / "val" / "dark" / "0.png", tmp_path / "torn.png"
    broken.write_bytes(whole.read_bytes()[:60])
    predict.run([str(exported), str(broken), str(whole), "--broken", "skip"])
    printed = capsys.readouterr()
    assert len(printed.out.splitlines()) == 2 and str(whole) in printed.out
    assert printed.err.startswith(f"skipped: cannot read image {broken}") and printed.err.count("\n") == 1


class Spy:
    """Unpickling it would be noticed."""

    def __reduce__(self):
        return (print, ("code from a file was run",))


def save_objects(path):
    np.save(path, np.array([Spy()], dtype=object), allow_pickle=True)
    return path


def halved(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return path


def newer(path):
    sidecar(path).write_text(json.dumps(json.loads(sidecar(path).read_text()) | {"format": 99}))
    return path


def saved(path, *shape, dtype=np.uint8):
    np.save(path, np.zeros(shape, dtype))
    return path


MISTAKES = {
    "no model": (lambda e, p, t: [t / "none", p], "there is no {t}/none: name the folder of a run, or a file"),
    "no run": (lambda e, p, t: [t, p], "there is no run in {t}"),
    "no picture": (lambda e, p, t: [e, t / "none.png"], "there is no picture {t}/none.png"),
    "nothing in the folder": (lambda e, p, t: [e, (t / "empty").mkdir() or t / "empty"], "no picture is left"),
    "torn picture": (lambda e, p, t: [e, halved(Path(shutil.copy(p, t / "a.png")))], "{t}/a.png: "),
    "no array": (lambda e, p, t: [e, t / "none.npy"], "there is no array {t}/none.npy"),
    "objects": (lambda e, p, t: [e, save_objects(t / "a.npy")], "{t}/a.npy does not hold one plain array"),
    "torn array": (lambda e, p, t: [e, halved(saved(t / "a.npy", 9, 8, 8, 3))], "does not hold one plain array"),
    "other size": (lambda e, p, t: [e, saved(t / "a.npy", 2, 9, 8, 3)], "uint8 (2, 9, 8, 3): give uint8 (n, 8, 8, 3)"),
    "one image": (lambda e, p, t: [e, saved(t / "a.npy", 8, 8, 3)], "has the shape (8, 8, 3): give (n, h, w, c)"),
    "no images": (lambda e, p, t: [e, saved(t / "a.npy", 0, 8, 8, 3)], "with at least one image"),
    "floats": (lambda e, p, t: [e, saved(t / "a.npy", 1, 8, 8, 3, dtype=float)], "or normalised ones with --raw"),
    "raw pixels": (lambda e, p, t: [e, saved(t / "a.npy", 1, 8, 8, 3), "--raw"], "with --raw give normalised floats"),
    "raw picture": (lambda e, p, t: [e, p, "--raw"], "--raw is for one .npy array of normalised images"),
    "array and picture": (lambda e, p, t: [e, p, saved(t / "a.npy", 1, 8, 8, 3)], "give the array {t}/a.npy alone"),
    "top": (lambda e, p, t: [e, p, "--top", 0], "top must be at least 1, got 0"),
    "option": (lambda e, p, t: [e, p, "--logit", "x"], "there is no option --logit; near: --logits"),
    "logits below a file": (lambda e, p, t: [e, p, "--logits", p / "x.npy"], "0.png: "),
    "truncated export": (lambda e, p, t: [halved(e), p], "network.jax is damaged"),
    "newer export": (lambda e, p, t: [newer(e), p], "has format 99, this version reads up to 1"),
}


@pytest.mark.parametrize("name", list(MISTAKES))
def test_mistakes_are_one_line_and_code_2(exported, pictures, tmp_path, mistake, name):
    arguments, message = MISTAKES[name]
    for path in (exported, sidecar(exported)):
        shutil.copy(path, tmp_path)
    words = arguments(tmp_path / "network.jax", pictures / "val" / "dark" / "0.png", tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert message.format(t=tmp_path) in mistake(predict.run, words)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "there is no run in nowhere"),
        (["{run}", "--checkpoint", "newest"], 'checkpoint must be "last", "best" or a step, got \'newest\''),
        (["{run}", "--platforms", "gpu"], "--platforms"),
        (["{run}", "{run}/config.json/x.jax"], "config.json"),
        (["{run}", "--format", "tflite"], "--format"),
        (["{run}", "net.bin", "--format", "onnx"], "known by its name: call it net.bin.onnx, and not net.bin"),
        (
            ["{run}", "--format", "onnx", "--platforms", "cpu"],
            "--platforms is for --format jax: leave it out",
        ),
        (["{run}", "--weights", "float16"], "--weights is for --format onnx: leave it out with jax"),
        (["{run}", "--format", "hub", "--no-fold"], "--no-fold is for --format jax and onnx: leave it out with hub"),
        (["{run}", "--license", "mit"], "--license is for --format hub: leave it out with jax"),
        (["{run}", "{run}", "--format", "hub"], "exists and is no folder that an earlier export wrote: name another"),
    ],
)
def test_what_cannot_be_exported_is_one_line_and_code_2(run, mistake, monkeypatch, tmp_path, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert message in mistake(export.run, [word.format(run=run) for word in arguments])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("format", "package"), [("onnx", "onnxruntime"), ("onnx", "onnx"), ("hub", "safetensors")])
def test_a_missing_package_is_named_before_anything_is_loaded(mistake, monkeypatch, format, package):
    monkeypatch.setitem(sys.modules, package, None)
    said = mistake(export.run, ["no run at all", "--format", format])
    assert f"{package} is not installed: pip install 'shuffle_jax[{format}]'" in said


@pytest.mark.slow
def test_an_onnx_file_predicts_what_the_run_predicts(run, pictures, tmp_path, capsys):
    capsys.readouterr()
    export.run([str(run), str(tmp_path / "net.onnx"), "--format", "onnx"])
    said = capsys.readouterr().out
    assert re.search(r"net.onnx \(\d\.\d MB, float32 weights, opset 17\): step 0 of", said)
    assert re.search(
        r"on 1, 3 and 64 random images ONNX Runtime differs from it by \d\.\de-0[678] of the largest", said
    )
    expected = logits_of(run, pictures / "val", tmp_path=tmp_path)
    found = logits_of(tmp_path / "net.onnx", pictures / "val", tmp_path=tmp_path)
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max())
    export.run([str(run), str(tmp_path / "half.onnx"), "--format", "onnx", "--weights", "float16"])
    assert (tmp_path / "half.onnx").stat().st_size < 0.65 * (tmp_path / "net.onnx").stat().st_size
    found = logits_of(tmp_path / "half.onnx", pictures / "val", tmp_path=tmp_path)
    np.testing.assert_allclose(found, expected, atol=0.06 * np.abs(expected).max())


def finished(path, accuracy, seed=None):
    """A run with results; of another seed a copy of it."""
    config = json.loads((path / "config.json").read_text())
    if seed is not None:
        config["config"]["seed"] = seed
        (path / "config.json").write_text(json.dumps(config))
    records = [
        {"kind": "result", "split": "test", "step": 0, "network": name, "loss": 1.0, "top1": top1, "top5": 1.0}
        for name, top1 in (("relaxed", accuracy), ("hardened", accuracy - 0.01))
    ]
    (path / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))


@pytest.fixture(scope="module")
def hubbed(run, tmp_path_factory):
    """A folder for the hub of a run that has two more of other seeds, and one of another network, beside it."""
    root = tmp_path_factory.mktemp("several")
    for name, accuracy, seed in (("first", 0.9, None), ("second", 0.92, 7), ("third", 0.97, 8), ("x_again", 0.1, 8)):
        shutil.copytree(run, root / name)
        finished(root / name, accuracy, seed)
    shutil.copytree(run, root / "longer")
    finished(root / "longer", 0.2, 9)
    about = json.loads((root / "longer" / "config.json").read_text())
    about["config"]["epochs"] += 1
    (root / "longer" / "config.json").write_text(json.dumps(about))
    (root / "first" / "figures").mkdir(exist_ok=True)
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(root / "first" / "figures" / "matrices.png")
    export.run([str(root / "first"), str(root / "net"), "--format", "hub", "--license", "apache-2.0"])
    return root / "net"


@pytest.mark.slow
def test_the_hub_reads_the_card_and_finds_the_accuracy_with_its_spread(hubbed):
    ModelCard = pytest.importorskip("huggingface_hub").ModelCard  # the extra track has it

    card = ModelCard.load(hubbed / "README.md")
    assert (card.data.library_name, card.data.license) == ("shuffle_jax", "apache-2.0")
    assert card.data.pipeline_tag == "image-classification" and {"jax", "shufflenet_v2", "auto"} <= set(card.data.tags)
    assert card.data.model_name == "net" and card.data.metrics == ["accuracy"]
    relaxed, hardened = card.data.eval_results
    assert (relaxed.task_type, relaxed.metric_type, relaxed.dataset_split) == (
        "image-classification",
        "accuracy",
        "test",
    )
    assert relaxed.metric_value == pytest.approx(np.mean([0.9, 0.92, 0.97]), abs=1e-4)
    assert hardened.metric_name == "Accuracy, hardened: 92.00 ± 3.61 (89.00 to 96.00) over 3 seeds in per cent"
    assert "| hardened | 89.00 | 92.00 ± 3.61 (89.00 to 96.00) over 3 seeds |" in card.content
    assert "python -m experiments.train folder --data.root PICTURES" in card.content
    assert "![matrices](figures/matrices.png)" in card.content and (hubbed / "figures" / "matrices.png").exists()


@pytest.mark.slow
def test_the_folder_predicts_what_the_run_predicts_and_names_no_place_of_this_machine(run, hubbed, pictures, tmp_path):
    found, expected = (logits_of(path, pictures / "val", tmp_path=tmp_path) for path in (hubbed, run))
    np.testing.assert_array_equal(found, expected)
    for path in (hubbed / "README.md", hubbed / "config.json"):
        assert str(pictures.parent) not in path.read_text() and str(run.parent) not in path.read_text()
    about = json.loads((hubbed / "config.json").read_text())
    assert about["measured"]["hardened"] == {"top1": 0.89, "all": [0.89, 0.91, 0.96]}
    assert about["training"]["data"]["root"] == "pictures"


@pytest.mark.slow
def test_the_command_on_a_card_gives_the_configuration():
    from experiments.exporting.command import command

    config = train.parse(["digits", "--epochs", "3", "--seed", "4"]).config
    typed = command(config)
    assert typed == "python -m experiments.train digits --epochs 3 --seed 4"
    assert train.parse(shlex.split(typed)[3:]).config == config
