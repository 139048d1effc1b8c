"""Scikit-learn's handwritten digits: 1,797 real scans of 8x8 pixels, inside the package, no download."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from shuffle_jax.data.dataset import Dataset, Split, check_holdout, check_validation, stratified_holdout
from shuffle_jax.data.vary import Vary, variants


@dataclass(frozen=True)
class DigitsConfig:
    """The embedded handwritten digits.

    Args:
        test_fraction: the part of every class kept for testing, in (0, 1).
        seed: chooses which images those are, and the variant of each.
        vary: changes each image of training and test in one of six ways: "corruptions", see
            :mod:`shuffle_jax.data.vary`. Grey images have no "colors" to vary.
        validation: the part of every class of the training images, in [0, 1), that is held out by the same seed and
            measured on in place of the test images, which the run leaves alone: to choose settings by. 0 for none.
    """

    test_fraction: float = 0.2
    seed: int = 0
    vary: Vary = "none"
    validation: float = 0.0

    def __post_init__(self) -> None:
        check_holdout("test_fraction", self.test_fraction, self.seed)
        check_validation(self.validation)


def load_digits(config: DigitsConfig) -> Dataset:
    """Loads the digits as images of shape (8, 8, 1), the scans' 17 grey levels spread over 0 to 255.

    Args:
        config: how to split them. The defaults give 1,438 images to train on and 359 to test on.

    Returns:
        The data set with classes "0" to "9".

    Raises:
        ValueError: colours were to vary.

    Source: E. Alpaydin, C. Kaynak, "Optical Recognition of Handwritten Digits", UCI repository, 1998 (its
    test part, as ``sklearn.datasets.load_digits`` embeds it).
    """
    from sklearn import datasets

    pixels, labels = datasets.load_digits(return_X_y=True)
    images = np.round(pixels * (255 / 16)).astype(np.uint8).reshape(-1, 8, 8, 1)
    varied = variants(config.vary, 1, lambda: map(str, range(len(images))), config.seed)
    if varied is not None:
        images = np.stack([varied(image, position) for position, image in enumerate(images)])
    labels = labels.astype(np.int32)
    classes = tuple(str(digit) for digit in range(10))
    train, test = stratified_holdout(labels, classes, config.test_fraction, config.seed)
    if config.validation:
        parts = stratified_holdout(labels[train], classes, config.validation, config.seed)
        train, test = (train[part] for part in parts)
    return Dataset(
        name="digits",
        classes=classes,
        train=Split(images[train], labels[train]),
        test=Split(images[test], labels[test]),
        validation=config.validation > 0,
    )
