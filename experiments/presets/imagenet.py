"""ImageNet: ShuffleNets and AddressNet with the recipe of ShuffleNetV2, MobileNetV2 and ResNet with that of DCD.

DCD is dynamic convolution decomposition. ShiftResNet is for small images and has no preset here.
"""

from __future__ import annotations

from dataclasses import replace

from experiments.presets.networks import ADDRESSNET, AUTO, AUTO_V1, DYNAMIC, MOBILENET, RESNET, STATIC_DYNAMIC
from shuffle_jax.data import AugmentConfig, TfdsConfig
from shuffle_jax.train.config import PenaltyConfig, TrainConfig
from shuffle_jax.train.optimizer import OptimizerConfig

DATA = TfdsConfig(name="imagenet2012", image_size=224, crop=0.875)


def imagenet_auto() -> TrainConfig:
    """ShuffleNetV2 1.0x with learned shuffles (AutoShuffleNet) on ImageNet at 224 x 224.

    Mixers: learned permutations; ``--network.mixer shuffle`` is plain ShuffleNetV2, the baseline, ``random`` a control.

    Data: ``imagenet2012`` of tensorflow-datasets, which ``python -m experiments.prepare imagenet2012`` prepares once
    from archives that you download: 1,281,167 pictures to train on, and 50,000 to test on by the middle 224 of 256
    pixels. With ``--data.root ROOT`` instead pictures in ``ROOT/train/CLASS/*.JPEG`` and ``ROOT/val/CLASS/*.JPEG``, of
    which ``--data.per-class 100`` takes some. Decoded to 224 x 224 pixels all are 193 GB and 7.5 GB.

    The recipe of the authors of ShuffleNetV2: SGD with momentum 0.9 at the rate 0.5, falling linearly to 0 over 300,000
    steps of batches of 1024, which are 240 epochs; weight decay 4e-5, label smoothing 0.1.

    Ours: random resized crop and flip, of which the recipe says nothing; weight decay leaves out norms and biases; the
    settings of the permutations are those of the preset ``digits``. Batch norms see the whole batch, whatever the
    number of devices. The crop is as :func:`imagenet_mobilenet` says.

    Expected: not measured.

    Cost: not measured; 300,240 steps of 1024 images, 2,278,604 parameters and 1,345,600 more in training, 144,907,992
    multiply-adds an image.

    Command: ``python -m experiments.train imagenet-auto``
    """
    return TrainConfig(
        data=DATA,
        network=replace(AUTO, stem="imagenet"),
        augment=AugmentConfig(flip=True, resized_crop=0.08),
        optimizer=OptimizerConfig(
            learning_rate=0.5,
            schedule="linear",
            warmup_epochs=0,
            momentum=0.9,
            nesterov=False,
            weight_decay=4e-5,
            permutation_rate=0.1,
            constraint="balance",
        ),
        penalty=PenaltyConfig(weight=0.1, end=0.5),
        epochs=240,
        batch_size=1024,
        label_smoothing=0.1,
        log_every=100,
    )


def imagenet_auto_v1() -> TrainConfig:
    """ShuffleNetV1 1.0x of three groups with learned shuffles (AutoShuffleNet) on ImageNet at 224 x 224.

    Mixers: as :func:`imagenet_auto`; ``--network.groups`` is 1, 2, 3, 4 or 8.

    Data: as :func:`imagenet_auto`, and the recipe.

    Expected: not measured.

    Cost: not measured; 300,240 steps of 1024 images, 1,865,728 parameters and 360,000 more in training, 137,460,672
    multiply-adds an image.

    Command: ``python -m experiments.train imagenet-auto-v1``
    """
    return replace(imagenet_auto(), network=replace(AUTO_V1, stem="imagenet"))


def imagenet_dynamic() -> TrainConfig:
    """ShuffleNetV2 1.0x with a permutation for each image (Dynamic Shuffle) on ImageNet at 224 x 224.

    Mixers: as :func:`cifar10_dynamic`.

    Data: as :func:`imagenet_auto`, and the recipe.

    Expected: not measured.

    Cost: not measured; 300,240 steps of 1024 images, 2,600,396 parameters, 145,215,672 multiply-adds an image.

    Command: ``python -m experiments.train imagenet-dynamic``
    """
    return replace(imagenet_auto(), network=replace(DYNAMIC, stem="imagenet"))


def imagenet_static_dynamic() -> TrainConfig:
    """ShuffleNetV2 1.0x with static-dynamic 1x1 layers (Dynamic Shuffle) on ImageNet at 224 x 224.

    Layers: as :func:`cifar10_static_dynamic`.

    Data: as :func:`imagenet_auto`, and the recipe.

    Expected: not measured.

    Cost: not measured; 300,240 steps of 1024 images, 1,883,752 parameters, 72,255,237 multiply-adds an image.

    Command: ``python -m experiments.train imagenet-static-dynamic``
    """
    return replace(imagenet_auto(), network=replace(STATIC_DYNAMIC, stem="imagenet"))


def imagenet_mobilenet() -> TrainConfig:
    """MobileNetV2 1.0x with decomposed dynamic convolutions on ImageNet at 224 x 224.

    Convolutions: ``dcd``, and the classifier; ``--network.pointwise plain --network.head plain`` is the static network,
    ``condconv`` and ``dyconv`` weigh whole kernels.

    Data: as :func:`imagenet_auto`.

    The released recipe: SGD with momentum 0.9, not Nesterov's, at the rate 0.1 from the first step, falling as a cosine
    with every step; 300 epochs of batches of 512; weight decay 2e-5, dropout 0.2, label smoothing 0.1; mixup with an
    alpha that rises to 0.2 over 100 epochs; random resized crop and flip.

    Ours: weight decay leaves out norms and biases. Where pictures are kept in memory as squares of 224 pixels, long
    ones have lost their ends before the crop, whose window has other odds (``random_resized_crop``). Mixup pairs
    neighbours of a batch, and its alpha rises with every step. Batch norms see the whole batch, whatever the number of
    devices.

    Expected: not measured. The paper's at 0.5x with 3.1 M parameters is 70.2 %, as a note cites it, and 65.4 % of the
    static network.

    Cost: not measured; 750,600 steps of 512 images, 5,720,028 parameters, 326,278,460 multiply-adds an image.

    Command: ``python -m experiments.train imagenet-mobilenet``
    """
    return TrainConfig(
        data=DATA,
        network=replace(MOBILENET, stem="imagenet", pointwise="dcd", head="dcd", dropout=0.2),
        augment=AugmentConfig(flip=True, mixup=0.2, mixup_epochs=100, resized_crop=0.08),
        optimizer=OptimizerConfig(
            learning_rate=0.1,
            schedule="cosine",
            warmup_epochs=0,
            momentum=0.9,
            nesterov=False,
            weight_decay=2e-5,
        ),
        epochs=300,
        batch_size=512,
        label_smoothing=0.1,
        log_every=100,
    )


def imagenet_resnet() -> TrainConfig:
    """ResNet-50 with decomposed dynamic convolutions on ImageNet at 224 x 224.

    Convolutions: as :func:`imagenet_mobilenet`; here ``--network.pointwise`` is for all convolutions of the units.

    Data: as :func:`imagenet_auto`.

    The released recipe: as :func:`imagenet_mobilenet` but for 120 epochs of batches of 256, a rate that falls to a
    tenth at the epochs 30, 60 and 90, weight decay 1e-4 and dropout 0.1.

    Ours: as :func:`imagenet_mobilenet`. Another ``--epochs`` moves the falls of the rate with it, to a quarter, a half
    and three quarters, and leaves the 100 epochs of mixup.

    Expected: not measured.

    Cost: not measured; 600,480 steps of 256 images, 29,835,056 parameters, 4,236,426,838 multiply-adds an image.

    Command: ``python -m experiments.train imagenet-resnet``
    """
    config = imagenet_mobilenet()
    return replace(
        config,
        network=replace(RESNET, depth=50, stem="imagenet", pointwise="dcd", head="dcd", dropout=0.1),
        optimizer=replace(
            config.optimizer, schedule="step", step_boundaries=(0.25, 0.5, 0.75), step_factor=0.1, weight_decay=1e-4
        ),
        epochs=120,
        batch_size=256,
    )


def imagenet_addressnet() -> TrainConfig:
    """AddressNet, the network of the paper's table, on ImageNet at 224 x 224.

    Mixers: as :func:`cifar10_addressnet`, and Enhanced AddressNet.

    Data: as :func:`imagenet_auto`, and the recipe. That AddressNet was trained so is an assumption: its recipe is not
    known.

    Expected: not measured.

    Cost: not measured; 300,240 steps of 1024 images, 3,703,688 parameters, 523,401,216 multiply-adds an image.

    Command: ``python -m experiments.train imagenet-addressnet``
    """
    return replace(imagenet_auto(), network=replace(ADDRESSNET, stem="imagenet"))
