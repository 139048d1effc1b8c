"""The records of a run as files: JSON lines, written and read, and TensorBoard's event files.

A record is a flat dictionary with a ``"kind"`` (train, test, permutation, dynamic, knowledge or result) and a
``"step"``. Those of accuracies, test and result, say with ``"split"`` whether that is of test or of validation images.
Those of no layer say with ``"seconds"`` how long the run took so far, over all of its processes.
"""

from __future__ import annotations

import json
import math
import socket
import struct
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from shuffle_jax.files import naming, replace_file

if TYPE_CHECKING:
    from tensorboardX.proto.event_pb2 import Event

Record = Mapping[str, Any]

NON_FINITE = {"nan": float("nan"), "inf": float("inf"), "-inf": float("-inf")}
"""How non-finite numbers are spelt: JSON has none, so they are written as these strings."""

IMAGE_SIDE = 256
"""Smaller matrices are enlarged to this many pixels or more for TensorBoard, each entry a square."""


def read_records(path: Path | str) -> list[dict[str, Any]]:
    """Reads a file of JSON lines, in the order they were written.

    The strings ``"nan"``, ``"inf"`` and ``"-inf"`` come back as floats. A last line that was cut short, as a
    run killed while writing leaves it, is ignored; so are empty lines.

    Args:
        path: the file.

    Returns:
        One dictionary a line.

    Raises:
        ValueError: a line other than a torn last one is not a JSON object.
        FileNotFoundError: there is no such file.
    """
    # A write that stopped in the middle of a multi-byte character must not keep the rest from being read.
    lines = Path(path).read_text(encoding="utf-8", errors="replace").split("\n")
    records = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            if number == len(lines):  # No newline behind it: the write was interrupted.
                break
            raise ValueError(
                f"{path}, line {number}: not a JSON object ({error}); remove the line or restore the file"
            ) from error
        if not isinstance(record, dict):
            raise ValueError(f"{path}, line {number}: not a JSON object ({type(record).__name__}); remove the line")
        records.append({key: _number(value) for key, value in record.items()})
    return records


class JsonLines:
    """Appends records to a file, one JSON object a line, each on disk as soon as it is written.

    Numbers of NumPy and JAX become plain ones; non-finite floats become the strings that ``read_records``
    turns back. A line cut short by an earlier interruption is removed on opening, so that nothing is glued
    to it.

    Args:
        path: the file; it and its folder are made when missing.
    """

    def __init__(self, path: Path | str) -> None:
        path = Path(path)
        if path.exists() and not path.read_bytes().endswith(b"\n"):
            truncate_after(path, None)
        self._file = _Appended(path)

    def write(self, record: Record) -> None:
        """Appends one record.

        Raises:
            ValueError: a value is not a number, a string, a boolean or None.
            OSError: the line could not be written whole.
        """
        self._file.write(_line(record).encode())

    def close(self) -> None:
        """Closes the file; a second call does nothing."""
        self._file.close()


class _Appended:
    """A file that grows by whole pieces, each on its way to the disk when ``write`` returns.

    Nothing waits in a buffer: a disk that is full says so at once, and not again when the file is closed.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        with naming(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("ab", buffering=0)

    def write(self, piece: bytes) -> None:
        with naming(self._path):
            while piece:  # What the disk took a part of only is tried again, which raises the reason.
                piece = piece[self._file.write(piece) or 0 :]

    def close(self) -> None:
        self._file.close()


def truncate_after(path: Path | str, step: int | None) -> None:
    """Removes the records of steps later than ``step``, and the result, as a run resumed there writes them again.

    The file is replaced in one move: an interruption leaves the old one or the new one, never half of either.

    Args:
        path: a file of JSON lines; a missing one is left missing.
        step: the last step to keep; None keeps all and removes only a torn last line.
    """
    path = Path(path)
    if not path.exists():
        return
    records = read_records(path)
    # The result is written at the very end, by whoever gets there.
    kept = [r for r in records if step is None or (r.get("step", step) <= step and r.get("kind") != "result")]
    replace_file(path, "".join(map(_line, kept)).encode())


def _line(record: Record) -> str:
    plain = {key: _plain(key, value) for key, value in record.items()}
    return json.dumps(plain, allow_nan=False) + "\n"


def _plain(key: str, value: Any) -> str | bool | int | float | None:
    """The Python value behind a scalar of any library, non-finite floats spelt out."""
    array = np.asarray(value)
    plain = array.item() if array.ndim == 0 else value
    if plain is not None and not isinstance(plain, str | bool | int | float):
        raise ValueError(
            f"record value {key!r} is of type {type(value).__name__} and shape {array.shape}; "
            "a record holds numbers, strings and booleans"
        )
    return str(plain) if isinstance(plain, float) and not math.isfinite(plain) else plain


class TensorBoard:
    """Writes event files: the numbers of each record as curves, matrices as grey images.

    Curves are called ``train/loss``, ``test/top1``, ``permutation/<layer>/penalty`` or
    ``result/hardened/top1``.

    Args:
        folder: where the event file goes.
        first_step: the first step to be written; TensorBoard hides what earlier files hold from there on.
    """

    def __init__(self, folder: Path | str, first_step: int = 0) -> None:
        from tensorboardX.proto.event_pb2 import Event, SessionLog

        # Files are named by the second: without a suffix a run resumed within one would overwrite the file.
        earlier = len(list(Path(folder).glob("events.out.tfevents.*")))
        name = f"events.out.tfevents.{time.time():.0f}.{socket.gethostname()}.{earlier:04d}"
        # Not SummaryWriter: its thread dies of a full disk in silence, and then adding to its queue never returns.
        self._file = _Appended(Path(folder) / name)
        self._add(Event(file_version="brain.Event:2"))
        self._add(Event(step=first_step, session_log=SessionLog(status=SessionLog.START)))

    def write(self, record: Record) -> None:
        """Adds the numbers of one record, all as one event."""
        from tensorboardX.proto.event_pb2 import Event
        from tensorboardX.proto.summary_pb2 import Summary

        values = [Summary.Value(tag=name, simple_value=value) for name, value in numbers(record).items()]
        self._add(Event(step=int(record["step"]), summary=Summary(value=values)))

    def matrices(self, step: int, matrices: Mapping[str, np.ndarray]) -> None:
        """Adds nonnegative matrices as images ``permutation/<layer>/matrix``; see ``grey_image``.

        Args:
            step: the training step.
            matrices: arrays (c, c) by layer.
        """
        from tensorboardX.proto.event_pb2 import Event
        from tensorboardX.summary import image

        for layer, matrix in matrices.items():
            pixels = image(f"permutation/{layer}/matrix", grey_image(matrix), dataformats="HW")
            self._add(Event(step=int(step), summary=pixels))

    def close(self) -> None:
        """Closes the file; a second call does nothing."""
        self._file.close()

    def _add(self, event: Event) -> None:
        """Writes one event, framed by its length and checksums as TensorFlow's records are."""
        from tensorboardX.record_writer import masked_crc32c

        event.wall_time = time.time()
        content = event.SerializeToString()
        length = struct.pack("<Q", len(content))
        checks = [struct.pack("<I", masked_crc32c(part)) for part in (length, content)]
        self._file.write(length + checks[0] + content + checks[1])


def numbers(record: Record) -> dict[str, float]:
    """The numbers of a record under the names of their curves.

    >>> numbers({"kind": "result", "step": 9, "network": "hardened", "split": "test", "top1": 0.5})
    {'result/hardened/top1': 0.5}
    """
    parts = [record["kind"], *(str(record[key]) for key in ("layer", "network") if key in record)]
    return {
        "/".join([*parts, key]): float(value)
        for key, value in record.items()
        if key not in ("step", "epoch") and value is not None and not isinstance(value, str)
    }


def grey_image(matrix: np.ndarray) -> np.ndarray:
    """A matrix as a grey image: 0 is black, its largest entry white, each entry a square of pixels.

    Args:
        matrix: (c, c), nonnegative; what is negative or not a number is drawn black.

    Returns:
        (k c, k c) uint8, with the smallest k that gives at least ``IMAGE_SIDE`` pixels a side.
    """
    values = np.nan_to_num(np.asarray(matrix, np.float64), nan=0.0, posinf=0.0, neginf=0.0).clip(min=0.0)
    pixels = np.rint(255 * values / max(values.max(), np.finfo(np.float64).tiny)).astype(np.uint8)
    factor = -(-IMAGE_SIDE // len(pixels))
    return pixels.repeat(factor, axis=0).repeat(factor, axis=1)


def _number(value: Any) -> Any:
    """``value``, or the float that it spells when it is one of the non-finite strings."""
    return NON_FINITE.get(value, value) if isinstance(value, str) else value
