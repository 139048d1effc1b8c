"""CIFAR-10, on every network of the library."""

from __future__ import annotations

from dataclasses import replace

from experiments.presets.networks import (
    ADDRESSNET,
    AUTO,
    AUTO_V1,
    DYNAMIC,
    MOBILENET,
    RESNET,
    SHIFT_RESNET,
    STATIC_DYNAMIC,
)
from shuffle_jax.data import AugmentConfig, TfdsConfig
from shuffle_jax.train.config import PenaltyConfig, TrainConfig
from shuffle_jax.train.optimizer import OptimizerConfig


def cifar10_auto() -> TrainConfig:
    """ShuffleNetV2 1.0x with learned shuffles (AutoShuffleNet) on CIFAR-10 at 32 x 32.

    Mixers: learned permutations; ``--network.mixer shuffle`` is plain ShuffleNetV2, the baseline, ``random`` a control.

    Data: ``cifar10`` of tensorflow-datasets, which ``python -m experiments.prepare cifar10`` prepares once: 50,000
    pictures to train on and 10,000 to test on, in memory 184 MB. With ``--data.root ROOT`` instead pictures in
    ``ROOT/train/CLASS/*.png`` and ``ROOT/test/CLASS/*.png``.

    The recipe is that of the public reference runs on CIFAR-100: SGD with Nesterov's momentum 0.9 at the rate 0.1,
    which falls to a fifth after 60, 120 and 160 of 200 epochs; batches of 128, weight decay 5e-4. Ours: crop and flip,
    of which the recipe says nothing; no warm-up; weight decay leaves out norms and biases; the settings of the
    permutations are those of the preset ``digits``.

    Expected: not measured.

    Cost: not measured; 78,000 steps of 128 images, 1,263,854 parameters and 1,345,600 more in training, 45,002,112
    multiply-adds an image.

    Command: ``python -m experiments.train cifar10-auto``
    """
    return TrainConfig(
        data=TfdsConfig(name="cifar10", image_size=32),
        network=AUTO,
        augment=AugmentConfig(crop_padding=4, flip=True),
        optimizer=OptimizerConfig(
            learning_rate=0.1,
            schedule="step",
            warmup_epochs=0,
            step_boundaries=(0.3, 0.6, 0.8),
            step_factor=0.2,
            weight_decay=5e-4,
            permutation_rate=0.1,
            constraint="balance",
        ),
        penalty=PenaltyConfig(weight=0.1, end=0.5),
        epochs=200,
        batch_size=128,
    )


def cifar10_auto_v1() -> TrainConfig:
    """ShuffleNetV1 1.0x of three groups with learned shuffles (AutoShuffleNet) on CIFAR-10 at 32 x 32.

    Mixers: as :func:`cifar10_auto`; ``--network.groups`` is 1, 2, 3, 4 or 8.

    Data: as :func:`cifar10_auto`, and the recipe.

    Expected: not measured.

    Cost: not measured; 78,000 steps of 128 images, 914,338 parameters and 360,000 more in training, 42,590,592
    multiply-adds an image.

    Command: ``python -m experiments.train cifar10-auto-v1``
    """
    return replace(cifar10_auto(), network=AUTO_V1)


def cifar10_dynamic() -> TrainConfig:
    """ShuffleNetV2 1.0x with a permutation for each image (Dynamic Shuffle) on CIFAR-10 at 32 x 32.

    Mixers: they start as the fixed shuffle; ``--network.dynamic.start random`` does not. ``--network.mixer factors``
    learns one permutation of the same kind for all images. ``--network.dynamic.groups 29`` has smaller generators, and
    starts as a shuffle of 29 groups.

    Data: as :func:`cifar10_auto`, and the recipe.

    Expected: not measured. On a tenth of the pictures, in 15 epochs and at 0.5x, every image kept the fixed shuffle:
    experiments/README.md.

    Cost: not measured; 78,000 steps of 128 images, 1,585,646 parameters, 45,309,792 multiply-adds an image.

    Command: ``python -m experiments.train cifar10-dynamic``
    """
    return replace(cifar10_auto(), network=DYNAMIC)


def cifar10_static_dynamic() -> TrainConfig:
    """ShuffleNetV2 1.0x with static-dynamic 1x1 layers (Dynamic Shuffle) on CIFAR-10 at 32 x 32.

    Layers: those 1x1 with as many channels out as in; ``--network.dynamic.replaced all`` takes the others too.
    ``--network.mixer dynamic`` adds dynamic shuffles between them.

    Data: as :func:`cifar10_auto`, and the recipe.

    Expected: not measured. On a tenth of the pictures, in 15 epochs and at 0.5x, experiments/README.md compares
    them with plain ones.

    Cost: not measured; 78,000 steps of 128 images, 869,002 parameters, 21,470,253 multiply-adds an image.

    Command: ``python -m experiments.train cifar10-static-dynamic``
    """
    return replace(cifar10_auto(), network=STATIC_DYNAMIC)


def cifar10_mobilenet() -> TrainConfig:
    """MobileNetV2 0.5x on CIFAR-10 at 32 x 32.

    Convolutions: static; ``--network.pointwise dcd --network.head dcd`` decomposes those of the published network,
    ``condconv`` and ``dyconv`` weigh whole kernels.

    Data: as :func:`cifar10_auto`. The recipe is this project's own, with the usual crop and flip.

    Expected: not measured. On a tenth of the pictures, in 6 epochs and at 0.35x, experiments/README.md compares static,
    dynamic and decomposed convolutions.

    Cost: not measured; 39,000 steps of 128 images, 700,490 parameters, 27,969,024 multiply-adds an image.

    Command: ``python -m experiments.train cifar10-mobilenet``
    """
    return TrainConfig(
        data=TfdsConfig(name="cifar10", image_size=32),
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

    Cost: not measured; 39,000 steps of 128 images, 11,173,962 parameters, 555,422,720 multiply-adds an image.

    Command: ``python -m experiments.train cifar10-resnet``
    """
    config = cifar10_mobilenet()
    return replace(config, network=RESNET, optimizer=replace(config.optimizer, weight_decay=5e-4))


def cifar10_addressnet() -> TrainConfig:
    """AddressNet-32 on CIFAR-10 at 32 x 32.

    Mixers: the channel shift, fused with what follows it; ``--network.mixer shuffle`` is the control of the paper,
    ``auto`` learns permutations. ``--network.shift.shortcut shift`` is Enhanced AddressNet, ``--network.depth 20`` and
    ``44`` are the others of the paper.

    Data: as :func:`cifar10_auto`.

    The recipe is that of ShiftResNet's released code: SGD at the rate 0.1, a tenth of it after 81 of 164 epochs and a
    hundredth after 122, weight decay 5e-4, crop and flip. Ours: weight decay leaves out norms and biases. That
    AddressNet was trained so is an assumption: its recipe is not known.

    Expected: not measured. On a tenth of the pictures at 16 x 16, in 10 epochs, experiments/README.md compares the
    channel shift with the shuffle, and AddressNet with Enhanced AddressNet and ShiftResNet.

    Cost: not measured; 63,960 steps of 128 images, 126,046 parameters, 18,912,672 multiply-adds an image.

    Command: ``python -m experiments.train cifar10-addressnet``
    """
    return TrainConfig(
        data=TfdsConfig(name="cifar10", image_size=32),
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

    Data: as :func:`cifar10_auto`; the recipe as :func:`cifar10_addressnet`.

    Expected: as :func:`cifar10_addressnet`.

    Cost: not measured; 63,960 steps of 128 images, 95,642 parameters, 16,433,792 multiply-adds an image.

    Command: ``python -m experiments.train cifar10-shift-resnet``
    """
    return replace(cifar10_addressnet(), network=SHIFT_RESNET)
