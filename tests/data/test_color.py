from __future__ import annotations

from itertools import permutations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from scipy import stats

from shuffle_jax.data.color import ONE, blend, grey, jitter

jittered = jax.jit(jitter, static_argnums=2)  # as in training


def random_images(n: int, h: int, w: int, c: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (n, h, w, c), dtype=np.uint8)


# Shades of grey and blends


def test_shades_of_grey_are_pillows():
    images = random_images(4, 50, 50, 3)
    expected = [np.asarray(Image.fromarray(image).convert("L")) for image in images]
    np.testing.assert_array_equal(jax.jit(grey)(images)[..., 0], expected)
    np.testing.assert_array_equal(grey(jnp.asarray(images[..., :1])), images[..., :1])


@given(factor=st.integers(0, 2 * ONE))
def test_a_blend_is_its_equation_rounded_down(factor):
    base, levels = (grid.ravel() for grid in np.meshgrid(np.arange(256), np.arange(256)))
    exact = np.clip(base + factor / ONE * (levels - base), 0, 255)  # in double precision, without error
    result = np.asarray(blend(jnp.asarray(base), jnp.asarray(levels), factor))
    nearly_whole = np.ceil(exact) - exact <= 2**-13
    np.testing.assert_array_equal(result, np.where(nearly_whole, np.ceil(exact), np.floor(exact)))


@pytest.mark.parametrize("factor", [0.0, 0.1, 0.7, 1.0, 1.27, 1.9])
def test_a_blend_is_pillows(factor):
    base, levels = (grid.astype(np.uint8) for grid in np.meshgrid(np.arange(256), np.arange(256)))
    expected = Image.blend(Image.fromarray(base), Image.fromarray(levels), factor)
    np.testing.assert_array_equal(blend(jnp.asarray(base), jnp.asarray(levels), round(factor * ONE)), expected)


# Jitter


def by_hand(image: np.ndarray, order: tuple[int, ...], factors: np.ndarray) -> np.ndarray:
    """Jitter of one image in double precision, each step by its own words."""
    levels = image.astype(np.float64)
    for which, factor in zip(order, factors, strict=True):
        weights = [0.299, 0.587, 0.114] if image.shape[-1] == 3 else [1]
        shade = levels @ weights
        if which == 0:
            levels = factor * levels
        elif which == 1:
            levels = factor * levels + (1 - factor) * shade.mean()
        else:
            levels = factor * levels + (1 - factor) * shade[..., None]
        levels = levels.clip(0, 255)
    return levels


@pytest.mark.parametrize("shape", [(60, 6, 5, 3), (40, 3, 4, 1), (20, 1, 1, 3)])
def test_jitter_is_three_changes_in_some_order(shape):
    images, key = random_images(*shape), jax.random.key(1)
    result = np.asarray(jittered(key, jnp.asarray(images), 0.4))
    factors = 1 + 0.4 * np.asarray(jax.random.uniform(jax.random.split(key)[1], (3, len(images)), minval=-1, maxval=1))
    orders = list(permutations(range(3)))
    errors = np.array(
        [
            [np.abs(by_hand(image, order, f) - found).max() for order in orders]
            for image, f, found in zip(images, factors.T, result, strict=True)
        ]
    )
    assert errors.min(axis=1).max() < 0.02
    if shape[1] > 1 and shape[-1] == 3:  # with fewer pixels or channels some orders are one
        assert set(errors.argmin(axis=1)) == set(range(6))


def test_factors_of_brightness_are_uniform_on_their_range():
    # On grey images of one level contrast and saturation do nothing.
    result = np.asarray(jittered(jax.random.key(2), jnp.full((3000, 2, 2, 3), 100, jnp.uint8), 0.6))
    np.testing.assert_allclose(result, np.broadcast_to(result[:, :1, :1, :1], result.shape), rtol=1e-5)
    factors = result[:, 0, 0, 0] / 100
    assert stats.kstest(factors, stats.uniform(0.4, 1.2).cdf).pvalue > 1e-3


def test_levels_stay_in_range_and_each_image_has_its_own():
    images = jnp.broadcast_to(jnp.asarray(random_images(1, 4, 4, 3)), (50, 4, 4, 3))
    result = np.asarray(jittered(jax.random.key(3), images, 1.0))
    assert result.dtype == np.float32 and result.min() >= 0 and result.max() <= 255
    assert len(np.unique(result.reshape(50, -1), axis=0)) == 50


@pytest.mark.parametrize("shape", [(3, 5, 4, 3), (1, 1, 1, 1)])
def test_a_strength_of_zero_changes_nothing(shape):
    images = random_images(*shape)
    np.testing.assert_array_equal(jittered(jax.random.key(0), jnp.asarray(images), 0.0), images)
    parts = images / np.float32(7)
    np.testing.assert_array_equal(jittered(jax.random.key(0), jnp.asarray(parts), 0.0), parts)


def test_jit_equals_eager():
    images = jnp.asarray(random_images(6, 7, 5, 3))
    eager = jitter(jax.random.key(4), images, 0.4)
    np.testing.assert_allclose(jittered(jax.random.key(4), images, 0.4), eager, atol=1e-3)


def test_colours_need_one_or_three_channels():
    with pytest.raises(ValueError, match="colours need 1 or 3 channels, got 2"):
        jitter(jax.random.key(0), jnp.zeros((1, 2, 2, 2)), 0.4)
