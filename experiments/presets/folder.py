"""Anybody's own pictures."""

from __future__ import annotations

from dataclasses import replace

import tyro

from experiments.presets.networks import ADDRESSNET, AUTO, MOBILENET, RESNET, SHIFT_RESNET
from shuffle_jax.data import AugmentConfig, FolderConfig
from shuffle_jax.train.config import PenaltyConfig, TrainConfig
from shuffle_jax.train.optimizer import OptimizerConfig


def folder() -> TrainConfig:
    """ShuffleNetV2 1.0x with learned shuffles on a folder of images, one subfolder a class.

    Data: ``--data.root ROOT`` with ``ROOT/train/CLASS/*.jpg|png`` and, if there is one, ``ROOT/val`` or ``ROOT/test``;
    otherwise a tenth of the training images is held out. Pictures of any size are brought to ``--data.image-size``.
    Below 48 pixels choose ``--network.stem small``.

    Expected: depends on the pictures. No result is claimed for this preset.

    Cost: about 300 images a second (200 to 420) at 64 x 64 pixels on two CPU cores.

    Command: ``python -m experiments.train folder --data.root ROOT``
    """
    return TrainConfig(
        data=FolderConfig(root=tyro.MISSING, image_size=64),
        network=replace(AUTO, stem="imagenet"),
        augment=AugmentConfig(crop_padding=4, flip=True),
        optimizer=OptimizerConfig(
            learning_rate=0.1,
            warmup_epochs=2,
            weight_decay=1e-4,
            clip_norm=1.0,
            permutation_rate=0.1,
            constraint="balance",
        ),
        penalty=PenaltyConfig(weight=0.1, end=0.5),
        epochs=60,
        batch_size=64,
        label_smoothing=0.1,
    )


def folder_dynamic() -> TrainConfig:
    """The same with a permutation for each image: dynamic shuffles, which start as the fixed one.

    Data: as :func:`folder`. ``--network.dynamic.groups`` sets how many groups of channels share a pair of small
    factors: more groups, a smaller head. ``--network.pointwise static_dynamic`` adds static-dynamic 1x1 layers.

    Expected: depends on the pictures. No result is claimed for this preset; on a part of CIFAR-10 every image kept the
    fixed shuffle, see experiments/README.md.

    Cost: not measured with this preset; a step takes longer than with the fixed shuffle, see ``make bench``.

    Command: ``python -m experiments.train folder-dynamic --data.root ROOT``
    """
    config = folder()
    return replace(config, network=replace(config.network, mixer="dynamic"))


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
    return replace(folder_mobilenet(), network=replace(RESNET, stem="imagenet"))


def folder_addressnet() -> TrainConfig:
    """AddressNet, the network of the table for ImageNet, on a folder of images, one subfolder a class.

    Mixers: as :func:`digits_addressnet`.

    Data: ``--data.root ROOT`` as in the preset ``folder``, at 64 x 64 pixels; below 48 choose
    ``--network.stem small``.

    Expected: depends on the pictures. No result is claimed for this preset.

    Cost: not measured.

    Command: ``python -m experiments.train folder-addressnet --data.root ROOT``
    """
    return replace(folder_mobilenet(), network=replace(ADDRESSNET, stem="imagenet"))


def folder_shift_resnet() -> TrainConfig:
    """ShiftResNet-20, expansion 3, on a folder of images, one subfolder a class.

    Data: ``--data.root ROOT`` as in the preset ``folder``, at 32 x 32 pixels.

    Expected: depends on the pictures. No result is claimed for this preset.

    Cost: not measured.

    Command: ``python -m experiments.train folder-shift-resnet --data.root ROOT``
    """
    return replace(folder_addressnet(), data=FolderConfig(root=tyro.MISSING, image_size=32), network=SHIFT_RESNET)
