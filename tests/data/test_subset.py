"""A subset of a folder of images: what is drawn, what it does not depend on, and what is never opened."""

from __future__ import annotations

import itertools
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from shuffle_jax.data import FolderConfig, folder, load_folder
from shuffle_jax.data.listing import Listed

COUNTS = {"ant": 9, "bee": 4, "cow": 12}


def make(root: Path, split: str = "train", counts: dict[str, int] = COUNTS) -> None:
    """The red level of an image says its class, the green level its number."""
    for name, count in counts.items():
        (root / split / name).mkdir(parents=True)
        for index in range(count):
            colour = (ord(name[0]), index, 0)
            Image.new("RGB", (3, 3), colour).save(root / split / name / f"{index:02d}.png")


def load(root: Path, classes=None, **options):
    return load_folder(FolderConfig(root, image_size=3, **options), classes).in_memory()


def numbers(split) -> dict[str, list[int]]:
    """The numbers of the images by class, in their order."""
    found: dict[str, list[int]] = {}
    for image, _ in split:
        red, green, _ = image[0, 0].tolist()
        found.setdefault(chr(red), []).append(green)
    return found


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A folder with a test split."""
    path = tmp_path_factory.mktemp("images")
    make(path)
    make(path, "val", {"ant": 6, "cow": 2})
    return path


@pytest.fixture(scope="module")
def alone(root, tmp_path_factory):
    """The same without a test split."""
    path = tmp_path_factory.mktemp("images")
    shutil.copytree(root / "train", path / "train")
    return path


def test_each_class_gives_as_many_as_it_has_up_to_the_number(root):
    data = load(root, per_class=5, test_per_class=3)
    assert {name: len(drawn) for name, drawn in numbers(data.train).items()} == {"a": 5, "b": 4, "c": 5}
    assert {name: len(drawn) for name, drawn in numbers(data.test).items()} == {"a": 3, "c": 2}
    for drawn in [*numbers(data.train).values(), *numbers(data.test).values()]:
        assert drawn == sorted({*drawn})  # each once, in the order of the names
    np.testing.assert_array_equal(data.train.labels, [0] * 5 + [1] * 4 + [2] * 5)


@pytest.mark.parametrize("name", ["root", "alone"])
def test_a_number_beyond_every_class_is_the_whole_folder(request, name):
    path = request.getfixturevalue(name)
    whole, drawn = load(path), load(path, per_class=12, test_per_class=12)
    for split in ("train", "test"):
        np.testing.assert_array_equal(getattr(drawn, split).images, getattr(whole, split).images)
        np.testing.assert_array_equal(getattr(drawn, split).labels, getattr(whole, split).labels)


@pytest.mark.parametrize("choose", ["name", "order"])
def test_every_image_is_drawn_as_often_as_any_other(root, choose):
    """Over seeds each of 12 images is drawn with probability 1/3: a draw that favours a place would show."""
    names = [f"{name}/{index:02d}.png" for name, count in COUNTS.items() for index in range(count)]
    files = Listed(root, names, np.repeat(np.arange(3, dtype=np.int32), list(COUNTS.values())))
    times = np.zeros(12, int)
    for seed in range(600):
        names = map(Path, folder._drawn(files, 4, FolderConfig(root, seed=seed, choose=choose)).names)
        times[[int(name.stem) for name in names if name.parent.name == "cow"]] += 1
    assert times.sum() == 600 * 4
    assert abs(times - 200).max() < 5 * np.sqrt(600 * 1 / 3 * 2 / 3)  # five standard deviations


def test_a_larger_draw_holds_a_smaller_one_and_seeds_differ(root):
    draws = [numbers(load(root, per_class=n).train)["c"] for n in range(1, 13)]
    for smaller, larger in itertools.pairwise(draws):
        assert {*smaller} < {*larger}
    assert len({tuple(numbers(load(root, per_class=4, seed=seed).train)["c"]) for seed in range(5)}) > 1
    assert numbers(load(root, per_class=4).test) == numbers(load(root).test)  # each number speaks for its own split


def test_other_classes_and_the_order_of_the_file_system_change_nothing(root, tmp_path, monkeypatch):
    before = numbers(load(root, per_class=3, test_per_class=1).train)
    make(tmp_path, counts={"Wasp": 7, **COUNTS, "bee": 2})  # a new first class, and one changed
    make(tmp_path, "val", {"cow": 2})
    listed = os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: sorted(listed(path), key=lambda entry: entry.name, reverse=True))
    after = numbers(load(tmp_path, per_class=3, test_per_class=1).train)
    assert {name: after[name] for name in "ac"} == {name: before[name] for name in "ac"}
    # Labels in the order of a finished run, which is not that of the folders, choose and place nothing.
    given = load(root, ["cow", "ant", "bee"], per_class=3)
    assert numbers(given.train) == before
    np.testing.assert_array_equal(given.train.labels, [1, 1, 1, 2, 2, 2, 0, 0, 0])


def test_what_is_held_out_is_the_same_for_every_number(alone):
    whole = load(alone, holdout=0.4)
    held = numbers(whole.test)
    for number in (1, 3):
        data = load(alone, holdout=0.4, per_class=number)
        assert numbers(data.test) == held
        for name, drawn in numbers(data.train).items():
            assert len(drawn) == min(number, len(numbers(whole.train)[name]))
            assert {*drawn} <= {*numbers(whole.train)[name]}
    few = numbers(load(alone, holdout=0.4, test_per_class=2).test)
    assert all(len(few[name]) == 2 and {*few[name]} <= {*held[name]} for name in held)


@pytest.mark.parametrize("broken", ["stop", "skip"])
@pytest.mark.parametrize("name", ["root", "alone"])
def test_only_what_is_drawn_is_opened(request, monkeypatch, name, broken):
    opened, read = set(), Image.open

    def noting(path):
        opened.add(path)
        return read(path)

    monkeypatch.setattr(Image, "open", noting)
    data = load(request.getfixturevalue(name), per_class=2, test_per_class=1, broken=broken)
    assert len(opened) == len(data.train) + len(data.test) == 6 + (2 if name == "root" else 3)


def test_of_the_drawn_images_those_that_are_broken_are_missing(root, tmp_path, capsys):
    path = tmp_path / "images"
    shutil.copytree(root, path)
    drawn = numbers(load(path, per_class=3).train)
    left = next(index for index in range(12) if index not in drawn["c"])
    for index in (drawn["c"][1], left):  # the one that was drawn is the one that matters
        (path / "train" / "cow" / f"{index:02d}.png").write_bytes(b"no image")
    found = numbers(load(path, per_class=3, broken="skip").train)
    assert found == {**drawn, "c": [drawn["c"][0], drawn["c"][2]]}
    said = capsys.readouterr().err
    assert said.startswith("warning: 1 of 17 images are broken and left out: ") and said.count("\n") == 1  # 9 + 8
    with pytest.raises(ValueError, match=r"^cannot read image .*; repair or remove the file$"):
        load(path, per_class=3)
    for index in drawn["c"]:
        (path / "train" / "cow" / f"{index:02d}.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"^every image drawn from .*train/cow is broken; draw more, repair them, or "):
        load(path, per_class=3, broken="skip")


@pytest.mark.parametrize("name", ["per_class", "test_per_class"])
def test_a_number_below_one_is_refused(name):
    for number in (0, -3):
        with pytest.raises(ValueError, match=f"^{name} must be at least 1, or None for all images, got {number}$"):
            FolderConfig(Path(), **{name: number})
