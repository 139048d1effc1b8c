"""Classifies pictures: `python -m experiments.predict MODEL PICTURES...`.

MODEL is the folder of a run, or what experiments.export wrote: a file for JAX or an ONNX file, for both of which the
code that made the network is not loaded, or a folder in the layout of the hub. PICTURES are image files, folders of
them, or one .npy array (n, h, w, c) of pixels.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import tyro

from experiments.cli import keep_programs, main, parse, print_table, quiet_libraries
from shuffle_jax.data.listing import LeftOut, pictures_in
from shuffle_jax.data.names import told_apart
from shuffle_jax.data.preprocessing import Preprocessing
from shuffle_jax.deploy import exported
from shuffle_jax.deploy.exported import in_batches, ranked
from shuffle_jax.files import replacing
from shuffle_jax.typing import Array, Float, Images


@dataclass(frozen=True)
class Arguments:
    """What to classify, and how to show it."""

    model: Annotated[Path, tyro.conf.Positional]
    """Folder of a run (the network is hardened), or an exported file or folder."""

    pictures: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Image files, folders of them, or one .npy array (n, h, w, c) of 8-bit pixels, with --raw of normalised floats."""

    raw: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """The .npy array is normalised already: no preprocessing."""

    top: int = 3
    """How many classes to show for each picture, most probable first."""

    json: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Print JSON, one object for each picture, and not a table."""

    logits: Path | None = None
    """Also write the logits, float32 (n, classes), to this .npy file."""

    broken: Literal["stop", "skip"] = "stop"
    """What to do about a file that is no readable image; a skipped one is named on standard error."""

    batch_size: int = 64
    """How many pictures go through the network at once."""

    checkpoint: str = "last"
    """Of a run: "last", "best" (by relaxed top-1 accuracy), or a step."""


@dataclass(frozen=True)
class Model:
    """A network with what stands before and behind it."""

    logits: Callable[[Images], Float[Array, "n k"]]
    preprocessing: Preprocessing
    classes: tuple[str, ...]


def run(arguments: Sequence[str] | None = None) -> None:
    """Parses the command line, classifies and prints."""
    options = parse(Arguments, arguments, prog="python -m experiments.predict", description=__doc__)
    quiet_libraries()
    keep_programs()
    for name in ("batch_size", "top"):
        if getattr(options, name) < 1:
            raise ValueError(f"{name} must be at least 1, got {getattr(options, name)}")
    model = load_model(options.model, options.checkpoint)
    names, images = read(options, model.preprocessing)
    logits = in_batches(model.logits, images, options.batch_size)
    if not np.isfinite(logits).all():
        first = names[int(np.argmin(np.isfinite(logits).all(-1)))]
        raise ArithmeticError(
            f"the logits of {first} are not finite: look at the array, or at the training of {options.model}"
        )
    if options.logits is not None:
        with replacing(options.logits) as temporary, temporary.open("wb") as file:
            np.save(file, logits, allow_pickle=False)
    found = [ranked(row, model.classes, options.top) for row in logits]
    if options.json:
        records = [{"picture": name, "classes": dict(best)} for name, best in zip(names, found, strict=True)]
        print(json.dumps(records, indent=1, ensure_ascii=False))
        return
    shown = min(options.top, len(model.classes))
    columns = ("picture", *(word for i in range(shown) for word in ((f"{i + 1}.", "probability"))))
    cells = [
        (name, *(word for label, p in best for word in (label, f"{p:.4f}")))
        for name, best in zip(names, found, strict=True)
    ]
    print_table(columns, cells)


def load_model(path: Path, checkpoint: str) -> Model:
    """A network from a run, or from an exported file or folder.

    Raises:
        ValueError: there is neither, or it cannot be read.
    """
    if path.is_dir():
        from shuffle_jax.deploy.hub import is_folder, load_network
        from shuffle_jax.train.trained import load_trained

        if is_folder(path):
            loaded = load_network(path)
            return Model(loaded.logits, loaded.preprocessing, loaded.classes)
        trained = load_trained(path, checkpoint)
        return Model(trained.logits, trained.preprocessing, told_apart(trained.classes))
    if not path.exists():
        raise ValueError(f"there is no {path}: name the folder of a run, or a file written by experiments.export")
    network = exported.load(path)
    return Model(network.logits, network.preprocessing, network.classes)


def read(options: Arguments, preprocessing: Preprocessing) -> tuple[list[str], Float[np.ndarray, "n h w c"]]:
    """Names and normalised images of everything that was asked for.

    Raises:
        ValueError: a file is missing or unreadable, an array of another type or shape, or nothing is left.
    """
    arrays = [path for path in options.pictures if path.suffix == ".npy"]
    if arrays and len(options.pictures) > 1:
        raise ValueError(f"give the array {arrays[0]} alone, without other pictures")
    if arrays:
        images = _array(arrays[0])
        names = [f"{arrays[0]}[{i}]" for i in range(len(images))]
        return names, _raw(images, preprocessing) if options.raw else preprocessing.normalize(images)
    if options.raw:
        raise ValueError("--raw is for one .npy array of normalised images: leave it out for image files")
    names, pixels = [], []
    for path in find(options.pictures):
        try:
            pixels.append(preprocessing.read(path))
            names.append(str(path))
        except ValueError as error:
            if options.broken == "stop":
                raise ValueError(f"{error}, or skip it with --broken skip") from error
            print(f"skipped: {error}", file=sys.stderr)
    if not names:
        raise ValueError("no picture is left to classify: name image files, or folders with .jpg, .jpeg or .png files")
    return names, preprocessing.normalize(np.stack(pixels))


def find(pictures: Sequence[Path]) -> list[Path]:
    """The files that are named, and the pictures of folders, see :func:`shuffle_jax.data.listing.pictures_in`.

    Raises:
        ValueError: something named is not there.
    """
    found: list[Path] = []
    for path in pictures:
        if path.is_dir():
            left_out = LeftOut()
            found += pictures_in(path, left_out=left_out)
            left_out.say(path, "name them to have them classified")
        elif path.exists():
            found.append(path)
        else:
            raise ValueError(f"there is no picture {path}")
    return found


def _array(path: Path) -> np.ndarray[Any, Any]:
    if not path.is_file():
        raise ValueError(f"there is no array {path}")
    try:
        images = np.load(path, allow_pickle=False)  # objects could run code
    except (ValueError, EOFError) as error:
        raise ValueError(f"{path} does not hold one plain array ({error}): write it with numpy.save") from error
    if images.ndim != 4 or not len(images):
        raise ValueError(f"{path} has the shape {images.shape}: give (n, h, w, c) with at least one image")
    return images


def _raw(images: np.ndarray, preprocessing: Preprocessing) -> Float[np.ndarray, "n h w c"]:
    if not np.issubdtype(images.dtype, np.floating) or images.shape[1:] != preprocessing.shape:
        raise ValueError(
            f"the images are {images.dtype} {images.shape}: with --raw give normalised floats "
            f"(n, {', '.join(map(str, preprocessing.shape))})"
        )
    return images.astype(np.float32)


if __name__ == "__main__":
    main(run)
