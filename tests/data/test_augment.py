from __future__ import annotations

import re
from dataclasses import fields
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from shuffle_jax.data import AugmentConfig, augment, normalize, random_crop, random_flip, random_resized_crop
from shuffle_jax.data.augment import mixup_alpha, to_levels
from shuffle_jax.data.color import jitter
from shuffle_jax.data.erase import cutout, erase
from shuffle_jax.data.mix import cutmix, mixup, mixup_or_cutmix
from shuffle_jax.data.random_augment import random_augment
from shuffle_jax.sharding import batch_sharding, data_mesh

ALL = AugmentConfig(crop_padding=2, flip=True, cutout=3, mixup=0.4)
EVERY = AugmentConfig(
    crop_padding=2,
    flip=True,
    random_operations=1,
    jitter=0.4,
    cutout=3,
    erasing=0.5,
    mixup=0.4,
    cutmix=1.0,
)
MEAN, STD = (0.3, 0.5), (0.2, 0.4)
EARLIER = [  # what the first version to have each gave, see the test
    (AugmentConfig(), (-11.0873450, -0.379050035)),
    (ALL, (-5.78289812, 0.304860455)),
    (AugmentConfig(resized_crop=0.3, flip=True, cutout=3, mixup=0.4), (11.8741553, 0.304860455)),
]
MEAN3, STD3 = (0.3, 0.5, 0.4), (0.2, 0.4, 0.3)


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
@settings(max_examples=8)  # most compile a shape
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


# The ramp of mixup


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


@pytest.mark.slow
def test_colours_come_before_the_normalisation_and_rectangles_after_it():
    images, targets, key = jnp.asarray(random_images(4, 7, 5, 3)), jnp.asarray(one_hot(4, 3)), jax.random.key(8)
    crop_key, flip_key, cutout_key, mixup_key = jax.random.split(key, 4)
    random_key, jitter_key, erase_key, *mix_keys = (jax.random.fold_in(key, i) for i in range(4, 9))

    @jax.jit
    def in_order():
        levels = random_flip(flip_key, random_crop(crop_key, images, 2))
        levels = jitter(jitter_key, random_augment(random_key, levels, 1, 9.0), 0.4)
        expected = erase(erase_key, cutout(cutout_key, normalize(levels, MEAN3, STD3), 3), 0.5)
        return mixup_or_cutmix((mixup_key, *mix_keys), expected, targets, 0.4, 1.0)

    mixed, soft = in_order()
    result, result_targets = jax.jit(partial(augment, config=EVERY, mean=MEAN3, std=STD3))(key, images, targets)
    np.testing.assert_allclose(result, mixed, atol=1e-4)
    np.testing.assert_allclose(result_targets, soft, atol=1e-6)


def test_cutmix_is_last():
    images, targets, key = jnp.asarray(random_images(4, 7, 5, 2)), jnp.asarray(one_hot(4, 3)), jax.random.key(8)
    mixed, soft = cutmix(jax.random.fold_in(key, 7), normalize(images, MEAN, STD), targets, 1.0)
    result, result_targets = augment(key, images, targets, AugmentConfig(cutmix=1.0), MEAN, STD)
    np.testing.assert_array_equal(result, mixed)
    np.testing.assert_array_equal(result_targets, soft)


@pytest.mark.slow
def test_random_operations_round_what_a_resized_crop_leaves():
    images, targets, key = jnp.asarray(random_images(4, 7, 5, 1)), jnp.asarray(one_hot(4, 3)), jax.random.key(8)
    levels = random_resized_crop(jax.random.split(key, 4)[0], images, 0.3)
    rounded = to_levels(levels)
    assert rounded.dtype == jnp.uint8 and 0 < np.abs(np.asarray(rounded) - np.asarray(levels)).max() <= 0.5
    expected = normalize(random_augment(jax.random.fold_in(key, 4), rounded, 1, 30.0), [0.3], [0.2])
    config = AugmentConfig(resized_crop=0.3, random_operations=1, random_magnitude=30)
    result, _ = augment(key, images, targets, config, [0.3], [0.2])
    np.testing.assert_array_equal(result, expected)


@pytest.mark.slow
def test_the_first_augmentations_give_the_numbers_that_they_first_gave():
    # Sums, weighed by place so that no exchange goes unseen: a run of an earlier version resumes as it was.
    images, targets, key = jnp.asarray(random_images(6, 5, 4, 2)), jnp.asarray(one_hot(6, 3)), jax.random.key(2024)
    weights = np.sin(np.arange(6 * 5 * 4 * 2)).reshape(6, 5, 4, 2)
    for config, expected in EARLIER:
        result, soft = augment(key, images, targets, config, MEAN, STD)
        found = (
            np.sum(np.asarray(result, np.float64) * weights),
            np.sum(np.asarray(soft, np.float64) * weights[:, 0, :3, 0]),
        )
        np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_augment_without_augmentation_normalises():
    images, targets = jnp.asarray(random_images(2, 3, 3, 2)), jnp.asarray(one_hot(2, 2))
    result, same = augment(jax.random.key(0), images, targets, AugmentConfig(), MEAN, STD)
    np.testing.assert_array_equal(result, normalize(images, MEAN, STD))
    np.testing.assert_array_equal(same, targets)


@pytest.mark.parametrize(
    "other",
    [{"flip": True}, {"crop_padding": 1}, {"jitter": 0.4}, {"random_operations": 1}, {"erasing": 0.3}],
    ids=lambda other: next(iter(other)),
)
@pytest.mark.slow
def test_an_augmentation_keeps_its_draws_when_another_is_switched_on(other):
    # Cutout shows its draws whatever the levels are, and mixup in the targets.
    images, targets, key = jnp.asarray(random_images(6, 4, 4, 3)), jnp.asarray(one_hot(6, 6)), jax.random.key(1)
    alone, soft = augment(key, images, targets, AugmentConfig(cutout=2, mixup=0.5), MEAN3, STD3)
    both, soft_too = augment(key, images, targets, AugmentConfig(cutout=2, mixup=0.5, **other), MEAN3, STD3)
    assert not np.array_equal(alone, both)
    unmixed, _ = augment(key, images, targets, AugmentConfig(cutout=2), MEAN3, STD3)
    changed, _ = augment(key, images, targets, AugmentConfig(cutout=2, **other), MEAN3, STD3)
    assert not (np.asarray(changed)[np.asarray(unmixed) == 0]).any()
    np.testing.assert_array_equal(soft, soft_too)


def test_the_keys_of_later_augmentations_are_those_a_wider_split_would_give_and_leave_the_first_four():
    key = jax.random.key(7)
    wider = jax.random.key_data(jax.random.split(key, 9))
    np.testing.assert_array_equal(wider[:4], jax.random.key_data(jax.random.split(key, 4)))
    folded = jnp.stack([jax.random.key_data(jax.random.fold_in(key, i)) for i in range(4, 9)])
    np.testing.assert_array_equal(wider[4:], folded)
    assert len(np.unique(wider, axis=0)) == 9


@pytest.mark.slow
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


def collectives(text: str) -> list[tuple[str, str]]:
    """The first result shape and the name of every collective in a compiled program."""
    assert "num_partitions=2" in text
    names = "all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter"
    return sorted(re.findall(rf"= \(?(\w+\[[\d,]*\])\S* ({names})(?:-start)?\(", text))


@pytest.mark.parametrize(
    ("config", "mixes"),
    [
        (AugmentConfig(resized_crop=0.1, flip=True, cutout=3), False),
        pytest.param(ALL, True, marks=pytest.mark.slow),  # a part of the next
        pytest.param(EVERY, True, marks=pytest.mark.slow),
    ],
)
def test_two_devices_equal_one_and_only_mixup_and_cutmix_communicate(config, mixes):
    images, targets, key = random_images(8, 6, 5, 3), one_hot(8, 3), jax.random.key(3)
    split = jax.device_put((images, targets), batch_sharding(data_mesh(jax.devices()[:2])))
    neighbour = [("f32[1,3]", "collective-permute"), ("f32[1,6,5,3]", "collective-permute")]
    function = jax.jit(partial(augment, config=config, mean=MEAN3, std=STD3))
    one, one_targets = function(key, jnp.asarray(images), jnp.asarray(targets))
    compiled = function.lower(key, *split).compile()
    two, two_targets = compiled(key, *split)
    assert two.sharding.is_equivalent_to(split[0].sharding, ndim=4)
    np.testing.assert_allclose(one, two, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(one_targets, two_targets, rtol=1e-6)
    assert collectives(compiled.as_text()) == (neighbour if mixes else [])


@pytest.mark.parametrize("name", [field.name for field in fields(AugmentConfig) if field.name != "flip"])
def test_config_rejects_negative_values_and_what_is_no_number(name):
    for value in (-1, float("nan")):
        with pytest.raises(ValueError, match=f"{name} must be at least 0, got {value}"):
            AugmentConfig(**{name: value})


@pytest.mark.parametrize(("name", "limit"), [("jitter", 1), ("erasing", 1), ("random_magnitude", 30)])
def test_config_rejects_what_is_above_its_limit(name, limit):
    with pytest.raises(ValueError, match=f"{name} .* at most {limit}, got {limit + 1}"):
        AugmentConfig(**{name: limit + 1})
    AugmentConfig(**{name: limit})


@pytest.mark.parametrize("shape", [(1, 1, 1, 1), pytest.param((3, 1, 1, 3), marks=pytest.mark.slow)])
def test_grey_images_and_a_batch_of_one_pixel_take_every_augmentation(shape):
    images, targets = jnp.asarray(random_images(*shape)), jnp.asarray(one_hot(shape[0], 2))
    c = shape[-1]
    result, soft = jax.jit(partial(augment, config=EVERY, mean=[0.0] * c, std=[1.0] * c))(
        jax.random.key(0), images, targets
    )
    assert result.shape == shape and soft.shape == targets.shape
    assert np.asarray(result).min() >= 0 and np.asarray(result).max() <= 1
    np.testing.assert_allclose(soft.sum(axis=1), 1, rtol=1e-6)


def test_config_rejects_crops_of_more_than_the_image_and_two_crops():
    with pytest.raises(ValueError, match="resized_crop must be at most 1, the whole area, got 8"):
        AugmentConfig(resized_crop=8)
    with pytest.raises(ValueError, match=r"one must be 0, got 0\.08 and 4"):
        AugmentConfig(resized_crop=0.08, crop_padding=4)
