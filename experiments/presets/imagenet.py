"""ImageNet as a folder of pictures: the recipe released with dynamic convolution decomposition."""

from __future__ import annotations

from dataclasses import replace

import tyro

from experiments.presets.convolutions import MOBILENET, RESNET
from shuffle_jax.data import AugmentConfig, FolderConfig
from shuffle_jax.train.config import TrainConfig
from shuffle_jax.train.optimizer import OptimizerConfig


def imagenet_mobilenet() -> TrainConfig:
    """MobileNetV2 1.0x with decomposed dynamic convolutions on ImageNet at 224 x 224.

    Convolutions: ``dcd``, and the classifier; ``--network.pointwise plain --network.head plain`` is the static network,
    ``condconv`` and ``dyconv`` weigh whole kernels.

    Data: ``--data.root ROOT`` with 1,281,167 pictures in ``ROOT/train/CLASS/*.JPEG`` and 50,000 in
    ``ROOT/val/CLASS/*.JPEG``. They are kept whole in the memory of the host and of every device, 193 GB to train on
    and 7.5 GB to test on, which few have. ``--data.per-class 100`` makes the 193 GB 15, ``--data.image-size 128``
    makes them 63; ``--data.test-per-class`` draws from the others.

    The released recipe: SGD with momentum 0.9, not Nesterov's, at the rate 0.1 from the first step, falling as a cosine
    with every step; 300 epochs of batches of 512; weight decay 2e-5, dropout 0.2, label smoothing 0.1; mixup with an
    alpha that rises to 0.2 over 100 epochs; random resized crop and flip.

    Ours: weight decay leaves out norms and biases. The crop is taken from the stored square of 224 pixels, which has
    lost the ends of long pictures, and its window has other odds (``random_resized_crop``). Mixup pairs neighbours of a
    batch, and its alpha rises with every step. Batch norms see the whole batch, whatever the number of devices.

    Expected: not measured.

    Cost: not measured; 750,600 steps of 512 images.

    Command: ``python -m experiments.train imagenet-mobilenet --data.root ROOT``
    """
    return TrainConfig(
        data=FolderConfig(root=tyro.MISSING, image_size=224),
        network=replace(MOBILENET, width=1.0, stem="imagenet", pointwise="dcd", head="dcd", dropout=0.2),
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

    Data: as :func:`imagenet_mobilenet`.

    The released recipe: as :func:`imagenet_mobilenet` but for 120 epochs of batches of 256, a rate that falls to a
    tenth at the epochs 30, 60 and 90, weight decay 1e-4 and dropout 0.1.

    Ours: as :func:`imagenet_mobilenet`. Another ``--epochs`` moves the falls of the rate with it, to a quarter, a half
    and three quarters, and leaves the 100 epochs of mixup.

    Expected: not measured.

    Cost: not measured; 600,480 steps of 256 images.

    Command: ``python -m experiments.train imagenet-resnet --data.root ROOT``
    """
    config = imagenet_mobilenet()
    return replace(
        config,
        network=replace(RESNET, depth=50, width=1.0, stem="imagenet", pointwise="dcd", head="dcd", dropout=0.1),
        optimizer=replace(
            config.optimizer, schedule="step", step_boundaries=(0.25, 0.5, 0.75), step_factor=0.1, weight_decay=1e-4
        ),
        epochs=120,
        batch_size=256,
    )
