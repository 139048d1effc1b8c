"""Sets of tensorflow-datasets: read back as they were written, without TensorFlow, and every mistake in one line."""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import os
import pickle
import shutil
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from shuffle_jax.data import DigitsConfig, TfdsConfig, load, load_digits, measured_on, read_image
from shuffle_jax.data.inventory import inventory
from shuffle_jax.data.prepared import default_data_dir, find_prepared

DIGITS = "embedded_digits"
PICTURES = "mixed_pictures/small"


@pytest.fixture(scope="module")
def builders(prepared):
    """The module of the builders, as ``prepared`` imported it."""
    return sys.modules["tfds_builders"]


@pytest.fixture
def copy(prepared, tmp_path):
    """The digits alone, to spoil."""
    shutil.copytree(prepared / DIGITS, tmp_path / DIGITS)
    return tmp_path


def change(copy: Path, edit) -> None:
    """Edits the description of the copied digits."""
    path = copy / DIGITS / "1.0.0" / "dataset_info.json"
    about = json.loads(path.read_text())
    edit(about)
    path.write_text(json.dumps(about))


def test_the_digits_come_back_bit_for_bit(prepared):
    data, digits = load(TfdsConfig(DIGITS, prepared)).in_memory(), load_digits(DigitsConfig())
    assert (data.name, data.classes, data.image_shape) == (DIGITS, digits.classes, (8, 8, 1))
    for name in ("train", "test"):
        np.testing.assert_array_equal(getattr(data, name).images, getattr(digits, name).images)
        np.testing.assert_array_equal(getattr(data, name).labels, getattr(digits, name).labels)


def test_pictures_are_the_jpegs_that_were_written(prepared, builders):
    config = TfdsConfig(PICTURES, prepared, image_size=16, crop=0.5)
    data = load(config)
    # The test split keeps its labels back, so validation is what is measured on. The usual keys choose the features.
    assert (data.name, data.classes) == ("mixed_pictures", ("even", "odd"))
    assert (len(data.train), len(data.test)) == (builders.PICTURES, 4)
    for split, first, count, crop in ((data.train, 0, 20, 1.0), (data.test, 20, 4, 0.5)):
        files = [builders.encoded(builders.picture(first + i), "JPEG", quality=95).getvalue() for i in range(count)]
        order = [files.index(split.records[i].content) for i in range(count)]  # shuffled when written
        assert sorted(order) == list(range(count))
        images, labels = split.take(np.arange(count))
        np.testing.assert_array_equal(labels, [(first + i) % 2 for i in order])
        np.testing.assert_array_equal(images, np.stack([read_image(files[i], 16, crop=crop) for i in order]))


def test_splits_may_be_cut_and_joined(prepared):
    whole = load(TfdsConfig(DIGITS, prepared)).train
    data = load(TfdsConfig(DIGITS, prepared, train_split="train[10:25]", test_split="train[:10]+train[1430:]"))
    for split, positions in ((data.train, range(10, 25)), (data.test, [*range(10), *range(1430, 1438)])):
        assert [split.records[i][1:] for i in range(len(split))] == [whole.records[i][1:] for i in positions]
    assert len(load(TfdsConfig(DIGITS, prepared, train_split="train[:10%]")).train) == 144


def test_what_is_trained_on_is_not_tested_on(prepared):
    split = "train+validation[:2]"  # the test split has no labels, so validation would be next
    data = load(TfdsConfig(PICTURES, prepared, image_size=16, train_split=split))
    assert len(data.train) + len(data.test) == 22  # a part of these is held out


def test_without_a_test_split_a_part_of_each_class_is_held_out(copy):
    def only_train(about):
        about["splits"] = [split for split in about["splits"] if split["name"] == "train"]

    whole = load(TfdsConfig(DIGITS, copy)).in_memory().train
    change(copy, only_train)
    config = TfdsConfig(DIGITS, copy, holdout=0.25, seed=3)
    data = load(config).in_memory()
    for label in range(10):
        count = int((whole.labels == label).sum())
        assert (data.test.labels == label).sum() == round(0.25 * count)
    rows = np.concatenate([data.train.images, data.test.images]).reshape(-1, 64)
    np.testing.assert_array_equal(np.unique(rows, axis=0), np.unique(whole.images.reshape(-1, 64), axis=0))
    assert len(rows) == len(whole)
    again, other = load(config), load(dataclasses.replace(config, seed=4))
    np.testing.assert_array_equal(again.in_memory().test.images, data.test.images)
    assert not np.array_equal(other.in_memory().test.images, data.test.images)
    places = [load(dataclasses.replace(config, vary="corruptions", holdout=share)).test for share in (0.25, 0.2)]
    keys = [set(part.vary.keys.tolist()) for part in places]  # the variant goes by the place among all, held out or not
    assert len(keys[0]) == len(places[0]) > len(keys[1]) and keys[1] <= keys[0]
    with pytest.raises(ValueError, match='vary "colors" needs images of 3 channels, got 1'):
        load(dataclasses.replace(config, vary="colors"))


def test_validation_is_held_out_of_what_is_trained_on_whatever_is_tested_on(prepared, copy):
    change(copy, lambda about: about.update(splits=[s for s in about["splits"] if s["name"] == "train"]))
    for data_dir in (prepared, copy):  # with a test split, and with a part of the training split held out as one
        config = TfdsConfig(DIGITS, data_dir, holdout=0.25, seed=3, validation=0.2, vary="corruptions")
        data, whole = load(config), load(dataclasses.replace(config, validation=0.0))
        held, kept = data.test.records.places(), data.train.records.places()
        assert len({*held, *kept}) == len(held) + len(kept) == len(whole.train)
        assert {*held, *kept} == {*whole.train.records.places()}
        counts = np.bincount(whole.in_memory().train.labels)
        assert np.bincount(data.in_memory().test.labels).tolist() == np.round(0.2 * counts).tolist()
        assert {*data.test.vary.keys.tolist()} < {*whole.train.vary.keys.tolist()}
        own = measured_on(data, config, "test").test
        assert own.records.places() == whole.test.records.places()
        assert inventory(load(config)).digest == inventory(data).digest != inventory(whole).digest


def test_a_run_knows_the_set_its_version_and_its_parts_but_not_where_it_lies(prepared, copy):
    config = TfdsConfig(DIGITS, prepared)
    whole = inventory(load(config))
    assert b"embedded_digits/1.0.0" in whole.text and str(prepared).encode() not in whole.text
    assert inventory(load(TfdsConfig(DIGITS, copy)).in_memory()).digest == whole.digest
    others = [{"train_split": "train[:50%]"}, *({"train_split": "train+test", "seed": seed} for seed in (0, 1))]
    found = [inventory(load(dataclasses.replace(config, **other))).digest for other in others]
    assert len({whole.digest, *found}) == 4
    digits = [inventory(load(DigitsConfig(seed=seed))) for seed in (0, 0, 1)]  # a digest of the arrays stands for all
    assert digits[0].digest == digits[1].digest != digits[2].digest and not digits[0].by_name


def test_feature_and_split_may_be_named(prepared):
    config = TfdsConfig(PICTURES, prepared, image="thumbnail", label="coarse", test_split="train")
    data = load(config)
    assert (data.image_shape, data.classes, len(data.test)) == ((4, 4, 3), ("all",), 20)


def test_the_only_configuration_needs_no_name(prepared):
    assert find_prepared("mixed_pictures", prepared) == prepared / "mixed_pictures" / "small" / "1.2.0"


def test_the_newest_version_is_that_of_the_largest_numbers(tmp_path):
    for version in ("1.9.0", "1.10.0", "0.99.0", "2.0.0", "incomplete.ABC_3.0.0"):
        (tmp_path / "set" / version).mkdir(parents=True)
        if version != "2.0.0":  # one that was cut off, or is being copied
            (tmp_path / "set" / version / "features.json").touch()
    assert find_prepared("set", tmp_path).name == "1.10.0"
    assert find_prepared("set:1.9.0", tmp_path).name == "1.9.0"


def test_the_default_folder_is_that_of_the_library(prepared, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(prepared))
    assert default_data_dir() == prepared
    assert len(load(TfdsConfig(DIGITS)).test) == 359
    monkeypatch.delenv("TFDS_DATA_DIR")
    monkeypatch.setenv("HOME", "/home/of/somebody")
    assert default_data_dir() == Path("/home/of/somebody/tensorflow_datasets")


def test_threads_share_a_split(prepared):
    split = load(TfdsConfig(DIGITS, prepared)).train
    with ThreadPoolExecutor(8) as pool:  # the first reads open the files
        images = list(pool.map(lambda i: split.read(i % 50)[0], range(400)))
    for index, image in enumerate(images):
        np.testing.assert_array_equal(image, split.read(index % 50)[0])


def test_another_process_reads_the_same_from_a_small_pickle(prepared):
    data = load(TfdsConfig(DIGITS, prepared))
    data.train.read(0)  # files are open, and are not sent
    assert len(pickle.dumps(data.train)) < 2000
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        images, labels = pool.submit(data.train.take, np.array([7, 1400])).result()
    expected = data.train.take(np.array([7, 1400]))
    np.testing.assert_array_equal(images, expected[0])
    np.testing.assert_array_equal(labels, expected[1])


READ = """
import importlib.util, sys
from pathlib import Path
from shuffle_jax.data import TfdsConfig, load
assert importlib.util.find_spec("tensorflow").origin == sys.argv[2]
data = load(TfdsConfig("embedded_digits", Path(sys.argv[1]))).in_memory()
print(len(data.train), "tensorflow" in sys.modules)
"""


def test_tensorflow_is_not_imported_where_it_is_installed_and_nothing_else_is_said(prepared, tmp_path):
    stub = tmp_path / "tensorflow" / "__init__.py"
    stub.parent.mkdir()
    stub.write_text("raise AssertionError('tensorflow was imported')")
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(root)])}
    command = [sys.executable, "-c", READ, str(prepared), str(stub)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr, done.returncode) == ("1438 False\n", "", 0)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            TfdsConfig("cifar10"),
            "cifar10 is not prepared in {dir} (there is embedded_digits, mixed_pictures/small): run `python -m "
            "experiments.prepare cifar10 --data-dir {dir}` where there is a network, and copy {dir}/cifar10 here if "
            "that is elsewhere",
        ),
        (
            TfdsConfig("mixed_pictures/large"),
            "mixed_pictures/large is not prepared in {dir} (there is mixed_pictures/small)",
        ),
        (
            TfdsConfig("embedded_digits:2.0.0"),
            "{dir}/embedded_digits has the versions 1.0.0, not 2.0.0; use one of them",
        ),
        (
            TfdsConfig(PICTURES),
            "the images of mixed_pictures/small are of many sizes: set data.image_size, the side of",
        ),
        (TfdsConfig(PICTURES, image="photo"), "mixed_pictures/small has no Image 'photo' among coarse (ClassLabel), "),
        (TfdsConfig(PICTURES, label="picture"), "mixed_pictures/small has no ClassLabel 'picture' among coarse"),
        (
            TfdsConfig(DIGITS, train_split="trian"),
            "embedded_digits has no split 'trian': its splits are train, test, and sl",
        ),
        (TfdsConfig(DIGITS, train_split="train[:x]"), "embedded_digits has no split 'train[:x]': its splits are "),
        (
            TfdsConfig(DIGITS, test_split="test[:0]"),
            "the split test[:0] of embedded_digits is empty: take a larger part",
        ),
        (
            TfdsConfig(PICTURES, image_size=8, test_split="test"),
            "mixed_pictures/small test[0] has the label -1, not one of the 2 classes: name other splits",
        ),
    ],
)
def test_what_cannot_be_read_is_said_in_one_line(prepared, config, message):
    with pytest.raises(ValueError) as raised:
        load(dataclasses.replace(config, data_dir=prepared)).in_memory()
    assert str(raised.value).startswith(message.format(dir=prepared))
    assert "\n" not in str(raised.value)


def test_several_configurations_must_be_told_apart(tmp_path):
    for name in ("8x8", "64x64"):
        (tmp_path / "set" / name / "1.0.0").mkdir(parents=True)
        (tmp_path / "set" / name / "1.0.0" / "features.json").touch()
    with pytest.raises(ValueError, match=r"^set is prepared as 64x64, 8x8: name one, as in set/64x64$"):
        find_prepared("set", tmp_path)


def test_features_that_are_not_usual_must_be_told_apart(prepared, tmp_path):
    shutil.copytree(prepared / "mixed_pictures", tmp_path / "mixed_pictures")
    path = tmp_path / PICTURES / "1.2.0" / "dataset_info.json"
    about = json.loads(path.read_text())
    del about["supervisedKeys"]
    path.write_text(json.dumps(about))
    config = TfdsConfig(PICTURES, tmp_path, image_size=8)
    several = r"coarse \(ClassLabel\), file_name \(Text\), kind \(ClassLabel\), picture \(Image\), thumbnail \(Image\)"
    with pytest.raises(ValueError, match=f"has 2 features of type Image among {several}: choose one of them by image$"):
        load(config)
    config = dataclasses.replace(config, image="picture")
    with pytest.raises(
        ValueError, match=f"has 2 features of type ClassLabel among {several}: choose one of them by la"
    ):
        load(config)
    assert load(dataclasses.replace(config, label="kind")).classes == ("even", "odd")


def test_a_set_without_classes_is_no_image_classification(copy):
    path = copy / DIGITS / "1.0.0" / "features.json"
    about = json.loads(path.read_text())
    about["featuresDict"]["features"]["label"] = about["featuresDict"]["features"]["image"]
    path.write_text(json.dumps(about))
    message = r"has no features of type ClassLabel among image \(Image\), label \(Image\): only sets for image class"
    with pytest.raises(ValueError, match=message):
        load(TfdsConfig(DIGITS, copy, image="image"))


def as_tfrecord(folder: Path) -> str:
    change(folder.parents[1], lambda about: about.update(fileFormat="tfrecord"))
    return f"{folder} is prepared as tfrecord, which cannot be read at random: move it away, and run `python -m "


def without_a_file(folder: Path) -> str:
    path = next(folder.glob("*-train.array_record*"))
    path.unlink()
    return f"no file {path}: copy or prepare embedded_digits again, all of its folder"


def cut_off(folder: Path) -> str:
    path = next(folder.glob("*-train.array_record*"))
    os.truncate(path, path.stat().st_size // 2)
    return "cannot read embedded_digits train[0]: "


def no_description(folder: Path) -> str:
    (folder / "dataset_info.json").write_text("{")
    return f"{folder} is no prepared data set: "


@pytest.mark.parametrize("spoil", [as_tfrecord, without_a_file, cut_off, no_description])
def test_a_spoilt_set_is_named(copy, spoil):
    message = spoil(copy / DIGITS / "1.0.0")
    with pytest.raises(ValueError) as raised:
        load(TfdsConfig(DIGITS, copy)).in_memory()
    assert str(raised.value).startswith(message)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("module", ["tensorflow_datasets", "array_record", "importlib_resources"])
def test_what_is_not_installed_is_named_with_its_extra(prepared, monkeypatch, module):
    for name in list(sys.modules):
        if name == module or name.startswith(f"{module}."):
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ValueError, match=rf"^{module}[\w.]* is not installed: pip install 'shuffle_jax\[tfds\]'$"):
        load(TfdsConfig(DIGITS, prepared))


@pytest.mark.parametrize("name", ["", "cifar 10", "cifar10:newest", "a/b/c", "../cifar10"])
def test_what_is_no_name_is_refused(name):
    with pytest.raises(ValueError, match=r"name must be such as cifar10, cifar10:3\.0\.2 or "):
        TfdsConfig(name)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_size": 0}, "image_size must be at least 1, or None for the set's own, got 0"),
        ({"holdout": 1.0}, "holdout must be between 0 and 1, both excluded, got 1.0"),
        ({"crop": 2.0}, "crop must be above 0 and at most 1"),
    ],
)
def test_config_rejects(options, message):
    with pytest.raises(ValueError, match=message):
        TfdsConfig(DIGITS, **options)
