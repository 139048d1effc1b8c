"""Handwritten digits: the presets that run anywhere in minutes."""

from __future__ import annotations

from dataclasses import replace

from experiments.presets.networks import ADDRESSNET, AUTO, MOBILENET, RESNET, SHIFT_RESNET
from shuffle_jax.data import AugmentConfig, DigitsConfig
from shuffle_jax.train.config import PenaltyConfig, TrainConfig
from shuffle_jax.train.optimizer import OptimizerConfig


def digits() -> TrainConfig:
    """ShuffleNetV2 0.5x with learned shuffles on scikit-learn's handwritten digits.

    Data: 1,797 scans of 8 x 8 pixels, embedded in scikit-learn; 1,438 to train, 359 to test.

    Expected: 97.2 to 99.2 % test accuracy over five seeds and splits (mean 98.4), the same hardened, with all 16
    permutations certified; with ``--network.mixer shuffle`` 97.5 to 98.9 % (mean 98.3). See experiments/README.md.

    Cost: about a minute on two CPU cores, compilation included.

    Command: ``python -m experiments.train digits``
    """
    return TrainConfig(
        data=DigitsConfig(),
        network=replace(AUTO, width=0.5),
        augment=AugmentConfig(),
        optimizer=OptimizerConfig(
            learning_rate=0.1,
            warmup_epochs=2,
            weight_decay=5e-4,
            clip_norm=1.0,
            permutation_rate=0.1,
            constraint="balance",
        ),
        penalty=PenaltyConfig(weight=0.1, end=0.5),
        epochs=50,
        batch_size=64,
        evaluate_every=2,
    )


def digits_dynamic() -> TrainConfig:
    """The same with a permutation for each image: dynamic shuffles, which start as the fixed one.

    Data: as :func:`digits`.

    Expected: 97.8 to 98.6 % test accuracy over five seeds and splits (mean 98.4), the same with one permutation for all
    images: with these settings they keep the fixed shuffle. See experiments/README.md.

    Cost: about a minute and a half on two CPU cores, compilation included.

    Command: ``python -m experiments.train digits-dynamic``
    """
    config = digits()
    return replace(config, network=replace(config.network, mixer="dynamic"))


def digits_mobilenet() -> TrainConfig:
    """MobileNetV2 0.35x on scikit-learn's handwritten digits.

    Convolutions: static; ``--network.pointwise dcd --network.head dcd`` decomposes those of the published network,
    ``condconv`` and ``dyconv`` weigh whole kernels.

    Data: as :func:`digits`.

    Expected: not measured over seeds.

    Cost: a few minutes on two CPU cores, most of it compilation.

    Command: ``python -m experiments.train digits-mobilenet``
    """
    return TrainConfig(
        data=DigitsConfig(),
        network=replace(MOBILENET, width=0.35),
        augment=AugmentConfig(),
        optimizer=OptimizerConfig(learning_rate=0.1, warmup_epochs=2, weight_decay=5e-4, clip_norm=1.0),
        epochs=50,
        batch_size=64,
        evaluate_every=2,
    )


def digits_resnet() -> TrainConfig:
    """ResNet-10 of a quarter of the width on scikit-learn's handwritten digits.

    Convolutions: as :func:`digits_mobilenet`; here ``--network.pointwise`` is for all convolutions of the units.

    Data: as :func:`digits`.

    Expected: not measured over seeds.

    Cost: a minute on two CPU cores.

    Command: ``python -m experiments.train digits-resnet``
    """
    return replace(digits_mobilenet(), network=replace(RESNET, depth=10, width=0.25))


def digits_addressnet() -> TrainConfig:
    """AddressNet-20 on scikit-learn's handwritten digits.

    Mixers: the channel shift, fused with what follows it; ``--network.mixer shuffle`` is the control of the paper,
    ``auto`` learns permutations. ``--network.shift.shortcut shift`` is Enhanced AddressNet,
    ``--network.shift.boundary zero`` or ``wrap`` reads something else beyond the edge.

    Data: as :func:`digits`.

    Expected: not measured over seeds.

    Cost: a minute on two CPU cores.

    Command: ``python -m experiments.train digits-addressnet``
    """
    return replace(digits_mobilenet(), network=replace(ADDRESSNET, depth=20))


def digits_shift_resnet() -> TrainConfig:
    """ShiftResNet-20, expansion 3, on scikit-learn's handwritten digits.

    Data: as :func:`digits`.

    Expected: not measured over seeds.

    Cost: a minute on two CPU cores.

    Command: ``python -m experiments.train digits-shift-resnet``
    """
    return replace(digits_addressnet(), network=SHIFT_RESNET)
