"""Data sets of images, batches of them on the devices, and their augmentation.

Pixels stay 8-bit until a step normalises them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from shuffle_jax.data.augment import AugmentConfig, augment, normalize, random_crop, random_flip
from shuffle_jax.data.batches import Batch, Batches
from shuffle_jax.data.color import jitter
from shuffle_jax.data.dataset import Dataset, Measured, Split
from shuffle_jax.data.device_batches import DeviceBatches
from shuffle_jax.data.digits import DigitsConfig, load_digits
from shuffle_jax.data.encoded import Encoded, Record, Records, Window, read_image
from shuffle_jax.data.erase import cutout, erase
from shuffle_jax.data.folder import FolderConfig, load_folder
from shuffle_jax.data.memory_batches import MemoryBatches
from shuffle_jax.data.mix import cutmix, mixup
from shuffle_jax.data.pipelines import InputConfig, make_batches
from shuffle_jax.data.preprocessing import Preprocessing
from shuffle_jax.data.random_augment import random_augment
from shuffle_jax.data.resized_crop import random_resized_crop
from shuffle_jax.data.stream_batches import StreamBatches
from shuffle_jax.data.tfds import TfdsConfig, load_tfds

__all__ = [
    "AugmentConfig",
    "Batch",
    "Batches",
    "DataConfig",
    "Dataset",
    "DeviceBatches",
    "DigitsConfig",
    "Encoded",
    "FolderConfig",
    "InputConfig",
    "Measured",
    "MemoryBatches",
    "Preprocessing",
    "Record",
    "Records",
    "Split",
    "StreamBatches",
    "TfdsConfig",
    "Window",
    "augment",
    "cutmix",
    "cutout",
    "erase",
    "jitter",
    "load",
    "load_digits",
    "load_folder",
    "load_tfds",
    "make_batches",
    "measured_on",
    "mixup",
    "normalize",
    "random_augment",
    "random_crop",
    "random_flip",
    "random_resized_crop",
    "read_image",
]

DataConfig = DigitsConfig | FolderConfig | TfdsConfig
"""The configuration of any data set."""


def load(config: DataConfig, classes: Sequence[str] | None = None) -> Dataset:
    """Loads the data set that ``config`` describes.

    Args:
        config: which data set, and how to split and prepare it.
        classes: the class names in the order of their labels, as kept with a finished run; by default the
            data set's own order.

    Returns:
        The data set, its ``classes`` equal to ``classes`` where given. Images of files are read and decoded when they
        are asked for; :meth:`Dataset.in_memory` reads them all.

    Raises:
        ValueError: the data cannot be read, or has other classes.
    """
    match config:
        case DigitsConfig():
            dataset = load_digits(config)
        case FolderConfig():
            dataset = load_folder(config, classes)
        case TfdsConfig():
            dataset = load_tfds(config)
    if classes is not None and dataset.classes != tuple(classes):
        raise ValueError(f"the classes of {dataset.name} must be {dataset.classes}, got {tuple(classes)}")
    return dataset


def measured_on(dataset: Dataset, config: DataConfig, split: Measured | None) -> Dataset:
    """A data set with the same images to train on, measured on another of its splits.

    Args:
        dataset: what :func:`load` gave.
        config: of it.
        split: "test" for the images that are the test images without ``config.validation``, "validation" for those that
            it holds out; None for those that ``dataset`` is measured on.

    Raises:
        ValueError: nothing is held out to validate on.
    """
    if split is None or split == dataset.measured:
        return dataset
    if split == "validation":
        raise ValueError("there is no validation split, as data.validation is 0: measure on the split test")
    own = load(replace(config, validation=0.0), dataset.classes)
    return replace(dataset, test=own.test, validation=False)
