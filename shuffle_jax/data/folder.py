"""Images in folders, one folder a class: ``root/train/<class>/*.jpg`` and ``root/val/<class>/*.jpg``."""

from __future__ import annotations

import operator
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple, SupportsIndex

import numpy as np

from shuffle_jax.data.dataset import Dataset, check_holdout, stratified_holdout
from shuffle_jax.data.encoded import Encoded, Record, bombs_are_errors, check_crop, in_threads, read_image
from shuffle_jax.typing import Int

SUFFIXES = (".jpg", ".jpeg", ".png")
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
        seed: chooses which images those are, and which are drawn.
        broken: what to do about files that are no readable image: "stop" at the first, or "skip" them, as if they
            were not there, with one line on standard error. To find them, every image is read twice.
        per_class: at most this many training images of each class, drawn by seed; None for all. Which ones depends on
            how many files the class has and on the order of their names, on no other class; a larger number adds to
            those of a smaller one. A part to hold out is held out first, so it is the same for every number. Only
            what is drawn is opened. So with broken = "skip" a class has fewer images by those of the drawn ones that
            are broken, and a part is held out of all files, broken ones among them.
        test_per_class: at most this many test images of each class, drawn in the same way; None for all.
        crop: the share of a test picture's shorter side that is kept, in (0, 1]: 0.875 is ImageNet's centre of 224
            pixels of 256. Training pictures that are kept in memory keep the whole of it.
    """

    root: Path
    image_size: int = 64
    holdout: float = 0.1
    seed: int = 0
    broken: Literal["stop", "skip"] = "stop"
    per_class: int | None = None
    test_per_class: int | None = None
    crop: float = 1.0

    def __post_init__(self) -> None:
        if self.image_size < 1:
            raise ValueError(f"image_size must be at least 1, got {self.image_size}")
        check_holdout("holdout", self.holdout, self.seed)
        check_crop(self.crop)
        for name, number in (("per_class", self.per_class), ("test_per_class", self.test_per_class)):
            if number is not None and number < 1:
                raise ValueError(f"{name} must be at least 1, or None for all images, got {number}")

    @property
    def draws(self) -> bool:
        """Whether it is a subset of the images that is asked for."""
        return self.per_class is not None or self.test_per_class is not None


def load_folder(config: FolderConfig, classes: Sequence[str] | None = None) -> Dataset:
    """Finds the JPEG and PNG files of the class folders, all or those drawn, in the order of their names.

    Hidden files and folders, and files of other types, are ignored. Links are followed inside of the root only; the
    root itself may be one.

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
        raise ValueError(f"no folder {root}; set root to the folder that holds 'train'")
    train_root = root / "train"
    if not train_root.is_dir():
        raise ValueError(f"no folder {train_root}; put the training images in {train_root}/<class>/")
    found = _class_names(train_root, root)
    names = found if classes is None else tuple(classes)
    for missing in sorted(set(names) - set(found)):
        raise ValueError(f"class {missing!r} has no folder in {train_root}; the folders must be the classes given")
    test_root = next((root / name for name in _TEST_FOLDERS if (root / name).is_dir()), None)
    splits = [_scan(folder, names, root) for folder in (train_root, test_root) if folder is not None]
    if config.draws:  # Before broken images are looked for: nothing is opened that is not drawn.
        splits = _both(splits, names, config)
        numbers = (config.per_class, config.test_per_class)
        splits = [_drawn(files, number, config.seed) for files, number in zip(splits, numbers, strict=True)]
    if config.broken == "skip":
        splits = _whole(splits, names, config)
    train, test = (Files(*files) for files in _both(splits, names, config))
    return Dataset(
        name=root.resolve().name,
        classes=names,
        train=Encoded(train, config.image_size),
        test=Encoded(test, config.image_size, crop=config.crop),
    )


class Files:
    """Image files of a split as records.

    Their names are kept as one text: a million paths would take half a gigabyte, and seconds to send to a process.

    Args:
        folder: what holds the folders of the classes.
        names: of the files, ``<class>/<file>``.
        labels: their labels, int32 (n,).
    """

    def __init__(self, folder: Path, names: Sequence[str], labels: Int[np.ndarray, "n"]) -> None:
        encoded = [os.fsencode(name) for name in names]
        self._folder, self._names, self._labels = folder, b"".join(encoded), labels
        self._ends = np.cumsum([len(name) for name in encoded], dtype=np.int64)

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, position: SupportsIndex) -> Record:
        index = operator.index(position)
        start = self._ends[index - 1] if index else 0
        path = self._folder / os.fsdecode(self._names[start : self._ends[index]])
        return Record(str(path), path, int(self._labels[index]))


class _Files(NamedTuple):
    """Image files of a split, and their labels."""

    folder: Path
    names: list[str]
    labels: Int[np.ndarray, "n"]

    def take(self, positions: Int[np.ndarray, "m"]) -> _Files:
        return _Files(self.folder, [self.names[i] for i in positions.tolist()], self.labels[positions])


def _both(splits: list[_Files], classes: Sequence[str], config: FolderConfig) -> list[_Files]:
    """Both splits: of one, a part of every class is held out."""
    if len(splits) == 2:
        return splits
    (files,) = splits
    return [files.take(part) for part in stratified_holdout(files.labels, classes, config.holdout, config.seed)]


def _drawn(files: _Files, number: int | None, seed: int) -> _Files:
    """At most ``number`` files of each class, in their order."""
    if number is None:
        return files
    members = [np.flatnonzero(files.labels == label) for label in np.unique(files.labels)]
    # As for a hold-out: a frozen stream, started afresh for each class.
    drawn = [np.random.RandomState(seed).permutation(positions)[:number] for positions in members]
    return files.take(np.sort(np.concatenate(drawn)))


def _whole(splits: list[_Files], classes: Sequence[str], config: FolderConfig) -> list[_Files]:
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


def _scan(folder: Path, classes: Sequence[str], root: Path) -> _Files:
    """The image files of ``folder/<class>/`` and their labels."""
    names: list[str] = []
    labels: list[int] = []
    for name in _class_names(folder, root):
        if name not in classes:
            raise ValueError(
                f"{folder / name} is not among the {len(classes)} known classes; "
                f"remove the folder, or add the class to training"
            )
        candidates = [file for file in _visible(folder / name, root) if file.name.lower().endswith(SUFFIXES)]
        # A link to nowhere is a broken image, and no reason to look away.
        files = sorted(file.name for file in candidates if file.is_file() or not os.path.exists(file))
        if not files:
            raise ValueError(f"no .jpg, .jpeg or .png image in {folder / name}; add images, or remove the folder")
        names += [f"{name}/{file}" for file in files]
        labels += [classes.index(name)] * len(files)
    return _Files(folder, names, np.array(labels, np.int32))


def _class_names(folder: Path, root: Path) -> tuple[str, ...]:
    _check_inside(folder, root)
    names = tuple(sorted(entry.name for entry in _visible(folder, root) if entry.is_dir()))
    if not names:
        raise ValueError(f"no class folders in {folder}; put the images of each class in {folder}/<class>/")
    return names


def _visible(folder: Path, root: Path) -> list[os.DirEntry[str]]:
    """What is in a folder and not hidden. A folder tells what its entries are; a million paths would be asked."""
    entries = [entry for entry in os.scandir(folder) if not entry.name.startswith(".")]
    for entry in entries:
        if entry.is_symlink():
            _check_inside(Path(entry), root)
    return entries


def _check_inside(path: Path, root: Path) -> None:
    """Raises ValueError if ``path`` is a link that leads out of ``root``."""
    if path.is_symlink():
        target, inside = Path(os.path.realpath(path)), Path(os.path.realpath(root))
        if not target.is_relative_to(inside):
            raise ValueError(f"{path} is a link to {target}, outside of {root}; put the images themselves there")
