"""The training loop: steps, records, evaluations, checkpoints, and the hardened network at the end."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import jax
import numpy as np
import optax

from shuffle_jax.data.pipelines import InputConfig
from shuffle_jax.deploy.harden import diagnose_all
from shuffle_jax.distributed import Agreement, ProcessLost, barrier, is_lead, is_lost, lost, same
from shuffle_jax.nn.collections import relaxed_permutations
from shuffle_jax.run import Run
from shuffle_jax.train.checkpoint import Checkpoints, steps_in
from shuffle_jax.train.config import TrainConfig, check_config, to_json, with_network
from shuffle_jax.train.experiment import Experiment, prepare
from shuffle_jax.train.metrics import Meter, MetricWriter, NoMetrics, NonFiniteLoss, Profile
from shuffle_jax.train.optimizer import learning_rate, penalty_weight
from shuffle_jax.train.state import TrainState
from shuffle_jax.train.step import TrainStep, evaluate
from shuffle_jax.train.trained import Outcome, finish
from shuffle_jax.typing import PyTree

SEEN = 60.0
"""Seconds within which every process must see the folder of a run that one of them has made."""

DIAGNOSED = ("penalty", "residual", "max_row_slack", "certified")
"""What is recorded of each relaxed matrix."""


class Stopped(Exception):
    """The run was asked to stop, has saved its state, and can be resumed; ``signal`` is what asked for it."""

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message)
        self.signal = signal_number


def train(
    config: TrainConfig,
    path: Path,
    *,
    network: object | None = None,
    resume: bool = False,
    devices: int | None = None,
    input: InputConfig | None = None,
    profile: tuple[int, int] | None = None,
) -> Outcome:
    """Trains a network into a run folder; every process of several calls it alike, on one shared file system.

    Args:
        config: the run.
        path: the folder; new or empty unless ``resume``.
        network: anybody's linen module in place of the configured network, see
            :func:`shuffle_jax.train.config.with_network`.
        resume: continue from the newest checkpoint in ``path``, bit for bit as if the run had not been interrupted;
            also on another number of devices or processes, which round differently.
        devices: how many local devices to use; all by default.
        input: how the images reach the devices; by default as their size says.
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
    config = with_network(config, network)
    with _naming_lost_processes(run):
        same("the command", (str(path), to_json(config), resume, input, profile))
        if resume:
            check_config(run, config)
        else:
            run.check_free()
        experiment = prepare(config, devices, _input(config, run, resume, input), run=run if resume else None)
        shapes = experiment.state_shapes()  # a network that cannot be built is refused before anything is written
        trace = Profile(_trace_folder(run), profile, experiment.steps)
        train_step = experiment.train_step()
        same("the data", (experiment.mean_std, experiment.batches.pipeline))
        if not resume:
            _start(run, experiment)
        with _interruption() as interruption, Checkpoints(run.checkpoints, config.keep) as checkpoints, trace:
            saved = checkpoints.steps()
            step = saved[-1] if saved else 0
            same("the newest checkpoint", step)  # as far as each process sees it
            state = checkpoints.restore(shapes, step) if saved else experiment.init()
            if is_lead():
                run.forget_after(step)
            with _metrics(experiment, run, step) as metrics:
                started = time.perf_counter()
                loop = _Loop(experiment, run, checkpoints, metrics, interruption, trace)
                state = loop.run_steps(train_step, state, step)
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
    return run.profile / f"process{jax.process_index()}" if jax.process_count() > 1 else run.profile


def _start(run: Run, experiment: Experiment) -> None:
    """Makes the folder of a new run, which every process must see."""
    barrier("the folder is free")
    if is_lead():
        config = to_json(experiment.config)
        run.start(config, experiment.dataset.classes, experiment.preprocessing, experiment.batches.pipeline)
    barrier("the run is started")
    end = time.monotonic() + SEEN
    while not run.exists():  # file systems of a network take a while to show what is new
        if time.monotonic() > end:
            raise ValueError(
                f"process {jax.process_index()} does not see {run.path}: name a folder on a file system that all "
                "processes share"
            )
        time.sleep(0.5)


def _metrics(experiment: Experiment, run: Run, step: int) -> MetricWriter:
    if not is_lead():
        return NoMetrics()
    return MetricWriter(run, experiment.steps, experiment.batches.steps_per_epoch, step)


@contextlib.contextmanager
def _naming_lost_processes(run: Run) -> Iterator[None]:
    """What a collective raises when another process is gone, as :class:`ProcessLost` with what is kept."""
    try:
        yield
    except (ProcessLost, ValueError, RuntimeError) as error:
        if jax.process_count() == 1 or not is_lost(error):
            raise
        kept = steps_in(run.checkpoints)
        last = f"the last checkpoint is step {kept[-1]}" if kept else "there is no checkpoint yet"
        raise ProcessLost(f"{lost(error)}; {last} in {run.path}; continue with --resume") from error


@contextlib.contextmanager
def _interruption() -> Iterator[list[int]]:
    """The first SIGINT or SIGTERM, for the loop to save and stop; a second SIGINT stops at once."""
    signals: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        if signals and number == signal.SIGINT:
            raise KeyboardInterrupt
        signals[:] = [number]

    if threading.current_thread() is not threading.main_thread():  # there signals do what they did before
        yield signals
        return
    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield signals
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@dataclass
class _Loop:
    """The parts that the loop works with."""

    experiment: Experiment
    run: Run
    checkpoints: Checkpoints
    metrics: MetricWriter
    interruption: list[int]
    trace: Profile

    def run_steps(self, train_step: TrainStep, state: TrainState, first: int) -> TrainState:
        """Trains from step ``first`` to the end."""
        experiment, config = self.experiment, self.experiment.config
        steps, per_epoch = experiment.steps, experiment.batches.steps_per_epoch
        meter, agreement = Meter(config.batch_size), Agreement(experiment.mesh)
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
            stop = agreement.largest(self.interruption[0] if self.interruption else 0)
            if stop and step < steps:
                self._checked(meter)
                self._save(state)
                self.checkpoints.wait()
                raise Stopped(f"stopped at step {step} of {steps} and saved in {self.run.path}", stop)
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
        experiment, config = self.experiment, self.experiment.config
        steps, per_epoch = experiment.steps, experiment.batches.steps_per_epoch
        rates = {
            "learning_rate": float(learning_rate(config.optimizer, steps, per_epoch)(step - 1)),
            "penalty_weight": float(penalty_weight(config.penalty, steps)(step - 1)),
        }
        epoch = step / per_epoch
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
        if self.experiment.probe is not None:
            epoch = step / self.experiment.batches.steps_per_epoch
            for layer, numbers in self.experiment.probe.numbers(variables).items():
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
        if self.experiment.probe is not None:
            self.run.save_dynamic(step, self.experiment.probe.permutations(variables))
