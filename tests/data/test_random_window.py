"""The window of a random resized crop of a whole picture follows the published law, and the place in the training."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from shuffle_jax.data.resized_crop import RATIO, random_window

DRAWS = 4000


def draw(height: int, width: int, smallest: float = 0.08) -> np.ndarray:
    """Windows at 4,000 places, (top, left, height, width) each."""
    return np.array([random_window(3, 1, place, smallest, height, width) for place in range(DRAWS)])


def published(height: int, width: int, smallest: float, rng: np.random.Generator) -> tuple[float, float]:
    """Height and width by the published law in its own words, before they are rounded to pixels."""
    for _ in range(10):
        area = rng.uniform(smallest, 1) * height * width
        ratio = math.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3)))
        if (wide := math.sqrt(area * ratio)) <= width and (high := math.sqrt(area / ratio)) <= height:
            return high, wide
    ratio = width / height
    if ratio < 3 / 4:
        return width / (3 / 4), width
    return (height, height * (4 / 3)) if ratio > 4 / 3 else (height, width)


def same(a: np.ndarray, b: np.ndarray) -> bool:
    return stats.ks_2samp(a, b).pvalue > 1e-3


@pytest.mark.parametrize(("height", "width"), [(100, 100), (375, 500), (500, 333), (100, 400)])
@pytest.mark.parametrize("smallest", [0.08, 0.7])
def test_windows_are_distributed_as_published(height, width, smallest):
    _, _, high, wide = draw(height, width, smallest).T
    rng = np.random.default_rng(0)
    theirs = np.array([published(height, width, smallest, rng) for _ in range(DRAWS)]).T
    assert same(high * wide, theirs[0] * theirs[1])
    assert same(wide / high, theirs[1] / theirs[0])
    assert same(high, theirs[0])


def test_small_areas_are_uniform_and_ratios_log_uniform():
    _, _, high, wide = draw(300, 300, 0.08).T
    share, ratio = high * wide / 300**2, np.log(wide / high) / np.log(RATIO)
    small = share < 0.5  # all of these fit
    assert stats.kstest(share[small], stats.uniform(0.08, 0.42).cdf).pvalue > 1e-3
    assert stats.kstest(ratio[small], stats.uniform(-1, 2).cdf).pvalue > 1e-3
    assert abs(stats.spearmanr(share[small], ratio[small]).statistic) < 0.06


def test_windows_lie_inside_and_anywhere():
    top, left, high, wide = draw(375, 500).T
    assert min(top.min(), left.min()) >= 0
    assert (top + high).max() <= 375 + 1e-9 and (left + wide).max() <= 500 + 1e-9
    free = (high < 370) & (wide < 495)
    for place in ((top / (375 - high))[free], (left / (500 - wide))[free]):
        assert stats.kstest(place, "uniform").pvalue > 1e-3
        assert abs(stats.spearmanr(place, high[free]).statistic) < 0.06


@pytest.mark.parametrize(
    ("height", "width", "window"),
    [
        (1000, 10, (500 - 20 / 3, 0, 40 / 3, 10)),
        (10, 1000, (0, 500 - 20 / 3, 10, 40 / 3)),
    ],
)
def test_where_nothing_fits_the_centre_is_taken(height, width, window):
    # No window of half the area and a ratio up to 4/3 fits into a strip.
    assert random_window(0, 0, 0, 0.5, height, width) == pytest.approx(window)


def test_the_whole_area_of_a_square_is_the_square_itself():
    for place in range(20):
        assert random_window(0, 0, place, 1.0, 7, 7) == pytest.approx((0, 0, 7, 7), abs=1e-6)


def test_a_window_is_that_of_its_seed_epoch_and_place():
    window = random_window(3, 1, 5, 0.08, 40, 60)
    assert window == random_window(3, 1, 5, 0.08, 40, 60)
    others = [random_window(*key, 0.08, 40, 60) for key in ((4, 1, 5), (3, 2, 5), (3, 1, 6), (3, 5, 1), (1, 3, 5))]
    assert len({window, *others}) == 6


def test_every_seed_has_its_own_window():
    seeds = [0, -1, -2, 2**63, 2**63 + 1, 2**64 - 3]
    assert len({random_window(seed, 0, 0, 0.08, 40, 60) for seed in seeds}) == len(seeds)
    assert random_window(-1, 0, 0, 0.08, 40, 60) == random_window(2**64 - 1, 0, 0, 0.08, 40, 60)
