from __future__ import annotations

import itertools
import tracemalloc

import numpy as np
import pytest

from shuffle_jax.analysis import dynamic_numbers
from shuffle_jax.analysis.dynamic_numbers import (
    between_classes,
    frequency,
    from_the_rest,
    pair_distances,
    within_and_between,
)


def random_permutations(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.permuted(np.broadcast_to(np.arange(shape[-1], dtype=np.int16), shape), axis=-1)


def channels(outer: np.ndarray, inner: np.ndarray) -> np.ndarray:
    """Where each channel of one image comes from, as (group, block, channel in it)."""
    groups, p, q = *outer.shape, inner.shape[1]
    return np.array([(g, outer[g, i], inner[g, j]) for g, i, j in itertools.product(range(groups), range(p), range(q))])


@pytest.mark.parametrize(("n", "k", "p", "q"), [(4, 1, 2, 3), (5, 3, 3, 4), (3, 1, 1, 7), (3, 2, 5, 1), (1, 1, 1, 1)])
@pytest.mark.parametrize("columns", [1, 7, 2048])
def test_distances_count_the_channels_that_come_from_elsewhere(
    monkeypatch: pytest.MonkeyPatch, n: int, k: int, p: int, q: int, columns: int
) -> None:
    monkeypatch.setattr(dynamic_numbers, "ONE_HOT", columns)
    rng = np.random.default_rng(n + k + p + q)
    outer, inner = rng.integers(p, size=(n, k, p)), rng.integers(q, size=(n, k, q))  # Not all are permutations.
    whole = [channels(*pair) for pair in zip(outer, inner, strict=True)]
    expected = [[np.mean((a != b).any(axis=1)) for b in whole] for a in whole]
    np.testing.assert_allclose(pair_distances(outer.astype(np.int16), inner), expected, atol=1e-6)


def test_distances_are_a_metric_and_the_same_in_any_order_of_the_inputs() -> None:
    rng = np.random.default_rng(0)
    outer, inner = random_permutations(rng, 12, 2, 3), random_permutations(rng, 12, 2, 4)
    d = pair_distances(outer, inner)
    assert d.dtype == np.float32 and (np.diag(d) == 0).all() and (d == d.T).all() and d.max() > 0
    assert (d[:, :, None] <= d[:, None] + d.T[None] + 1e-6).all()
    renamed = rng.permutation(3).astype(np.int16)[outer], rng.permutation(4).astype(np.int16)[inner]
    np.testing.assert_array_equal(pair_distances(*renamed), d)


def test_derangements_have_the_distance_one_and_each_factor_can_bring_it_about() -> None:
    shifts = (np.arange(5) + np.arange(5)[:, None]) % 5
    apart = 1 - np.eye(5, dtype=np.float32)
    same = np.zeros((5, 1, 3), np.int16) + np.arange(3, dtype=np.int16)
    np.testing.assert_array_equal(pair_distances(shifts[:, None], same), apart)
    np.testing.assert_array_equal(pair_distances(same, shifts[:, None]), apart)


def test_distances_of_many_images_are_exact_and_take_little_memory() -> None:
    inner = random_permutations(np.random.default_rng(0), 512, 1, 122)
    outer = np.zeros((512, 1, 1), np.int16)
    pair_distances(outer[:2], inner[:2])
    tracemalloc.start()
    d = pair_distances(outer, inner)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 16e6  # All one-hot rows at once would take 30e6.
    np.testing.assert_array_equal(np.round(122 * d), (inner != inner[:, 0][None]).sum(axis=2))
    assert (np.diag(d) == 0).all()


@pytest.mark.parametrize(
    ("outer", "inner", "message"),
    [
        ((3, 1, 2), (4, 1, 2), "make no pairs"),
        ((3, 1, 2), (3, 2, 2), "make no pairs"),
        ((3, 2), (3, 2), "make no pairs"),
        ((0, 1, 2), (0, 1, 2), "make no pairs"),
    ],
)
def test_factors_that_do_not_belong_together_are_refused(
    outer: tuple[int, ...], inner: tuple[int, ...], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        pair_distances(np.zeros(outer, int), np.zeros(inner, int))


@pytest.mark.parametrize("index", [-1, 2])
def test_indices_out_of_range_are_refused(index: int) -> None:
    with pytest.raises(ValueError, match="do not fit 2 places: 0 to 1 do"):
        pair_distances(np.full((1, 1, 2), index), np.zeros((1, 1, 1), int))


def test_distances_between_classes_are_means_over_pairs() -> None:
    rng = np.random.default_rng(0)
    labels, classes = np.array([0, 2, 2, 0, 4, 2]), 5
    d = rng.uniform(size=(6, 6))
    d += d.T  # The diagonal is not 0 and must not count.
    expected = np.full((classes, classes), np.nan)
    for a, b in itertools.product(range(classes), repeat=2):
        pairs = [d[i, j] for i, j in itertools.permutations(range(6), 2) if (labels[i], labels[j]) == (a, b)]
        if pairs:
            expected[a, b] = sum(pairs) / len(pairs)
    assert np.isnan(expected).sum() == 5 * 5 - 3 * 3 + 1  # Classes 1 and 3 are empty, class 4 has one image.
    means = between_classes(d, labels, classes)
    np.testing.assert_allclose(means, expected)
    within, between = within_and_between(means)
    assert within == pytest.approx((expected[0, 0] + expected[2, 2]) / 2)
    assert between == pytest.approx((expected[0, 2] + expected[0, 4] + expected[2, 4]) / 3)


def test_means_without_a_pair_are_nan() -> None:
    assert np.isnan(within_and_between(between_classes(np.zeros((1, 1)), np.array([0]), 3))).all()
    assert np.isnan(from_the_rest(np.zeros((3, 3)), np.array([True, True, False])))


def test_from_the_rest_is_half_the_squared_distance_of_the_mean_matrices_without_its_noise() -> None:
    rng = np.random.default_rng(0)
    chosen = np.arange(9) < 4
    outer, inner = random_permutations(rng, 9, 2, 3), random_permutations(rng, 9, 2, 2)
    matrices = np.array(
        [
            [np.kron(np.eye(3)[o], np.eye(2)[i]) for o, i in zip(*pair, strict=True)]
            for pair in zip(outer, inner, strict=True)
        ]
    ).reshape(9, -1) / np.sqrt(2 * 3 * 2)
    parts = matrices[chosen], matrices[~chosen]
    noise = sum(part.var(axis=0, ddof=1).sum() / len(part) for part in parts)
    expected = (np.sum((parts[0].mean(axis=0) - parts[1].mean(axis=0)) ** 2) - noise) / 2
    assert from_the_rest(pair_distances(outer, inner), chosen) == pytest.approx(expected, abs=1e-6)


def test_frequencies_are_means_of_matrices() -> None:
    vectors = random_permutations(np.random.default_rng(0), 7, 5)
    np.testing.assert_allclose(frequency(vectors), np.mean([np.eye(5)[p] for p in vectors], axis=0))
