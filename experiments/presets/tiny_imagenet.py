"""Tiny ImageNet as a folder of pictures, on MobileNetV2 and ResNet."""

from __future__ import annotations

from dataclasses import replace

import tyro

from experiments.presets.convolutions import MOBILENET, RESNET
from shuffle_jax.data import AugmentConfig, FolderConfig
from shuffle_jax.train.config import TrainConfig
from shuffle_jax.train.optimizer import OptimizerConfig


def tiny_imagenet_mobilenet() -> TrainConfig:
    """MobileNetV2 0.5x on Tiny ImageNet at 64 x 64.

    Convolutions: static; ``--network.pointwise dcd --network.head dcd`` decomposes those of the published network,
    ``condconv`` and ``dyconv`` weigh whole kernels.

    Data: ``--data.root ROOT`` with 200 classes, 100,000 pictures in ``ROOT/train/CLASS/*.JPEG`` and 10,000 in
    ``ROOT/val/CLASS/*.JPEG``; in memory 1.35 GB. As it is published, the training pictures are one folder deeper, in
    ``CLASS/images``, and a list names the classes of the others: move them first. The recipe is this project's own.
    ``--network.stem small`` leaves height and width to the later stages, at several times the cost.

    Expected: not measured.

    Cost: not measured; 39,000 steps of 256 images.

    Command: ``python -m experiments.train tiny-imagenet-mobilenet --data.root ROOT``
    """
    return TrainConfig(
        data=FolderConfig(root=tyro.MISSING, image_size=64),
        network=replace(MOBILENET, width=0.5, stem="imagenet"),
        augment=AugmentConfig(crop_padding=8, flip=True),
        optimizer=OptimizerConfig(learning_rate=0.1, warmup_epochs=2, weight_decay=1e-4, clip_norm=1.0),
        epochs=100,
        batch_size=256,
        label_smoothing=0.1,
    )


def tiny_imagenet_resnet() -> TrainConfig:
    """ResNet-18 on Tiny ImageNet at 64 x 64.

    Convolutions: as :func:`tiny_imagenet_mobilenet`; here ``--network.pointwise`` is for all convolutions of the units.

    Data: as :func:`tiny_imagenet_mobilenet`, and the recipe but for the weight decay.

    Expected: not measured.

    Cost: not measured; 39,000 steps of 256 images.

    Command: ``python -m experiments.train tiny-imagenet-resnet --data.root ROOT``
    """
    config = tiny_imagenet_mobilenet()
    return replace(
        config,
        network=replace(RESNET, depth=18, width=1.0, stem="imagenet"),
        optimizer=replace(config.optimizer, weight_decay=5e-4),
    )
