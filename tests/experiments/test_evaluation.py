"""What evaluate says of classes and pictures, against sums by hand; pictures that moved, and others than the run's."""

from __future__ import annotations

import json
import re
import shutil
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import optax
import pytest
from PIL import Image

from experiments import evaluate, train
from experiments.evaluation.figures import confusion_figure, wrong_figure
from experiments.evaluation.predictions import Predictions, class_rows, confusion_table, plain, wrong_rows
from shuffle_jax.analysis.figures import learning_curves
from shuffle_jax.data import Dataset, FolderConfig, Preprocessing, Split, load, normalize
from shuffle_jax.records import read_records
from shuffle_jax.run import Run
from shuffle_jax.train.config import TrainConfig, to_json
from shuffle_jax.train.experiment import restore


def found(classes=("ant", "bee", "bee (2)", "cow")):
    """Ants taken for bees, once surely; the other bee right; no cow."""
    labels, said = np.array([0, 0, 0, 1, 1, 2]), np.array([0, 1, 1, 1, 2, 2])
    return Predictions(classes, labels, said, np.float32([0.9, 0.6, 0.8, 0.9, 0.8, 0.5]))


def dataset():
    images = np.arange(6, dtype=np.uint8)[:, None, None, None] * np.ones((6, 3, 3, 1), np.uint8)
    split = Split(images, np.int32([0, 0, 0, 1, 1, 2]))
    return Dataset("few", ("ant", "bee", "bee (2)", "cow"), split, split)


def test_confusions_and_the_surest_mistakes_are_counted():
    assert found().confusion.tolist() == [[1, 2, 0, 0], [0, 1, 1, 0], [0, 0, 1, 0], [0, 0, 0, 0]]
    assert class_rows(found()) == [
        ["ant", 3, 1 / 3, "bee (2)"],
        ["bee", 2, 0.5, "bee (2) (1)"],
        ["bee (2)", 1, 1.0, ""],
    ]
    assert found().wrong(9).tolist() == [2, 4, 1] and found().wrong(1).tolist() == [2]  # equal ones in their order
    rows = wrong_rows(found(), dataset(), 2)
    assert [row[:3] for row in rows] == [["test image 2", "ant", "bee"], ["test image 4", "bee", "bee (2)"]]
    kept = json.loads(json.dumps(plain(found(), rows)))
    assert kept["classes"]["bee (2)"] == {"images": 1, "top1": 1.0} and len(kept["wrong"]) == 2
    _, headings, table = confusion_table(found())
    assert headings == ["class", "ant", "bee", "bee (2)", "cow"] and table[0] == ["ant", 1, 2, 0, 0]
    title, _, pairs = confusion_table(found((*found().classes, *"abcdefghij")))
    assert title == "most frequent confusions" and pairs == [["ant", "bee", 2], ["bee", "bee (2)", 1]]


def test_figures_show_the_matrix_and_the_pictures():
    matrix = confusion_figure(found()).axes[0]
    assert [text.get_text() for text in matrix.texts] == ["1", "2", "1", "1", "1"]
    sheet = wrong_figure(found(), dataset(), 2)
    shown = [axes for axes in sheet.axes if axes.images]
    assert len(shown) == len(sheet.axes)  # two pictures fill a sheet
    assert [axes.get_title() for axes in shown] == ["ant\nsaid bee 0.80", "bee\nsaid bee (2) 0.80"]
    assert [axes.images[0].get_array()[0, 0] for axes in shown] == [2, 4]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run on dark and bright pictures without a test folder, and the folder."""
    root, path = tmp_path_factory.mktemp("pictures"), tmp_path_factory.mktemp("runs") / "run"
    rng = np.random.default_rng(0)
    for label, level in (("bright", 200), ("dark", 30)):
        (root / "train" / label).mkdir(parents=True)
        for i in range(24):
            pixels = rng.integers(level, level + 50, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / "train" / label / f"{i:02d}.png")
    options = "--network.family tests.experiments.outside:Mixed --data.image-size 8 --network.stem small"
    options += " --data.holdout 0.3 --devices 1"
    sizes = "--epochs 12 --batch-size 16 --evaluate-every 6 --optimizer.warmup-epochs 1"
    train.run(["folder", "--data.root", str(root), "--run", str(path), *f"{options} {sizes}".split()])
    return SimpleNamespace(root=root, path=path)


@pytest.mark.slow
def test_pictures_that_moved_are_found_and_others_than_the_runs_are_refused(trained, tmp_path, capsys):
    moved = tmp_path / "moved"
    shutil.copytree(trained.root, moved)
    (trained.root / "train").rename(trained.root / "gone")
    run, root = str(trained.path), ["--data.root", str(moved), "--devices", "1"]
    try:
        with pytest.raises(ValueError, match=r"no folder .*/train; put"):
            evaluate.run([run])
        numbers, figures = tmp_path / "numbers.json", tmp_path / "figures"
        evaluate.run([run, *root, "--classes", "--wrong", "3", "--figures", str(figures), "--json", str(numbers)])
        about = json.loads(numbers.read_text())
        assert (
            sum(map(sum, about["confusion"]["images"]))
            == json.loads((trained.path / "config.json").read_text())["data"]["test"]
        )
        right = sum(about["confusion"]["images"][i][i] for i in range(2)) / sum(map(sum, about["confusion"]["images"]))
        assert right == pytest.approx(about["networks"]["hardened"]["top1"])
        assert sorted(path.name for path in figures.iterdir()) == ["confusion.png", "wrong.png"]

        shutil.copy(moved / "train" / "dark" / "00.png", moved / "train" / "dark" / "new.png")
        (moved / "train" / "bright" / "03.png").rename(moved / "train" / "bright" / "renamed.png")
        message = (
            "not those of .*: 2 added (test/dark/new.png, train/bright/renamed.png); 1 removed (train/bright/03.png)"
        )
        message = re.escape(message).replace(r"\.\*", ".*")
        with pytest.raises(ValueError, match=message + ": put them back, or go on with --allow-changed$"):
            evaluate.run([run, *root])
        with pytest.raises(ValueError, match=message + ": put them back, or start another run$"):
            train.run(["--resume", run, *root])
        evaluate.run([run, *root, "--allow-changed"])
        assert capsys.readouterr().err.count("warning: the pictures are not those of") == 1
    finally:
        (trained.root / "gone").rename(trained.root / "train")


def test_data_options_are_those_of_the_run(tmp_path):
    with pytest.raises(ValueError, match="there is no run in"):
        evaluate.run([str(tmp_path), "--data.root", "x"])
    run = Run(tmp_path / "digits")
    run.start(to_json(TrainConfig()), list("0123456789"), Preprocessing(8, 1, (0.5,), (0.5,)))
    with pytest.raises(
        ValueError, match=r"^--data.root is not for .*digits, whose data is DigitsConfig: leave it out$"
    ):
        evaluate.run([str(run.path), "--data.root", "x"])
    with pytest.raises(ValueError, match="--wrong must be at least 0, got -1"):
        evaluate.run([str(tmp_path), "--wrong", "-1"])


@pytest.mark.slow
def test_a_run_is_chosen_on_validation_images_and_reported_on_test_images_that_it_never_read(tmp_path, capsys):
    root, path, numbers = tmp_path / "pictures", tmp_path / "run", tmp_path / "numbers.json"
    rng = np.random.default_rng(0)
    for folder, count in ((root / "train", 20), (tmp_path / "val", 6)):
        for label, level in (("bright", 200), ("dark", 30)):
            (folder / label).mkdir(parents=True)
            for i in range(count):
                at = 230 - level if folder.name == "val" and i % 3 == 0 else level  # a third of the test is mislabelled
                Image.fromarray(rng.integers(at, at + 50, (8, 8, 3), dtype=np.uint8)).save(folder / label / f"{i}.png")
    for label in ("bright", "dark"):
        (root / "val" / label).mkdir(parents=True)
        (root / "val" / label / "0.png").write_bytes(b"no image")

    family = "--network.family tests.experiments.outside:Linear --network.mixer identity --network.stem small"
    sizes = "--data.image-size 8 --data.validation 0.25 --epochs 2 --batch-size 10 --devices 1"
    train.run(["folder", "--data.root", str(root), "--run", str(path), *f"{family} {sizes}".split()])
    said, records = capsys.readouterr().out, read_records(Run(path).metrics)
    assert "30 images to train on, 10 more held out to validate on, 2 classes" in said
    assert "step 6  validation  loss" in said and "10 validation images of pictures, 6 steps" in said
    assert {r["split"] for r in records if r["kind"] in ("test", "result")} == {"validation"}
    labels = learning_curves(records).axes[0].get_legend_handles_labels()[1]
    assert labels[1].startswith("validation images, last")
    with pytest.raises(ValueError, match=r"another configuration \(--data.validation: 0.25 -> 0.5\)"):
        train.run(["--resume", str(path), "--data.validation", "0.5"])

    evaluate.run([str(path), "--devices", "1", "--json", str(numbers)])
    assert "step 6, 10 validation images" in capsys.readouterr().out
    about, result = json.loads(numbers.read_text()), next(r for r in records if r["kind"] == "result")
    assert about["split"] == "validation"
    assert about["networks"]["as trained"]["loss"] == pytest.approx(result["loss"], rel=1e-5)
    with pytest.raises(ValueError, match=r"^cannot read image .*val/bright/0.png"):
        evaluate.run([str(path), "--devices", "1", "--split", "test"])

    shutil.rmtree(root / "val")
    (tmp_path / "val").rename(root / "val")
    evaluate.run([str(path), "--devices", "1", "--split", "test", "--json", str(numbers)])
    assert "step 6, 12 test images" in capsys.readouterr().out
    experiment, variables, _ = restore(path, devices=1)
    test = load(FolderConfig(root, image_size=8)).in_memory().test
    logits = experiment.network.apply(variables, normalize(jnp.asarray(test.images), *experiment.mean_std), train=False)
    losses = optax.losses.softmax_cross_entropy_with_integer_labels(logits, test.labels)
    about = json.loads(numbers.read_text())
    assert about["split"] == "test"
    assert about["networks"]["as trained"]["top1"] == pytest.approx(float((logits.argmax(-1) == test.labels).mean()))
    assert about["networks"]["as trained"]["loss"] == pytest.approx(float(losses.mean()), rel=1e-5)
