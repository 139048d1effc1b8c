"""Batches of a set that is kept on the devices."""

from __future__ import annotations

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from shuffle_jax.data.augment import NO_AUGMENTATION, AugmentConfig
from shuffle_jax.data.batches import Batch, Batches
from shuffle_jax.data.dataset import Dataset, Examples, Split
from shuffle_jax.data.sampler import epoch_order
from shuffle_jax.sharding import batch_sharding, replicate
from shuffle_jax.typing import Array, Int, UInt8


class DeviceBatches(Batches):
    """Batches of a set that is kept on the devices, both splits on each, as uint8.

    Over several processes each keeps the whole set on its own devices. For the arguments see :class:`Batches`.

    Raises:
        ValueError: as :class:`Batches`, or the images are not in memory.
    """

    pipeline = "device"

    def __init__(
        self,
        dataset: Dataset,
        batch_size: int,
        mesh: Mesh,
        seed: int = 0,
        test_batch_size: int | None = None,
        augment: AugmentConfig = NO_AUGMENTATION,
    ) -> None:
        super().__init__(dataset, batch_size, mesh, seed, test_batch_size, augment)
        self._train = _SplitOnDevices(dataset.train, self.batch_size, mesh)
        self._test = _SplitOnDevices(dataset.test, self.test_batch_size, mesh)

    def train(self, start: int = 0) -> Iterator[Batch]:
        """Training batches without end; the first is that of global step ``start``."""
        epoch, first = divmod(start, self.steps_per_epoch)
        while True:
            order = replicate(epoch_order(self.train_sampler.seed, epoch, self.train_sampler.examples), self.mesh)
            for index in range(first, self.steps_per_epoch):
                yield self._train.take(order, index)
            epoch, first = epoch + 1, 0

    def test(self) -> Iterator[Batch]:
        """The test split once, in its own order; its last example at weight 0 fills up the last batch."""
        order = replicate(np.arange(self.test_sampler.examples, dtype=np.int32), self.mesh)
        for index in range(self.test_sampler.batches):
            yield self._test.take(order, index)


class _SplitOnDevices:
    """A split on the devices, and the gather of one batch from it."""

    def __init__(self, split: Examples, batch_size: int, mesh: Mesh) -> None:
        if not isinstance(split, Split):
            raise ValueError("only images in memory can be kept on the devices: use Dataset.in_memory()")
        self._arrays = replicate((split.images, split.labels), mesh)
        self._gather = jax.jit(_gather, static_argnames="size", out_shardings=batch_sharding(mesh))
        self._size = batch_size

    def take(self, order: Int[Array, "n"], index: int) -> Batch:
        return self._gather(*self._arrays, order, index, size=self._size)


def _gather(
    images: UInt8[Array, "n h w c"],
    labels: Int[Array, "n"],
    order: Int[Array, "n"],
    index: Int[Array, ""],
    size: int,
) -> Batch:
    """Batch ``index`` of ``order``; positions past its end repeat the last example with weight 0."""
    positions = index * size + jnp.arange(size, dtype=jnp.int32)
    rows = jnp.take(order, positions, mode="clip")
    return Batch(images[rows], labels[rows], (positions < order.shape[0]).astype(jnp.float32))
