"""Sets whose images come in variants: what each variant is, and that it belongs to the image alone."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from shuffle_jax.data import DigitsConfig, FolderConfig, load
from shuffle_jax.data.vary import CORRUPTIONS, ORDERS, Variants, corrupted


def test_corruptions_are_their_definitions():
    image = np.random.default_rng(0).integers(0, 256, (5, 4, 3), dtype=np.uint8)
    blurred, squares = np.zeros((5, 4, 3)), np.zeros((5, 4, 3))
    weights = np.array([1, 4, 6, 4, 1]) / 16
    for r, s in np.ndindex(5, 4):
        for i, j in np.ndindex(5, 5):
            pixel = image[np.clip(r + i - 2, 0, 4), np.clip(s + j - 2, 0, 3)]
            blurred[r, s] += weights[i] * weights[j] * pixel
        squares[r, s] = image[r // 2 * 2 : r // 2 * 2 + 2, s // 2 * 2 : s // 2 * 2 + 2].mean(axis=(0, 1))
    mean = image.mean(axis=(0, 1))
    noise = np.random.RandomState(7).normal(0, 25.5, image.shape)
    expected = {
        "none": image,
        "noise": np.clip(image + noise, 0, 255),
        "blur": blurred,
        "contrast": mean + 0.3 * (image - mean),
        "pixelate": squares,
        "invert": 255.0 - image,
    }
    for name in CORRUPTIONS:
        np.testing.assert_allclose(corrupted(image, name, 7), expected[name], atol=0.501)
    with pytest.raises(ValueError, match="corruption must be one of none, noise"):
        corrupted(image, "fog")


def save_pictures(root, split: str, count: int) -> None:
    for label in ("ant", "bee"):
        folder = root / split / label
        folder.mkdir(parents=True, exist_ok=True)
        for number in range(count):
            Image.new("RGB", (6, 6), (20, 120, 220)).save(folder / f"{split}{number:03d}.png")


def test_each_image_of_both_splits_has_one_order_that_no_other_image_moves(tmp_path):
    save_pictures(tmp_path, "train", 60)
    save_pictures(tmp_path, "val", 60)
    config = FolderConfig(tmp_path, image_size=3, seed=4, vary="colors")
    data = load(config)
    found = {}
    for split in (data.train, data.test):
        assert isinstance(split.vary, Variants)
        images, labels = split.take(np.arange(len(split)))
        drawn = np.array([split.vary.index(position) for position in range(len(split))])
        np.testing.assert_array_equal(images[:, 0, 0], np.array([20, 120, 220])[np.array(ORDERS)[drawn]])
        assert {tuple(row) for row in np.stack([drawn, labels], axis=1)} == set(np.ndindex(6, 2))
        found |= {split.records[position].name: drawn[position] for position in range(len(split))}
    planes = load(replace(config, vary="planes")).train
    upright = [image[0, 0][np.argsort(ORDERS[planes.vary.index(i)])] for i, (image, _) in enumerate(planes)]
    luma = 0.299 * 20 + 0.587 * 120 + 0.114 * 220
    levels = (luma, 128 + (220 - luma) / 1.772, 128 + (20 - luma) / 1.402)
    np.testing.assert_allclose(upright, np.tile(levels, (len(planes), 1)), atol=1)
    few = load(replace(config, per_class=9)).train
    assert [few.vary.index(i) for i in range(len(few))] == [found[few.records[i].name] for i in range(len(few))]
    other = load(replace(config, seed=5)).train
    assert [other.vary.index(i) for i in range(len(other))] != [data.train.vary.index(i) for i in range(len(other))]
    windowed, _ = data.train.read(1, lambda height, width: (1, 1, 2, 2))
    np.testing.assert_array_equal(windowed, data.train[1][0])


def test_digits_vary_by_corruption_whatever_the_split_and_have_no_colors():
    plain, varied = load(DigitsConfig()), load(DigitsConfig(vary="corruptions"))
    kept = np.mean([np.all(a == b) for a, b in zip(plain.train.images, varied.train.images, strict=True)])
    assert 0.1 < kept < 0.25
    whole = load(DigitsConfig(vary="corruptions", test_fraction=0.5))
    images = {image.tobytes() for image in np.concatenate([whole.train.images, whole.test.images])}
    assert all(image.tobytes() in images for image in varied.train.images)
    with pytest.raises(ValueError, match="needs images of 3 channels, got 1: use"):
        load(DigitsConfig(vary="colors"))
