from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from shuffle_jax.data import random_resized_crop
from shuffle_jax.data.resized_crop import RATIO, resize_windows

crop = jax.jit(random_resized_crop, static_argnums=2)  # as in training


def random_images(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def interpolated(image: np.ndarray, start: np.ndarray, size: np.ndarray) -> np.ndarray:
    """The window by NumPy in double precision: first down every column, then along every row."""
    result = image.astype(np.float64)
    for axis, (first, share) in enumerate(zip(start, size, strict=True)):
        n = image.shape[axis]
        centres = (np.arange(n) + 0.5) / n  # of the pixels, as shares of the side
        wanted = first + share * centres
        result = np.apply_along_axis(
            lambda line, n=n, at=wanted: np.interp(at * n, np.arange(n) + 0.5, line), axis, result
        )
    return result


@given(
    shape=st.sampled_from([(3, 5, 7, 2), (2, 6, 6, 1), (1, 1, 4, 3), (2, 3, 1, 1)]),  # each compiles once
    seed=st.integers(0, 2**31 - 1),
)
def test_a_window_is_interpolated_linearly(shape, seed):
    rng = np.random.default_rng(seed)
    images = random_images(*shape, seed=seed)
    size = rng.uniform(0.05, 1, (shape[0], 2)).astype(np.float32)
    start = ((1 - size) * rng.uniform(0, 1, (shape[0], 2))).astype(np.float32)
    resized = jax.jit(resize_windows)(images, start, size)
    assert resized.shape == shape and resized.dtype == jnp.float32
    for image, first, share, result in zip(images, start, size, np.asarray(resized), strict=True):
        np.testing.assert_allclose(result, interpolated(image, first, share), atol=2e-3)


def test_a_window_by_hand():
    # The middle half of four pixels, cut into four: their centres are at 0.75, 1.25, 1.75 and 2.25.
    image = jnp.array([0, 80, 160, 240], jnp.uint8).reshape(1, 1, 4, 1)
    resized = resize_windows(image, jnp.array([[0.0, 0.25]]), jnp.array([[1.0, 0.5]]))
    np.testing.assert_array_equal(resized.ravel(), [60, 100, 140, 180])


@pytest.mark.parametrize("shape", [(3, 5, 7, 2), (1, 1, 1, 1), (2, 33, 1, 3)])
def test_the_whole_area_is_the_image_bit_for_bit(shape):
    images = random_images(*shape)
    np.testing.assert_array_equal(crop(jax.random.key(0), jnp.asarray(images), 1.0), images)


def test_an_image_of_one_pixel_stays():
    images = random_images(20, 1, 1, 3)
    np.testing.assert_array_equal(crop(jax.random.key(0), jnp.asarray(images), 0.01), images)


def test_no_value_leaves_the_range_of_its_image():
    images = random_images(200, 4, 4, 1) // 4 + np.arange(192, dtype=np.uint8)[np.arange(200) % 192, None, None, None]
    crops = np.asarray(crop(jax.random.key(1), jnp.asarray(images), 0.08))
    assert (crops >= images.min(axis=(1, 2, 3), keepdims=True)).all()
    assert (crops <= images.max(axis=(1, 2, 3), keepdims=True)).all()
    assert not np.array_equal(crops, images)
    level = jnp.full((50, 6, 6, 1), 254.7, jnp.float32)
    np.testing.assert_array_equal(crop(jax.random.key(2), level, 0.08), level)


@pytest.fixture(scope="module", params=[(16, 16), (12, 30)], ids=["square", "long"])
def windows(request):
    """Start and size of 4,000 windows, read from crops of a picture whose pixels hold their own place."""
    h, w = request.param
    rows, columns = np.meshgrid((np.arange(h) + 0.5) / h, (np.arange(w) + 0.5) / w, indexing="ij")
    place = np.broadcast_to(np.stack([rows, columns], axis=-1).astype(np.float32), (4000, h, w, 2))
    crops = np.asarray(crop(jax.random.key(3), jnp.asarray(place), 0.2), np.float64)
    # Outermost pixels may be held at the edge; a window is at least sqrt(0.15) long, so that those behind them are not.
    first, last = crops[:, 1, 1], crops[:, -2, -2]
    sides = np.array([h, w])
    size = (last - first) / (sides - 3) * sides
    return first - size * 1.5 / sides, size


def is_uniform(draws: np.ndarray, low: float, high: float) -> bool:
    return stats.kstest(draws, stats.uniform(low, high - low).cdf).pvalue > 1e-3


def test_areas_are_uniform(windows):
    _, size = windows
    assert is_uniform(size.prod(axis=1), 0.2, 1)


def test_ratios_are_log_uniform_as_far_as_they_fit(windows):
    _, size = windows
    area, ratio = size.prod(axis=1), size[:, 1] / size[:, 0]
    most = np.minimum(np.log(RATIO), -np.log(area))
    share = (np.log(ratio) / most)[most > 0.01]  # of what fits; below that it is a quotient of rounding errors
    assert len(share) > 3900
    assert is_uniform(share, -1, 1)
    assert abs(stats.spearmanr(share, area[most > 0.01]).statistic) < 0.06
    assert np.log(ratio).max() > 0.95 * np.log(RATIO) and np.log(ratio).min() < -0.95 * np.log(RATIO)


def test_windows_lie_inside_and_anywhere(windows):
    start, size = windows
    assert start.min() > -1e-4 and (start + size).max() < 1 + 1e-4
    free = (size < 0.95).all(axis=1)
    places = (start / (1 - size))[free]
    assert is_uniform(places[:, 0], 0, 1) and is_uniform(places[:, 1], 0, 1)
    assert abs(stats.spearmanr(places[:, 0], places[:, 1]).statistic) < 0.06
    assert abs(stats.spearmanr(places[:, 0], size[free].prod(axis=1)).statistic) < 0.06


def test_jit_equals_eager_and_each_image_has_its_own_window():
    images, key = jnp.asarray(random_images(4, 6, 5, 3)), jax.random.key(5)
    eager = random_resized_crop(key, images, 0.3)
    np.testing.assert_allclose(crop(key, images, 0.3), eager, atol=1e-3)
    same = np.asarray(random_resized_crop(key, jnp.broadcast_to(images[:1], images.shape), 0.3))
    assert len(np.unique(same.reshape(4, -1), axis=0)) == 4
    np.testing.assert_array_equal(same[0], eager[0])


@pytest.mark.parametrize("smallest", [0.0, -0.1, 1.5])
def test_a_share_of_the_area_is_above_0_and_at_most_1(smallest):
    with pytest.raises(ValueError, match=f"above 0 and at most 1, got {smallest}"):
        random_resized_crop(jax.random.key(0), jnp.zeros((1, 2, 2, 1)), smallest)
