"""From a picture to the network's input, as in training."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
from PIL import Image

from shuffle_jax.data import Preprocessing, normalize
from shuffle_jax.data.encoded import read_image
from shuffle_jax.data.preprocessing import preprocessing_from_json

COLOUR = Preprocessing(8, 3, (0.5, 0.4, 0.3), (0.2, 0.25, 0.3))


@pytest.fixture
def picture(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (12, 17, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    return tmp_path / "a.png"


def test_a_picture_is_read_as_in_training_and_brightness_is_one_channel(picture):
    colour = COLOUR.read(picture)
    np.testing.assert_array_equal(colour, read_image(picture, 8))
    grey = Preprocessing(8, 1, (0.5,), (0.5,)).read(picture)
    assert (grey.shape, grey.dtype) == ((8, 8, 1), np.uint8)
    weights = np.array([299, 587, 114]) / 1000  # ITU-R 601
    np.testing.assert_allclose(grey[..., 0], colour @ weights, atol=1)


def test_a_picture_is_cropped_as_those_of_the_test(picture):
    cropped = dataclasses.replace(COLOUR, crop=0.5)
    np.testing.assert_array_equal(cropped.read(picture), read_image(picture, 8, crop=0.5))
    assert preprocessing_from_json(json.loads(json.dumps(cropped.to_json()))) == cropped
    with pytest.raises(ValueError, match="crop must be above 0"):
        dataclasses.replace(COLOUR, crop=0.0)


def test_a_file_that_knows_no_crop_keeps_the_whole_side():
    written = {name: value for name, value in COLOUR.to_json().items() if name != "crop"}
    assert preprocessing_from_json(written) == COLOUR and COLOUR.crop == 1.0


def test_a_picture_too_large_to_decode_is_refused_without_a_warning(tmp_path):
    Image.new("1", (12_000, 10_000)).save(tmp_path / "bomb.png")  # above the limit at which Pillow warns
    with pytest.raises(ValueError, match=r"cannot read image .*bomb\.png: "):
        COLOUR.read(tmp_path / "bomb.png")


def test_pixels_are_normalised_as_under_jit():
    pixels = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 3), np.uint8)
    np.testing.assert_allclose(
        COLOUR.normalize(pixels), normalize(pixels, COLOUR.mean, COLOUR.std), rtol=1e-5, atol=1e-6
    )


def test_plain_values_and_back():
    assert preprocessing_from_json(json.loads(json.dumps(COLOUR.to_json()))) == COLOUR


@pytest.mark.parametrize(
    "change", [{"std": [0, 1, 1]}, {"mean": None}, {"mean": "abc"}, {"size": "big"}, {"channels": 2}]
)
def test_values_that_fit_nothing_are_refused(change):
    with pytest.raises(ValueError):
        preprocessing_from_json(COLOUR.to_json() | change)
    with pytest.raises(ValueError, match="export again"):
        preprocessing_from_json({"size": 8})


def test_arrays_of_another_type_or_shape_are_refused():
    for array in (np.zeros((1, 8, 8, 3), np.float32), np.zeros((1, 9, 8, 3), np.uint8), np.zeros((8, 8, 3), np.uint8)):
        with pytest.raises(ValueError, match=r"give uint8 \(n, 8, 8, 3\), or normalised ones with --raw"):
            COLOUR.normalize(array)
