"""All figures of a run, drawn from its folder and kept in it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from zipfile import BadZipFile

import numpy as np

from shuffle_jax.analysis.dynamic_figures import class_distances, class_permutations, factor_means, sharpening
from shuffle_jax.analysis.figures import learning_curves, matrices, penalty_curves, permutations
from shuffle_jax.analysis.records import read_records


def save_run_figures(run: Path | str) -> list[Path]:
    """Draws what a run's folder has the data for, into ``figures/`` in it.

    Args:
        run: the folder; ``metrics.jsonl``, ``snapshots/*.npz``, ``permutations.npz`` or ``dynamic/*.npz`` may be
            missing in it. Without ``config.json`` the classes go by their numbers.

    Returns:
        The files written.

    Raises:
        ValueError: a file does not hold what it should.
    """
    run = Path(run)
    records = read_records(run / "metrics.jsonl") if (run / "metrics.jsonl").exists() else []
    kinds = {record["kind"] for record in records}
    figures = {}
    if kinds & {"train", "test"}:
        figures["learning_curves"] = learning_curves(records)
    if "permutation" in kinds:
        figures["penalty"] = penalty_curves(records)
    snapshots = _moments(run / "snapshots")
    if snapshots and snapshots[0][1]:
        figures["matrices"] = matrices(snapshots)
    if (run / "permutations.npz").exists() and (vectors := _arrays(run / "permutations.npz")):
        figures["permutations"] = permutations(vectors)
    if "dynamic" in kinds:
        figures["sharpening"] = sharpening(records)
    if dynamic := _moments(run / "dynamic"):
        last = dynamic[-1][1]
        classes = _classes(run / "config.json", last)
        figures["class_permutations"] = class_permutations(last, classes)
        figures["class_distances"] = class_distances(last, classes)
        figures["factor_means"] = factor_means(dynamic)
    written = [run / "figures" / f"{name}.png" for name in figures]
    for path, figure in zip(written, figures.values(), strict=True):
        path.parent.mkdir(exist_ok=True)
        figure.savefig(path)
    return written


def _moments(folder: Path) -> list[tuple[str, dict[str, np.ndarray]]]:
    """The first snapshot, the one nearest the middle and the last, each once, named and in order."""
    paths = {int(path.stem): path for path in folder.glob("*.npz")}
    if not paths:
        return []
    first, last = min(paths), max(paths)
    middle = min(sorted(paths), key=lambda step: abs(2 * step - first - last))
    names = {middle: "middle", first: "start", last: "end"}
    return [(f"{names[step]} (step {step})", _arrays(paths[step])) for step in sorted(names)]


def _arrays(path: Path) -> dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as file:  # objects could run code
            return {key: file[key] for key in file.files}
    except (ValueError, TypeError, EOFError, BadZipFile) as error:
        raise ValueError(f"{path} does not hold plain arrays ({error}): restore or remove it") from error


def _classes(config: Path, snapshot: Mapping[str, np.ndarray]) -> Sequence[str]:
    """The class names of a run, or the labels themselves where its configuration is missing."""
    if not config.exists():
        return [str(label) for label in range(int(snapshot["labels"].max(initial=0)) + 1)]
    try:
        return [str(name) for name in json.loads(config.read_text(encoding="utf-8"))["classes"]]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{config} does not hold the class names of a run ({error!r}): restore it") from error
