"""The data that presets read, and the words on them."""

from __future__ import annotations

from typing import NamedTuple

import tyro

from shuffle_jax.data import DataConfig, DigitsConfig, FolderConfig, TfdsConfig
from shuffle_jax.models.stem import StemKind


class Data(NamedTuple):
    """Data of presets, with the stem of their networks."""

    name: str
    title: str
    text: str
    config: DataConfig
    stem: StemKind
    images: int = 0  # to train on; 0 where that depends on the folder


_PREPARED = "``{0}`` of tensorflow-datasets, which ``python -m experiments.prepare {0}`` prepares once"
_CIFAR = (
    f"{_PREPARED}: 50,000 pictures of {{1}} classes to train on and 10,000 to test on, in memory 184 MB. With "
    "``--data.root ROOT`` instead pictures in ``ROOT/train/CLASS/*.png`` and ``ROOT/test/CLASS/*.png``."
)
_FOLDER = (
    "``--data.root ROOT`` with ``ROOT/train/CLASS/*.jpg|png`` and, if there is one, ``ROOT/val`` or ``ROOT/test``; "
    "otherwise a tenth of the training images is held out. Pictures of any size are brought to ``--data.image-size``; "
    "below 48 pixels choose ``--network.stem small``."
)
_TINY = (
    "``--data.root ROOT`` with 200 classes, 100,000 pictures in ``ROOT/train/CLASS/*.JPEG`` and 10,000 in "
    "``ROOT/val/CLASS/*.JPEG``; in memory 1.35 GB. As it is published, the training pictures are one folder deeper, in "
    "``CLASS/images``, and a list names the classes of the others: move them first. Tensorflow-datasets has no such "
    "set; ``--data.name NAME`` reads one prepared by a builder of your own."
)
_IMAGENET = (
    f"{_PREPARED} from archives that you download: 1,281,167 pictures to train on, and 50,000 to test on by the middle "
    "224 of 256 pixels. With ``--data.root ROOT`` instead pictures in ``ROOT/train/CLASS/*.JPEG`` and "
    "``ROOT/val/CLASS/*.JPEG``, of which ``--data.per-class 100`` takes some. Decoded to 224 x 224 pixels all are "
    "193 GB and 7.5 GB."
)
_SCANS = "1,797 scans of 8 x 8 pixels, embedded in scikit-learn; 1,438 to train on, 359 to test on."

DIGITS = Data("digits", "scikit-learn's handwritten digits", _SCANS, DigitsConfig(), "small")
_FOLDER_64 = FolderConfig(root=tyro.MISSING, image_size=64)
FOLDER = Data("folder", "a folder of images, one subfolder a class", _FOLDER, _FOLDER_64, "imagenet")
SMALL_FOLDER = FOLDER._replace(config=FolderConfig(root=tyro.MISSING, image_size=32), stem="small")
CIFAR10 = Data(
    "cifar10",
    "CIFAR-10 at 32 x 32",
    _CIFAR.format("cifar10", 10),
    TfdsConfig("cifar10", image_size=32),
    "small",
    50_000,
)
CIFAR100 = CIFAR10._replace(
    name="cifar100",
    title="CIFAR-100 at 32 x 32",
    text=_CIFAR.format("cifar100", 100),
    config=TfdsConfig("cifar100", image_size=32),
)
TINY_IMAGENET = Data("tiny-imagenet", "Tiny ImageNet at 64 x 64", _TINY, _FOLDER_64, "imagenet", 100_000)
TINY_SMALL_STEM = TINY_IMAGENET._replace(stem="small")
IMAGENET = Data(
    "imagenet",
    "ImageNet at 224 x 224",
    _IMAGENET.format("imagenet2012"),
    TfdsConfig("imagenet2012", image_size=224, crop=0.875),
    "imagenet",
    1_281_167,
)
