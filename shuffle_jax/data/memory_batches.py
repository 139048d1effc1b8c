"""Batches of a set that is kept in the memory of the host, put on the devices before the step that needs them."""

from __future__ import annotations

import itertools
from collections.abc import Generator, Iterator

import numpy as np
from jax.sharding import Mesh

from shuffle_jax.data.augment import NO_AUGMENTATION, AugmentConfig
from shuffle_jax.data.batches import Batch, Batches, on_devices, prefetch, rows_here
from shuffle_jax.data.dataset import Dataset, Split


class MemoryBatches(Batches):
    """Batches of a set in the memory of the host, gathered and put on the devices by a thread of its own.

    Over several processes each keeps the whole set, and gathers of every batch the rows of its own devices. For the
    other arguments see :class:`Batches`.

    Args:
        buffer: batches that are put on the devices ahead, at least 1.

    Raises:
        ValueError: as :class:`Batches`, or the images are not in memory.
    """

    pipeline = "memory"

    def __init__(
        self,
        dataset: Dataset,
        batch_size: int,
        mesh: Mesh,
        seed: int = 0,
        test_batch_size: int | None = None,
        augment: AugmentConfig = NO_AUGMENTATION,
        buffer: int = 2,
    ) -> None:
        super().__init__(dataset, batch_size, mesh, seed, test_batch_size, augment)
        if not (isinstance(dataset.train, Split) and isinstance(dataset.test, Split)):
            raise ValueError("only images in memory can be gathered from it: use Dataset.in_memory()")
        self._train, self._test, self._buffer = dataset.train, dataset.test, buffer

    def train(self, start: int = 0) -> Iterator[Batch]:
        """Training batches without end; the first is that of global step ``start``."""
        return prefetch(self._train_batches(start), self._buffer)

    def test(self) -> Iterator[Batch]:
        """The test split once, in its own order; its last example at weight 0 fills up the last batch."""
        return prefetch(self._test_batches(), self._buffer)

    def _train_batches(self, start: int) -> Generator[Batch]:
        rows = rows_here(self.mesh, self.batch_size)
        weight = np.ones(len(rows), np.float32)
        for step in itertools.count(start):
            _, _, positions = self.train_sampler.train(step, rows)
            yield on_devices((*self._train.take(positions), weight), self.mesh, self.batch_size)

    def _test_batches(self) -> Generator[Batch]:
        rows = rows_here(self.mesh, self.test_batch_size)
        for index in range(self.test_sampler.batches):
            positions, weight = self.test_sampler.test(index, rows)
            yield on_devices((*self._test.take(positions), weight), self.mesh, self.test_batch_size)
