"""Batches on the devices: the interface training depends on, and the batches of a set that fits in memory."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from shuffle_jax.data.dataset import Dataset, Examples, Split
from shuffle_jax.sharding import batch_sharding, replicated
from shuffle_jax.typing import Array, Float, Int, UInt8


class Batch(NamedTuple):
    """Images and labels, split over the devices along their first axis.

    ``weight`` is 1 for an example and 0 for the padding that fills up the last batch of a test split. Sums
    over a split are weighted by it.
    """

    images: UInt8[Array, "n h w c"]
    labels: Int[Array, "n"]
    weight: Float[Array, "n"]


class Batches(Protocol):
    """What training and evaluation need of a source of batches."""

    @property
    def batch_size(self) -> int:
        """Images of a training batch, over all devices."""

    @property
    def steps_per_epoch(self) -> int:
        """Training batches of an epoch."""

    def train(self, start: int) -> Iterator[Batch]:
        """Training batches without end; the first is that of global step ``start``."""

    def test(self) -> Iterator[Batch]:
        """Every example of the test split once; the last batch is filled up with examples of weight 0."""


class ResidentBatches:
    """Batches of a set that is kept on the devices, both splits on each, as uint8.

    Epoch e visits the training split in the order ``permutation(fold_in(key(seed), e), n)``, of which batch i
    takes the positions i b to (i + 1) b - 1; the n mod b examples left over at the end of an epoch are
    dropped. A batch is thus a function of the seed and the global step alone, on any number of devices.

    Args:
        dataset: the images.
        batch_size: images of a training batch, over all devices of the mesh; a multiple of their number.
        mesh: the devices.
        seed: chooses the order.
        test_batch_size: images of a test batch; ``batch_size`` by default.

    Raises:
        ValueError: a batch size is not a positive multiple of the number of devices, or the training split is
            smaller than one batch.
    """

    def __init__(
        self, dataset: Dataset, batch_size: int, mesh: Mesh, seed: int = 0, test_batch_size: int | None = None
    ) -> None:
        self.batch_size = batch_size
        self.test_batch_size = batch_size if test_batch_size is None else test_batch_size
        for name, size in (("batch_size", self.batch_size), ("test_batch_size", self.test_batch_size)):
            if size < 1 or size % mesh.size:
                raise ValueError(f"{name} {size} is not a positive multiple of the {mesh.size} devices; make it one")
        examples = len(dataset.train)
        if batch_size > examples:
            raise ValueError(
                f"batch_size {batch_size} exceeds the training split of {examples} images; use at most {examples}"
            )
        self.steps_per_epoch = examples // batch_size
        self._train = _Resident(dataset.train, batch_size, mesh)
        self._test = _Resident(dataset.test, self.test_batch_size, mesh)
        self._order = jax.jit(
            lambda epoch: jax.random.permutation(jax.random.fold_in(jax.random.key(seed), epoch), examples),
            out_shardings=replicated(mesh),
        )

    def train(self, start: int = 0) -> Iterator[Batch]:
        """Training batches without end, from that of global step ``start``."""
        epoch, first = divmod(start, self.steps_per_epoch)
        while True:
            order = self._order(epoch)
            for index in range(first, self.steps_per_epoch):
                yield self._train.take(order, index)
            epoch, first = epoch + 1, 0

    def test(self) -> Iterator[Batch]:
        """The test split once, in its own order; its last example at weight 0 fills up the last batch."""
        order = np.arange(self._test.examples, dtype=np.int32)
        for index in range(-(-self._test.examples // self.test_batch_size)):
            yield self._test.take(order, index)


class _Resident:
    """A split on the devices, and the gather of one batch from it."""

    def __init__(self, split: Examples, batch_size: int, mesh: Mesh) -> None:
        if not isinstance(split, Split):
            raise ValueError("only images in memory can be kept on the devices: use Dataset.in_memory()")
        self.examples = len(split)
        self._arrays = jax.device_put((split.images, split.labels), replicated(mesh))
        self._gather = jax.jit(_gather, static_argnames="size", out_shardings=batch_sharding(mesh))
        self._size = batch_size

    def take(self, order: Int[Array, "n"] | Int[np.ndarray, "n"], index: int) -> Batch:
        return self._gather(*self._arrays, order, index, size=self._size)


def _gather(
    images: UInt8[Array, "n h w c"],
    labels: Int[Array, "n"],
    order: Int[Array, "n"],
    index: Int[Array, ""],
    size: int,
) -> Batch:
    """Batch ``index`` of ``order``; positions past its end repeat the last example with weight 0."""
    positions = index * size + jnp.arange(size)
    rows = jnp.take(order, positions, mode="clip")
    return Batch(images[rows], labels[rows], (positions < order.shape[0]).astype(jnp.float32))
