from __future__ import annotations

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from shuffle_jax.data import (
    AugmentConfig,
    augment,
    cutout,
    mixup,
    normalize,
    random_crop,
    random_flip,
    random_resized_crop,
)
from shuffle_jax.data.augment import mixup_alpha
from shuffle_jax.sharding import batch_sharding, data_mesh

ALL = AugmentConfig(crop_padding=2, flip=True, cutout=3, mixup=0.4)
MEAN, STD = (0.3, 0.5), (0.2, 0.4)


def random_images(n: int, h: int, w: int, c: int, seed: int = 0) -> np.ndarray:
    """Levels 1 to 255, so that a zero is always the work of an augmentation."""
    return np.random.default_rng(seed).integers(1, 256, (n, h, w, c), dtype=np.uint8)


def one_hot(n: int, classes: int) -> np.ndarray:
    return np.eye(classes, dtype=np.float32)[np.arange(n) % classes]


def crops(image: np.ndarray, padding: int) -> np.ndarray:
    """Every crop that a random crop may return, (2p + 1, 2p + 1, h, w, c)."""
    h, w, _ = image.shape
    padded = np.pad(image, ((padding, padding), (padding, padding), (0, 0)))
    side = range(2 * padding + 1)
    return np.stack([[padded[dy : dy + h, dx : dx + w] for dx in side] for dy in side])


def uniform(counts: np.ndarray) -> bool:
    """Whether a chi-square test at the level 1e-3 takes the counts for draws of a uniform law."""
    return stats.chisquare(counts.ravel()).pvalue > 1e-3


# Crop


@given(
    shape=st.tuples(st.integers(1, 3), st.integers(1, 5), st.integers(1, 5), st.integers(1, 3)),
    padding=st.integers(0, 3),
    seed=st.integers(0, 2**31 - 1),
)
def test_a_crop_is_one_of_the_shifted_images(shape, padding, seed):
    images = random_images(*shape)
    moved = np.asarray(random_crop(jax.random.key(seed), jnp.asarray(images), padding))
    assert moved.shape == shape
    assert moved.dtype == np.uint8
    for image, result in zip(images, moved, strict=True):
        equal = (crops(image, padding) == result).all(axis=(2, 3, 4))
        assert equal.any()


def test_crop_offsets_are_uniform_and_independent():
    padding, n = 2, 4000
    image = random_images(1, 4, 5, 1)[0]
    moved = random_crop(jax.random.key(1), jnp.asarray(np.broadcast_to(image, (n, 4, 5, 1))), padding)
    equal = (crops(image, padding)[None] == np.asarray(moved)[:, None, None]).all(axis=(3, 4, 5))
    np.testing.assert_array_equal(equal.sum(axis=(1, 2)), 1)  # the 25 crops differ, so each offset is known
    assert uniform(equal.sum(axis=0))  # over the 25 pairs (dy, dx)


def test_crop_without_padding_changes_nothing():
    images = jnp.asarray(random_images(2, 3, 5, 2))
    np.testing.assert_array_equal(random_crop(jax.random.key(0), images, 0), images)


# Flip


@pytest.mark.parametrize("shape", [(6, 3, 5, 2), (1, 4, 4, 1), (3, 1, 1, 1)])
def test_a_flip_mirrors_left_to_right_and_undoes_itself(shape):
    images = random_images(*shape)
    key = jax.random.key(3)
    flipped = random_flip(key, jnp.asarray(images))
    for image, result in zip(images, np.asarray(flipped), strict=True):
        assert np.array_equal(result, image) or np.array_equal(result, image[:, ::-1])
    np.testing.assert_array_equal(random_flip(key, flipped), images)


def test_half_of_the_images_are_flipped():
    images = jnp.tile(jnp.arange(2, dtype=jnp.uint8).reshape(1, 1, 2, 1), (4000, 1, 1, 1))
    flipped = np.asarray(random_flip(jax.random.key(0), images))[:, 0, 0, 0]
    assert uniform(np.bincount(flipped, minlength=2))


# Cutout


@pytest.mark.parametrize("size", [1, 2, 3, 4, 20])
@pytest.mark.parametrize("shape", [(7, 5), (1, 6)])
def test_cutout_blanks_one_clipped_square_and_nothing_else(shape, size):
    h, w = shape
    images = random_images(40, h, w, 2)
    result = np.asarray(cutout(jax.random.key(2), jnp.asarray(images), size))
    squares = []
    for cy in range(h):
        for cx in range(w):
            mask = np.zeros((h, w), bool)
            mask[max(0, cy - size // 2) : cy - size // 2 + size, max(0, cx - size // 2) : cx - size // 2 + size] = 1
            squares.append(mask)
    for image, blanked in zip(images, result, strict=True):
        zero = (blanked == 0).all(axis=-1)
        assert any(np.array_equal(zero, mask) for mask in squares)
        np.testing.assert_array_equal(blanked, np.where(zero[..., None], 0, image))


def test_cutout_centres_are_uniform():
    blanked = cutout(jax.random.key(5), jnp.ones((4000, 3, 5, 1)), 1)
    centres = np.asarray(blanked == 0).sum(axis=0)
    assert centres.sum() == 4000
    assert uniform(centres)


def test_cutout_of_size_zero_changes_nothing():
    images = jnp.asarray(random_images(2, 3, 3, 1))
    np.testing.assert_array_equal(cutout(jax.random.key(0), images, 0), images)


# Mixup


@pytest.mark.parametrize("n", [2, 5])
def test_mixup_is_one_convex_combination_with_the_image_before(n):
    images = random_images(n, 3, 2, 2).astype(np.float32)
    targets = one_hot(n, n)
    mixed, soft = mixup(jax.random.key(4), jnp.asarray(images), jnp.asarray(targets), 1.0)
    t = float(soft[0, 0])
    assert 0.01 < t < 0.99
    np.testing.assert_allclose(soft, t * targets + (1 - t) * np.roll(targets, 1, axis=0), atol=1e-6)
    np.testing.assert_allclose(mixed, t * images + (1 - t) * np.roll(images, 1, axis=0), rtol=1e-5)
    np.testing.assert_allclose(np.asarray(soft).sum(axis=1), 1, rtol=1e-6)


@pytest.mark.parametrize("alpha", [0.3, 1.0, 4.0])
def test_mixup_weights_follow_the_beta_law(alpha):
    images, targets = jnp.zeros((2, 1, 1, 1)), jnp.eye(2)
    keys = jax.random.split(jax.random.key(0), 2000)
    draws = jax.jit(jax.vmap(lambda key: mixup(key, images, targets, alpha)[1][0, 0]))(keys)
    assert stats.kstest(np.asarray(draws, np.float64), stats.beta(alpha, alpha).cdf).pvalue > 1e-3


def test_mixup_leaves_a_batch_of_one_as_it_is():
    image, target = jnp.full((1, 3, 3, 1), 0.3), jnp.array([[0.1, 0.9]])
    mixed, soft = mixup(jax.random.key(0), image, target, 1.0)
    np.testing.assert_array_equal(mixed, image)
    np.testing.assert_array_equal(soft, target)


@pytest.mark.parametrize("alpha", [0.0, -1.0])
def test_mixup_rejects_alpha(alpha):
    with pytest.raises(ValueError, match=f"alpha must be positive, got {alpha}"):
        mixup(jax.random.key(0), jnp.zeros((2, 1, 1, 1)), jnp.eye(2), alpha)


def test_an_alpha_of_zero_that_is_traced_mixes_nothing():
    images, targets = jnp.asarray(random_images(4, 3, 2, 2)) / 7, jnp.asarray(one_hot(4, 3))
    mixed, soft = jax.jit(mixup)(jax.random.key(0), images, targets, jnp.float32(0))
    np.testing.assert_array_equal(mixed, images)
    np.testing.assert_array_equal(soft, targets)


def test_a_traced_alpha_draws_what_the_number_draws():
    images, targets = jnp.zeros((2, 1, 1, 1)), jnp.eye(2)
    keys = jax.random.split(jax.random.key(0), 200)
    traced = jax.jit(jax.vmap(lambda key, alpha: mixup(key, images, targets, alpha)[1][0, 0], in_axes=(0, None)))
    static = jax.jit(jax.vmap(lambda key: mixup(key, images, targets, 0.3)[1][0, 0]))
    np.testing.assert_allclose(traced(keys, jnp.float32(0.3)), static(keys), rtol=1e-5, atol=1e-6)
    for alpha in (1e-3, 1e-7, 1e-30):  # as early in a ramp
        weights = np.asarray(traced(keys, jnp.float32(alpha)))
        assert np.isin(weights.round(3), (0, 1)).mean() > 0.95
        assert 0.3 < weights.mean() < 0.7


def test_alpha_rises_linearly_with_the_epoch():
    config = AugmentConfig(mixup=0.2, mixup_epochs=100)
    found = [float(mixup_alpha(config, epoch)) for epoch in (0.0, 0.5, 50.0, 100.0, 299.9)]
    np.testing.assert_allclose(found, [0, 0.001, 0.1, 0.2, 0.2], rtol=1e-6)
    assert mixup_alpha(AugmentConfig(mixup=0.2), 3.0) == mixup_alpha(AugmentConfig(mixup=0.2), None) == 0.2


def test_a_ramp_needs_the_epoch():
    images, targets = jnp.zeros((2, 1, 1, 2), jnp.uint8), jnp.eye(2)
    with pytest.raises(ValueError, match="mixup rises over 5 epochs and needs the epoch: give it, or set mixup_epochs"):
        augment(jax.random.key(0), images, targets, AugmentConfig(mixup=0.2, mixup_epochs=5), MEAN, STD)


@pytest.mark.parametrize(("epoch", "alpha"), [(0, None), (1, 0.2), (2, 0.4), (7, 0.4)])
def test_an_epoch_of_a_ramp_is_a_step_with_its_alpha(epoch, alpha):
    images, targets, key = jnp.asarray(random_images(6, 4, 4, 2)), jnp.asarray(one_hot(6, 3)), jax.random.key(5)
    ramp = AugmentConfig(flip=True, mixup=0.4, mixup_epochs=2)
    at_once = AugmentConfig(flip=True, mixup=alpha or 0)
    expected, soft = augment(key, images, targets, at_once, MEAN, STD)
    result, result_targets = jax.jit(lambda e: augment(key, images, targets, ramp, MEAN, STD, e))(jnp.float32(epoch))
    np.testing.assert_allclose(result, expected, atol=1e-5)
    np.testing.assert_allclose(result_targets, soft, atol=1e-6)


# Normalisation and the whole


def test_normalize_is_its_equation():
    images = random_images(3, 4, 5, 2)
    result = normalize(jnp.asarray(images), MEAN, STD)
    assert result.dtype == jnp.float32
    np.testing.assert_allclose(result, (images / 255 - np.array(MEAN)) / np.array(STD), rtol=1e-5, atol=1e-6)


def test_normalize_by_the_moments_gives_zero_mean_and_unit_deviation():
    images = random_images(5, 6, 7, 2)
    pixels = images / 255
    mean, std = (f(pixels, axis=(0, 1, 2)).astype(np.float32) for f in (np.mean, np.std))
    result = np.asarray(normalize(jnp.asarray(images), mean, std))
    np.testing.assert_allclose(result.mean(axis=(0, 1, 2)), 0, atol=1e-5)
    np.testing.assert_allclose(result.std(axis=(0, 1, 2)), 1, atol=1e-5)


def test_augment_applies_in_the_stated_order():
    images, targets, key = (
        jnp.asarray(random_images(4, 7, 5, 2)),
        jnp.asarray(one_hot(4, 3)),
        jax.random.key(8),
    )
    crop_key, flip_key, cutout_key, mixup_key = jax.random.split(key, 4)
    expected = random_flip(flip_key, random_crop(crop_key, images, 2))
    expected = cutout(cutout_key, normalize(expected, MEAN, STD), 3)
    expected, soft = mixup(mixup_key, expected, targets, 0.4)
    result, result_targets = augment(key, images, targets, ALL, MEAN, STD)
    np.testing.assert_array_equal(result, expected)
    np.testing.assert_array_equal(result_targets, soft)


def test_a_resized_crop_comes_first_and_is_not_rounded():
    images, targets, key = jnp.asarray(random_images(4, 7, 5, 2)), jnp.asarray(one_hot(4, 3)), jax.random.key(8)
    crop_key, flip_key, _, _ = jax.random.split(key, 4)
    levels = random_resized_crop(crop_key, images, 0.3)
    assert not np.array_equal(levels, levels.round())
    expected = normalize(random_flip(flip_key, levels), MEAN, STD)
    result, _ = augment(key, images, targets, AugmentConfig(resized_crop=0.3, flip=True), MEAN, STD)
    np.testing.assert_array_equal(result, expected)


def test_augment_without_augmentation_normalises():
    images, targets = jnp.asarray(random_images(2, 3, 3, 2)), jnp.asarray(one_hot(2, 2))
    result, same = augment(jax.random.key(0), images, targets, AugmentConfig(), MEAN, STD)
    np.testing.assert_array_equal(result, normalize(images, MEAN, STD))
    np.testing.assert_array_equal(same, targets)


def test_an_augmentation_keeps_its_draws_when_another_is_switched_on():
    images, targets, key = (
        jnp.asarray(random_images(6, 4, 4, 2)),
        jnp.asarray(one_hot(6, 2)),
        jax.random.key(1),
    )
    alone, _ = augment(key, images, targets, AugmentConfig(cutout=2), MEAN, STD)
    both, _ = augment(key, images, targets, AugmentConfig(flip=True, cutout=2), MEAN, STD)
    np.testing.assert_array_equal(np.asarray(alone) == 0, np.asarray(both) == 0)
    assert not np.array_equal(alone, both)


def test_jit_equals_eager():
    shape = (1, 7, 5, 2)
    images, targets, key = (
        jnp.asarray(random_images(*shape)),
        jnp.asarray(one_hot(shape[0], 3)),
        jax.random.key(2),
    )
    for discrete in (partial(random_crop, padding=2), random_flip, partial(cutout, size=3)):
        np.testing.assert_array_equal(jax.jit(discrete)(key, images), discrete(key, images))
    compiled = jax.jit(augment, static_argnums=(3, 4, 5))
    eager, eager_targets = augment(key, images, targets, ALL, MEAN, STD)
    result, result_targets = compiled(key, images, targets, ALL, MEAN, STD)
    assert result.shape == shape
    assert result.dtype == result_targets.dtype == jnp.float32
    np.testing.assert_allclose(result, eager, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(result_targets, eager_targets, rtol=1e-5, atol=1e-6)


def collectives(function, *arguments) -> list[tuple[str, str]]:
    """The first result shape and the name of every collective in the compiled program."""
    text = function.lower(*arguments).compile().as_text()
    assert "num_partitions=2" in text
    names = "all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter"
    return re.findall(rf"= \(?(\w+\[[\d,]*\])\S* ({names})(?:-start)?\(", text)


def test_two_devices_equal_one_and_only_mixup_communicates():
    images, targets, key = random_images(8, 6, 5, 2), one_hot(8, 3), jax.random.key(3)
    split = jax.device_put((images, targets), batch_sharding(data_mesh(jax.devices()[:2])))
    for config, moved in (
        (AugmentConfig(crop_padding=2, flip=True, cutout=3), set()),
        (AugmentConfig(resized_crop=0.1, flip=True, cutout=3), set()),
        (ALL, {("f32[1,6,5,2]", "collective-permute"), ("f32[1,3]", "collective-permute")}),
    ):
        function = jax.jit(partial(augment, config=config, mean=MEAN, std=STD))
        one, one_targets = function(key, jnp.asarray(images), jnp.asarray(targets))
        two, two_targets = function(key, *split)
        assert two.sharding.is_equivalent_to(split[0].sharding, ndim=4)
        np.testing.assert_allclose(one, two, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(one_targets, two_targets, rtol=1e-6)
        assert set(collectives(function, key, *split)) == moved


@pytest.mark.parametrize("name", ["crop_padding", "cutout", "mixup", "mixup_epochs", "resized_crop"])
def test_config_rejects_negative_values(name):
    with pytest.raises(ValueError, match=f"{name} must be at least 0, got -1"):
        AugmentConfig(**{name: -1})


def test_config_rejects_crops_of_more_than_the_image_and_two_crops():
    with pytest.raises(ValueError, match="resized_crop is a share of the area, at most 1, got 8"):
        AugmentConfig(resized_crop=8)
    with pytest.raises(ValueError, match=r"resized_crop 0.08 and crop_padding 4 are two crops: set one to 0"):
        AugmentConfig(resized_crop=0.08, crop_padding=4)
