"""All figures of a run, drawn from its folder and kept in it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from shuffle_jax.analysis.dynamic_figures import class_distances, class_permutations, factor_means
from shuffle_jax.analysis.figures import learning_curves, matrices, penalty_curves, permutations
from shuffle_jax.analysis.sharpening_figure import sharpening
from shuffle_jax.files import load_arrays
from shuffle_jax.records import read_records
from shuffle_jax.run import Run


def save_run_figures(run: Path | str) -> list[Path]:
    """Draws what a run's folder has the data for, into ``figures/`` in it.

    Args:
        run: the folder; whatever may be missing in it. Without a configuration the classes go by their numbers.

    Returns:
        The files written.

    Raises:
        ValueError: a file does not hold what it should.
    """
    folder = Run(Path(run))
    records = read_records(folder.metrics) if folder.metrics.exists() else []
    kinds = {record["kind"] for record in records}
    figures = {}
    if kinds & {"train", "test"}:
        figures["learning_curves"] = learning_curves(records)
    if "permutation" in kinds:
        figures["penalty"] = penalty_curves(records)
    snapshots = _moments(folder.snapshots())
    if snapshots and snapshots[0][1]:
        figures["matrices"] = matrices(snapshots)
    if vectors := folder.permutations():
        figures["permutations"] = permutations(vectors)
    if "dynamic" in kinds:
        figures["sharpening"] = sharpening(records)
    if dynamic := _moments(folder.dynamic()):
        last = dynamic[-1][1]
        classes = folder.classes() if folder.exists() else _numbers(last)
        figures["class_permutations"] = class_permutations(last, classes)
        figures["class_distances"] = class_distances(last, classes)
        figures["factor_means"] = factor_means(dynamic)
    written = [folder.figures / f"{name}.png" for name in figures]
    for path, figure in zip(written, figures.values(), strict=True):
        path.parent.mkdir(exist_ok=True)
        figure.savefig(path)
    return written


def _moments(paths: Mapping[int, Path]) -> list[tuple[str, dict[str, np.ndarray]]]:
    """The first snapshot, the one nearest the middle and the last, each once, named and in order."""
    if not paths:
        return []
    first, last = min(paths), max(paths)
    middle = min(sorted(paths), key=lambda step: abs(2 * step - first - last))
    names = {middle: "middle", first: "start", last: "end"}
    return [(f"{names[step]} (step {step})", load_arrays(paths[step])) for step in sorted(names)]


def _numbers(snapshot: Mapping[str, np.ndarray]) -> Sequence[str]:
    """The labels themselves, for a run without its configuration."""
    return [str(label) for label in range(int(snapshot["labels"].max(initial=0)) + 1)]
