from __future__ import annotations

import itertools
import re

import jax
import numpy as np
import pytest

from shuffle_jax.data import Batch, Batches, Dataset, DeviceBatches, Split, device_batches
from shuffle_jax.data.device_batches import _gather
from shuffle_jax.sharding import batch_sharding, data_mesh, replicated

TRAIN, TEST = 22, 10


def numbered(n: int, first: int) -> Split:
    """A split whose images say their own number, and whose labels are it modulo 7."""
    numbers = np.arange(first, first + n)
    images = np.broadcast_to(numbers.astype(np.uint8)[:, None, None, None], (n, 2, 3, 1)).copy()
    return Split(images, (numbers % 7).astype(np.int32))


DATA = Dataset("numbered", tuple("abcdefg"), numbered(TRAIN, 0), numbered(TEST, 100))


@pytest.fixture(scope="module")
def batches() -> DeviceBatches:
    return DeviceBatches(DATA, batch_size=4, mesh=data_mesh(jax.devices()[:2]), seed=5)


def take(source: Batches, start: int, count: int) -> list[Batch]:
    return [jax.device_get(batch) for batch in itertools.islice(source.train(start), count)]


def numbers(batch: Batch) -> np.ndarray:
    assert np.all(batch.images == batch.images[:, :1, :1])
    return batch.images[:, 0, 0, 0].astype(np.int64)


def assert_equal(left: list[Batch], right: list[Batch]) -> None:
    for one, two in zip(left, right, strict=True):
        jax.tree.map(np.testing.assert_array_equal, one, two)


def test_a_batch_is_8_bit_and_split_over_the_devices(batches):
    batch = next(batches.train(0))
    assert isinstance(batch, Batch)
    shapes = [(array.shape, array.dtype) for array in batch]
    assert shapes == [((4, 2, 3, 1), np.uint8), ((4,), np.int32), ((4,), np.float32)]
    for array in batch:
        assert array.sharding == batch_sharding(data_mesh(jax.devices()[:2]))
        assert [shard.data.shape[0] for shard in array.addressable_shards] == [2, 2]


def test_every_epoch_follows_its_own_permutation(batches):
    assert (batches.batch_size, batches.steps_per_epoch) == (4, 5)
    epochs = []
    for epoch in range(3):
        steps = take(batches, 5 * epoch, 5)
        order = np.concatenate([numbers(batch) for batch in steps])
        key = jax.random.fold_in(jax.random.key(5), epoch)
        np.testing.assert_array_equal(order, jax.random.permutation(key, TRAIN)[:20])
        np.testing.assert_array_equal(np.concatenate([batch.labels for batch in steps]), order % 7)
        assert len(set(order.tolist())) == 20
        assert all(np.all(batch.weight == 1) for batch in steps)
        epochs.append(order.tolist())
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]


@pytest.mark.parametrize("start", [1, 4, 5, 7, 13])
def test_a_resumed_run_sees_the_batches_of_the_uninterrupted_one(batches, start):
    assert_equal(take(batches, 0, 16)[start:], take(batches, start, 16 - start))


def test_the_order_is_computed_once_an_epoch(batches, monkeypatch):
    drawn = []
    order = device_batches.epoch_order
    monkeypatch.setattr(
        device_batches, "epoch_order", lambda seed, epoch, examples: drawn.append(epoch) or order(seed, epoch, examples)
    )
    take(batches, 3, 9)
    assert drawn == [0, 1, 2]


def test_two_devices_see_the_batches_of_one(batches):
    alone = DeviceBatches(DATA, batch_size=4, mesh=data_mesh(jax.devices()[:1]), seed=5)
    assert_equal(take(alone, 2, 6), take(batches, 2, 6))
    assert_equal(jax.device_get(list(alone.test())), jax.device_get(list(batches.test())))


def test_the_seed_changes_the_order(batches):
    other = DeviceBatches(DATA, batch_size=4, mesh=data_mesh(jax.devices()[:2]), seed=6)
    assert numbers(take(other, 0, 1)[0]).tolist() != numbers(take(batches, 0, 1)[0]).tolist()


@pytest.mark.parametrize("size", [None, 2, 10, 12])
def test_the_test_split_is_covered_once_by_weight(size):
    mesh = data_mesh(jax.devices()[:2])
    source = DeviceBatches(DATA, batch_size=4, mesh=mesh, test_batch_size=size)
    found = jax.device_get(list(source.test()))
    size = size or 4
    assert [len(batch.labels) for batch in found] == [size] * -(-TEST // size)
    seen = np.concatenate([numbers(batch) for batch in found])
    weight = np.concatenate([batch.weight for batch in found])
    assert set(weight.tolist()) <= {0.0, 1.0}
    np.testing.assert_array_equal(seen[weight == 1], np.arange(100, 100 + TEST))
    np.testing.assert_array_equal(np.concatenate([batch.labels for batch in found]), seen % 7)


def test_the_whole_split_can_be_one_batch():
    source = DeviceBatches(DATA, batch_size=TRAIN, mesh=data_mesh(jax.devices()[:2]))
    assert source.steps_per_epoch == 1
    first, second = take(source, 0, 2)
    assert sorted(numbers(first)) == sorted(numbers(second)) == list(range(TRAIN))


def test_batches_of_one_image():
    source = DeviceBatches(DATA, batch_size=1, mesh=data_mesh(jax.devices()[:1]))
    epoch = np.concatenate([numbers(batch) for batch in take(source, 0, TRAIN)])
    assert sorted(epoch) == list(range(TRAIN))


def test_gathering_needs_no_communication():
    mesh = data_mesh(jax.devices()[:2])
    arrays = jax.device_put((DATA.train.images, DATA.train.labels), replicated(mesh))
    order = jax.device_put(np.arange(TRAIN, dtype=np.int32), replicated(mesh))
    gather = jax.jit(_gather, static_argnames="size", out_shardings=batch_sharding(mesh))
    text = gather.lower(*arrays, order, 0, size=4).compile().as_text()
    assert "num_partitions=2" in text
    assert re.findall(r"all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter", text) == []
