"""What a run records of its permutations: how near each matrix is, what dynamic layers do, and snapshots of both."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from shuffle_jax.deploy.hardening import diagnose_all
from shuffle_jax.nn.collections import relaxed_permutations
from shuffle_jax.run import Run
from shuffle_jax.train.early import with_matrices
from shuffle_jax.train.experiment import Experiment
from shuffle_jax.train.metrics import MetricWriter
from shuffle_jax.train.state import TrainState
from shuffle_jax.typing import PyTree

DIAGNOSED = ("penalty", "residual", "max_row_slack", "certified")
"""What is recorded of each relaxed matrix."""


def record(experiment: Experiment, state: TrainState, step: int, metrics: MetricWriter) -> None:
    """Writes how near each relaxed matrix is to a permutation, and what dynamic layers do."""
    variables = _variables(experiment, state)
    matrices = relaxed_permutations(variables["params"])
    for layer, found in jax.device_get(diagnose_all(variables["params"])).items():
        about = {"kind": "permutation", "step": step, "layer": layer, "size": len(matrices[layer])}
        metrics.write(about | {name: getattr(found, name) for name in DIAGNOSED})
    if experiment.probe is not None:
        at: dict[str, Any] = {"step": step, "epoch": step / experiment.batches.steps_per_epoch}
        for layer, numbers in experiment.probe.numbers(variables).items():
            metrics.write({"kind": "dynamic", **at, "layer": layer, **numbers})


def snapshot(experiment: Experiment, state: TrainState, step: int, run: Run, metrics: MetricWriter) -> None:
    """Keeps the matrices, and the permutations of a sample of images."""
    variables = _variables(experiment, state)
    matrices = {layer: np.asarray(matrix) for layer, matrix in relaxed_permutations(variables["params"]).items()}
    if matrices:
        run.save_snapshot(step, matrices)
        metrics.matrices(step, matrices)
    if experiment.probe is not None:
        run.save_dynamic(step, experiment.probe.permutations(variables))


def _variables(experiment: Experiment, state: TrainState) -> dict[str, PyTree]:
    """Those of evaluation, on this process alone: the others go on meanwhile. What was a matrix is one."""
    variables: dict[str, PyTree] = jax.device_get(state.variables())
    if experiment.config.penalty.settle:
        variables = jax.device_get(with_matrices(variables, experiment.state_shapes().params))
    return variables
