"""The training loop: steps, records, evaluations, checkpoints, and the hardened network at the end."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field
from pathlib import Path

import jax
import numpy as np
import optax

from shuffle_jax.analysis.run_figures import save_run_figures
from shuffle_jax.deploy.harden import diagnose_all
from shuffle_jax.files import naming
from shuffle_jax.models.build import is_dynamic
from shuffle_jax.nn.auto_shuffle import relaxed_permutations
from shuffle_jax.train.checkpoint import Checkpoints
from shuffle_jax.train.config import TrainConfig
from shuffle_jax.train.experiment import Experiment, prepare
from shuffle_jax.train.interrupt import Interruption, Stopped
from shuffle_jax.train.metrics import Metrics
from shuffle_jax.train.probe import Probe
from shuffle_jax.train.run import Run
from shuffle_jax.train.state import TrainState
from shuffle_jax.train.step import evaluate
from shuffle_jax.typing import PyTree

DIAGNOSED = ("penalty", "residual", "max_row_slack", "certified")
"""What is recorded of each relaxed matrix."""


class NonFiniteLoss(ArithmeticError):
    """The loss became NaN or infinite."""


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


def train(config: TrainConfig, path: Path, *, resume: bool = False, devices: int | None = None) -> Outcome:
    """Trains a network into a run folder.

    Args:
        config: the run.
        path: the folder; new or empty unless ``resume``.
        resume: continue from the newest checkpoint in ``path``, bit for bit as if the run had not been interrupted.
        devices: how many local devices to use; all by default.

    Returns:
        Accuracies and certificates of the trained network.

    Raises:
        ValueError: something in the configuration, the data or the folder does not fit; the message says what.
        NonFiniteLoss: the loss is NaN or infinite; the last good checkpoint is kept.
        Stopped: SIGINT or SIGTERM came; the state is saved.
    """
    run = Run(path)
    if resume:
        run.check(config)
    else:
        run.check_free()
    experiment = prepare(config, devices, run.classes() if resume else None)
    shapes = experiment.state_shapes()  # a network that cannot be built is refused before anything is written
    if not resume:
        run.start(config, experiment.dataset.classes, experiment.preprocessing)
    with Checkpoints(run.checkpoints, config.keep) as checkpoints, Interruption() as interruption:
        saved = checkpoints.steps()
        state = checkpoints.restore(shapes) if saved else experiment.init()
        step = saved[-1] if saved else 0
        run.forget_after(step)
        with Metrics(path, experiment.steps, experiment.batches.steps_per_epoch, step) as metrics:
            started = time.perf_counter()
            probe = Probe(experiment) if is_dynamic(config.network) else None
            state = _Loop(experiment, run, checkpoints, metrics, interruption, probe).go(state, step)
            outcome = _finish(experiment, run, state, metrics, started)
    return outcome


@dataclass
class _Loop:
    """The parts that the loop works with."""

    experiment: Experiment
    run: Run
    checkpoints: Checkpoints
    metrics: Metrics
    interruption: Interruption
    probe: Probe | None

    def go(self, state: TrainState, first: int) -> TrainState:
        """Trains from step ``first`` to the end."""
        experiment, config = self.experiment, self.experiment.config
        steps, per_epoch = experiment.steps, experiment.batches.steps_per_epoch
        train_step, meter = experiment.train_step(), _Meter(config.batch_size)
        # Queued steps of several CPU devices can dead-lock in a collective: wait for each.
        wait = experiment.mesh.size > 1 and jax.default_backend() == "cpu"
        middle = round((config.penalty.start + config.penalty.end) / 2 * steps)  # of the ramp: where most happens
        if first == 0:
            self._snapshot(state, 0)
            self._diagnose(state, 0)

        for step, batch in zip(range(first + 1, steps + 1), experiment.batches.train(first), strict=False):
            state, values = train_step(state, batch)
            self._checked(meter, step, values)
            if wait:
                jax.block_until_ready(state)
            evaluating = step % (per_epoch * config.evaluate_every) == 0 or step == steps
            if step % config.log_every == 0 or evaluating:
                self._checked(meter)
                if evaluating:
                    self._diagnose(state, step)
                self._log(meter, step)
            if step in (middle, steps):
                self._snapshot(state, step)
            if evaluating:
                result = self._evaluate(state)
                self.metrics.write({"kind": "test", "step": step, "epoch": step / per_epoch, **result})
                self._save(state, result)
                meter.restart()
            if self.interruption.signal is not None and step < steps:
                self._checked(meter)
                self._save(state)
                self.checkpoints.wait()
                message = f"stopped at step {step} of {steps} and saved in {self.run.path}"
                raise Stopped(message, self.interruption.signal)
        return state

    def _checked(self, meter: _Meter, step: int | None = None, values: PyTree = None) -> None:
        """Adds the values of a step to the meter, which looks at those of the step before; None: at the last ones."""
        try:
            meter.add(step, values)
        except NonFiniteLoss as error:
            raise self._broken(str(error)) from None

    def _save(self, state: TrainState, result: dict[str, float] | None = None) -> None:
        """Saves a state whose parameters are numbers."""
        if not math.isfinite(float(optax.tree.norm(state.params))):
            raise self._broken(f"the parameters are not finite after step {int(state.step)}")
        self.checkpoints.save(state, result)

    def _broken(self, what: str) -> NonFiniteLoss:
        """The error that says what is not finite, what is kept, and what to try."""
        self.checkpoints.wait()
        kept = self.checkpoints.steps()
        advice = "try a lower --optimizer.learning-rate or --penalty.weight"
        last = f"the last good checkpoint is step {kept[-1]}" if kept else "no checkpoint was due yet"
        return NonFiniteLoss(f"{what}; {last} in {self.run.path}; {advice}")

    def _log(self, meter: _Meter, step: int) -> None:
        """Writes the means since the last record."""
        rates = {
            "learning_rate": float(self.experiment.learning_rate(step - 1)),
            "penalty_weight": float(self.experiment.penalty_weight(step - 1)),
        }
        epoch = step / self.experiment.batches.steps_per_epoch
        self.metrics.write({"kind": "train", "step": step, "epoch": epoch, **meter.take(), **rates})

    def _diagnose(self, state: TrainState, step: int) -> None:
        """Writes how near each relaxed matrix is to a permutation, and what dynamic layers do."""
        params = state.variables()["params"]
        matrices = relaxed_permutations(params)
        for layer, found in jax.device_get(diagnose_all(params)).items():
            record = {"kind": "permutation", "step": step, "layer": layer, "size": len(matrices[layer])}
            self.metrics.write(record | {name: getattr(found, name) for name in DIAGNOSED})
        if self.probe is not None:
            epoch = step / self.experiment.batches.steps_per_epoch
            for layer, numbers in self.probe.numbers(state.variables()).items():
                self.metrics.write({"kind": "dynamic", "step": step, "epoch": epoch, "layer": layer, **numbers})

    def _evaluate(self, state: TrainState) -> dict[str, float]:
        return evaluate(self.experiment.eval_step, state.variables(), self.experiment.batches.test())

    def _snapshot(self, state: TrainState, step: int) -> None:
        matrices = jax.device_get(relaxed_permutations(state.variables()["params"]))
        if matrices:
            self.run.save_snapshot(step, matrices)
            self.metrics.matrices(step, matrices)
        if self.probe is not None:
            self.run.save_dynamic(step, self.probe.permutations(state.variables()))


@dataclass
class _Meter:
    """Means of step metrics, fetched one step late so that the device always has work."""

    batch_size: int
    sums: dict[str, float] = field(default_factory=dict)
    count: int = 0
    pending: tuple[int, PyTree] | None = None
    began: float | None = None
    timed: int = 0

    def add(self, step: int | None = None, values: PyTree = None) -> None:
        """Fetches the values that wait and keeps the new ones waiting."""
        pending, self.pending = self.pending, None if step is None else (step, values)
        if pending is None:
            return
        earlier, found = pending[0], {name: float(value) for name, value in jax.device_get(pending[1]).items()}
        for name in ("loss", "penalty", "gradient_norm"):
            if not math.isfinite(found[name]):
                raise NonFiniteLoss(f"the {name.replace('_', ' ')} is {found[name]} at step {earlier}")
        self.sums = {name: self.sums.get(name, 0.0) + value for name, value in found.items()}
        self.count += 1
        # The clock starts after a first step, which compiles or follows an evaluation.
        if self.began is None:
            self.began = time.perf_counter()
        else:
            self.timed += 1

    def take(self) -> dict[str, float]:
        """The means since the last call, and images per second where a step was timed."""
        means = {name: total / self.count for name, total in self.sums.items()}
        if self.timed and self.began is not None:
            means["images_per_second"] = self.timed * self.batch_size / (time.perf_counter() - self.began)
        self.sums, self.count = {}, 0
        self.began, self.timed = time.perf_counter(), 0
        return means

    def restart(self) -> None:
        """Stops the clock until the next step is done."""
        self.began, self.timed = None, 0


def _finish(experiment: Experiment, run: Run, state: TrainState, metrics: Metrics, started: float) -> Outcome:
    """Hardens the trained network, evaluates both forms, saves index vectors and figures, prints the table."""
    variables, batches = state.variables(), experiment.batches
    relaxed = evaluate(experiment.eval_step, variables, batches.test())
    metrics.write({"kind": "result", "step": experiment.steps, "network": "relaxed", **relaxed})
    hard = experiment.harden(variables)
    hardened = None
    if hard.permutations:
        run.save_permutations(hard.permutations)
        hardened = evaluate(experiment.eval_step, hard.variables, batches.test())
        metrics.write({"kind": "result", "step": experiment.steps, "network": "hardened", **hardened})
    others = {}
    if is_dynamic(experiment.config.network):
        for name, (variant, its_variables) in dynamic_variants(experiment, variables).items():
            others[name] = evaluate(variant.eval_step, its_variables, batches.test())
            metrics.write({"kind": "result", "step": experiment.steps, "network": name, **others[name]})
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
