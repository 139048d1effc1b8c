"""Whether classes survive shifts of the image: `python -m experiments.consistency RUN...`.

Test images (--images, evenly spread over the split) are moved circularly by 0 to --shifts - 1 rows and as many columns,
and by up to --crops pixels either way with what leaves gone and the border repeated. Each row is a run in one form, as
trained or hardened: the share of the images whose class is the same under all shifts ("survive"), the share of images
and shifts whose class is that of the image as it is ("same"), and the largest change of a logit by a circular shift.

A network that samples by --network.sampling aps has 100 % under circular shifts, trained or not: --untrained shows it.
Three halvings make what a network sees repeat after 8 pixels, so --shifts 8 has all there is for images of 32 x 32.
Layers that break it are named.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
import tyro

from experiments.cli import keep_programs, main, parse, print_table, quiet_libraries
from shuffle_jax.analysis.shift_consistency import (
    circular,
    consistency,
    crops,
    in_words,
    logits_at,
    moved,
    shift_breakers,
)
from shuffle_jax.data import normalize
from shuffle_jax.data.dataset import spread
from shuffle_jax.files import replace_file
from shuffle_jax.models import build
from shuffle_jax.train.experiment import Experiment, restore
from shuffle_jax.train.trained import hardened_experiment
from shuffle_jax.typing import PyTree

COLUMNS = {
    "run": "run",
    "network": "network",
    "type": "type",
    "top1": "top-1",
    "survived": "survive",
    "kept": "same",
    "changed": "logits change",
    "crops_survived": "crops: survive",
    "crops_kept": "crops: same",
}
"""Headings by the names of the numbers."""


@dataclass(frozen=True)
class Arguments:
    """What to move, and how far."""

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="RUN", name="run")]
    """Folders of runs, as experiments.train writes them."""

    checkpoint: str = "last"
    """Which checkpoint: "last", "best" (by relaxed top-1 accuracy), or a step."""

    images: int = 200
    """How many test images, or all if there are fewer."""

    shifts: int = 8
    """Circular shifts are those by 0 to this many rows, less one, and as many columns."""

    crops: int = 3
    """Crops are moved by up to this many pixels to every side; 0 leaves them out."""

    untrained: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Also the network before its training."""

    dtypes: tuple[Literal["float32", "bfloat16"], ...] = ()
    """Types of the computation; that of the run by default."""

    json: Path | None = None
    """Also write the numbers to this file."""


def run(arguments: Sequence[str] | None = None) -> None:
    """Parses the command line, moves images and prints."""
    options = parse(Arguments, arguments, prog="python -m experiments.consistency", description=__doc__)
    quiet_libraries()
    keep_programs()
    for name, least in (("images", 1), ("shifts", 1), ("crops", 0)):
        if getattr(options, name) < least:
            raise ValueError(f"--{name} must be at least {least}, got {getattr(options, name)}")
    if not options.runs:
        raise ValueError("name the folder of a run, as experiments.train writes it")
    rows = [row for folder in options.runs for row in _of_run(options, folder)]
    shown = [name for name in COLUMNS if name in rows[0]]
    print_table([COLUMNS[name] for name in shown], [[_text(name, row[name]) for name in shown] for row in rows])
    if options.json is not None:
        replace_file(options.json, f"{json.dumps(rows, indent=1)}\n".encode())


def _text(name: str, value: str | float) -> str:
    if isinstance(value, str):
        return value
    return f"{value:.1e}" if name == "changed" else f"{value:.1%}"


def _of_run(options: Arguments, folder: Path) -> Iterator[dict[str, Any]]:
    """The rows of a run, behind a line for the layers that break its invariance."""
    experiment, variables, _ = restore(folder, options.checkpoint, 1)
    shape, config = experiment.dataset.image_shape, experiment.config.network
    if breakers := shift_breakers(experiment.network, shape):
        print(f"{folder} does not follow every circular shift ({in_words(breakers)})")
    pixels, labels = experiment.dataset.test.take(spread(len(experiment.dataset.test), options.images))
    images = normalize(jnp.asarray(pixels), *experiment.mean_std)
    size, classes = shape[:2], len(experiment.dataset.classes)
    for dtype in options.dtypes or (config.dtype,):
        network = moved(partial(build(replace(config, dtype=dtype), classes).apply, train=False))
        for form, own in _forms(experiment, variables, options.untrained):
            at = partial(logits_at, network, own, images)
            (true,) = at(circular(size, range(1)))
            found = consistency(true, at(circular(size, range(options.shifts))))
            top1 = float((true.argmax(-1) == labels).mean())
            row: dict[str, Any] = {"run": str(folder), "network": form, "type": dtype, "top1": top1, **found._asdict()}
            if options.crops:
                found = consistency(true, at(crops(size, range(-options.crops, options.crops + 1))))
                row |= {"crops_survived": found.survived, "crops_kept": found.kept}
            yield row


def _forms(
    experiment: Experiment, variables: dict[str, PyTree], untrained: bool
) -> Iterator[tuple[str, dict[str, PyTree]]]:
    """The variables of a run in each form, by its name."""
    if untrained:
        yield "untrained", jax.device_get(experiment.init().variables())
    yield "as trained", variables
    hard = hardened_experiment(experiment, variables)
    if hard.permutations:
        yield "hardened", hard.variables


if __name__ == "__main__":
    main(run)
