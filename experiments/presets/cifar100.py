"""CIFAR-100: the networks and, but for two, the recipes of CIFAR-10."""

from __future__ import annotations

from dataclasses import replace

from experiments.presets import cifar10
from experiments.presets.networks import MOBILENET, RESNET
from shuffle_jax.data import TfdsConfig
from shuffle_jax.train.config import TrainConfig

DATA = TfdsConfig(name="cifar100", image_size=32)


def cifar100_auto() -> TrainConfig:
    """ShuffleNetV2 1.0x with learned shuffles (AutoShuffleNet) on CIFAR-100 at 32 x 32.

    Mixers: learned permutations; ``--network.mixer shuffle`` is plain ShuffleNetV2, the baseline, ``random`` a control.

    Data: ``cifar100`` of tensorflow-datasets, which ``python -m experiments.prepare cifar100`` prepares once: 50,000
    pictures of 100 classes to train on and 10,000 to test on, in memory 184 MB. With ``--data.root ROOT`` instead
    pictures in ``ROOT/train/CLASS/*.png`` and ``ROOT/test/CLASS/*.png``.

    The recipe is that of the public reference runs, and what is ours in it, as :func:`cifar10_auto` says.

    Expected: not measured.

    Cost: not measured; 78,000 steps of 128 images, 1,356,104 parameters and 1,345,600 more in training, 45,094,272
    multiply-adds an image.

    Command: ``python -m experiments.train cifar100-auto``
    """
    return replace(cifar10.cifar10_auto(), data=DATA)


def cifar100_auto_v1() -> TrainConfig:
    """ShuffleNetV1 1.0x of three groups with learned shuffles (AutoShuffleNet) on CIFAR-100 at 32 x 32.

    Mixers: as :func:`cifar100_auto`; ``--network.groups`` is 1, 2, 3, 4 or 8.

    Data: as :func:`cifar100_auto`, and the recipe.

    Expected: not measured.

    Cost: not measured; 78,000 steps of 128 images, 1,000,828 parameters and 360,000 more in training, 42,676,992
    multiply-adds an image.

    Command: ``python -m experiments.train cifar100-auto-v1``
    """
    return replace(cifar10.cifar10_auto_v1(), data=DATA)


def cifar100_dynamic() -> TrainConfig:
    """ShuffleNetV2 1.0x with a permutation for each image (Dynamic Shuffle) on CIFAR-100 at 32 x 32.

    Mixers: as :func:`cifar10_dynamic`.

    Data: as :func:`cifar100_auto`, and the recipe.

    Expected: not measured.

    Cost: not measured; 78,000 steps of 128 images, 1,677,896 parameters, 45,401,952 multiply-adds an image.

    Command: ``python -m experiments.train cifar100-dynamic``
    """
    return replace(cifar10.cifar10_dynamic(), data=DATA)


def cifar100_static_dynamic() -> TrainConfig:
    """ShuffleNetV2 1.0x with static-dynamic 1x1 layers (Dynamic Shuffle) on CIFAR-100 at 32 x 32.

    Layers: as :func:`cifar10_static_dynamic`.

    Data: as :func:`cifar100_auto`, and the recipe.

    Expected: not measured.

    Cost: not measured; 78,000 steps of 128 images, 961,252 parameters, 21,562,413 multiply-adds an image.

    Command: ``python -m experiments.train cifar100-static-dynamic``
    """
    return replace(cifar10.cifar10_static_dynamic(), data=DATA)


def cifar100_mobilenet() -> TrainConfig:
    """MobileNetV2 1.0x on CIFAR-100 at 32 x 32.

    Convolutions: static; ``--network.pointwise dcd --network.head dcd`` decomposes those of the published network,
    ``condconv`` and ``dyconv`` weigh whole kernels.

    Data: as :func:`cifar100_auto`, and the recipe.

    Expected: not measured.

    Cost: not measured; 78,000 steps of 128 images, 2,351,972 parameters, 88,091,648 multiply-adds an image.

    Command: ``python -m experiments.train cifar100-mobilenet``
    """
    return replace(cifar100_auto(), network=MOBILENET)


def cifar100_resnet() -> TrainConfig:
    """ResNet-18 on CIFAR-100 at 32 x 32.

    Convolutions: as :func:`cifar100_mobilenet`; here ``--network.pointwise`` is for all convolutions of the units.

    Data: as :func:`cifar100_auto`, and the recipe.

    Expected: not measured.

    Cost: not measured; 78,000 steps of 128 images, 11,220,132 parameters, 555,468,800 multiply-adds an image.

    Command: ``python -m experiments.train cifar100-resnet``
    """
    return replace(cifar100_auto(), network=RESNET)


def cifar100_addressnet() -> TrainConfig:
    """AddressNet-32 on CIFAR-100 at 32 x 32.

    Mixers: as :func:`cifar10_addressnet`, and Enhanced AddressNet.

    Data: as :func:`cifar100_auto`; the recipe as :func:`cifar10_addressnet`.

    Expected: not measured. The paper's is 71.96 % with the channel shift and 71.97 % with the shuffle.

    Cost: not measured; 63,960 steps of 128 images, 139,096 parameters, 18,925,632 multiply-adds an image.

    Command: ``python -m experiments.train cifar100-addressnet``
    """
    return replace(cifar10.cifar10_addressnet(), data=DATA)


def cifar100_shift_resnet() -> TrainConfig:
    """ShiftResNet-20, expansion 3, on CIFAR-100 at 32 x 32.

    Other depths and expansions: as :func:`cifar10_shift_resnet`.

    Data: as :func:`cifar100_auto`; the recipe as :func:`cifar10_addressnet`.

    Expected: not measured.

    Cost: not measured; 63,960 steps of 128 images, 101,492 parameters, 16,439,552 multiply-adds an image.

    Command: ``python -m experiments.train cifar100-shift-resnet``
    """
    return replace(cifar10.cifar10_shift_resnet(), data=DATA)
