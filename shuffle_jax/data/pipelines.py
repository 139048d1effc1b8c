"""The way of the images to the devices: kept there, kept on the host, or decoded when they are needed."""

from __future__ import annotations

import socket
import zlib
from dataclasses import dataclass
from typing import Literal

import jax
import numpy as np
from jax.sharding import Mesh

from shuffle_jax.data.augment import NO_AUGMENTATION, AugmentConfig
from shuffle_jax.data.batches import Batches, Pipeline, samplers
from shuffle_jax.data.dataset import Dataset, Split
from shuffle_jax.data.device_batches import DeviceBatches
from shuffle_jax.data.free_memory import free_device_memory, free_host_memory
from shuffle_jax.data.memory_batches import MemoryBatches
from shuffle_jax.data.stream_batches import StreamBatches

DEVICE_SHARE = 0.25
"""The most of a device's free memory that images are given: the rest is for the network and what it computes."""

HOST_SHARE = 0.5
"""The most of the host's free memory that images are given."""


@dataclass(frozen=True)
class InputConfig:
    """How images reach the devices. Which images are in a batch does not depend on it.

    Args:
        pipeline: "device" keeps all images on every device, "memory" in the memory of the host, "stream" reads and
            decodes them as they are needed, which needs the extra tfds. "auto" takes the first of these whose images
            fit: in a quarter of the free memory of a device, in half of that of the host. Crops of random size
            are cut out of the whole picture by "stream" and out of the prepared square by the others, so a run
            with them is repeated with the same pipeline.
        workers: processes that decode, of "stream"; 0 for threads of this one. By default one for each core but one,
            at most 16, and on a machine of one or two cores threads.
        buffer: batches that are put on the devices ahead, of "memory" and "stream".

    Raises:
        ValueError: a number is out of its range, or there are workers for a pipeline that has none.
    """

    pipeline: Literal["auto", "device", "memory", "stream"] = "auto"
    workers: int | None = None
    buffer: int = 2

    def __post_init__(self) -> None:
        if self.workers is not None and self.workers < 0:
            raise ValueError(f"workers must be at least 0, or None for a number by the cores, got {self.workers}")
        if self.buffer < 1:
            raise ValueError(f"buffer must be at least 1, got {self.buffer}")
        if self.workers and self.pipeline in ("device", "memory"):
            raise ValueError(f'the pipeline "{self.pipeline}" has no workers: set workers to None, or use "stream"')


def choose(nbytes: int, device_memory: float, host_memory: float) -> Pipeline:
    """The pipeline that "auto" stands for.

    Args:
        nbytes: bytes of all images of both splits.
        device_memory: bytes that are free on each device.
        host_memory: bytes that are free on the host for each process on it, by which images that are still to be
            decoded come into memory.

    >>> choose(nbytes=10, device_memory=40, host_memory=20), choose(nbytes=10, device_memory=39, host_memory=20)
    ('device', 'memory')
    """
    if nbytes > HOST_SHARE * host_memory:
        return "stream"
    return "device" if nbytes <= DEVICE_SHARE * device_memory else "memory"


def make_batches(
    dataset: Dataset,
    batch_size: int,
    mesh: Mesh,
    seed: int = 0,
    input: InputConfig = InputConfig(),
    augment: AugmentConfig = NO_AUGMENTATION,
    test_batch_size: int | None = None,
) -> Batches:
    """The batches of a data set, by the pipeline that is asked for, or that fits.

    Args:
        dataset: the images; they are read into memory where the pipeline keeps them, see ``dataset`` of the result.
        batch_size: images of a training batch, over all devices of the mesh; a multiple of their number.
        mesh: the devices, of all processes.
        seed: chooses the order, and the crops.
        input: how the images reach the devices.
        augment: what happens to the training images. Only a stream does a part of it, the crop of random size, out of
            the whole picture; what is left for the step is ``augment`` of the result.
        test_batch_size: images of a test batch; ``batch_size`` by default.

    Raises:
        ValueError: the images do not fit where they are asked to be, or are in memory and asked to be streamed, or a
            batch size does not fit; before anything is decoded.
    """
    samplers(dataset, batch_size, mesh, seed, test_batch_size)  # refuses sizes before images are read
    in_memory = isinstance(dataset.train, Split) and isinstance(dataset.test, Split)
    device, host = _free_memory(mesh)
    host = float("inf") if in_memory else host
    pipeline = choose(dataset.nbytes, device, host) if input.pipeline == "auto" else input.pipeline
    if pipeline == "stream":
        return StreamBatches(dataset, batch_size, mesh, seed, test_batch_size, augment, input.buffer, input.workers)
    for place, free in (("the host", host), ("a device", device))[: 1 + (pipeline == "device")]:
        if dataset.nbytes > free:
            instead = '"memory" or "stream"' if place == "a device" else '"stream"'
            raise ValueError(
                f"{dataset.name} has {dataset.nbytes / 2**30:.1f} GiB of images and {place} {free / 2**30:.1f} GiB of "
                f"free memory: use the pipeline {instead}, or smaller or fewer images"
            )
    dataset = dataset.in_memory()
    if pipeline == "device":
        return DeviceBatches(dataset, batch_size, mesh, seed, test_batch_size, augment)
    return MemoryBatches(dataset, batch_size, mesh, seed, test_batch_size, augment, input.buffer)


def _free_memory(mesh: Mesh) -> tuple[float, float]:
    """Free bytes of a device, and of the host for each process on it; the least of all, so that all choose alike."""
    device, host = float(free_device_memory(mesh)), float(free_host_memory())
    if jax.process_count() == 1:
        return device, host
    from jax.experimental import multihost_utils

    name = np.array([zlib.crc32(socket.gethostname().encode())], np.uint32)
    beside = int(np.sum(multihost_utils.process_allgather(name) == name))  # processes on this host, with this one
    shares = np.array([device / beside if mesh.local_devices[0].platform == "cpu" else device, host / beside])
    device, host = np.min(multihost_utils.process_allgather(shares.astype(np.float32)), axis=0).tolist()
    return device, host
