"""Which pictures a run was trained and measured on: how many, a digest, and by name what has changed since."""

from __future__ import annotations

import gzip
import hashlib
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from shuffle_jax.data.dataset import Dataset, Examples, Split
from shuffle_jax.data.listing import Files

_NAMED = 3
"""How many changed pictures of each kind a message names."""


class DataChanged(ValueError):
    """The pictures are not those that a run was started with; ``what`` says how they differ."""

    def __init__(self, what: str) -> None:
        super().__init__(f"{what}: put them back, or start another run")
        self.what = what


@dataclass(frozen=True)
class Inventory:
    """The pictures of a data set by split.

    Attributes:
        train: keys of the training images, in any order: ``<class>/<file>``, or what stands for all of a split.
        test: keys of the test images.
        counts: how many images there are of each.
        by_name: whether every key names an image.
    """

    train: tuple[str, ...]
    test: tuple[str, ...]
    counts: tuple[int, int]
    by_name: bool = False

    @cached_property
    def text(self) -> bytes:
        """All keys, one a line, sorted: equal for equal data on every machine."""
        parts = []
        for split, keys in (("test", self.test), ("train", self.train)):
            parts += [f"{split}/", f"\n{split}/".join(sorted(keys)), "\n"] if keys else []
        return "".join(parts).encode("utf-8", "surrogateescape")

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the text."""
        return hashlib.sha256(self.text).hexdigest()

    def to_json(self) -> dict[str, Any]:
        """What a run's configuration keeps of it."""
        return {"train": self.counts[0], "test": self.counts[1], "digest": self.digest}

    def packed(self) -> bytes:
        """The text compressed, the same bytes every time."""
        return gzip.compress(self.text, 6, mtime=0)


def inventory(dataset: Dataset) -> Inventory:
    """The pictures of a data set; of one without files a digest of its arrays stands for them."""
    train, test = _keys(dataset.train), _keys(dataset.test)
    by_name = all(isinstance(getattr(split, "records", None), Files) for split in (dataset.train, dataset.test))
    return Inventory(train, test, (len(dataset.train), len(dataset.test)), by_name)


def check_unchanged(
    now: Inventory, kept: Mapping[str, Any], packed: bytes | None, run: Path, changed: bool = False
) -> None:
    """Raises DataChanged, one line, unless the pictures are those that a run keeps.

    Args:
        now: of the data as it is.
        kept: what :meth:`Inventory.to_json` gave then; empty in runs of versions that kept nothing.
        packed: what :meth:`Inventory.packed` gave then; None where that file is not there.
        run: its folder.
        changed: whether others are good enough: one line on standard error then says how they differ.
    """
    if not kept or kept.get("digest") == now.digest:
        return
    what = (
        f"{kept['train']} and {kept['test']} of training and test then, {now.counts[0]} and {now.counts[1]} others now"
    )
    if packed is not None:
        before = set(gzip.decompress(packed).decode("utf-8", "surrogateescape").splitlines())
        after = set(now.text.decode("utf-8", "surrogateescape").splitlines())
        gone, new = before - after, after - before
        moved = {_key(line) for line in gone} & {_key(line) for line in new}
        kinds = {
            "added": sorted(line for line in new if _key(line) not in moved),
            "removed": sorted(line for line in gone if _key(line) not in moved),
            "moved between training and test": sorted(moved),
        }
        parts = [f"{len(lines)} {kind} ({_first(lines)})" for kind, lines in kinds.items() if lines]
        what = f"{'; '.join(parts)}" if parts else what
    error = DataChanged(f"the pictures are not those of {run}: {what}")
    if not changed:
        raise error
    print(f"warning: {error.what}", file=sys.stderr)


def _keys(split: Examples) -> tuple[str, ...]:
    records = getattr(split, "records", None)
    if records is not None and hasattr(
        records, "identities"
    ):  # of a folder, or of a prepared set; others are known by their number
        return tuple(records.identities())
    if isinstance(split, Split):
        digest = hashlib.sha256(np.ascontiguousarray(split.labels).data)
        digest.update(np.ascontiguousarray(split.images).data)
        return (digest.hexdigest(),)
    return (f"{len(split)} images",)


def _key(line: str) -> str:
    return line.partition("/")[2]


def _first(lines: list[str]) -> str:
    return ", ".join(lines[:_NAMED]) + (", ..." if len(lines) > _NAMED else "")
