"""Trains a network: `python -m experiments.train PRESET [--FIELD VALUE ...]`, or goes on: `--resume RUN`.

A preset is a complete configuration; every field of it can be overridden by name. With --data.root ROOT any of them
reads a folder of images, with --data.name NAME a set of tensorflow-datasets; --help shows the everyday options of the
one named before it, --help-all every one. The run goes to --run, by default runs/PRESET (or runs/PRESET-2, ... if
that exists): configuration, numbers, checkpoints, permutations and figures. For PRESET may stand @FILE, whose words are
a preset and options, as experiments.search writes it. Ctrl-C saves and stops; --resume RUN goes
on from there as if nothing had happened, with everything from the run. It may be given another number of devices,
another way of the images to them, the new place of pictures that were moved (--data.root), and more --epochs, if its
schedules had been the same so far.

--start-from RUN fine-tunes: the network, the size of its images and its weights are those of another run, also of one
that experiments.convert wrote; --optimizer.body-rate 0.1 trains all but the classifier slowly, --optimizer.freeze not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated

import tyro

from experiments.cli import keep_programs, main, parse_preset, quiet_libraries
from experiments.cli import parse as parse_options
from experiments.cli.options import words_of
from experiments.cli.source import START, network, resumed, source, started, value_of
from experiments.presets import PRESETS
from shuffle_jax.data.pipelines import InputConfig
from shuffle_jax.distributed import DistributedConfig, connect, exit_process, is_lead, shutdown
from shuffle_jax.run import Run, resume_command
from shuffle_jax.runs import newest, next_free
from shuffle_jax.trackers import TrackerName, check_tracker
from shuffle_jax.train.config import TrainConfig, read_config

PROG = "python -m experiments.train"

WARMUP = "--optimizer.warmup-epochs"
"""The option whose value is not shortened as that of a preset is, where the training is short."""

EVERYDAY = (
    "--run",
    "--resume",
    "--start-from",
    "--devices",
    "--track",
    "--epochs",
    "--batch-size",
    "--seed",
    "--average-decay",
    "--data.root",
    "--data.name",
    "--data.image-size",
    "--data.holdout",
    "--data.test-fraction",
    "--data.validation",
    "--data.data-dir",
    "--network.family",
    "--network.mixer",
    "--network.pointwise",
    "--network.width",
    "--network.groups",
    "--network.dropout",
    "--augment.crop-padding",
    "--augment.flip",
    "--augment.random-operations",
    "--optimizer.kind",
    "--optimizer.learning-rate",
    "--optimizer.warmup-epochs",
    "--optimizer.weight-decay",
    "--optimizer.body-rate",
    "--optimizer.freeze",
    "--penalty.weight",
)
"""The options that --help shows; --help-all shows all."""

OWN_DATA = (
    "Your own pictures: --data.root FOLDER, with a subfolder a class; a set of tensorflow-datasets: --data.name NAME."
)


@dataclass(frozen=True)
class Arguments:
    """What to train, and where to keep it."""

    config: Annotated[TrainConfig, tyro.conf.arg(name="")]

    preset: tyro.conf.Suppress[str]

    run: Path | None = None
    """Folder of the run. By default runs/PRESET or the first free runs/PRESET-N; with --resume the newest of them."""

    resume: bool = False
    """Continue from the newest checkpoint of the run: `--resume RUN` without a preset, with a preset as it was started.
    """

    afresh: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """With --resume: a run that ended before its first checkpoint starts again; one whose checkpoints are gone is left
    as it is, and trained anew in the first free RUN-N."""

    devices: int | None = None
    """How many local devices to use; all by default."""

    input: InputConfig = field(default_factory=InputConfig)
    """How the images reach the devices."""

    distributed: DistributedConfig = field(default_factory=DistributedConfig)
    """The processes of a run on several hosts, or with one process a device. Every one is started with the same words,
    but for its index."""

    track: TrackerName | None = None
    """The tracker that gets the numbers and figures as well; its own environment variables say where they go."""

    profile: tuple[int, int] | None = None
    """The first and the last step of which a trace is written, to the folder profile of the run."""


def parse(arguments: Sequence[str] | None = None) -> Arguments:
    """A preset, overridden from the command line, with data of the kind that it names."""
    words = words_of(arguments)
    words, run = resumed(words)
    if run is not None and words[0].startswith("-"):
        options = Arguments(read_config(Run(run)), str(run), run, resume=True)
        options = replace(options, config=adapted(options.config, words))
        return parse_options(Arguments, words, prog=PROG, description=__doc__, default=options, everyday=EVERYDAY)
    presets = {name: (_summary(preset), Arguments(preset(), name)) for name, preset in PRESETS.items()}
    if words and words[0] in presets:
        _, options = presets[words[0]]
        presets[words[0]] = (
            f"{PRESETS[words[0]].__doc__}\n\n{OWN_DATA}",
            replace(options, config=adapted(options.config, words)),
        )
    return parse_preset(presets, words, prog=PROG, description=__doc__ or "", everyday=EVERYDAY)


def run(arguments: Sequence[str] | None = None) -> None:
    """Parses the command line and trains."""
    options = parse(arguments)
    check_tracker(options.track)
    quiet_libraries()
    keep_programs()
    folder, resume = _folder(options)
    connect(options.distributed, resume_command(folder, options.devices, input=options.input, track=options.track))
    from shuffle_jax.train.loop import Stopped, train

    if is_lead():
        print(f"Resuming {folder}" if resume else f"Training {options.preset} in {folder}", flush=True)
    try:
        train(
            options.config,
            folder,
            resume=resume,
            afresh=options.afresh,
            devices=options.devices,
            input=options.input,
            profile=options.profile,
            track=options.track,
        )
    except Stopped:  # on which all processes agree
        shutdown()
        raise
    shutdown()


def _folder(options: Arguments) -> tuple[Path, bool]:
    """The folder of the run, and whether it is there already and goes on."""
    default, folder = Path("runs") / options.preset, options.run
    if folder is None:
        folder = newest(default) if options.resume else next_free(default)
        if folder is None:
            raise ValueError(f"there is no run to resume in {default}: name one with --run, or leave out --resume")
    run = Run(folder)
    if options.afresh and not options.resume:
        raise ValueError("--afresh goes with --resume: give the run to start afresh as --resume RUN --afresh")
    if options.afresh and run.exists() and not run.steps() and not run.is_barely_begun():
        return next_free(folder), False
    return folder, options.resume


def adapted(config: TrainConfig, words: Sequence[str]) -> TrainConfig:
    """A configuration with data and network of the kinds that the words of the command line name, and what follows."""
    if (start := value_of(START, words)) is not None:
        config = started(config, Run(Path(start)), words)
    else:
        config = replace(config, data=source(config.data, words))
    optimizer = config.optimizer
    if value_of(WARMUP, words) is not None:  # who says how long it is means it
        optimizer = replace(optimizer, warmup_share=1.0)
    return replace(config, network=network(config.network, words), optimizer=optimizer)


def _summary(preset: object) -> str:
    return (preset.__doc__ or "").partition("\n")[0]


if __name__ == "__main__":
    main(run, exit_process)
