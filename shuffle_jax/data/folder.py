"""Images in folders, one folder a class: ``root/train/<class>/*.jpg`` and ``root/val/<class>/*.jpg``."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from shuffle_jax.data.dataset import Dataset, Split, check_holdout, stratified_holdout
from shuffle_jax.typing import Int, UInt8

_SUFFIXES = frozenset({".jpg", ".jpeg", ".png"})
_TEST_FOLDERS = ("val", "validation", "test")


@dataclass(frozen=True)
class FolderConfig:
    """A folder of images.

    The test split is the first of ``root/val``, ``root/validation`` and ``root/test`` that exists; where none
    does, a part of every class of ``root/train`` is held out.

    Args:
        root: the folder that holds ``train``.
        image_size: side of the square images, in pixels.
        holdout: the part of every class held out where there is no test folder, in (0, 1).
        seed: chooses which images those are.
    """

    root: Path
    image_size: int = 64
    holdout: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        if self.image_size < 1:
            raise ValueError(f"image_size must be at least 1, got {self.image_size}")
        check_holdout("holdout", self.holdout, self.seed)


def load_folder(config: FolderConfig, classes: Sequence[str] | None = None) -> Dataset:
    """Reads every JPEG and PNG file of the class folders into memory, in the order of their names.

    Hidden files and folders, and files of other types, are ignored.

    Args:
        config: where the images are and how to prepare them, see ``read_image``.
        classes: the class names in the order of their labels, as kept with a finished run; by default the
            sorted names of the folders in ``root/train``.

    Returns:
        The data set, images uint8 (n, image_size, image_size, 3).

    Raises:
        ValueError: a folder is missing or empty, a class is in one place and not in the other, or a file is
            not a readable image.
    """
    root = Path(config.root)
    if not root.is_dir():
        raise ValueError(f"no folder {root}; set root to the folder that holds 'train'")
    train_root = root / "train"
    if not train_root.is_dir():
        raise ValueError(f"no folder {train_root}; put the training images in {train_root}/<class>/")
    found = _class_names(train_root)
    names = found if classes is None else tuple(classes)
    for missing in sorted(set(names) - set(found)):
        raise ValueError(f"class {missing!r} has no folder in {train_root}; the folders must be the classes given")
    paths, labels = _scan(train_root, names)

    test_root = next((root / name for name in _TEST_FOLDERS if (root / name).is_dir()), None)
    if test_root is not None:
        test_paths, test_labels = _scan(test_root, names)
    else:
        kept, held = stratified_holdout(labels, names, config.holdout, config.seed)
        test_paths, test_labels = [paths[i] for i in held], labels[held]
        paths, labels = [paths[i] for i in kept], labels[kept]
    return Dataset(
        name=root.resolve().name,
        classes=names,
        train=Split(_read_images(paths, config.image_size), labels),
        test=Split(_read_images(test_paths, config.image_size), test_labels),
    )


def read_image(path: Path, size: int) -> UInt8[np.ndarray, "size size 3"]:
    """Reads an image file as a square RGB image.

    The image is turned upright by its EXIF orientation, its shorter side is resized to ``size`` (bicubic,
    with antialiasing) and the centre is kept. Grey levels are repeated over the channels, of 16 bits the
    upper 8 are kept, and transparency is dropped.

    Args:
        path: a file in any format and mode that Pillow reads.
        size: side of the result in pixels, at least 1.

    Returns:
        uint8 (size, size, 3).

    Raises:
        ValueError: the file is not a complete, readable image.
    """
    from PIL import Image, ImageOps

    try:
        with Image.open(path) as file:
            # A JPEG much larger than needed is decoded at 1/2, 1/4 or 1/8 of its size, twice `size` at least.
            file.draft("RGB", (2 * size, 2 * size))
            image = ImageOps.exif_transpose(file)
    except Exception as error:  # OSError, SyntaxError, struct.error and whatever else a decoder raises
        raise ValueError(f"cannot read image {path}: {error}; repair or remove the file") from error
    if image.mode.startswith("I"):  # 16-bit grey; Pillow would clip it at 255
        image = Image.fromarray((np.asarray(image).astype(np.int32) >> 8).astype(np.uint8))
    elif "transparency" in image.info:
        image = image.convert("RGBA")
    return np.asarray(ImageOps.fit(image.convert("RGB"), (size, size), Image.Resampling.BICUBIC))


def _read_images(paths: Sequence[Path], size: int) -> UInt8[np.ndarray, "n size size 3"]:
    images = np.empty((len(paths), size, size, 3), np.uint8)

    def read(index: int) -> None:
        images[index] = read_image(paths[index], size)

    # Pillow decodes and resizes without the interpreter's lock, so threads use every core.
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for _ in pool.map(read, range(len(paths))):
            pass
    return images


def _scan(folder: Path, classes: Sequence[str]) -> tuple[list[Path], Int[np.ndarray, "n"]]:
    """The image files of ``folder/<class>/`` and their labels."""
    paths: list[Path] = []
    labels: list[int] = []
    for name in _class_names(folder):
        if name not in classes:
            raise ValueError(
                f"{folder / name} is not among the {len(classes)} known classes; "
                f"remove the folder, or add the class to training"
            )
        files = sorted(file for file in _visible(folder / name) if file.suffix.lower() in _SUFFIXES and file.is_file())
        if not files:
            raise ValueError(f"no .jpg, .jpeg or .png image in {folder / name}; add images, or remove the folder")
        paths += files
        labels += [classes.index(name)] * len(files)
    return paths, np.array(labels, np.int32)


def _class_names(folder: Path) -> tuple[str, ...]:
    names = tuple(sorted(entry.name for entry in _visible(folder) if entry.is_dir()))
    if not names:
        raise ValueError(f"no class folders in {folder}; put the images of each class in {folder}/<class>/")
    return names


def _visible(folder: Path) -> list[Path]:
    return [entry for entry in folder.iterdir() if not entry.name.startswith(".")]
