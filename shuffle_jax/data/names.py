"""Names of classes and of files: one spelling for each, whatever system wrote it, and numbers drawn by them."""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from shuffle_jax.typing import UInt64


def composed(name: str) -> str:
    r"""A name with accents composed (Unicode NFC): some systems store folder names decomposed.

    >>> composed("the\u0301") == "th\u00e9"
    True
    """
    return name if name.isascii() else unicodedata.normalize("NFC", name)


def told_apart(names: Sequence[str]) -> tuple[str, ...]:
    """The names with a number behind those that are there already: two of ImageNet's classes are cranes.

    >>> told_apart(["crane", "ant", "crane"])
    ('crane', 'ant', 'crane (2)')
    """
    taken, found = set(names), []
    seen: set[str] = set()
    for name in names:
        number, candidate = 1, name
        while candidate in seen or (number > 1 and candidate in taken):
            number += 1
            candidate = f"{name} ({number})"
        seen.add(candidate)
        found.append(candidate)
    return tuple(found)


def image_keys(purpose: str, seed: int, identities: Iterable[str]) -> UInt64[np.ndarray, "n"]:
    """A number for each image, from what says which it is, the seed and what it is for, as good as uniform."""
    start = hashlib.blake2b(f"{purpose} {seed} ".encode(), digest_size=8)
    digests = []
    for identity in identities:
        digest = start.copy()
        digest.update(identity.encode("utf-8", "surrogateescape"))
        digests.append(digest.digest())
    return np.frombuffer(b"".join(digests), "<u8")


def read_classes(path: Path) -> tuple[str, ...]:
    """The names of classes in a text file, one a line.

    Empty lines, blanks around a name and a byte-order mark belong to none.

    Returns:
        The names with accents composed, equal ones told apart.

    Raises:
        ValueError: the file is not there, or no text in UTF-8.
    """
    if not path.is_file():
        raise ValueError(f"there is no file {path}: name a text file with one class a line")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no text in UTF-8 ({error}): write one class a line") from error
    return told_apart([composed(line.strip()) for line in text.splitlines() if line.strip()])
