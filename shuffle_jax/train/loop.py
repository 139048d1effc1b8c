"""The training loop: steps, records, evaluations, checkpoints, and the hardened network at the end."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np
import optax

from shuffle_jax.data.pipelines import InputConfig
from shuffle_jax.deploy.harden import diagnose_all
from shuffle_jax.distributed import Agreement, ProcessLost, barrier, is_lead, is_lost, lost, same
from shuffle_jax.models.build import is_dynamic
from shuffle_jax.nn.collections import relaxed_permutations
from shuffle_jax.train.checkpoint import Checkpoints
from shuffle_jax.train.config import TrainConfig, to_json
from shuffle_jax.train.experiment import Experiment, as_kept, prepare
from shuffle_jax.train.finish import Outcome, finish
from shuffle_jax.train.integrity import steps_in
from shuffle_jax.train.interrupt import Interruption, Stopped
from shuffle_jax.train.meter import Meter, NonFiniteLoss
from shuffle_jax.train.metrics import Metrics, NoMetrics
from shuffle_jax.train.probe import Probe
from shuffle_jax.train.profile import Profile
from shuffle_jax.train.run import Run
from shuffle_jax.train.state import TrainState
from shuffle_jax.train.step import evaluate
from shuffle_jax.typing import PyTree

SEEN = 60.0
"""Seconds within which every process must see the folder of a run that one of them has made."""

DIAGNOSED = ("penalty", "residual", "max_row_slack", "certified")
"""What is recorded of each relaxed matrix."""


def train(
    config: TrainConfig,
    path: Path,
    *,
    resume: bool = False,
    devices: int | None = None,
    input: InputConfig | None = None,
    profile: tuple[int, int] | None = None,
) -> Outcome:
    """Trains a network into a run folder; every process of several calls it alike, on one shared file system.

    Args:
        config: the run.
        path: the folder; new or empty unless ``resume``.
        resume: continue from the newest checkpoint in ``path``, bit for bit as if the run had not been interrupted;
            also on another number of devices or processes, which round differently.
        devices: how many local devices to use; all by default.
        input: the way of the images to the devices; by default as their size says.
        profile: the first and the last step of which a trace is written.

    Returns:
        Accuracies and certificates of the trained network.

    Raises:
        ValueError: something in the configuration, the data or the folder does not fit; the message says what.
        NonFiniteLoss: the loss is NaN or infinite; the last good checkpoint is kept.
        Stopped: SIGINT or SIGTERM came to one of the processes; the state is saved.
        ProcessLost: another process ended or was lost; the last checkpoint is kept.
    """
    run = Run(path)
    with _losses(run):
        same("the command", (str(path), to_json(config), resume, input, profile))
        if resume:
            run.check(config)
        else:
            run.check_free()
        experiment = prepare(config, devices, run.classes() if resume else None, _input(config, run, resume, input))
        if resume:
            experiment = as_kept(experiment, run)
        shapes = experiment.state_shapes()  # a network that cannot be built is refused before anything is written
        trace = Profile(_trace_folder(run), profile, experiment.steps)
        same("the data", (experiment.pixels, experiment.batches.pipeline))
        if not resume:
            _start(run, experiment)
        with (
            Interruption() as interruption,
            Checkpoints(run.checkpoints, config.keep) as checkpoints,
            trace,
        ):
            saved = checkpoints.steps()
            step = saved[-1] if saved else 0
            same("the newest checkpoint", step)  # as far as each process sees it
            state = checkpoints.restore(shapes, step) if saved else experiment.init()
            if is_lead():
                run.forget_after(step)
            with _metrics(experiment, path, step) as metrics:
                started = time.perf_counter()
                probe = Probe(experiment) if is_dynamic(config.network) else None
                loop = _Loop(experiment, run, checkpoints, metrics, interruption, probe, trace)
                state = loop.go(state, step)
                return finish(experiment, run, state, metrics, started)


def _input(config: TrainConfig, run: Run, resume: bool, input: InputConfig | None) -> InputConfig:
    """How the images reach the devices; where crops depend on it, a resumed run keeps to its way."""
    input = input or InputConfig()
    if not (resume and config.augment.resized_crop):
        return input
    started = run.pipeline()
    if input.pipeline == "auto":
        return dataclasses.replace(input, pipeline=started)
    if (input.pipeline == "stream") != (started == "stream"):
        raise ValueError(
            f'{run.path} was started with the pipeline "{started}", which crops other windows than "{input.pipeline}": '
            "leave out --input.pipeline"
        )
    return input


def _trace_folder(run: Run) -> Path:
    """Where a trace goes: its file is named by the host, of which several processes may be."""
    folder = run.path / "profile"
    return folder / f"process{jax.process_index()}" if jax.process_count() > 1 else folder


def _start(run: Run, experiment: Experiment) -> None:
    """Makes the folder of a new run, which every process must see."""
    barrier("the folder is free")
    if is_lead():
        run.start(experiment.config, experiment.dataset.classes, experiment.preprocessing, experiment.batches.pipeline)
    barrier("the run is started")
    end = time.monotonic() + SEEN
    while not run.exists():  # file systems of a network take a while to show what is new
        if time.monotonic() > end:
            raise ValueError(
                f"process {jax.process_index()} does not see {run.path}: name a folder on a file system that all "
                "processes share"
            )
        time.sleep(0.5)


def _metrics(experiment: Experiment, path: Path, step: int) -> Metrics:
    if not is_lead():
        return NoMetrics()
    return Metrics(path, experiment.steps, experiment.batches.steps_per_epoch, step)


@contextlib.contextmanager
def _losses(run: Run) -> Iterator[None]:
    """What a collective raises when another process is gone, as :class:`ProcessLost` with what is kept."""
    try:
        yield
    except (ProcessLost, ValueError, RuntimeError) as error:
        if jax.process_count() == 1 or not is_lost(error):
            raise
        kept = steps_in(run.checkpoints)
        last = f"the last checkpoint is step {kept[-1]}" if kept else "there is no checkpoint yet"
        raise ProcessLost(f"{lost(error)}; {last} in {run.path}; continue with --resume") from error


@dataclass
class _Loop:
    """The parts that the loop works with."""

    experiment: Experiment
    run: Run
    checkpoints: Checkpoints
    metrics: Metrics
    interruption: Interruption
    probe: Probe | None
    trace: Profile

    def go(self, state: TrainState, first: int) -> TrainState:
        """Trains from step ``first`` to the end."""
        experiment, config = self.experiment, self.experiment.config
        steps, per_epoch = experiment.steps, experiment.batches.steps_per_epoch
        train_step, meter, agreement = experiment.train_step(), Meter(config.batch_size), Agreement(experiment.mesh)
        # Queued steps of several CPU devices can dead-lock in a collective: wait for each.
        wait = experiment.mesh.size > 1 and jax.default_backend() == "cpu"
        middle = round((config.penalty.start + config.penalty.end) / 2 * steps)  # of the ramp: where most happens
        if first == 0:
            self._snapshot(state, 0)
            self._diagnose(state, 0)

        for step, batch in zip(range(first + 1, steps + 1), experiment.batches.train(first), strict=False):
            with self.trace.step(step):
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
            self.trace.after(step, state)
            signal = agreement.largest(self.interruption.signal or 0)
            if signal and step < steps:
                self._checked(meter)
                self._save(state)
                self.checkpoints.wait()
                raise Stopped(f"stopped at step {step} of {steps} and saved in {self.run.path}", signal)
        return state

    def _checked(self, meter: Meter, step: int | None = None, values: PyTree = None) -> None:
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

    def _log(self, meter: Meter, step: int) -> None:
        """Writes the means since the last record."""
        rates = {
            "learning_rate": float(self.experiment.learning_rate(step - 1)),
            "penalty_weight": float(self.experiment.penalty_weight(step - 1)),
        }
        epoch = step / self.experiment.batches.steps_per_epoch
        self.metrics.write({"kind": "train", "step": step, "epoch": epoch, **meter.take(), **rates})

    def _diagnose(self, state: TrainState, step: int) -> None:
        """Writes how near each relaxed matrix is to a permutation, and what dynamic layers do."""
        if not is_lead():
            return
        variables = jax.device_get(state.variables())  # on this process alone: the others go on meanwhile
        params = variables["params"]
        matrices = relaxed_permutations(params)
        for layer, found in jax.device_get(diagnose_all(params)).items():
            record = {"kind": "permutation", "step": step, "layer": layer, "size": len(matrices[layer])}
            self.metrics.write(record | {name: getattr(found, name) for name in DIAGNOSED})
        if self.probe is not None:
            epoch = step / self.experiment.batches.steps_per_epoch
            for layer, numbers in self.probe.numbers(variables).items():
                self.metrics.write({"kind": "dynamic", "step": step, "epoch": epoch, "layer": layer, **numbers})

    def _evaluate(self, state: TrainState) -> dict[str, float]:
        return evaluate(self.experiment.eval_step, state.variables(), self.experiment.batches.test())

    def _snapshot(self, state: TrainState, step: int) -> None:
        if not is_lead():
            return
        variables = jax.device_get(state.variables())
        matrices = {layer: np.asarray(matrix) for layer, matrix in relaxed_permutations(variables["params"]).items()}
        if matrices:
            self.run.save_snapshot(step, matrices)
            self.metrics.matrices(step, matrices)
        if self.probe is not None:
            self.run.save_dynamic(step, self.probe.permutations(variables))
