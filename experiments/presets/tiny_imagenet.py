"""Tiny ImageNet as a folder of pictures, on every network of the library."""

from __future__ import annotations

from dataclasses import replace

import tyro

from experiments.presets.cifar10 import cifar10_addressnet
from experiments.presets.networks import (
    AUTO,
    AUTO_V1,
    DYNAMIC,
    MOBILENET,
    RESNET,
    SHIFT_RESNET,
    STATIC_DYNAMIC,
)
from shuffle_jax.data import AugmentConfig, FolderConfig
from shuffle_jax.train.config import PenaltyConfig, TrainConfig
from shuffle_jax.train.optimizer import OptimizerConfig


def tiny_imagenet_auto() -> TrainConfig:
    """ShuffleNetV2 1.0x with learned shuffles (AutoShuffleNet) on Tiny ImageNet at 64 x 64.

    Mixers: learned permutations; ``--network.mixer shuffle`` is plain ShuffleNetV2, the baseline, ``random`` a control.

    Data: as :func:`tiny_imagenet_mobilenet`, and the recipe; the settings of the permutations are those of the preset
    ``digits``.

    Expected: not measured.

    Cost: not measured; 39,000 steps of 256 images, 1,458,604 parameters and 1,345,600 more in training, 11,950,432
    multiply-adds an image.

    Command: ``python -m experiments.train tiny-imagenet-auto --data.root ROOT``
    """
    config = tiny_imagenet_mobilenet()
    return replace(
        config,
        network=replace(AUTO, stem="imagenet"),
        optimizer=replace(config.optimizer, permutation_rate=0.1, constraint="balance"),
        penalty=PenaltyConfig(weight=0.1, end=0.5),
    )


def tiny_imagenet_auto_v1() -> TrainConfig:
    """ShuffleNetV1 1.0x of three groups with learned shuffles (AutoShuffleNet) on Tiny ImageNet at 64 x 64.

    Mixers: as :func:`tiny_imagenet_auto`; ``--network.groups`` is 1, 2, 3, 4 or 8.

    Data: as :func:`tiny_imagenet_auto`, and the recipe.

    Expected: not measured.

    Cost: not measured; 39,000 steps of 256 images, 1,096,928 parameters and 360,000 more in training, 11,334,912
    multiply-adds an image.

    Command: ``python -m experiments.train tiny-imagenet-auto-v1 --data.root ROOT``
    """
    return replace(tiny_imagenet_auto(), network=replace(AUTO_V1, stem="imagenet"))


def tiny_imagenet_dynamic() -> TrainConfig:
    """ShuffleNetV2 1.0x with a permutation for each image (Dynamic Shuffle) on Tiny ImageNet at 64 x 64.

    Mixers: as :func:`cifar10_dynamic`.

    Data: as :func:`tiny_imagenet_auto`, and the recipe.

    Expected: not measured.

    Cost: not measured; 39,000 steps of 256 images, 1,780,396 parameters, 12,258,112 multiply-adds an image.

    Command: ``python -m experiments.train tiny-imagenet-dynamic --data.root ROOT``
    """
    return replace(tiny_imagenet_auto(), network=replace(DYNAMIC, stem="imagenet"))


def tiny_imagenet_static_dynamic() -> TrainConfig:
    """ShuffleNetV2 1.0x with static-dynamic 1x1 layers (Dynamic Shuffle) on Tiny ImageNet at 64 x 64.

    Layers: as :func:`cifar10_static_dynamic`.

    Data: as :func:`tiny_imagenet_auto`, and the recipe.

    Expected: not measured.

    Cost: not measured; 39,000 steps of 256 images, 1,063,752 parameters, 6,280,717 multiply-adds an image.

    Command: ``python -m experiments.train tiny-imagenet-static-dynamic --data.root ROOT``
    """
    return replace(tiny_imagenet_auto(), network=replace(STATIC_DYNAMIC, stem="imagenet"))


def tiny_imagenet_mobilenet() -> TrainConfig:
    """MobileNetV2 0.5x on Tiny ImageNet at 64 x 64.

    Convolutions: static; ``--network.pointwise dcd --network.head dcd`` decomposes those of the published network,
    ``condconv`` and ``dyconv`` weigh whole kernels.

    Data: ``--data.root ROOT`` with 200 classes, 100,000 pictures in ``ROOT/train/CLASS/*.JPEG`` and 10,000 in
    ``ROOT/val/CLASS/*.JPEG``; in memory 1.35 GB. As it is published, the training pictures are one folder deeper, in
    ``CLASS/images``, and a list names the classes of the others: move them first. Tensorflow-datasets has no such set;
    ``--data.name NAME`` reads one prepared by a builder of your own. The recipe is this project's own.
    ``--network.stem small`` leaves height and width to the later stages, at several times the cost.

    Expected: not measured.

    Cost: not measured; 39,000 steps of 256 images, 943,880 parameters, 8,080,640 multiply-adds an image.

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

    Cost: not measured; 39,000 steps of 256 images, 11,279,112 parameters, 148,148,224 multiply-adds an image.

    Command: ``python -m experiments.train tiny-imagenet-resnet --data.root ROOT``
    """
    config = tiny_imagenet_mobilenet()
    return replace(
        config,
        network=replace(RESNET, stem="imagenet"),
        optimizer=replace(config.optimizer, weight_decay=5e-4),
    )


def tiny_imagenet_addressnet() -> TrainConfig:
    """AddressNet-32 on Tiny ImageNet at 64 x 64.

    Mixers: as :func:`cifar10_addressnet`, and Enhanced AddressNet. ``--network.stem imagenet`` is the network of the
    paper's table for ImageNet.

    Data: as :func:`tiny_imagenet_mobilenet`. The recipe is that of :func:`cifar10_addressnet` with fewer epochs.

    Expected: not measured.

    Cost: not measured; 70,290 steps of 128 images, 153,596 parameters, 75,673,728 multiply-adds an image.

    Command: ``python -m experiments.train tiny-imagenet-addressnet --data.root ROOT``
    """
    config = cifar10_addressnet()
    return replace(
        config,
        data=FolderConfig(root=tyro.MISSING, image_size=64),
        augment=AugmentConfig(crop_padding=8, flip=True),
        optimizer=replace(config.optimizer, step_boundaries=(0.5, 0.75)),
        epochs=90,
    )


def tiny_imagenet_shift_resnet() -> TrainConfig:
    """ShiftResNet-56, expansion 3, on Tiny ImageNet at 64 x 64.

    Data: as :func:`tiny_imagenet_mobilenet`; the recipe as :func:`tiny_imagenet_addressnet`.

    Expected: not measured.

    Cost: not measured; 70,290 steps of 128 images, 306,904 parameters, 178,991,616 multiply-adds an image.

    Command: ``python -m experiments.train tiny-imagenet-shift-resnet --data.root ROOT``
    """
    return replace(tiny_imagenet_addressnet(), network=replace(SHIFT_RESNET, depth=56))
