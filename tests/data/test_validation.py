"""Images held out of the training images to choose by: how many, which, and test images that are left alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from shuffle_jax.data import DigitsConfig, FolderConfig, TfdsConfig, load, measured_on
from shuffle_jax.data.inventory import inventory


def shares(labels, fraction):
    """How many of each class are held out, by the rule."""
    counts = np.bincount(labels)
    return np.clip(np.round(fraction * counts), 1, counts - 1).astype(int).tolist()


def test_of_digits_a_share_of_each_class_is_taken_from_training_and_no_other_image():
    config = DigitsConfig(seed=3, validation=0.1)
    data, whole = load(config), load(replace(config, validation=0.0))

    def rows(*splits):
        return sorted(image.tobytes() + bytes([label]) for split in splits for image, label in split)

    assert np.bincount(data.test.labels).tolist() == shares(whole.train.labels, 0.1)
    assert rows(data.train, data.test) == rows(whole.train) and len({*rows(whole.train)}) == len(whole.train)
    assert rows(load(config).test) == rows(data.test) != rows(load(replace(config, seed=4)).test)
    assert (data.measured, whole.measured) == ("validation", "test")
    own = measured_on(data, config, "test")
    assert own.measured == "test" and own.train is data.train and rows(own.test) == rows(whole.test)
    assert measured_on(data, config, "validation") is measured_on(data, config, None) is data
    with pytest.raises(ValueError, match=r"^there is no validation split, as data.validation is 0: measure on the spl"):
        measured_on(whole, replace(config, validation=0.0), "validation")


def tree(root: Path, split: str, **counts: int) -> None:
    for name, count in counts.items():
        (root / split / name).mkdir(parents=True)
        for index in range(count):
            Image.new("RGB", (3, 3), (index, 9, 9)).save(root / split / name / f"{index:02d}.png")


@pytest.mark.parametrize("with_test_folder", [True, False])
@pytest.mark.parametrize("drawn", [{}, {"per_class": 6, "test_per_class": 2}])
def test_of_a_folder_the_held_out_files_are_those_of_training_and_stay_closed(
    tmp_path, monkeypatch, with_test_folder, drawn
):
    tree(tmp_path, "train", ant=20, bee=12, cow=9)
    if with_test_folder:
        tree(tmp_path, "val", ant=3, cow=4)
    config = FolderConfig(tmp_path, 2, holdout=0.3, crop=0.5, vary="corruptions", validation=0.25, **drawn)
    monkeypatch.setattr(Image, "open", lambda path: pytest.fail(f"{path} was opened"))
    data, whole = load(config), load(replace(config, validation=0.0))

    def files(split):
        return {record.content: (record.label, split.vary.index(i)) for i, record in enumerate(split.records)}

    assert files(data.train) | files(data.test) == files(whole.train)  # with the variant that each had
    assert len(data.train) + len(data.test) == len(whole.train)
    labels = [label for label, _ in files(whole.train).values()]
    assert np.bincount([label for label, _ in files(data.test).values()]).tolist() == shares(labels, 0.25)
    assert (data.train.crop, data.test.crop) == (1.0, 0.5)  # they are measured on
    assert files(measured_on(data, config, "test").test) == files(whole.test)
    digests = [inventory(load(replace(config, validation=share))).digest for share in (0.25, 0.5, 0.0)]
    assert digests[0] == inventory(data).digest and len({*digests}) == 3


def test_a_test_folder_is_not_searched_for_broken_images(tmp_path, capsys):
    tree(tmp_path, "train", ant=4)
    tree(tmp_path, "val", ant=1)
    (tmp_path / "val" / "ant" / "00.png").write_bytes(b"no image")
    config = FolderConfig(tmp_path, 2, broken="skip", validation=0.5)
    data = load(config).in_memory()
    assert (len(data.train), len(data.test), capsys.readouterr().err) == (2, 2, "")
    with pytest.raises(ValueError, match=r"^every image in .*val/ant is broken"):
        measured_on(data, config, "test")
    with pytest.raises(ValueError, match=r"^class 'ant' has 1 image, but a hold-out needs at least 2; add images$"):
        load(replace(config, per_class=1))


@pytest.mark.parametrize("share", [-0.1, 1.0, float("nan")])
def test_a_share_that_is_none_is_refused(share):
    for make in (DigitsConfig, lambda **options: FolderConfig(Path(), **options), lambda **o: TfdsConfig("mnist", **o)):
        with pytest.raises(ValueError, match=f"^validation must be at least 0, for none, and below 1, got {share}$"):
            make(validation=share)
