"""The file of results: every table with its date, machine and versions, and what of it needs no measuring again."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from experiments.benchmark.measuring import Result
from shuffle_jax.files import replace_file


class Results:
    """What was measured, on disk after every table.

    Attributes:
        path: of the file.
        machine: what numbers depend on, with the versions.
    """

    def __init__(self, path: Path, machine: dict[str, str | int], rounds: int, resume: bool) -> None:
        """Takes over what the file has; or it is begun anew, with the first table.

        Raises:
            OSError: it cannot be written.
            ValueError: it is to be resumed and holds something else.
        """
        self.path, self.machine, self._rounds = path, machine, rounds
        path.parent.mkdir(parents=True, exist_ok=True)
        path.open("a").close()  # a place that cannot be written is found now, and not after the measuring
        self._tables: dict[str, dict[str, Any]] = read(path) if resume and path.stat().st_size else {}

    def known(self, name: str, title: str) -> Result | None:
        """What was measured of a table under the same title, with the same rounds, machine and versions."""
        entry = self._tables.get(name, {})
        same = (entry.get("title"), entry.get("rounds"), entry.get("machine")) == (title, self._rounds, self.machine)
        return entry if same else None

    def add(self, name: str, result: Result) -> None:
        """Keeps and writes what was measured."""
        date = datetime.now(UTC).isoformat(" ", "seconds")
        self._tables[name] = {"date": date, "machine": self.machine, "rounds": self._rounds} | result
        self._write()

    def _write(self) -> None:
        replace_file(self.path, (json.dumps({"tables": self._tables}, indent=1) + "\n").encode())


def read(path: Path) -> dict[str, dict[str, Any]]:
    """The tables of a file of results, by name.

    Raises:
        ValueError: it is none.
    """
    try:
        found = json.loads(path.read_bytes())["tables"]
    except (ValueError, TypeError, KeyError):
        found = None
    if not isinstance(found, dict) or not all(isinstance(entry, dict) for entry in found.values()):
        raise ValueError(f"{path} holds no results of this command: name another file with --json, or remove it")
    return found
