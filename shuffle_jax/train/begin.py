"""How training begins: in a new folder, or in one that is there, with what may change about its run."""

from __future__ import annotations

import contextlib
import dataclasses
import shlex
import time
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

import jax
import numpy as np

from shuffle_jax.data.pipelines import InputConfig
from shuffle_jax.distributed import barrier, is_lead
from shuffle_jax.nn.collections import PENALTIES, PROGRESS
from shuffle_jax.run import Run, resume_command
from shuffle_jax.runs import begun, check_resumable, held
from shuffle_jax.train.config import TrainConfig, differences, read_config, to_json
from shuffle_jax.train.experiment import Experiment
from shuffle_jax.train.optimizer import learning_rate, penalty_weight

SEEN = 60.0
"""Seconds within which every process must see the folder of a run that one of them has made."""

MOVED = ("data.root", "data.data_dir")
"""Where the pictures of a run are; the pictures themselves must be the same."""

Config = TypeVar("Config")


@contextlib.contextmanager
def new(run: Run, experiment: Experiment, afresh: bool = False) -> Iterator[None]:
    """Makes and holds the folder of a new run, which every process must see.

    Args:
        run: the folder, which :meth:`Run.check_free` has been asked about.
        experiment: what is to be trained.
        afresh: a run that ended before its first checkpoint may be there, and begins again.
    """
    barrier("the folder is free")
    with begun(run) if is_lead() else contextlib.nullcontext():
        if is_lead():
            config, dataset = to_json(experiment.config), experiment.dataset
            pipeline, pictures = experiment.batches.pipeline, experiment.pictures
            run.start(config, dataset.classes, experiment.preprocessing, pipeline, afresh, pictures)
        barrier("the run is started")
        end = time.monotonic() + SEEN
        while not run.exists():  # file systems of a network take a while to show what is new
            if time.monotonic() > end:
                raise ValueError(
                    f"process {jax.process_index()} does not see {run.path}: name a folder on a file system that all "
                    "processes share"
                )
            time.sleep(0.5)
        yield


@contextlib.contextmanager
def again(run: Run) -> Iterator[None]:
    """Holds the folder of a run that goes on from a checkpoint.

    Raises:
        ValueError: there is no run, another process trains it, or it has no checkpoint.
    """
    run.config()
    with held(run) if is_lead() else contextlib.nullcontext():
        check_resumable(run, resume_command(run.path))
        yield


def check_config(run: Run, config: TrainConfig, longer: bool = False) -> TrainConfig:
    """The configuration that a run goes on with: its own, but for what may change.

    That is where the pictures are, and the epochs. A field that the version did not have which started the run is the
    run's unless it is given.

    Args:
        run: that was started.
        config: what is asked for.
        longer: whether it may have more epochs, which :func:`settle` asks the schedules about.

    Raises:
        ValueError: something else differs; the message names it as one types it.
    """
    own = read_config(run)
    asked = _aligned(config, own, run.config())
    plain = [to_json(dataclasses.replace(c, network=c.network.resolved())) for c in (own, asked)]
    moved = tuple(f"{name}: " for name in MOVED)
    different = [line for line in differences(*plain) if not line.startswith(moved)]
    if longer and asked.epochs > own.epochs:
        different = [line for line in different if not line.startswith("epochs: ")]
    if different:
        found = "; ".join(_as_typed(line) for line in different)
        raise ValueError(
            f"{run.path} was started with another configuration ({found}): name another --run, or continue it with its "
            f"own: {resume_command(run.path)}"
        )
    return asked


def settle(run: Run, experiment: Experiment) -> None:
    """Keeps what has changed about the configuration of a run that goes on.

    Args:
        run: that was started.
        experiment: with the configuration from :func:`check_config`.

    Raises:
        ValueError: it is to be trained longer, and with as many epochs from the start the steps that are done would
            have been others, for the learning rate, the weight of the penalties or the progress of the training.
    """
    own, config = read_config(run), experiment.config
    if config.epochs > own.epochs and (why := _scheduled_otherwise(experiment, own.epochs, run.steps()[-1])):
        raise ValueError(
            f"{run.path} cannot go on to --epochs {config.epochs}: in a training of so many epochs {why}; "
            f"leave out --epochs, or train a new run from its weights with --start-from {shlex.quote(str(run.path))}"
        )
    if is_lead() and to_json(config) != to_json(own):
        run.change(to_json(config))


def chosen_input(config: TrainConfig, run: Run, resume: bool, input: InputConfig | None) -> InputConfig:
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


def _scheduled_otherwise(experiment: Experiment, epochs: int, step: int) -> str | None:
    """What of the first steps of a training would have been otherwise if it had been one of ``epochs`` epochs."""
    config, per_epoch = experiment.config, experiment.batches.steps_per_epoch
    shapes = experiment.state_shapes()
    if PROGRESS in shapes.collections and step:
        return "the progress that its layers see would have been another"
    image = jax.ShapeDtypeStruct((2, *experiment.dataset.image_shape), np.float32)
    keys = {"dropout": jax.random.key(0)}
    _, sown = jax.eval_shape(
        lambda v, x: experiment.network.apply(v, x, train=True, mutable=[*v, PENALTIES], rngs=keys),
        {"params": shapes.params, **shapes.collections},
        image,
    )
    schedules = {
        f"the learning rate (--optimizer.schedule {config.optimizer.schedule})": lambda n: learning_rate(
            config.optimizer, n * per_epoch, per_epoch
        )
    }
    if PENALTIES in sown and config.penalty.weight:
        schedules["the weight of the penalties"] = lambda n: penalty_weight(config.penalty, n * per_epoch)
    for what, schedule in schedules.items():
        before, after = (np.asarray(jax.vmap(schedule(n))(np.arange(step))) for n in (epochs, config.epochs))
        if (unequal := np.flatnonzero(before != after)).size:
            return f"{what} would have been another from step {unequal[0] + 1} on"
    return None


def _aligned(asked: Config, own: Config, kept: Mapping[str, Any]) -> Config:
    """``asked`` with the fields of ``own`` that are not among those kept, where they have their defaults."""
    if type(asked) is not type(own):
        return asked
    changes = {}
    for field in dataclasses.fields(asked):  # type: ignore[arg-type]
        value, before = getattr(asked, field.name), getattr(own, field.name)
        if field.name not in kept:
            default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
            changes[field.name] = before if value == default else value
        elif dataclasses.is_dataclass(value) and isinstance(kept[field.name], Mapping):
            changes[field.name] = _aligned(value, before, kept[field.name])
    return dataclasses.replace(asked, **changes)  # type: ignore[type-var]


def _as_typed(difference: str) -> str:
    name, _, values = difference.partition(": ")
    return f"--{name.replace('_', '-')}: {values}"
