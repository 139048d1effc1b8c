"""What evaluate says of classes and pictures, against sums by hand; pictures that moved, and others than the run's."""

from __future__ import annotations

import json
import re
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from experiments import evaluate, train
from experiments.evaluation.figures import confusion_figure, wrong_figure
from experiments.evaluation.predictions import Predictions, class_rows, confusion_table, plain, wrong_rows
from shuffle_jax.data import Dataset, Preprocessing, Split
from shuffle_jax.run import Run
from shuffle_jax.train.config import TrainConfig, to_json


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
