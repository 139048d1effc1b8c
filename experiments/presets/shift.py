"""AddressNet and ShiftResNet: networks whose only operations with weights are 1x1, and shifts between them."""

from __future__ import annotations

from dataclasses import replace

import tyro

from shuffle_jax.data import AugmentConfig, DigitsConfig, FolderConfig
from shuffle_jax.models import NetworkConfig
from shuffle_jax.train.config import TrainConfig
from shuffle_jax.train.optimizer import OptimizerConfig

ADDRESSNET = NetworkConfig(family="addressnet", depth=32, stem="small", mixer="shift")
SHIFT_RESNET = NetworkConfig(family="shift_resnet", depth=20, stem="small", mixer="identity")


def digits_addressnet() -> TrainConfig:
    """AddressNet-20 on scikit-learn's handwritten digits.

    Mixers: the channel shift, fused with what follows it; ``--network.mixer shuffle`` is the control of the paper,
    ``auto`` learns permutations. ``--network.shift.shortcut shift`` is Enhanced AddressNet,
    ``--network.shift.boundary zero`` or ``wrap`` reads something else beyond the edge.

    Data: 1,797 scans of 8 x 8 pixels, embedded in scikit-learn; 1,438 to train, 359 to test.

    Expected: not measured over seeds.

    Cost: a minute on two CPU cores.

    Command: ``python -m experiments.train digits-addressnet``
    """
    return TrainConfig(
        data=DigitsConfig(),
        network=replace(ADDRESSNET, depth=20),
        augment=AugmentConfig(),
        optimizer=OptimizerConfig(learning_rate=0.1, warmup_epochs=2, weight_decay=5e-4, clip_norm=1.0),
        epochs=50,
        batch_size=64,
        evaluate_every=2,
    )


def digits_shift_resnet() -> TrainConfig:
    """ShiftResNet-20, expansion 3, on scikit-learn's handwritten digits.

    Data: as :func:`digits_addressnet`.

    Expected: not measured over seeds.

    Cost: a minute on two CPU cores.

    Command: ``python -m experiments.train digits-shift-resnet``
    """
    return replace(digits_addressnet(), network=SHIFT_RESNET)


def cifar10_addressnet() -> TrainConfig:
    """AddressNet-32 on CIFAR-10 at 32 x 32.

    Mixers: as :func:`digits_addressnet`. ``--network.depth 20`` and ``44`` are the others of the paper.

    Data: ``--data.root ROOT`` with the 50,000 training pictures in ``ROOT/train/CLASS/*.png`` and the 10,000 test
    pictures in ``ROOT/test/CLASS/*.png``; in memory 184 MB.

    The recipe is that of ShiftResNet's released code: SGD at the rate 0.1, a tenth of it after 81 of 164 epochs and a
    hundredth after 122, weight decay 5e-4, crop and flip. Ours: weight decay leaves out norms and biases. That
    AddressNet was trained so is an assumption: its recipe is not known.

    Expected: not measured. On a tenth of the pictures at 16 x 16, in 10 epochs, experiments/README.md compares the
    channel shift with the shuffle, and AddressNet with Enhanced AddressNet and ShiftResNet.

    Cost: not measured; 63,960 steps of 128 images.

    Command: ``python -m experiments.train cifar10-addressnet --data.root ROOT``
    """
    return TrainConfig(
        data=FolderConfig(root=tyro.MISSING, image_size=32),
        network=ADDRESSNET,
        augment=AugmentConfig(crop_padding=4, flip=True),
        optimizer=OptimizerConfig(
            learning_rate=0.1,
            schedule="step",
            warmup_epochs=0,
            step_boundaries=(81 / 164, 122 / 164),
            nesterov=False,
            weight_decay=5e-4,
        ),
        epochs=164,
        batch_size=128,
    )


def cifar10_shift_resnet() -> TrainConfig:
    """ShiftResNet-20, expansion 3, on CIFAR-10 at 32 x 32.

    ``--network.depth 56`` and ``110`` are the others of the paper, ``--network.shift.expansion`` is 1 to 9 there.

    Data: as :func:`cifar10_addressnet`, and the recipe.

    Expected: as :func:`cifar10_addressnet`.

    Cost: not measured; 63,960 steps of 128 images.

    Command: ``python -m experiments.train cifar10-shift-resnet --data.root ROOT``
    """
    return replace(cifar10_addressnet(), network=SHIFT_RESNET)


def tiny_imagenet_addressnet() -> TrainConfig:
    """AddressNet-32 on Tiny ImageNet at 64 x 64.

    Mixers: as :func:`digits_addressnet`. ``--network.stem imagenet`` is the network of the paper's table for ImageNet.

    Data: ``--data.root ROOT`` with 200 classes, 100,000 pictures in ``ROOT/train/CLASS/*.JPEG`` and 10,000 in
    ``ROOT/val/CLASS/*.JPEG``; in memory 1.35 GB. As it is published, the training pictures are one folder deeper, in
    ``CLASS/images``, and a list names the classes of the others: move them first. The recipe is that of
    :func:`cifar10_addressnet` with fewer epochs.

    Expected: not measured.

    Cost: not measured; 70,290 steps of 128 images.

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

    Data: as :func:`tiny_imagenet_addressnet`, and the recipe.

    Expected: not measured.

    Cost: not measured; 70,290 steps of 128 images.

    Command: ``python -m experiments.train tiny-imagenet-shift-resnet --data.root ROOT``
    """
    return replace(tiny_imagenet_addressnet(), network=replace(SHIFT_RESNET, depth=56))


def folder_addressnet() -> TrainConfig:
    """AddressNet, the network of the table for ImageNet, on a folder of images, one subfolder a class.

    Mixers: as :func:`digits_addressnet`.

    Data: ``--data.root ROOT`` as in the preset ``folder``, at 64 x 64 pixels; below 48 choose
    ``--network.stem small``.

    Expected: depends on the pictures. No result is claimed for this preset.

    Cost: not measured.

    Command: ``python -m experiments.train folder-addressnet --data.root ROOT``
    """
    return TrainConfig(
        data=FolderConfig(root=tyro.MISSING, image_size=64),
        network=replace(ADDRESSNET, stem="imagenet"),
        augment=AugmentConfig(crop_padding=4, flip=True),
        optimizer=OptimizerConfig(learning_rate=0.1, warmup_epochs=2, weight_decay=1e-4, clip_norm=1.0),
        epochs=60,
        batch_size=64,
        label_smoothing=0.1,
    )


def folder_shift_resnet() -> TrainConfig:
    """ShiftResNet-20, expansion 3, on a folder of images, one subfolder a class.

    Data: ``--data.root ROOT`` as in the preset ``folder``, at 32 x 32 pixels.

    Expected: depends on the pictures. No result is claimed for this preset.

    Cost: not measured.

    Command: ``python -m experiments.train folder-shift-resnet --data.root ROOT``
    """
    return replace(folder_addressnet(), data=FolderConfig(root=tyro.MISSING, image_size=32), network=SHIFT_RESNET)
