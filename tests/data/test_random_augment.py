from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps
from scipy import stats

from shuffle_jax.data.random_augment import FILL, OPERATIONS, STRONGEST, operate, random_augment

compiled = jax.jit(operate, static_argnums=3)  # as in training
INDEX = {name: i for i, name in enumerate(OPERATIONS)}


def pictures(h: int, w: int, c: int) -> np.ndarray:
    """Noise, slopes of few levels, a narrow range of levels, one level, and a dark picture with a bright spot."""
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (h, w, c))
    slopes = (np.arange(h)[:, None, None] * 7 + np.arange(w)[None, :, None] * 3 + 40 * np.arange(c)) % 256
    narrow = rng.integers(90, 141, (h, w, c))
    level = np.broadcast_to(np.array([255, 0, 77])[:c], (h, w, c))
    spot = np.where(rng.random((h, w, 1)) < 0.1, 250, rng.integers(0, 30, (h, w, c)))
    return np.stack([noise, slopes, narrow, level, spot]).astype(np.uint8)


def pillow(name: str, image: np.ndarray, strength: float) -> np.ndarray:
    """One operation by Pillow, its parameters as the docstring of operate states them."""
    h, w, c = image.shape
    picture = Image.fromarray(image[..., 0] if c == 1 else image)
    fill = FILL if c == 1 else (FILL,) * 3

    def affine(*matrix: float) -> Image.Image:
        return picture.transform((w, h), Image.Transform.AFFINE, matrix, Image.Resampling.NEAREST, fillcolor=fill)

    match name:
        case "identity":
            result = picture
        case "autocontrast":
            result = ImageOps.autocontrast(picture)
        case "equalize":
            result = ImageOps.equalize(picture)
        case "rotate":
            result = picture.rotate(30 * strength, Image.Resampling.NEAREST, fillcolor=fill)
        case "solarize":
            result = ImageOps.solarize(picture, 256 * (1 - abs(strength)))
        case "posterize":
            result = ImageOps.posterize(picture, 8 - round(4 * abs(strength)))
        case "shear_x":
            result = affine(1, 0.3 * strength, 0, 0, 1, 0)
        case "shear_y":
            result = affine(1, 0, 0, 0.3 * strength, 1, 0)
        case "translate_x":
            result = affine(1, 0, 150 / 331 * strength * w, 0, 1, 0)
        case "translate_y":
            result = affine(1, 0, 0, 0, 1, 150 / 331 * strength * h)
        case _:
            result = getattr(ImageEnhance, name.title())(picture).enhance(1 + 0.9 * strength)
    return np.asarray(result).reshape(h, w, c)


def all_operations(images: np.ndarray, magnitude: float) -> np.ndarray:
    """Every operation, with both signs, on every image: (operation, sign, image, h, w, c)."""
    n, *shape = images.shape
    chosen, negative, image = (grid.ravel() for grid in np.meshgrid(np.arange(14), [0, 1], np.arange(n), indexing="ij"))
    result = compiled(jnp.asarray(images[image]), jnp.asarray(chosen), jnp.asarray(negative == 1), magnitude)
    assert result.dtype == jnp.uint8
    return np.asarray(result).reshape(14, 2, n, *shape)


MANY = [((40, 51, 3), 0), ((40, 51, 3), 9), ((1, 1, 3), 9), ((2, 5, 3), 9), ((3, 3, 1), 30)]
"""Each is a compilation of some seconds; those beside them show the same."""


@pytest.mark.parametrize(
    ("shape", "magnitude"),
    [((40, 51, 3), 4), ((40, 51, 3), 21.7), ((40, 51, 3), 30), ((19, 26, 1), 12.5), ((1, 1, 1), 30)]
    + [pytest.param(*one, marks=pytest.mark.slow) for one in MANY],
)
@pytest.mark.fast_cases(2)
def test_every_operation_is_pillows(shape, magnitude):
    images = pictures(*shape)
    results = all_operations(images, magnitude)
    for name in OPERATIONS:
        for sign, found in zip((1, -1), results[INDEX[name]], strict=True):
            for image, result in zip(images, found, strict=True):
                expected = pillow(name, image, sign * magnitude / 30)
                if name == "autocontrast":  # where the exact number is whole, Pillow may be one below it
                    low, high = (f(image.astype(int), axis=(0, 1)) for f in (np.min, np.max))
                    whole = 255 * (image - low) % np.maximum(high - low, 1) == 0
                    assert (result.astype(int) - expected <= whole).all() and (result >= expected).all()
                else:
                    np.testing.assert_array_equal(result, expected, err_msg=f"{name} {sign * magnitude}")


def test_magnitude_zero_changes_nothing():
    images = pictures(6, 7, 3)
    results = all_operations(images, 0)
    for name in set(OPERATIONS) - {"autocontrast", "equalize"}:
        np.testing.assert_array_equal(results[INDEX[name]], np.broadcast_to(images, (2, *images.shape)), err_msg=name)


def test_operations_change_what_they_are_named_for():
    h, w = 20, 30
    images = np.full((1, h, w, 3), 60, np.uint8)
    images[0, 5:15, 10:20] = 200, 100, 40
    results = dict(zip(OPERATIONS, all_operations(images, STRONGEST)[:, :, 0].astype(int), strict=True))
    (left, right), (up, down) = results["translate_x"], results["translate_y"]
    for moved, axis, side in ((left, 1, -1), (right, 1, 0), (up, 0, -1), (down, 0, 0)):
        assert (np.take(moved, side, axis=axis) == FILL).all() and (np.take(moved, -1 - side, axis=axis) != FILL).all()
    np.testing.assert_array_equal(left[:, : w - 14], images[0, :, 14:])  # 150/331 of 30 is 13.6: the nearest place
    assert results["brightness"][0].mean() > images.mean() > results["brightness"][1].mean()
    assert results["contrast"][0].std() > images.std() > results["contrast"][1].std()
    saturation = [np.ptp(result, axis=-1).max() for result in (*results["color"], images[0].astype(int))]
    assert saturation[0] > saturation[2] > saturation[1]
    np.testing.assert_array_equal(results["solarize"][0], 255 - images[0].astype(int))
    assert (results["posterize"] % 16 == 0).all()
    assert results["autocontrast"].min() == 0 and results["autocontrast"].max() == 255


def test_a_rotation_there_and_back_gives_the_middle_back():
    images = np.kron(np.random.default_rng(1).integers(0, 256, (1, 8, 8, 1)), np.ones((1, 8, 8, 1))).astype(np.uint8)
    once = all_operations(images, STRONGEST)[INDEX["rotate"]]
    back = all_operations(once[0], STRONGEST)[INDEX["rotate"], 1]
    middle = slice(16, 48)
    assert (back[0, middle, middle] == images[0, middle, middle]).mean() > 0.85
    assert not np.array_equal(once[0], once[1])


@pytest.mark.slow
def test_every_operation_is_drawn_as_often_and_with_both_signs():
    n = 2000
    ramp = np.linspace(20, 240, 16 * 16).reshape(16, 16, 1).round()
    image = np.concatenate([ramp, np.rot90(ramp), 255 - ramp], axis=-1).astype(np.uint8)
    results = all_operations(image[None], 20)[:, :, 0]
    distinct, which = np.unique(results.reshape(28, -1), axis=0, return_inverse=True)
    drawn = np.asarray(random_augment(jax.random.key(0), jnp.broadcast_to(image, (n, *image.shape)), 1, 20.0))
    counts = np.array([(drawn.reshape(n, -1) == result).all(axis=1).sum() for result in distinct])
    assert counts.sum() == n and len(distinct) > 20
    chances = np.bincount(which.ravel(), minlength=len(distinct)) / 28
    assert stats.chisquare(counts, chances * n).pvalue > 1e-3


@pytest.mark.slow
def test_operations_follow_one_another():
    images, key = jnp.asarray(pictures(9, 8, 3)), jax.random.key(4)
    expected = images
    for one in jax.random.split(key, 3):
        operation_key, sign_key = jax.random.split(one)
        chosen = jax.random.randint(operation_key, (5,), 0, 14)
        expected = compiled(expected, chosen, jax.random.bernoulli(sign_key, 0.5, (5,)), 9.0)
    drawn = jax.jit(partial(random_augment, operations=3, magnitude=9.0))
    np.testing.assert_array_equal(drawn(key, images), expected)
    assert not np.array_equal(expected, images)
    np.testing.assert_array_equal(random_augment(key, images, 0, 9.0), images)


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(5, 9, 8, 3), (1, 1, 1, 1)])
def test_jit_equals_eager_bit_for_bit(shape):
    images = jnp.asarray(np.random.default_rng(2).integers(0, 256, shape, dtype=np.uint8))
    for seed in range(2):
        eager = random_augment(jax.random.key(seed), images, 2, 13.0)
        assert eager.shape == shape and eager.dtype == jnp.uint8
        function = jax.jit(partial(random_augment, operations=2, magnitude=13.0))
        np.testing.assert_array_equal(function(jax.random.key(seed), images), eager)


def test_images_are_rejected_that_have_other_channels_and_magnitudes_out_of_range():
    images, chosen, negative = jnp.zeros((1, 2, 2, 2), jnp.uint8), jnp.zeros(1, int), jnp.zeros(1, bool)
    with pytest.raises(ValueError, match="colours need 1 or 3 channels, got 2"):
        jax.eval_shape(partial(operate, magnitude=9), images, chosen, negative)
    with pytest.raises(ValueError, match="magnitude must be from 0 to 30, got 31"):
        jax.eval_shape(partial(operate, magnitude=31), images[..., :1], chosen, negative)
