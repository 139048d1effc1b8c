"""What is known of a comparison, run by run: from the folders of its runs, and from results that others have written.

results.json is written anew after every run, and holds of each a digest of its configuration. So whoever has the file
has the runs: they are taken over where the digests are the same, on any machine.
"""

from __future__ import annotations

import json
import os
import platform
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from experiments.comparison.plan import Comparison, Planned, digest, measured
from experiments.comparison.runs import folder_result
from experiments.comparison.table import listed
from shuffle_jax.files import replace_file
from shuffle_jax.run import Run
from shuffle_jax.train.config import read_config

COSTS = ("parameters", "multiply_adds")


class Ledger:
    """The runs of a comparison whose results are known.

    Args:
        comparison: whose.
        planned: all its runs.
        out: the folder of the runs and of results.json.
    """

    def __init__(self, comparison: Comparison, planned: Sequence[Planned], out: Path) -> None:
        self.comparison, self.planned, self.out = comparison, planned, out
        self._runs: dict[tuple[str, int], Mapping[str, Any]] = {}
        self._versions: dict[str, set[str]] = {}
        self._devices: set[str] = set()
        self._dates: set[str] = set()
        self._costs: dict[str, set[tuple[int, ...]]] = {label: set() for label in comparison.variants}
        self._costless: set[str] = set()
        self._counted: dict[Any, Any] = {}

    @property
    def file(self) -> Path:
        """Where the results are kept."""
        return self.out / "results.json"

    def missing(self) -> list[Planned]:
        """The runs whose results are not known."""
        return [one for one in self.planned if (one.label, one.seed) not in self._runs]

    def gather(self, known: Path | None = None) -> None:
        """Takes what there is: finished folders, results.json beside them, and another one.

        Raises:
            ValueError: a file does not hold results.
        """
        for one in self.planned:
            if (said := folder_result(one.path)) is not None:
                self.add(one, said)
        for path in [*([self.file] if self.file.exists() else []), *([] if known is None else [known])]:
            self._take_over(path)

    def add(self, one: Planned, said: Mapping[str, Any]) -> None:
        """Adds what a run in its folder has come to, which may be how it failed."""
        run, devices = Run(one.path), self._devices_file
        own = digest(read_config(run))  # of an early version it may differ from what is planned in what that had not
        self._runs[one.label, one.seed] = {"seed": one.seed, "digest": own, **said}
        lines = devices.read_text(encoding="utf-8").splitlines() if devices.exists() else []
        self._note(run.versions(), lines, datetime.fromtimestamp(run.metrics.stat().st_mtime, UTC).date().isoformat())
        self._count(one)

    def note_device(self) -> None:
        """Adds a line on this machine's devices to devices.txt, if it is not there yet."""
        import jax

        devices = jax.devices()
        line = f"{len(devices)} x {devices[0].device_kind}"
        if devices[0].platform == "cpu":
            line = f"{os.cpu_count()} cores, {platform.processor() or platform.machine()}"
        file = self._devices_file
        known = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
        if line not in known:
            replace_file(file, "".join(f"{each}\n" for each in [*known, line]).encode())

    def results(self) -> dict[str, Any]:
        """What results.json holds, see :mod:`experiments.comparison.table`."""
        comparison, kind = self.comparison, measured(self.planned)
        asked = {"margin": comparison.margin, "questions": {k: list(v) for k, v in comparison.questions.items()}}
        return {
            "name": comparison.name,
            "title": comparison.title,
            "text": comparison.text,
            "command": f"python -m experiments.compare experiments/comparisons/{comparison.name}.toml",
            "each_seed": comparison.each_seed,
            "seeds": list(comparison.seeds),
            **(asked if comparison.questions else {}),
            **({} if kind == "test" else {"measured": kind}),
            "versions": {name: " and ".join(sorted(texts)) for name, texts in self._versions.items()},
            "devices": sorted(self._devices),
            "date": max(self._dates, default=""),
            "variants": [
                {"label": label, "command": command, **self._costs_of(label), "runs": self._runs_of(label)}
                for label, command in comparison.variants.items()
            ],
        }

    def write(self) -> None:
        """Writes results.json, whole or not at all."""
        replace_file(self.file, as_json(self.results()).encode())

    @property
    def _devices_file(self) -> Path:
        return self.out / "devices.txt"

    def _runs_of(self, label: str) -> list[Mapping[str, Any]]:
        return [self._runs[label, seed] for seed in self.comparison.seeds if (label, seed) in self._runs]

    def _note(self, versions: Mapping[str, str], devices: Iterable[str], date: str) -> None:
        """Adds where a run was trained, and when."""
        for name, texts in versions.items():
            self._versions.setdefault(name, set()).update(texts.split(" and "))
        self._devices.update(devices)
        self._dates.add(date)

    def _take_over(self, path: Path) -> None:
        """Adds the runs that a file has with the same digests, and says which it has with others."""
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            kept = {(v["label"], run["seed"]): (v, run) for v in found["variants"] for run in v["runs"]}
            made = (found["versions"], found["devices"], found["date"])
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path} does not hold the results of a comparison ({error!r})") from error
        here = [(one, *kept[one.label, one.seed]) for one in self.missing() if (one.label, one.seed) in kept]
        same = [(one, variant, run) for one, variant, run in here if run.get("digest") == one.digest]
        for one, variant, run in same:
            self._runs[one.label, one.seed] = run
            self._note(*made)
            if all(name in variant for name in COSTS):
                self._cost(one.label, tuple(variant[name] for name in COSTS))
        failed = [(one.label, one.seed) for one, _, run in same if "failed" in run]
        early = sum("digest" not in run for _, _, run in here)
        others = [(one.label, one.seed) for one, _, run in here if run.get("digest", one.digest) != one.digest]
        if same:
            print(f"{path}: {_runs(len(same))} taken over", flush=True)
        if failed:
            _say(f"{path}: failed, and trained again only if removed there: {listed(failed)}")
        if early:
            _say(f"{path}: {_runs(early)} not taken over, without a digest as of earlier versions")
        if others:
            _say(f"{path}: of another configuration, so trained again: {listed(others)}")

    def _count(self, one: Planned) -> None:
        """Adds what the network of a run costs, for the classes and the images that the run keeps."""
        from shuffle_jax.analysis.count import count
        from shuffle_jax.models import build

        folder = Run(one.path)
        try:
            network = build(one.config.network, len(folder.classes()))
            cost = count(network, folder.preprocessing().shape, known=self._counted)
        except ValueError as error:  # of an early version
            self._without_costs(one.label, str(error))
            return
        self._cost(one.label, (cost.parameters, cost.multiply_adds))

    def _cost(self, label: str, cost: tuple[int, ...]) -> None:
        self._costs[label].add(cost)
        if len(self._costs[label]) > 1:
            self._without_costs(label, f"its seeds have networks of {len(self._costs[label])} different costs")

    def _without_costs(self, label: str, why: str) -> None:
        if label not in self._costless:
            _say(f"no parameters and multiply-adds of {label!r}: {why}")
        self._costless.add(label)

    def _costs_of(self, label: str) -> dict[str, int]:
        """``parameters``, and ``multiply_adds`` of one image, both after hardening, if they are known of all runs."""
        if label in self._costless or not self._costs[label]:
            return {}
        (cost,) = self._costs[label]
        return dict(zip(COSTS, cost, strict=True))


def as_json(results: Mapping[str, Any]) -> str:
    """Results as lines of JSON, lists of numbers each on a single one."""

    def joined(found: re.Match[str]) -> str:
        return " ".join(found[0].split()).replace("[ ", "[").replace(" ]", "]")

    # A string holds no line break of its own, so that what begins with one and has no quote is layout and numbers.
    return re.sub(r"\[\n[^{}\"]*\]", joined, json.dumps(results, indent=1, ensure_ascii=False)) + "\n"


def _runs(count: int) -> str:
    return "1 run" if count == 1 else f"{count} runs"


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
