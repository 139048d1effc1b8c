"""Texts that hold numbers: read whole, checked word by word."""

from __future__ import annotations

import math
from pathlib import Path


def read_text(path: Path) -> str:
    """The content of a text file.

    Raises:
        ValueError: it is no text.
        OSError: there is no such file, or it cannot be read.
    """
    content = path.read_bytes()
    if b"\0" in content:
        raise ValueError(f"{path} is no text but a binary file: give one with numbers written out")
    return content.decode("utf-8-sig", errors="replace")


def number(word: str, where: Path | str) -> float:
    """The number that a word is.

    Raises:
        ValueError: it is no finite number; ``where`` says where it stands.
    """
    if not is_number(word):
        raise ValueError(f"{where}: {shown(word)} is no finite number: correct it, or get the file again")
    return float(word)


def is_number(word: str) -> bool:
    """Whether a word is a finite number."""
    try:
        return math.isfinite(float(word)) and "_" not in word  # Python reads 1_000, and no other program does
    except ValueError:
        return False


def shown(text: str) -> str:
    """What stands in a file, fit for one line."""
    text = text.strip()
    return repr(text if len(text) <= 40 else f"{text[:40]}...")
