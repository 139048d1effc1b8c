"""What the checkpoints of a run hold, read byte by byte, without orbax's tracebacks."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from shuffle_jax.run import steps_in

STATE, METRICS = "default", "metrics"
"""The names that orbax gives to the two parts of a checkpoint."""

ROTATED = 10.0
"""Seconds within which a training that goes on removes a checkpoint that it has begun to remove."""


class Damaged(Exception):
    """A checkpoint is not whole; the message says what is wrong, in a few words."""


class Content(NamedTuple):
    """What a whole checkpoint holds."""

    shapes: dict[str, tuple[int, ...]]
    """Of each array, by its path in the state, such as "params.stem.kernel"."""

    top1: float | None
    """Of the evaluation at its step; None if there was none."""


class Found(NamedTuple):
    """What is found in the folder of checkpoints, by step."""

    whole: dict[int, Content]
    damaged: dict[int, str]


def look(folder: Path, is_live: Callable[[], bool] = lambda: False) -> Found:
    """Reads every checkpoint of a folder.

    Args:
        folder: with a folder for each step.
        is_live: whether the run is being trained. Then a checkpoint that is not whole may be one that is being removed,
            and is waited for.
    """
    found = Found({}, {})
    for step in steps_in(folder):
        end = time.monotonic() + ROTATED
        while (folder / str(step)).exists():
            try:
                found.whole[step] = inspect(folder / str(step))
                break
            except Damaged as error:
                if time.monotonic() > end or not is_live():
                    if (folder / str(step)).exists():
                        found.damaged[step] = str(error)
                    break
                time.sleep(0.1)
    return found


def inspect(folder: Path) -> Content:
    """Reads the folder of one step, every byte of its arrays; raises :class:`Damaged` if it is not whole.

    Reading a damaged one with orbax leaves pages of tracebacks of its threads on standard error; this does not.
    """
    return Content({".".join(path): array.shape for path, array in arrays(folder)}, _read_top1(folder))


def arrays(folder: Path) -> Iterator[tuple[tuple[str, ...], np.ndarray]]:
    """The arrays in the folder of one step with their paths in the state; raises :class:`Damaged`."""
    import tensorstore

    state = folder / STATE
    about = _json(state / "_METADATA")
    try:
        driver = "zarr3" if about.get("use_zarr3") else "zarr"
        paths = [
            tuple(str(key["key"]) for key in leaf["key_metadata"])
            for leaf in about["tree_metadata"].values()
            if not leaf["value_metadata"]["skip_deserialize"]
        ]
    except (KeyError, TypeError, AttributeError) as error:
        raise Damaged(f"{state.name}/_METADATA does not list the arrays") from error
    for path in paths:
        name = ".".join(path)
        store = {"driver": "ocdbt", "base": {"driver": "file", "path": f"{state}/"}, "path": f"{name}/"}
        try:
            array = tensorstore.open({"driver": driver, "kvstore": store, "fill_missing_data_reads": False}).result()
            yield path, array.read().result()
        except Exception as error:  # tensorstore raises ValueError, KeyError and more, by what it meets
            raise Damaged(f"the array {name} cannot be read") from error


def _read_top1(folder: Path) -> float | None:
    try:
        return top1_of(_json(folder / METRICS / METRICS)) if (folder / METRICS).exists() else None
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


def top1_of(metrics: Mapping[str, float]) -> float:
    """What the best checkpoint is chosen by."""
    return float(metrics["top1"])
