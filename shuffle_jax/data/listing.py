"""Which files of a folder are pictures: what is hidden is skipped, what is left out is counted."""

from __future__ import annotations

import operator
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, SupportsIndex

import numpy as np

from shuffle_jax.data.encoded import Record
from shuffle_jax.data.names import composed
from shuffle_jax.typing import Int

SUFFIXES = (".jpg", ".jpeg", ".png")
"""Of the files that are read unless others are named."""

_OTHERS = (".avif", ".bmp", ".gif", ".heic", ".jfif", ".jp2", ".tif", ".tiff", ".webp")
"""Suffixes of pictures that are read where they are named, and said to be left out where they are not."""

_RUBBISH = frozenset({"__MACOSX", "@eaDir", "$RECYCLE.BIN"})
"""Folders that archives and file systems put beside the pictures, with copies of them."""


def is_hidden(name: str) -> bool:
    """Whether a file or folder is none of the user's: ``._a.png``, ``.ipynb_checkpoints``, ``__MACOSX``."""
    return name.startswith(".") or name in _RUBBISH


@dataclass
class LeftOut:
    """Pictures that are not read, counted by the reason."""

    suffixes: Counter[str] = field(default_factory=Counter)
    nested: int = 0
    loose: int = 0

    def note(self, names: Iterable[str]) -> None:
        """Counts the files whose suffix is that of a picture."""
        self.suffixes.update(s for name in names if (s := os.path.splitext(name)[1].lower()) in (*SUFFIXES, *_OTHERS))

    def reasons(self, remedy: str = "name what to read with --data.suffixes") -> str:
        """How many of what, and what to do about them; empty if there is nothing."""
        parts = [f"{number} {suffix}" for suffix, number in sorted(self.suffixes.items())]
        found = [f"{', '.join(parts)} ({remedy})"] if parts else []
        if self.nested:
            found.append(f"{self.nested} in folders inside of a class (move them up)")
        if self.loose:
            found.append(f"{self.loose} in no folder of a class (move them into one)")
        return "; ".join(found)

    def say(self, where: Path, remedy: str = "name what to read with --data.suffixes") -> None:
        """One line on standard error, if anything was left out."""
        if reasons := self.reasons(remedy):
            print(f"left out of {where}: pictures, {reasons}", file=sys.stderr)


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
        path = self._folder / self._name(index)
        return Record(str(path), path, int(self._labels[index]))

    def identities(self) -> list[str]:
        """What says which pictures these are, on any machine: ``<class>/<file>``, see :func:`identity`."""
        text = os.fsdecode(self._names)
        if not text.isascii():
            return [identity(self._name(index)) for index in range(len(self))]
        ends = self._ends.tolist()
        return [identity(text[start:end]) for start, end in zip([0, *ends], ends, strict=False)]

    def _name(self, index: int) -> str:
        start = self._ends[index - 1] if index else 0
        return os.fsdecode(self._names[start : self._ends[index]])


class Listed(NamedTuple):
    """Image files of a split, and their labels."""

    folder: Path
    names: list[str]
    labels: Int[np.ndarray, "n"]

    def take(self, positions: Int[np.ndarray, "m"]) -> Listed:
        """Some of them."""
        return Listed(self.folder, [self.names[i] for i in positions.tolist()], self.labels[positions])

    def identities(self) -> list[str]:
        """See :func:`identity`."""
        return [identity(name) for name in self.names]


def identity(name: str) -> str:
    """A name that has a suffix, with accents composed and the suffix in small letters: the same on every machine.

    >>> identity("cat/A.JPG")
    'cat/A.jpg'
    """
    name = composed(name)
    dot = name.rfind(".")
    return name[:dot] + name[dot:].lower()


def list_split(
    folder: Path,
    labels: dict[str, int],
    root: Path,
    suffixes: tuple[str, ...],
    order: Callable[[str], str],
    left_out: LeftOut,
) -> Listed:
    """The image files of ``folder/<class>/`` and their labels.

    Args:
        folder: of a split.
        labels: by the composed names of the classes.
        root: no link may lead out of it.
        suffixes: of the files to read, in small letters.
        order: by which the names of files are sorted.
        left_out: is told of the pictures that are not among them.

    Raises:
        ValueError: a class has no image or is unknown, or a link leads out of the root.
    """
    names: list[str] = []
    found: list[int] = []
    for name, actual in class_folders(folder, root, order).items():
        if name not in labels:
            raise ValueError(
                f"{folder / actual} is not among the {len(labels)} known classes; "
                f"remove the folder, or add the class to training"
            )
        entries = visible(folder / actual, root)
        candidates = [file for file in entries if file.name.lower().endswith(suffixes)]
        # A link to nowhere is a broken image, and no reason to look away.
        files = [file.name for file in candidates if file.is_file() or not os.path.exists(file)]
        files.sort(key=order)
        here = LeftOut()
        here.note(file.name for file in entries if not file.name.lower().endswith(suffixes))
        for inner in (file for file in entries if file.is_dir(follow_symlinks=False)):
            here.nested += sum(1 for _ in pictures_in(Path(inner), suffixes))
        if not files:
            words = " or ".join(", ".join(suffixes).rsplit(", ", 1))
            but = f", but {reasons}" if (reasons := here.reasons()) else ""
            raise ValueError(f"no {words} image in {folder / actual}{but}; add images, or remove the folder")
        left_out.suffixes += here.suffixes
        left_out.nested += here.nested
        names += [f"{actual}/{file}" for file in files]
        found += [labels[name]] * len(files)
    left_out.loose += sum(
        1 for file in visible(folder, root) if file.name.lower().endswith(suffixes) and file.is_file()
    )
    return Listed(folder, names, np.array(found, np.int32))


def class_folders(folder: Path, root: Path, order: Callable[[str], str]) -> dict[str, str]:
    """The folders of the classes by their composed names, sorted by the order of what they are called.

    Raises:
        ValueError: there are none, or two have the same name in two spellings.
    """
    _check_inside(folder, root)
    found: dict[str, str] = {}
    for actual in (entry.name for entry in visible(folder, root) if entry.is_dir()):
        if (name := composed(actual)) in found:
            raise ValueError(f"{folder} has two folders {name!r}, in two spellings of Unicode: move all into one")
        found[name] = actual
    if not found:
        raise ValueError(f"no class folders in {folder}; put the images of each class in {folder}/<class>/")
    return dict(sorted(found.items(), key=lambda item: order(item[1])))


def visible(folder: Path, root: Path) -> list[os.DirEntry[str]]:
    """What is in a folder and not hidden. A folder tells what its entries are; a million paths would be asked."""
    entries = [entry for entry in os.scandir(folder) if not is_hidden(entry.name)]
    for entry in entries:
        if entry.is_symlink():
            _check_inside(Path(entry), root)
    return entries


def pictures_in(folder: Path, suffixes: tuple[str, ...] = SUFFIXES, left_out: LeftOut | None = None) -> Iterator[Path]:
    """The pictures in a folder and in those inside of it, sorted; hidden ones apart.

    Args:
        folder: to look through.
        suffixes: of the files that are meant, in small letters.
        left_out: is told of other pictures.
    """
    found = []
    for where, inner, names in os.walk(folder):
        inner[:] = [name for name in inner if not is_hidden(name)]
        shown = [name for name in names if not is_hidden(name)]
        chosen = [name for name in shown if name.lower().endswith(suffixes)]
        found += [path for name in chosen if (path := Path(where, name)).is_file()]
        if left_out is not None:
            left_out.note(name for name in shown if not name.lower().endswith(suffixes))
    yield from sorted(found)


def _check_inside(path: Path, root: Path) -> None:
    """Raises ValueError if ``path`` is a link that leads out of ``root``."""
    if path.is_symlink():
        target, inside = Path(os.path.realpath(path)), Path(os.path.realpath(root))
        if not target.is_relative_to(inside):
            raise ValueError(f"{path} is a link to {target}, outside of {root}; put the images themselves there")
