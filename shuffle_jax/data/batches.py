"""Batches on the devices: the interface training depends on, and the batches of a set that is kept on the devices."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Literal, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from shuffle_jax.data.dataset import Dataset, Examples, Split
from shuffle_jax.data.order import Schedule, epoch_order
from shuffle_jax.sharding import batch_sharding, replicate
from shuffle_jax.typing import Array, Float, Int, UInt8

Pipeline = Literal["device", "memory", "stream"]
"""How images reach the devices, see :class:`shuffle_jax.data.pipelines.InputConfig`."""


class Batch(NamedTuple):
    """Images and labels, split over the devices along their first axis.

    ``weight`` is 1 for an example and 0 for the padding that fills up the last batch of a test split. Sums
    over a split are weighted by it.
    """

    images: UInt8[Array, "n h w c"]
    labels: Int[Array, "n"]
    weight: Float[Array, "n"]


LocalBatch = tuple[UInt8[np.ndarray, "m h w c"], Int[np.ndarray, "m"], Float[np.ndarray, "m"]]
"""Of a batch the rows of one process, in the memory of the host."""


class Batches(Protocol):
    """What training and evaluation need of a source of batches."""

    @property
    def batch_size(self) -> int:
        """Images of a training batch, over all devices."""

    @property
    def steps_per_epoch(self) -> int:
        """Training batches of an epoch."""

    @property
    def dataset(self) -> Dataset:
        """The images, in memory where the pipeline keeps them there."""

    @property
    def pipeline(self) -> Pipeline:
        """How the images reach the devices."""

    @property
    def crops(self) -> bool:
        """Whether training images have been cropped at random already, so that the step does not crop again."""

    def train(self, start: int) -> Iterator[Batch]:
        """Training batches without end; the first is that of global step ``start``."""

    def test(self) -> Iterator[Batch]:
        """Every example of the test split once; the last batch is filled up with examples of weight 0."""


class ResidentBatches:
    """Batches of a set that is kept on the devices, both splits on each, as uint8.

    The images of a batch are those of :class:`Schedule`. Over several processes each keeps the whole set on its own
    devices.

    Args:
        dataset: the images, in memory.
        batch_size: images of a training batch, over all devices of the mesh; a multiple of their number.
        mesh: the devices, of all processes.
        seed: chooses the order.
        test_batch_size: images of a test batch; ``batch_size`` by default.

    Raises:
        ValueError: a batch size is not a positive multiple of the number of devices, or the training split is
            smaller than one batch, or the images are not in memory.
    """

    pipeline: Pipeline = "device"
    crops = False

    def __init__(
        self, dataset: Dataset, batch_size: int, mesh: Mesh, seed: int = 0, test_batch_size: int | None = None
    ) -> None:
        self.dataset = dataset
        train, test = schedules(dataset, batch_size, mesh, seed, test_batch_size)
        self.batch_size, self.test_batch_size = train.batch_size, test.batch_size
        self.steps_per_epoch = train.steps_per_epoch
        self._mesh, self._test_batches = mesh, test.batches
        self._train = _Resident(dataset.train, train.batch_size, mesh)
        self._test = _Resident(dataset.test, test.batch_size, mesh)
        self._order = partial(epoch_order, seed, examples=train.examples)

    def train(self, start: int = 0) -> Iterator[Batch]:
        """Training batches without end, from that of global step ``start``."""
        epoch, first = divmod(start, self.steps_per_epoch)
        while True:
            order = replicate(self._order(epoch), self._mesh)
            for index in range(first, self.steps_per_epoch):
                yield self._train.take(order, index)
            epoch, first = epoch + 1, 0

    def test(self) -> Iterator[Batch]:
        """The test split once, in its own order; its last example at weight 0 fills up the last batch."""
        order = replicate(np.arange(self._test.examples, dtype=np.int32), self._mesh)
        for index in range(self._test_batches):
            yield self._test.take(order, index)


class _Resident:
    """A split on the devices, and the gather of one batch from it."""

    def __init__(self, split: Examples, batch_size: int, mesh: Mesh) -> None:
        if not isinstance(split, Split):
            raise ValueError("only images in memory can be kept on the devices: use Dataset.in_memory()")
        self.examples = len(split)
        self._arrays = replicate((split.images, split.labels), mesh)
        self._gather = jax.jit(_gather, static_argnames="size", out_shardings=batch_sharding(mesh))
        self._size = batch_size

    def take(self, order: Int[Array, "n"], index: int) -> Batch:
        return self._gather(*self._arrays, order, index, size=self._size)


def schedules(
    dataset: Dataset, batch_size: int, mesh: Mesh, seed: int = 0, test_batch_size: int | None = None
) -> tuple[Schedule, Schedule]:
    """Which images are in the batches of the training split, and of the test split.

    Args:
        dataset: the images.
        batch_size: images of a training batch, over all devices of the mesh; a multiple of their number.
        mesh: the devices.
        seed: chooses the order of the training images.
        test_batch_size: images of a test batch; ``batch_size`` by default.

    Raises:
        ValueError: a batch size is not a positive multiple of the number of devices, or the training split is
            smaller than one batch.
    """
    test_batch_size = batch_size if test_batch_size is None else test_batch_size
    for name, size in (("batch_size", batch_size), ("test_batch_size", test_batch_size)):
        if size < 1 or size % mesh.size:
            raise ValueError(f"{name} {size} is not a positive multiple of the {mesh.size} devices; make it one")
    examples = len(dataset.train)
    if batch_size > examples:
        raise ValueError(
            f"batch_size {batch_size} exceeds the training split of {examples} images; use at most {examples}"
        )
    return Schedule(examples, batch_size, seed), Schedule(len(dataset.test), test_batch_size)


def rows_here(mesh: Mesh, batch_size: int) -> Int[np.ndarray, "m"]:
    """The rows of a batch that lie on the devices of this process, in increasing order.

    Args:
        mesh: the devices, of all processes.
        batch_size: rows over all of them, a multiple of their number.
    """
    spans = batch_sharding(mesh).addressable_devices_indices_map((batch_size,)).values()
    return np.unique(np.concatenate([np.arange(batch_size)[span] for span in spans if span is not None]))


def on_devices(local: LocalBatch, mesh: Mesh, batch_size: int) -> Batch:
    """A batch on the devices, from the rows of it that :func:`rows_here` names for this process.

    Args:
        local: images, labels and weights of these rows.
        mesh: the devices, of all processes.
        batch_size: rows over all of them.
    """
    sharding = batch_sharding(mesh)

    def put(array: np.ndarray) -> Array:
        return jax.make_array_from_process_local_data(sharding, array, (batch_size, *array.shape[1:]))

    images, labels, weight = local
    return Batch(put(images), put(labels), put(weight))


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
