"""Images in folders, one folder a class: ``root/train/<class>/*.jpg`` and ``root/val/<class>/*.jpg``."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from shuffle_jax.data.dataset import Dataset, check_holdout, check_validation, holdout_by_key, stratified_holdout
from shuffle_jax.data.encoded import Encoded, bombs_are_errors, check_crop, in_threads, read_image
from shuffle_jax.data.listing import SUFFIXES, Files, LeftOut, Listed, class_folders, list_split
from shuffle_jax.data.names import composed, image_keys
from shuffle_jax.data.vary import Vary, variants

_TEST_FOLDERS = ("val", "validation", "test")
_NAMED = 3
"""How many broken images a warning names."""


@dataclass(frozen=True)
class FolderConfig:
    """A folder of images.

    The test split is the first of ``root/val``, ``root/validation`` and ``root/test`` that exists; where none
    does, a part of every class of ``root/train`` is held out.

    Args:
        root: the folder that holds ``train``.
        image_size: side of the square images, in pixels.
        holdout: the part of every class held out where there is no test folder, in (0, 1).
        seed: chooses which images those are, which are drawn, and the variant of each.
        broken: what to do about files that are no readable image: "stop" at the first, or "skip" them, as if they
            were not there, with one line on standard error. To find them, every image is read twice; with
            validation none of a test folder is.
        per_class: at most this many training images of each class, drawn by seed; None for all. Which ones depends on
            the files of the class, on no other class; a larger number adds to those of a smaller one. A part to hold
            out is held out first, so it is the same for every number. Only what is drawn is opened. So with
            broken = "skip" a class has fewer images by those of the drawn ones that are broken, and a part is held
            out of all files, broken ones among them.
        test_per_class: at most this many test images of each class, drawn in the same way; None for all.
        crop: the share of a test picture's shorter side that is kept, in (0, 1]: 0.875 is ImageNet's centre of 224
            pixels of 256. Training pictures that are kept in memory keep the whole of it.
        suffixes: of the files that are read. Others that Pillow reads, such as ".webp", ".gif" (the first frame) and
            ".tif", may be named; how many of them are left out is said on standard error.
        choose: how images are held out and drawn: by the "name" of each file alone, so that one that is added moves
            no other from the training to the test, or by its place in the "order" of all, as earlier versions did.
        vary: changes each image of training and test in one of six ways, drawn by its name: the order of its "colors"
            or YCbCr "planes", or one of six "corruptions", see :mod:`shuffle_jax.data.vary`.
        validation: the part of every class of the training images, of those drawn, in [0, 1), that is held out by seed
            and measured on in place of the test images, which the run leaves alone: to choose settings by. 0 for none.
            An image more in a class draws those of the class anew.
    """

    root: Path
    image_size: int = 64
    holdout: float = 0.1
    seed: int = 0
    broken: Literal["stop", "skip"] = "stop"
    per_class: int | None = None
    test_per_class: int | None = None
    crop: float = 1.0
    suffixes: tuple[str, ...] = SUFFIXES
    choose: Literal["name", "order"] = "name"
    vary: Vary = "none"
    validation: float = 0.0

    def __post_init__(self) -> None:
        if self.image_size < 1:
            raise ValueError(f"image_size must be at least 1, got {self.image_size}")
        check_holdout("holdout", self.holdout, self.seed)
        check_validation(self.validation)
        check_crop(self.crop)
        for name, number in (("per_class", self.per_class), ("test_per_class", self.test_per_class)):
            if number is not None and number < 1:
                raise ValueError(f"{name} must be at least 1, or None for all images, got {number}")
        if odd := [s for s in self.suffixes if not s.startswith(".") or s != s.lower()] or not self.suffixes:
            raise ValueError(f"suffixes must be such as .jpg and .webp, in small letters, got {odd or 'none'}")

    @property
    def draws(self) -> bool:
        """Whether it is a subset of the images that is asked for."""
        return self.per_class is not None or self.test_per_class is not None


def load_folder(config: FolderConfig, classes: Sequence[str] | None = None) -> Dataset:
    """Finds the pictures of the class folders, all or those drawn, in the order of their names.

    Hidden files and folders are skipped, other pictures counted on standard error. Names that differ in the Unicode
    form of their accents alone are the same. Links are followed inside of the root only; the root itself may be one.

    Args:
        config: where the images are and how to prepare them, see ``read_image``.
        classes: the class names in the order of their labels, as kept with a finished run; by default the
            sorted names of the folders in ``root/train``.

    Returns:
        The data set, images uint8 (n, image_size, image_size, 3), which are read and decoded when they are asked
        for. A file that is no readable image is then a ValueError, unless ``broken`` is "skip".

    Raises:
        ValueError: a folder is missing or empty, a class of the test folder is not in ``train``, or a link leads out of
            the root.
    """
    root = Path(config.root)
    if not root.is_dir():
        raise ValueError(f"no folder {root}; set data.root to the folder that holds 'train'")
    train_root = root / "train"
    if not train_root.is_dir():
        raise ValueError(f"no folder {train_root}; put the training images in {train_root}/<class>/")
    order = composed if config.choose == "name" else str
    found = class_folders(train_root, root, order)
    names = tuple(found) if classes is None else tuple(classes)
    labels = {composed(name): label for label, name in enumerate(names)}
    for missing in sorted(name for name in names if composed(name) not in found):
        raise ValueError(f"class {missing!r} has no folder in {train_root}; the folders must be the classes given")
    test_root = next((root / name for name in _TEST_FOLDERS if (root / name).is_dir()), None)
    folders, left_out = [folder for folder in (train_root, test_root) if folder is not None], LeftOut()
    splits = [list_split(folder, labels, root, config.suffixes, order, left_out) for folder in folders]
    left_out.say(root)
    if config.draws:  # Before broken images are looked for: nothing is opened that is not drawn.
        splits = _both(splits, names, config)
        numbers = (config.per_class, config.test_per_class)
        splits = [_drawn(files, number, config) for files, number in zip(splits, numbers, strict=True)]
    if config.broken == "skip":
        read = 1 if config.validation else 2  # a test folder that is not measured on stays closed
        splits = [*_whole(splits[:read], names, config), *splits[read:]]
    splits = _both(splits, names, config)
    if config.validation:
        parts = stratified_holdout(splits[0].labels, names, config.validation, config.seed)
        splits = [splits[0].take(part) for part in parts]
    train, test = (Files(*files) for files in splits)
    varied, varied_test = (variants(config.vary, 3, files.identities, config.seed) for files in (train, test))
    return Dataset(
        name=root.resolve().name,
        classes=names,
        train=Encoded(train, config.image_size, vary=varied),
        test=Encoded(test, config.image_size, crop=config.crop, vary=varied_test),
        validation=config.validation > 0,
    )


def _both(splits: list[Listed], classes: Sequence[str], config: FolderConfig) -> list[Listed]:
    """Both splits: of one, a part of every class is held out."""
    if len(splits) == 2:
        return splits
    (files,) = splits
    if config.choose == "order":
        parts = stratified_holdout(files.labels, classes, config.holdout, config.seed)
    else:
        keys = image_keys("hold out", config.seed, files.identities())
        parts = holdout_by_key(files.labels, classes, config.holdout, keys)
    return [files.take(part) for part in parts]


def _drawn(files: Listed, number: int | None, config: FolderConfig) -> Listed:
    """At most ``number`` files of each class, in their order."""
    if number is None:
        return files
    members = [np.flatnonzero(files.labels == label) for label in np.unique(files.labels)]
    if config.choose == "order":  # As for a hold-out: a frozen stream, started afresh for each class.
        drawn = [np.random.RandomState(config.seed).permutation(positions)[:number] for positions in members]
    else:
        keys = image_keys("draw", config.seed, files.identities())
        drawn = [positions[np.argsort(keys[positions], kind="stable")[:number]] for positions in members]
    return files.take(np.sort(np.concatenate(drawn)))


def _whole(splits: list[Listed], classes: Sequence[str], config: FolderConfig) -> list[Listed]:
    """The readable images of each split; the others are named on standard error, in one line."""

    def is_whole(path: Path) -> bool:
        try:
            read_image(path, config.image_size)
        except ValueError:
            return False
        return True

    files = [split.folder / name for split in splits for name in split.names]
    with bombs_are_errors():
        whole = np.array(in_threads(is_whole, files), bool)
    broken = [str(file) for file, good in zip(files, whole, strict=True) if not good]
    if broken:
        more = ", ..." if len(broken) > _NAMED else ""
        first = ", ".join(broken[:_NAMED]) + more
        print(f"warning: {len(broken)} of {len(files)} images are broken and left out: {first}", file=sys.stderr)
    parts = np.split(whole, np.cumsum([len(split.names) for split in splits])[:-1])
    kept = [split.take(np.flatnonzero(part)) for split, part in zip(splits, parts, strict=True)]
    for before, after in zip(splits, kept, strict=True):
        for label in sorted(set(before.labels.tolist()) - set(after.labels.tolist())):
            what, remedy = ("drawn from", "draw more, repair them") if config.draws else ("in", "add images")
            folder = before.folder / classes[label]
            raise ValueError(f"every image {what} {folder} is broken; {remedy}, or remove the folder")
    return kept
