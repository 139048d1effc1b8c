"""Training images for what is estimated from them: batch statistics, and the mean permutations of dynamic layers."""

from __future__ import annotations

from collections.abc import Iterator

import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from shuffle_jax.data import Dataset, Preprocessing, normalize
from shuffle_jax.data.batches import on_devices, rows_here
from shuffle_jax.data.sampler import Sampler
from shuffle_jax.train.config import TrainConfig, data_seed
from shuffle_jax.typing import Images

STATISTICS_BATCHES = 16
"""From how many batches the statistics of averaged weights are estimated, unless the configuration says."""


def statistics_batches(config: TrainConfig) -> int:
    """From how many batches the statistics of averaged weights are estimated."""
    return config.recalibrate or STATISTICS_BATCHES


def training_images(
    config: TrainConfig, dataset: Dataset, preprocessing: Preprocessing, batches: int, mesh: Mesh | None = None
) -> Iterator[Images]:
    """Normalised training images of the first batches, not augmented.

    Args:
        config: of the run.
        dataset: its images.
        preprocessing: for the normalisation.
        batches: how many.
        mesh: the devices, of all processes, to split each batch over; whole on this process alone by default.
    """
    size = config.batch_size
    sampler = Sampler(len(dataset.train), size, data_seed(config))
    rows = np.arange(size) if mesh is None else rows_here(mesh, size)
    for step in range(batches):
        _, _, positions = sampler.train(step, rows)
        images, labels = dataset.train.take(positions)
        local = (images, labels, np.ones(len(rows), np.float32))
        found = jnp.asarray(images) if mesh is None else on_devices(local, mesh, size).images
        yield normalize(found, preprocessing.mean, preprocessing.std)
