"""Training images for what is estimated from them: batch statistics, and the mean permutations of dynamic layers."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from shuffle_jax.data import AugmentConfig, Dataset, Preprocessing, augment, normalize
from shuffle_jax.data.batches import on_devices, rows_here
from shuffle_jax.data.sampler import Sampler
from shuffle_jax.sharding import batch_sharding
from shuffle_jax.streams import STATISTICS
from shuffle_jax.train.config import TrainConfig, data_seed
from shuffle_jax.typing import Array, Images, Key, UInt8

MeanStd = tuple[tuple[float, ...], tuple[float, ...]]
"""Mean and standard deviation of the training pixels per channel, in units of [0, 1]."""

STATISTICS_BATCHES = 16
"""From how many batches the statistics of averaged weights are estimated, unless the configuration says."""


def statistics_batches(config: TrainConfig) -> int:
    """From how many batches the statistics of averaged weights are estimated."""
    return config.recalibrate or STATISTICS_BATCHES


def training_images(
    config: TrainConfig,
    dataset: Dataset,
    preprocessing: Preprocessing,
    batches: int,
    mesh: Mesh | None = None,
    augmented: bool = False,
) -> Iterator[Images]:
    """Normalised training images of the first batches.

    Args:
        config: of the run.
        dataset: its images.
        preprocessing: for the normalisation.
        batches: how many.
        mesh: the devices, of all processes, to split each batch over; whole on this process alone by default.
        augmented: as the network sees them at the end of its training, always the same; else not cropped at random.
    """
    size, key = config.batch_size, jax.random.fold_in(jax.random.key(config.seed), STATISTICS)
    sampler = Sampler(len(dataset.train), size, data_seed(config))
    rows = np.arange(size) if mesh is None else rows_here(mesh, size)
    for step in range(batches):
        _, _, positions = sampler.train(step, rows)
        images, labels = dataset.train.take(positions)
        local = (images, labels, np.ones(len(rows), np.float32))
        found = jnp.asarray(images) if mesh is None else on_devices(local, mesh, size).images
        if augmented:
            mean_std = preprocessing.mean, preprocessing.std
            yield _augmented(jax.random.fold_in(key, step), found, config.augment, mean_std, config.epochs, mesh)
        else:
            yield normalize(found, preprocessing.mean, preprocessing.std)


@partial(jax.jit, static_argnums=(2, 3, 4, 5))
def _augmented(
    key: Key, images: UInt8[Array, "n h w c"], config: AugmentConfig, mean_std: MeanStd, epoch: int, mesh: Mesh | None
) -> Images:
    values, _ = augment(key, images, jnp.zeros((len(images), 1)), config, *mean_std, epoch)
    return values if mesh is None else jax.lax.with_sharding_constraint(values, batch_sharding(mesh))
