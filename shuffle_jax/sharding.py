"""The device mesh, the two ways arrays lie on it (split along the batch, or on every device), and the host's cores."""

from __future__ import annotations

import os
from collections.abc import Sequence

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from shuffle_jax.typing import PyTree

BATCH_AXIS = "batch"


def data_mesh(devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A one-dimensional mesh for data parallelism.

    Args:
        devices: the devices to use; all of ``jax.devices()`` by default.

    Returns:
        A mesh with the single axis ``"batch"`` in Auto mode: the partitioner places the collectives.
    """
    devices = jax.devices() if devices is None else list(devices)
    return jax.make_mesh((len(devices),), (BATCH_AXIS,), axis_types=(AxisType.Auto,), devices=devices)


def first_devices(number: int | None = None) -> list[jax.Device]:
    """The first devices of every process.

    Args:
        number: how many of each; all by default.
    """
    chosen: list[jax.Device] = []
    for process in range(jax.process_count()):
        chosen += [device for device in jax.devices() if device.process_index == process][:number]
    return chosen


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Leading axis split over all devices of ``mesh``."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXIS))


def replicated(mesh: Mesh) -> NamedSharding:
    """The whole array on every device of ``mesh``."""
    return NamedSharding(mesh, PartitionSpec())


def replicate(tree: PyTree, mesh: Mesh) -> PyTree:
    """Puts arrays whole on every device of a mesh.

    Args:
        tree: arrays of the host, the same in every process.
        mesh: the devices, of all processes.
    """
    everywhere = replicated(mesh)
    return jax.tree.map(
        lambda leaf: jax.make_array_from_process_local_data(everywhere, np.asarray(leaf), np.shape(leaf)), tree
    )


def cores() -> int:
    """How many cores of the host this process may use; JAX on a CPU takes all of them."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
