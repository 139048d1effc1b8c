"""The training loop: steps, records, evaluations, checkpoints, and the hardened network at the end."""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import jax
import optax

from shuffle_jax.analysis.shift_consistency import shift_breakers
from shuffle_jax.data import Batch
from shuffle_jax.data.dataset import Dataset
from shuffle_jax.data.pipelines import InputConfig
from shuffle_jax.distributed import Agreement, ProcessLost, connected, is_lead, is_lost, lost, same
from shuffle_jax.nn.collections import relaxed_permutations
from shuffle_jax.run import Run, resume_command
from shuffle_jax.signals import Interruption
from shuffle_jax.trackers import TrackerName
from shuffle_jax.train import early, permutations
from shuffle_jax.train.adas import adapted
from shuffle_jax.train.advice import before, of_shifts
from shuffle_jax.train.begin import again, check_config, chosen_input, new, settle
from shuffle_jax.train.checkpoint import Checkpoints
from shuffle_jax.train.config import TrainConfig, to_json, with_network
from shuffle_jax.train.experiment import Experiment, prepare
from shuffle_jax.train.metrics import Meter, MetricWriter, NoMetrics, NonFiniteLoss, Profile
from shuffle_jax.train.opening import Compiling, about, reading
from shuffle_jax.train.optimizer import learning_rate, penalty_weight
from shuffle_jax.train.state import TrainState
from shuffle_jax.train.step import TrainStep, evaluate
from shuffle_jax.train.trained import Outcome, finish
from shuffle_jax.typing import PyTree

COMPILING = "compiling; stopping after the first step, which is saved"
TRAINING = "stopping after this step, which is saved"
ENDING = "the training is done and saved; what follows are evaluations and figures"
"""What a signal is answered with."""


class Stopped(Exception):
    """The run was asked to stop by ``signal``, has saved its state, and goes on with ``command``."""

    def __init__(self, message: str, signal_number: int, command: str) -> None:
        super().__init__(message)
        self.signal, self.command = signal_number, command


def train(
    config: TrainConfig,
    path: Path,
    *,
    network: object | None = None,
    resume: bool = False,
    afresh: bool = False,
    devices: int | None = None,
    input: InputConfig | None = None,
    profile: tuple[int, int] | None = None,
    dataset: Dataset | None = None,
    track: TrackerName | None = None,
) -> Outcome:
    """Trains a network into a run folder; every process of several calls it alike, on one shared file system.

    Args:
        config: the run.
        path: the folder; new or empty unless ``resume`` or ``afresh``.
        network: anybody's linen module in place of the configured network, see
            :func:`shuffle_jax.train.config.with_network`.
        resume: continue from the newest checkpoint in ``path``, bit for bit as if the run had not been interrupted;
            also on another number of devices or processes, which round differently. Epochs may become more where the
            schedules allow it, and the pictures may have moved.
        afresh: a run in ``path`` that ended before its first checkpoint starts again, also with ``resume``.
        devices: how many local devices to use; all by default.
        input: how the images reach the devices; by default as their size says.
        profile: the first and the last step of which a trace is written.
        dataset: that of the configuration, where it is loaded already.
        track: the tracker that gets what the run records.

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
    command = resume_command(path, devices, input, connected(), track)
    with _naming_lost_processes(run, command), contextlib.ExitStack() as stack:
        resume = resume and not (afresh and run.is_barely_begun())
        same("the command", (str(path), to_json(config), resume, input, profile))
        if resume:
            stack.enter_context(again(run))
            config = check_config(run, config, longer=True)
        else:
            run.check_free(afresh)
        _say(reading(config) if dataset is None else [])
        chosen = chosen_input(config, run, resume, input)
        experiment = prepare(config, devices, chosen, run=run if resume else None, dataset=dataset)
        shapes = experiment.state_shapes()  # a network that cannot be built is refused before anything is written
        _say(about(experiment, shapes.params))
        learned = len(relaxed_permutations(shapes.params))
        _say(before(config, experiment.steps, experiment.batches.steps_per_epoch, learned))
        if config.network.sampling != "stride":
            _say(of_shifts(shift_breakers(experiment.network, experiment.dataset.image_shape)))
        trace = Profile(run.profile, profile, experiment.steps)
        train_step = experiment.train_step()
        same("the data", (experiment.mean_std, experiment.batches.pipeline))
        if resume:
            settle(run, experiment)
        else:
            stack.enter_context(new(run, experiment, afresh))
        with Interruption(COMPILING) as interruption, Checkpoints(run.checkpoints, config.keep) as checkpoints, trace:
            saved = checkpoints.steps()
            step = saved[-1] if saved else 0
            same("the newest checkpoint", step)  # as far as each process sees it
            _say([f"compiling, to go on from step {step:,}" if step else "compiling"])
            compiling, batches = Compiling(), experiment.batches.train(step)
            if step < experiment.steps:
                batches = itertools.chain([first := next(batches)], batches)
                compiling.begin(train_step, shapes, first)
            state = checkpoints.restore(shapes, step) if saved else experiment.init()
            state = experiment.settled(state) if state.lacks_stats else state
            if is_lead():
                run.forget_after(step)
            with _metrics(experiment, run, step, track) as metrics:
                loop = _Loop(experiment, run, checkpoints, metrics, interruption, trace, compiling, command)
                state = loop.run_steps(train_step, state, step, batches)
                interruption.answer = ENDING
                return finish(experiment, run, state, metrics)


def _say(lines: list[str]) -> None:
    if is_lead() and lines:
        print("\n".join(lines), flush=True)


def _metrics(experiment: Experiment, run: Run, step: int, track: TrackerName | None) -> MetricWriter:
    if not is_lead():
        return NoMetrics()
    config, per_epoch = to_json(experiment.config), experiment.batches.steps_per_epoch
    return MetricWriter(run, experiment.steps, per_epoch, step, track=track, config=config)


@contextlib.contextmanager
def _naming_lost_processes(run: Run, command: str) -> Iterator[None]:
    """What a collective raises when another process is gone, as :class:`ProcessLost` with what is kept."""
    try:
        yield
    except (ProcessLost, ValueError, RuntimeError) as error:
        if jax.process_count() == 1 or not is_lost(error):
            raise
        kept = run.steps()
        last = f"the last checkpoint is step {kept[-1]}" if kept else "there is no checkpoint yet"
        how = f"continue with: {command}" if kept else f"start afresh with: {command} --afresh"
        raise ProcessLost(f"{lost(error)}; {last} in {run.path}; {how}") from error


@dataclass
class _Loop:
    """The parts that the loop works with."""

    experiment: Experiment
    run: Run
    checkpoints: Checkpoints
    metrics: MetricWriter
    interruption: Interruption
    trace: Profile
    compiling: Compiling
    command: str

    def run_steps(self, train_step: TrainStep, state: TrainState, first: int, batches: Iterator[Batch]) -> TrainState:
        """Trains from step ``first`` to the end, on batches of which the first is that of this step."""
        experiment, config = self.experiment, self.experiment.config
        steps, per_epoch = experiment.steps, experiment.batches.steps_per_epoch
        meter, agreement = Meter(config.batch_size), Agreement(experiment.mesh)
        # Queued steps of several CPU devices can dead-lock in a collective: wait for each.
        wait = experiment.mesh.size > 1 and jax.default_backend() == "cpu"
        ramp = (config.penalty.start + config.penalty.end) / 2  # in whose middle most happens to relaxed matrices
        middle = round((ramp if experiment.probe is None else 0.5) * steps)
        if first == 0:
            self._snapshot(state, 0)
            self._record(state, 0)

        self.compiling.wait()
        for step, batch in zip(range(first + 1, steps + 1), batches, strict=False):
            with self.trace.step(step):
                state, values = train_step(state, batch)
            if step == first + 1:
                self.metrics.console.message(self.compiling.done())
                self.metrics.console.doing("")
                self.interruption.answer = TRAINING
            self._checked(meter, step, values)
            if wait:
                jax.block_until_ready(state)
            if step % per_epoch == 0:
                state = self._hardened(meter, self._adapted(meter, state, step))
            evaluating = step % (per_epoch * config.evaluate_every) == 0 or step == steps
            if evaluating or step == middle:
                state = experiment.settled(state)
            if step % config.log_every == 0 or evaluating:
                self._checked(meter)
                if evaluating:
                    self._record(state, step)
                self._log(meter, step)
            if step in (middle, steps):
                self._snapshot(state, step)
            if evaluating:
                self.metrics.console.doing("evaluating")
                result = evaluate(experiment.eval_step, state.variables(), experiment.batches.test())
                record = {"kind": "test", "split": experiment.dataset.measured, "step": step, "epoch": step / per_epoch}
                self.metrics.write(record | result)
                self._save(state, result)
                meter.restart()
            self.trace.after(step, state)
            stop = agreement.largest(self.interruption.signal)
            if stop and step < steps:
                self._checked(meter)
                self._save(experiment.settled(state))
                self.checkpoints.wait()
                raise Stopped(f"stopped at step {step} of {steps} and saved in {self.run.path}", stop, self.command)
        return state

    def _adapted(self, meter: Meter, state: TrainState, step: int) -> TrainState:
        """The state of the next epoch, with records of what each convolution has learned in this one."""
        experiment = self.experiment
        if (layers := experiment.convolutions) is None:
            return state
        self._checked(meter)
        config, mesh = experiment.config.optimizer, experiment.mesh
        try:
            opt_state, known = adapted(state.opt_state, state.params, layers, config, mesh)
        except ValueError as error:
            raise self._broken(f"{error} after step {step}") from None
        at = {"step": step, "epoch": step / experiment.batches.steps_per_epoch}
        for layer, found in known.items():
            self.metrics.write({"kind": "knowledge", **at, "layer": layer, **found.numbers()})
        meter.restart()
        return state.replace(opt_state=opt_state)

    def _hardened(self, meter: Meter, state: TrainState) -> TrainState:
        """The state of the next epoch, without matrices once they have settled."""
        if state.settling is None:
            return state
        self._checked(meter)
        state, epochs = early.looked_at(state, self.experiment.mesh)
        if epochs < self.experiment.config.penalty.settle:
            return state
        count, same = len(relaxed_permutations(state.params)), "1 epoch" if epochs == 1 else f"{epochs} epochs"
        self.metrics.console.message(f"all {count} permutations were certified and the same for {same}: hardened")
        meter.restart()
        return early.hardened(state)

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
        rate = float(learning_rate(config.optimizer, steps, per_epoch)(step - 1))
        rates = {"learning_rate": rate, "penalty_weight": float(penalty_weight(config.penalty, steps)(step - 1))}
        self.metrics.write({"kind": "train", "step": step, "epoch": step / per_epoch, **meter.take(), **rates})

    def _record(self, state: TrainState, step: int) -> None:
        if is_lead():
            permutations.record(self.experiment, state, step, self.metrics)

    def _snapshot(self, state: TrainState, step: int) -> None:
        if is_lead():
            permutations.snapshot(self.experiment, state, step, self.run, self.metrics)
