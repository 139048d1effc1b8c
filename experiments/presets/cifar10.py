"""CIFAR-10 as a folder of pictures, on MobileNetV2 and ResNet."""

from __future__ import annotations

from dataclasses import replace

import tyro

from experiments.presets.convolutions import MOBILENET, RESNET
from shuffle_jax.data import AugmentConfig, FolderConfig
from shuffle_jax.train.config import TrainConfig
from shuffle_jax.train.optimizer import OptimizerConfig


def cifar10_mobilenet() -> TrainConfig:
    """MobileNetV2 0.5x on CIFAR-10 at 32 x 32.

    Convolutions: static; ``--network.pointwise dcd --network.head dcd`` decomposes those of the published network,
    ``condconv`` and ``dyconv`` weigh whole kernels.

    Data: ``--data.root ROOT`` with the 50,000 training pictures in ``ROOT/train/CLASS/*.png`` and the 10,000 test
    pictures in ``ROOT/test/CLASS/*.png``; in memory 184 MB. The recipe is this project's own, with the usual crop and
    flip.

    Expected: not measured. On a tenth of the pictures, in 6 epochs and at 0.35x, experiments/README.md compares static,
    dynamic and decomposed convolutions.

    Cost: not measured; 39,000 steps of 128 images.

    Command: ``python -m experiments.train cifar10-mobilenet --data.root ROOT``
    """
    return TrainConfig(
        data=FolderConfig(root=tyro.MISSING, image_size=32),
        network=replace(MOBILENET, width=0.5),
        augment=AugmentConfig(crop_padding=4, flip=True),
        optimizer=OptimizerConfig(learning_rate=0.1, warmup_epochs=2, weight_decay=1e-4, clip_norm=1.0),
        epochs=100,
        batch_size=128,
    )


def cifar10_resnet() -> TrainConfig:
    """ResNet-18 on CIFAR-10 at 32 x 32.

    Convolutions: as :func:`cifar10_mobilenet`; here ``--network.pointwise`` is for all convolutions of the units.

    Data: as :func:`cifar10_mobilenet`, and the recipe but for the weight decay.

    Expected: not measured.

    Cost: not measured; 39,000 steps of 128 images.

    Command: ``python -m experiments.train cifar10-resnet --data.root ROOT``
    """
    config = cifar10_mobilenet()
    return replace(
        config,
        network=replace(RESNET, depth=18, width=1.0),
        optimizer=replace(config.optimizer, weight_decay=5e-4),
    )
