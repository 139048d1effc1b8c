"""The end of a run: the network hardened, every form of it evaluated, figures, and the table."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import jax
import numpy as np

from shuffle_jax.analysis.run_figures import save_run_figures
from shuffle_jax.distributed import is_lead
from shuffle_jax.files import naming
from shuffle_jax.models.build import is_dynamic
from shuffle_jax.sharding import replicate
from shuffle_jax.train.experiment import Experiment
from shuffle_jax.train.metrics import Metrics
from shuffle_jax.train.run import Run
from shuffle_jax.train.state import TrainState
from shuffle_jax.train.step import evaluate
from shuffle_jax.typing import PyTree


@dataclass(frozen=True)
class Outcome:
    """What a finished run reports.

    Attributes:
        relaxed: ``loss``, ``top1`` and ``top5`` on the test split as trained.
        hardened: the same with index vectors; None for a network without relaxed permutations.
        certified: learned permutations whose row-argmax is proved to be one.
        permutations: learned permutations.
        seconds: of this process, from the first step to the end.
        others: the same numbers with dynamic layers "soft", "repaired" and "frozen", where there are any.
    """

    relaxed: dict[str, float]
    hardened: dict[str, float] | None
    certified: int
    permutations: int
    seconds: float
    others: dict[str, dict[str, float]] = field(default_factory=dict)


def finish(experiment: Experiment, run: Run, state: TrainState, metrics: Metrics, started: float) -> Outcome:
    """Hardens the trained network, evaluates both forms, saves index vectors and figures, prints the table."""
    # From here on every process has the variables for itself; what they evaluate together is put on all devices.
    variables = jax.device_get(state.variables())

    def evaluated(experiment: Experiment, variables: dict[str, PyTree]) -> dict[str, float]:
        variables = replicate(jax.device_get(variables), experiment.mesh)
        return evaluate(experiment.eval_step, variables, experiment.batches.test())

    relaxed = evaluated(experiment, variables)
    metrics.write({"kind": "result", "step": experiment.steps, "network": "relaxed", **relaxed})
    hard = experiment.harden(variables)
    hardened = None
    if hard.permutations:
        if is_lead():
            run.save_permutations(hard.permutations)
        hardened = evaluated(experiment, hard.variables)
        metrics.write({"kind": "result", "step": experiment.steps, "network": "hardened", **hardened})
    others = {}
    if is_dynamic(experiment.config.network):
        for name, (variant, its_variables) in dynamic_variants(experiment, variables).items():
            others[name] = evaluated(variant, its_variables)
            metrics.write({"kind": "result", "step": experiment.steps, "network": name, **others[name]})
    figures = []
    if is_lead():
        with naming(run.figures):
            figures = save_run_figures(run.path)
    certified = int(np.sum([d.certified for d in hard.diagnoses.values()]))
    outcome = Outcome(relaxed, hardened, certified, len(hard.permutations), time.perf_counter() - started, others)
    _print(outcome, experiment, run, len(figures), metrics)
    return outcome


def _print(outcome: Outcome, experiment: Experiment, run: Run, figures: int, metrics: Metrics) -> None:
    """Prints the table that ends a run."""
    rows: list[list[object]] = [["relaxed" if outcome.hardened else "as trained", *_numbers(outcome.relaxed), ""]]
    if outcome.hardened:
        share = f"{outcome.certified}/{outcome.permutations}"
        rows.append(["hardened", *_numbers(outcome.hardened), share])
    rows += [[name, *_numbers(result), ""] for name, result in outcome.others.items()]
    images = len(experiment.dataset.test)
    title = f"{images} test images of {experiment.dataset.name}, {experiment.steps} steps"
    metrics.console.table(title, ["network", "top-1", "top-5", "loss", "certified"], rows)
    metrics.console.message(f"{outcome.seconds:.0f} s from the first step; {figures} figures in {run.figures}")


def dynamic_variants(
    experiment: Experiment, variables: dict[str, PyTree]
) -> dict[str, tuple[Experiment, dict[str, PyTree]]]:
    """What a network with dynamic layers is compared with: the same with other factors, each with its variables."""
    variants = {name: (experiment.with_evaluation(name), variables) for name in ("soft", "repaired")}
    return variants | {"frozen": (experiment, experiment.freeze(variables).variables)}


def _numbers(result: dict[str, float]) -> list[float]:
    return [result["top1"], result["top5"], result["loss"]]
