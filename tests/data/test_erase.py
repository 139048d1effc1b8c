from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from shuffle_jax.data.erase import AREAS, RATIO, cutout, erase

struck = jax.jit(erase, static_argnums=2)


def random_images(n: int, h: int, w: int, c: int, seed: int = 0) -> np.ndarray:
    """Levels 1 to 255, so that a zero is always the work of an augmentation."""
    return np.random.default_rng(seed).integers(1, 256, (n, h, w, c), dtype=np.uint8)


def uniform(counts: np.ndarray) -> bool:
    """Whether a chi-square test at the level 1e-3 takes the counts for draws of a uniform law."""
    return stats.chisquare(counts.ravel()).pvalue > 1e-3


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


# Random erasing


def rectangles(blank: np.ndarray) -> np.ndarray:
    """First row, first column, rows and columns of the rectangle that is blank in every image (n, h, w)."""
    rows, columns = blank.any(axis=2), blank.any(axis=1)
    np.testing.assert_array_equal(blank, rows[:, :, None] & columns[:, None, :])
    for line in (rows, columns):  # without gaps
        assert (np.abs(np.diff(line.astype(int), prepend=0, append=0, axis=1)).sum(axis=1) <= 2).all()
    return np.stack([rows.argmax(axis=1), columns.argmax(axis=1), rows.sum(axis=1), columns.sum(axis=1)], axis=1)


def test_an_erased_rectangle_is_blank_and_the_rest_as_it_was():
    images = random_images(200, 9, 7, 3)
    result = np.asarray(struck(jax.random.key(0), jnp.asarray(images), 1.0))
    blank = (result == 0).all(axis=-1)
    rectangles(blank)
    np.testing.assert_array_equal(result, np.where(blank[..., None], 0, images))


def test_as_many_images_are_erased_as_asked_for():
    key, images = jax.random.key(1), jnp.ones((4000, 8, 8, 1))
    counts = [int((np.asarray(struck(key, images, p)) == 0).any(axis=(1, 2, 3)).sum()) for p in (0.0, 0.25, 1.0)]
    assert counts[0] == 0 and counts[2] == 4000
    assert stats.binomtest(counts[1], 4000, 0.25).pvalue > 1e-3


def test_areas_ratios_and_places_follow_their_laws():
    h, w = 100, 60
    result = struck(jax.random.key(2), jnp.ones((3000, h, w, 1), jnp.uint8), 1.0)
    top, left, rows, columns = rectangles(np.asarray(result)[..., 0] == 0).T
    assert (rows <= h).all() and (columns <= w).all()
    area, ratio = rows * columns / (h * w), (columns / w) / (rows / h)
    assert stats.kstest(area, stats.uniform(AREAS[0], AREAS[1] - AREAS[0]).cdf).statistic < 0.04
    assert stats.kstest(np.log(ratio), stats.uniform(-np.log(RATIO), 2 * np.log(RATIO)).cdf).statistic < 0.04
    free = (h - rows > 20) & (w - columns > 20)
    shares = [place[free] / room[free] for place, room in ((top, h - rows), (left, w - columns))]
    for share in shares:
        assert share.min() == 0 and share.max() == 1  # to the very edges
        assert stats.kstest(share, stats.uniform.cdf).statistic < 0.05
    assert abs(stats.spearmanr(*shares).statistic) < 0.06


@pytest.mark.parametrize("shape", [(40, 1, 1, 1), (40, 1, 50, 2), (40, 3, 2, 1)])
def test_small_images_lose_no_more_than_they_have(shape):
    images = jnp.asarray(random_images(*shape))
    result = np.asarray(struck(jax.random.key(3), images, 1.0))
    rectangles((result == 0).all(axis=-1))
    np.testing.assert_array_equal(result[result > 0], np.asarray(images)[result > 0])
    np.testing.assert_array_equal(erase(jax.random.key(3), images, 1.0), result)
