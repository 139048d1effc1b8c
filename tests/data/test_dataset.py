from __future__ import annotations

from dataclasses import FrozenInstanceError

import numpy as np
import pytest

from shuffle_jax.data import DataConfig, Dataset, DigitsConfig, Split, load, load_digits
from shuffle_jax.data import dataset as dataset_module
from shuffle_jax.data.dataset import stratified_holdout


def make_split(n: int = 5, shape: tuple[int, int, int] = (3, 4, 2), classes: int = 3, seed: int = 0) -> Split:
    rng = np.random.default_rng(seed)
    return Split(rng.integers(0, 256, (n, *shape), dtype=np.uint8), rng.integers(0, classes, n, dtype=np.int32))


def test_split_is_a_random_access_source():
    split = make_split()
    pairs = list(split)  # the sequence protocol: __len__ and __getitem__ up to IndexError
    assert len(pairs) == len(split) == 5
    for index, (image, label) in enumerate(pairs):
        np.testing.assert_array_equal(image, split.images[index])
        assert label == split.labels[index]


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (np.zeros((2, 3, 3, 1), np.float32), np.zeros(2, np.int32), r"uint8 \(n, h, w, c\), got float32"),
        (np.zeros((2, 3, 3), np.uint8), np.zeros(2, np.int32), r"got uint8 \(2, 3, 3\)"),
        (np.zeros((2, 3, 3, 1), np.uint8), np.zeros(2, np.int64), r"int32 \(n,\), got int64"),
        (np.zeros((2, 3, 3, 1), np.uint8), np.zeros((2, 1), np.int32), r"got int32 \(2, 1\)"),
        (np.zeros((2, 3, 3, 1), np.uint8), np.zeros(3, np.int32), "2 images, 3 labels"),
        (np.zeros((0, 3, 3, 1), np.uint8), np.zeros(0, np.int32), "at least one image"),
        (np.zeros((2, 3, 3, 1), np.uint8), np.array([0, -1], np.int32), "at least 0, got -1"),
    ],
)
def test_split_rejects(images, labels, message):
    with pytest.raises(ValueError, match=message):
        Split(images, labels)


@pytest.mark.parametrize(
    ("classes", "test", "message"),
    [
        (("a", "b", "a"), make_split(), "'a' more than once"),
        (("a", "b"), make_split(n=50), "label 2 has no name among 2 classes"),
        (("a", "b", "c"), make_split(shape=(4, 4, 2)), r"train \(3, 4, 2\) and test \(4, 4, 2\)"),
    ],
)
def test_dataset_rejects(classes, test, message):
    with pytest.raises(ValueError, match=message):
        Dataset("example", classes, make_split(), test)


def test_dataset_is_frozen():
    data = Dataset("example", ("a", "b", "c"), make_split(), make_split())
    with pytest.raises(FrozenInstanceError):
        data.name = "other"


@pytest.mark.parametrize("pixels_per_chunk", [1, 30, 1 << 22])
def test_mean_and_std_are_those_of_the_training_pixels(monkeypatch, pixels_per_chunk):
    monkeypatch.setattr(dataset_module, "_PIXELS_PER_CHUNK", pixels_per_chunk)
    train = make_split(n=7)
    data = Dataset("example", ("a", "b", "c"), train, make_split(seed=1))
    values = train.images / 255
    assert data.image_shape == (3, 4, 2)
    assert data.mean.dtype == data.std.dtype == np.float32
    np.testing.assert_allclose(data.mean, values.mean(axis=(0, 1, 2)), rtol=1e-6)
    np.testing.assert_allclose(data.std, values.std(axis=(0, 1, 2)), rtol=1e-6)


def test_of_a_large_split_a_sample_counts_wherever_the_images_are(monkeypatch):
    monkeypatch.setattr(dataset_module, "_SAMPLE", 3)
    train = make_split(n=9)

    class ReadWhenAsked:
        """The same images, not in memory."""

        image_shape = train.image_shape
        take = train.take

        def __len__(self):
            return len(train)

    sample = train.images[[0, 4, 8]] / 255
    for split in (train, ReadWhenAsked()):
        data = Dataset("example", ("a", "b", "c"), split, make_split(seed=1))
        np.testing.assert_allclose(data.mean, sample.mean(axis=(0, 1, 2)), rtol=1e-6)
        np.testing.assert_allclose(data.std, sample.std(axis=(0, 1, 2)), rtol=1e-6)


def test_std_of_a_constant_channel_is_one_grey_level():
    images = np.full((4, 2, 2, 2), 77, np.uint8)
    images[0, ..., 1] = 0
    split = Split(images, np.zeros(4, np.int32))
    data = Dataset("example", ("a",), split, split)
    np.testing.assert_allclose(data.mean[0], 77 / 255, rtol=1e-6)
    assert data.std[0] == np.float32(1 / 255)
    assert data.std[1] > 0.1


@pytest.mark.parametrize("fraction", [0.01, 0.25, 0.5, 0.99])
def test_holdout_takes_its_part_of_every_class(fraction):
    counts = (2, 3, 10, 41)
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(4, dtype=np.int32), counts))
    kept, held = stratified_holdout(labels, "abcd", fraction, seed=3)
    np.testing.assert_array_equal(np.sort(np.concatenate([kept, held])), np.arange(len(labels)))
    for label, count in enumerate(counts):
        assert (labels[held] == label).sum() == np.clip(round(fraction * count), 1, count - 1)


def test_holdout_of_a_class_does_not_depend_on_the_others():
    labels = np.array([0] * 9 + [1] * 9, np.int32)
    _, held = stratified_holdout(labels, "ab", 0.4, seed=1)
    _, first = stratified_holdout(labels[:9], "ab", 0.4, seed=1)
    _, swapped = stratified_holdout(1 - labels, "ab", 0.4, seed=1)
    np.testing.assert_array_equal(held[held < 9], first)
    np.testing.assert_array_equal(held, swapped)


def test_holdout_names_a_class_of_one_image():
    with pytest.raises(ValueError, match="class 'dog' has 1 image"):
        stratified_holdout(np.array([0, 0, 1], np.int32), ("cat", "dog"), 0.5, seed=0)


def test_digits_are_the_1797_scans_split_by_class():
    from sklearn import datasets

    pixels, labels = datasets.load_digits(return_X_y=True)
    data = load(DigitsConfig())
    assert data.name == "digits"
    assert data.classes == tuple("0123456789")
    assert data.image_shape == (8, 8, 1)
    assert (len(data.train), len(data.test)) == (1438, 359)
    assert np.bincount(data.train.labels).tolist() == [142, 146, 142, 146, 145, 146, 145, 143, 139, 144]
    assert np.bincount(data.test.labels).tolist() == [36, 36, 35, 37, 36, 36, 36, 36, 35, 36]
    # Both splits together are the original scans, each once; the scans differ, so the splits are disjoint.
    images = np.concatenate([data.train.images, data.test.images]).reshape(1797, 64)
    rows = np.column_stack([images, np.concatenate([data.train.labels, data.test.labels])])
    expected = np.column_stack([np.round(pixels * 255 / 16), labels])
    np.testing.assert_array_equal(np.unique(rows, axis=0), np.unique(expected, axis=0))
    assert len(np.unique(rows, axis=0)) == 1797
    assert (images.min(), images.max()) == (0, 255)
    np.testing.assert_allclose(data.mean, data.train.images.mean() / 255, rtol=1e-6)


def test_digits_split_follows_the_seed():
    first, again, other = (load_digits(DigitsConfig(seed=seed)) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first.test.images, again.test.images)
    np.testing.assert_array_equal(first.train.labels, again.train.labels)
    assert not np.array_equal(first.test.images, other.test.images)


def test_digits_split_follows_the_fraction():
    data = load_digits(DigitsConfig(test_fraction=0.5))
    assert np.all(np.abs(np.bincount(data.test.labels) - np.bincount(data.train.labels)) <= 1)


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.1, 2.0])
def test_digits_reject_a_fraction_outside_the_unit_interval(fraction):
    with pytest.raises(ValueError, match="test_fraction must be between 0 and 1"):
        DigitsConfig(test_fraction=fraction)


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_digits_reject_a_seed_out_of_range(seed):
    with pytest.raises(ValueError, match="seed must be in"):
        DigitsConfig(seed=seed)


def test_load_compares_the_classes_of_a_finished_run():
    config: DataConfig = DigitsConfig()
    assert load(config, tuple("0123456789")).classes == tuple("0123456789")
    with pytest.raises(ValueError, match=r"the classes of digits must be .* got \('cat', 'dog'\)"):
        load(config, ("cat", "dog"))
