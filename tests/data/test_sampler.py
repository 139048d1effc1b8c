"""The order of the images: NumPy's numbers are JAX's, and a batch is a function of the seed and the step alone."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shuffle_jax.data.sampler import Sampler, epoch_order
from shuffle_jax.streams import ORDER, stream_seed

SIZES = [
    1,
    2,
    3,
    100,
    1437,
    1625,
    1626,
    50_000,
    70_000,
]  # another round of sorting begins after 1, 1625 and 2.6 million
SEEDS = [0, 1, 7, 2**31 - 1, 2**31, 2**31 + 5, 2**32 - 1, -1]


def by_jax(seed: int, epoch: int, examples: int) -> np.ndarray:
    return np.asarray(jax.random.permutation(jax.random.fold_in(jax.random.key(seed), epoch), examples))


@pytest.mark.parametrize("examples", SIZES)
def test_an_order_is_that_of_jax(examples):
    for seed, epoch in [(0, 0), (7, 3), (2**32 - 1, 1)]:
        order = epoch_order(seed, epoch, examples)
        assert order.dtype == np.int32
        np.testing.assert_array_equal(order, by_jax(seed, epoch, examples))


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("epoch", [0, 299, 2**31, 2**32 - 1])
def test_so_it_is_for_every_seed_and_epoch(seed, epoch):
    np.testing.assert_array_equal(epoch_order(seed, epoch, 100), by_jax(seed, epoch, 100))


@given(seed=st.integers(0, 2**32 - 1), epoch=st.integers(0, 2**32 - 1))
def test_so_it_is_for_those_that_nobody_chose(seed, epoch):
    np.testing.assert_array_equal(epoch_order(seed, epoch, 3), by_jax(seed, epoch, 3))


@pytest.mark.parametrize("seed", [0, 7, 2**32 - 1, -1])
def test_the_stream_of_the_order_is_that_of_jax(seed):
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), ORDER), 3)
    found = epoch_order(stream_seed(seed, ORDER), 3, 100)
    np.testing.assert_array_equal(found, jax.random.permutation(key, 100))


def test_an_order_that_is_kept_cannot_be_changed():
    order = epoch_order(0, 0, 10)
    assert epoch_order(0, 0, 10) is order
    with pytest.raises(ValueError, match="read-only"):
        order[0] = 1


def test_each_epoch_visits_different_images_once_in_an_order_of_its_own():
    sampler = Sampler(examples=22, batch_size=4, seed=5)
    assert (sampler.steps_per_epoch, sampler.batches) == (5, 6)
    rows = np.arange(4)
    visits = [np.concatenate([sampler.train(5 * epoch + i, rows)[2] for i in range(5)]) for epoch in range(3)]
    for epoch, found in enumerate(visits):
        np.testing.assert_array_equal(found, by_jax(5, epoch, 22)[:20])
    assert len({tuple(found) for found in visits}) == 3


@pytest.mark.parametrize("step", [0, 4, 5, 13])
def test_processes_that_share_a_batch_hold_the_batch_of_one(step):
    sampler = Sampler(examples=22, batch_size=4, seed=5)
    epoch, places, positions = sampler.train(step, np.arange(4))
    parts = [sampler.train(step, rows) for rows in (np.array([0, 1]), np.array([2, 3]))]
    assert {part[0] for part in parts} == {epoch} == {step // 5}
    np.testing.assert_array_equal(np.concatenate([part[1] for part in parts]), places)
    np.testing.assert_array_equal(np.concatenate([part[2] for part in parts]), positions)
    np.testing.assert_array_equal(places, step % 5 * 4 + np.arange(4))


def test_the_test_split_is_covered_once_and_filled_up_by_its_last_image():
    sampler = Sampler(examples=10, batch_size=4)
    found = [sampler.test(index, np.arange(4)) for index in range(sampler.batches)]
    positions, weight = (np.concatenate(parts) for parts in zip(*found, strict=True))
    np.testing.assert_array_equal(positions, [*range(10), 9, 9])
    np.testing.assert_array_equal(weight, [1] * 10 + [0] * 2)
    assert weight.dtype == np.float32
