"""MobileNetV2 and ResNet: networks whose convolutions can depend on the image."""

from __future__ import annotations

from dataclasses import replace

import tyro

from shuffle_jax.data import AugmentConfig, DigitsConfig, FolderConfig
from shuffle_jax.models import NetworkConfig
from shuffle_jax.train.config import TrainConfig
from shuffle_jax.train.optimizer import OptimizerConfig

MOBILENET = NetworkConfig(family="mobilenet_v2", width=0.35, stem="small", mixer="identity")
RESNET = NetworkConfig(family="resnet", depth=10, width=0.25, stem="small", mixer="identity")


def digits_mobilenet() -> TrainConfig:
    """MobileNetV2 0.35x on scikit-learn's handwritten digits.

    Convolutions: static; ``--network.pointwise dcd --network.head dcd`` decomposes those of the published network,
    ``condconv`` and ``dyconv`` weigh whole kernels.

    Data: 1,797 scans of 8 x 8 pixels, embedded in scikit-learn; 1,438 to train, 359 to test.

    Expected: not measured over seeds.

    Cost: a few minutes on two CPU cores, most of it compilation.

    Command: ``python -m experiments.train digits-mobilenet``
    """
    return TrainConfig(
        data=DigitsConfig(),
        network=MOBILENET,
        augment=AugmentConfig(),
        optimizer=OptimizerConfig(learning_rate=0.1, warmup_epochs=2, weight_decay=5e-4, clip_norm=1.0),
        epochs=50,
        batch_size=64,
        evaluate_every=2,
    )


def digits_resnet() -> TrainConfig:
    """ResNet-10 of a quarter of the width on scikit-learn's handwritten digits.

    Convolutions: as :func:`digits_mobilenet`; here ``--network.pointwise`` is for all convolutions of the units.

    Data: as :func:`digits_mobilenet`.

    Expected: not measured over seeds.

    Cost: a minute on two CPU cores.

    Command: ``python -m experiments.train digits-resnet``
    """
    return replace(digits_mobilenet(), network=RESNET)


def folder_mobilenet() -> TrainConfig:
    """MobileNetV2 0.5x on a folder of images, one subfolder a class.

    Convolutions: as :func:`digits_mobilenet`.

    Data: ``--data.root ROOT`` as in the preset ``folder``, at 64 x 64 pixels; below 48 choose
    ``--network.stem small``.

    Expected: depends on the pictures. No result is claimed for this preset.

    Cost: not measured.

    Command: ``python -m experiments.train folder-mobilenet --data.root ROOT``
    """
    return TrainConfig(
        data=FolderConfig(root=tyro.MISSING, image_size=64),
        network=replace(MOBILENET, width=0.5, stem="imagenet"),
        augment=AugmentConfig(crop_padding=4, flip=True),
        optimizer=OptimizerConfig(learning_rate=0.1, warmup_epochs=2, weight_decay=1e-4, clip_norm=1.0),
        epochs=60,
        batch_size=64,
        label_smoothing=0.1,
    )


def folder_resnet() -> TrainConfig:
    """ResNet-18 on a folder of images, one subfolder a class.

    Convolutions: as :func:`digits_resnet`.

    Data: as :func:`folder_mobilenet`.

    Expected: depends on the pictures. No result is claimed for this preset.

    Cost: not measured.

    Command: ``python -m experiments.train folder-resnet --data.root ROOT``
    """
    return replace(folder_mobilenet(), network=replace(RESNET, depth=18, width=1.0, stem="imagenet"))
