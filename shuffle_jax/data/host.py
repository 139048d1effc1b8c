"""Batches of a set that is kept in the memory of the host, put on the devices ahead of the step that needs them."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import numpy as np
from jax.sharding import Mesh

from shuffle_jax.data.batches import Batch, Pipeline, on_devices, rows_here, schedules
from shuffle_jax.data.dataset import Dataset, Split

_Item = TypeVar("_Item")


class HostBatches:
    """Batches of a set in the memory of the host, gathered and put on the devices by a thread of its own.

    The images of a batch are those of :class:`Schedule`. Over several processes each keeps the whole set, and gathers
    of every batch the rows of its own devices.

    Args:
        dataset: the images, in memory.
        batch_size: images of a training batch, over all devices of the mesh; a multiple of their number.
        mesh: the devices, of all processes.
        seed: chooses the order.
        test_batch_size: images of a test batch; ``batch_size`` by default.
        buffer: batches that are put on the devices ahead, at least 1.

    Raises:
        ValueError: a batch size is not a positive multiple of the number of devices, or the training split is
            smaller than one batch, or the images are not in memory.
    """

    pipeline: Pipeline = "memory"
    crops = False

    def __init__(
        self,
        dataset: Dataset,
        batch_size: int,
        mesh: Mesh,
        seed: int = 0,
        test_batch_size: int | None = None,
        buffer: int = 2,
    ) -> None:
        self._schedule, self._test_schedule = schedules(dataset, batch_size, mesh, seed, test_batch_size)
        if not (isinstance(dataset.train, Split) and isinstance(dataset.test, Split)):
            raise ValueError("only images in memory can be gathered from it: use Dataset.in_memory()")
        self.batch_size, self.test_batch_size = batch_size, self._test_schedule.batch_size
        self.steps_per_epoch = self._schedule.steps_per_epoch
        self.dataset = dataset
        self._train, self._test, self._mesh, self._buffer = dataset.train, dataset.test, mesh, buffer

    def train(self, start: int = 0) -> Iterator[Batch]:
        """Training batches without end, from that of global step ``start``."""
        return ahead(self._train_batches(start), self._buffer)

    def test(self) -> Iterator[Batch]:
        """The test split once, in its own order; its last example at weight 0 fills up the last batch."""
        return ahead(self._test_batches(), self._buffer)

    def _train_batches(self, start: int) -> Generator[Batch]:
        rows = rows_here(self._mesh, self.batch_size)
        weight = np.ones(len(rows), np.float32)
        for step in itertools.count(start):
            _, _, positions = self._schedule.train(step, rows)
            yield on_devices((*self._train.take(positions), weight), self._mesh, self.batch_size)

    def _test_batches(self) -> Generator[Batch]:
        rows = rows_here(self._mesh, self.test_batch_size)
        for index in range(self._test_schedule.batches):
            positions, weight = self._test_schedule.test(index, rows)
            yield on_devices((*self._test.take(positions), weight), self._mesh, self.test_batch_size)


def ahead(items: Generator[_Item], count: int) -> Iterator[_Item]:
    """The same items in the same order, made by a thread up to ``count`` ahead.

    The thread starts with the first item that is asked for. It ends, and ``items`` is closed, when the items do, when
    making one raises, and when what this returns is closed or dropped.

    Args:
        items: what to run ahead of.
        count: at least 1.

    >>> list(ahead((i * i for i in range(5)), count=2))
    [0, 1, 4, 9, 16]
    """
    end = object()
    executor = ThreadPoolExecutor(1, thread_name_prefix="batches-ahead")
    try:
        waiting: deque[Future] = deque(executor.submit(next, items, end) for _ in range(count))
        while (item := waiting.popleft().result()) is not end:
            waiting.append(executor.submit(next, items, end))
            yield item
    finally:
        executor.shutdown(cancel_futures=True)
        items.close()
