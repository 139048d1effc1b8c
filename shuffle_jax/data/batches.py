"""Batches on the devices: what training and evaluation need of a pipeline, and what all pipelines have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import ClassVar, Literal, NamedTuple, TypeVar

import jax
import numpy as np
from jax.sharding import Mesh

from shuffle_jax.data.augment import NO_AUGMENTATION, AugmentConfig
from shuffle_jax.data.dataset import Dataset
from shuffle_jax.data.sampler import Sampler
from shuffle_jax.sharding import batch_sharding
from shuffle_jax.typing import Array, Float, Int, UInt8

Pipeline = Literal["device", "memory", "stream"]
"""How images reach the devices, see :class:`shuffle_jax.data.pipelines.InputConfig`."""

_Item = TypeVar("_Item")


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


class Batches(ABC):
    """The batches of a data set, on the devices of a mesh; which images are in a batch says :class:`Sampler`.

    Args:
        dataset: the images.
        batch_size: images of a training batch, over all devices of the mesh; a multiple of their number.
        mesh: the devices, of all processes.
        seed: chooses the order of the training images.
        test_batch_size: images of a test batch; ``batch_size`` by default.
        augment: what happens to the training images.

    Attributes:
        pipeline: how the images reach the devices.
        steps_per_epoch: training batches of an epoch.
        augment: what is left to do to the images of a training batch.

    Raises:
        ValueError: a batch size is not a positive multiple of the number of devices, or the training split is
            smaller than one batch.
    """

    pipeline: ClassVar[Pipeline]

    def __init__(
        self,
        dataset: Dataset,
        batch_size: int,
        mesh: Mesh,
        seed: int = 0,
        test_batch_size: int | None = None,
        augment: AugmentConfig = NO_AUGMENTATION,
    ) -> None:
        self.dataset, self.mesh, self.augment = dataset, mesh, augment
        self.train_sampler, self.test_sampler = samplers(dataset, batch_size, mesh, seed, test_batch_size)
        self.batch_size, self.test_batch_size = self.train_sampler.batch_size, self.test_sampler.batch_size
        self.steps_per_epoch = self.train_sampler.steps_per_epoch

    @abstractmethod
    def train(self, start: int = 0) -> Iterator[Batch]:
        """Training batches without end; the first is that of global step ``start``."""

    @abstractmethod
    def test(self) -> Iterator[Batch]:
        """The test split once, in its own order; its last example at weight 0 fills up the last batch."""


def samplers(
    dataset: Dataset, batch_size: int, mesh: Mesh, seed: int = 0, test_batch_size: int | None = None
) -> tuple[Sampler, Sampler]:
    """Which images are in the batches of the training split, and of the test split; see :class:`Batches`."""
    test_batch_size = batch_size if test_batch_size is None else test_batch_size
    for name, size in (("batch_size", batch_size), ("test_batch_size", test_batch_size)):
        if size < 1 or size % mesh.size:
            raise ValueError(f"{name} must be a positive multiple of the {mesh.size} devices, got {size}")
    examples = len(dataset.train)
    if batch_size > examples:
        raise ValueError(f"batch_size must be at most {examples}, the images of the training split, got {batch_size}")
    return Sampler(examples, batch_size, seed), Sampler(len(dataset.test), test_batch_size)


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


def prefetch(items: Generator[_Item], count: int) -> Iterator[_Item]:
    """The same items in the same order, made by a thread up to ``count`` ahead.

    The thread starts with the first item that is asked for. It ends, and ``items`` is closed, when the items do, when
    making one raises, and when what this returns is closed or dropped.

    Args:
        items: what to run ahead of.
        count: at least 1.

    >>> list(prefetch((i * i for i in range(5)), count=2))
    [0, 1, 4, 9, 16]
    """
    end = object()
    executor = ThreadPoolExecutor(1, thread_name_prefix="prefetch")
    try:
        waiting: deque[Future] = deque(executor.submit(next, items, end) for _ in range(count))
        while (item := waiting.popleft().result()) is not end:
            waiting.append(executor.submit(next, items, end))
            yield item
    finally:
        executor.shutdown(cancel_futures=True)
        items.close()
