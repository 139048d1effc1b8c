"""Whether a checkpoint is whole, found by reading all of it before orbax does."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

STATE, METRICS = "default", "metrics"
"""The names that orbax gives to the two parts of a checkpoint."""


class Damaged(Exception):
    """A checkpoint is not whole; the message says what is wrong, in a few words."""


@dataclass(frozen=True)
class Content:
    """What a whole checkpoint holds.

    Attributes:
        shapes: of each array, by its path in the state, such as "params.stem.kernel".
        top1: of the evaluation at its step; None if there was none.
    """

    shapes: dict[str, tuple[int, ...]]
    top1: float | None


def steps_in(folder: Path) -> list[int]:
    """The steps of the checkpoints in a folder, whole or not, ascending; none in a folder that does not exist."""
    return sorted(int(path.name) for path in folder.iterdir() if path.name.isdigit()) if folder.exists() else []


def inspect(folder: Path) -> Content:
    """Reads a checkpoint, every byte of its arrays.

    Reading a damaged one with orbax leaves pages of tracebacks of its threads on standard error; this does not.

    Args:
        folder: of one step.

    Raises:
        Damaged: something is missing, cut short or not what it should be.
    """
    import tensorstore

    state = folder / STATE
    about = _json(state / "_METADATA")
    try:
        driver = "zarr3" if about.get("use_zarr3") else "zarr"
        names = [
            ".".join(str(key["key"]) for key in leaf["key_metadata"])
            for leaf in about["tree_metadata"].values()
            if not leaf["value_metadata"]["skip_deserialize"]
        ]
    except (KeyError, TypeError, AttributeError) as error:
        raise Damaged(f"{state.name}/_METADATA does not list the arrays") from error
    shapes = {}
    for name in names:
        store = {"driver": "ocdbt", "base": {"driver": "file", "path": f"{state}/"}, "path": f"{name}/"}
        try:
            array = tensorstore.open({"driver": driver, "kvstore": store, "fill_missing_data_reads": False}).result()
            array.read().result()
        except Exception as error:  # tensorstore raises ValueError, KeyError and more, by what it meets
            raise Damaged(f"the array {name} cannot be read") from error
        shapes[name] = tuple(array.shape)
    return Content(shapes, _top1(folder))


def _top1(folder: Path) -> float | None:
    if not (folder / METRICS).exists():
        return None
    try:
        return float(_json(folder / METRICS / METRICS)["top1"])
    except (KeyError, TypeError, ValueError) as error:
        raise Damaged(f"{METRICS}/{METRICS} has no top1") from error


def _json(path: Path) -> Any:
    short = f"{path.parent.name}/{path.name}"
    try:
        return json.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
        raise Damaged(f"{short} is missing") from error
    except ValueError as error:
        raise Damaged(f"{short} is not JSON") from error
