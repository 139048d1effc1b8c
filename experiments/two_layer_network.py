"""Finds the permutation before a two-layer network: `python -m experiments.two_layer_network`.

A teacher is a network of one hidden layer behind a permutation of its inputs; the student is the same network with a
relaxed permutation in its place, trained on the expected loss, which has a closed form: no data, no noise. Weights are
Gaussian, for with W = I and equal outputs any permutation would do. Each row is a width and a method: how many teachers
the best of several starts recovers (best by the loss after rounding, which needs no knowledge of the answer), what
share of all starts does, and the loss before and after rounding to a permutation by assignment. Every method meets the
same teachers. Over doubly stochastic matrices the permutation is the only zero of the loss for any width: where a
method misses it, it got stuck.
"""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

import tyro

from experiments.cli import main, parse, quiet_libraries
from experiments.table import print_table

if TYPE_CHECKING:
    import numpy as np

    from shuffle_jax.problems.descent import DescentConfig
    from shuffle_jax.typing import Array, Bool, Float, Int, Key, Matrix

COLUMNS: tuple[str, ...] = (
    "width",
    "method",
    "teachers",
    "recovered",
    "starts_percent",
    "loss",
    "loss_rounded",
)

FORMATS = (".png", ".pdf", ".svg")


@dataclass(frozen=True)
class Arguments:
    """Which networks, how often, and how to print it."""

    widths: tuple[int, ...] = (2, 4, 8, 16, 32)
    """Hidden units, one group of rows each."""

    channels: int = 16
    """Inputs, which are permuted; 2 or more."""

    teachers: int = 8
    """Networks of each width."""

    starts: int = 8
    """Random starts for each network."""

    steps: int = 1500
    """Of each descent."""

    seed: int = 0
    """Of networks and starts."""

    csv: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Print comma-separated values with a header, for programs, and not a table."""

    figure: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """Also draw what is recovered against the width into this file: .png, .pdf or .svg."""


class Outcome(NamedTuple):
    """What one method did at one width, for each teacher and start.

    Attributes:
        loss: before rounding.
        rounded: after it.
        recovered: whether it is the teacher's permutation.
    """

    loss: Float[np.ndarray, "teachers starts"]
    rounded: Float[np.ndarray, "teachers starts"]
    recovered: Bool[np.ndarray, "teachers starts"]


class Teacher(NamedTuple):
    """A network behind a permutation p."""

    weights: Float[Array, "k c"]
    outputs: Float[Array, " k"]
    permutation: Int[Array, " c"]


def run(arguments: Sequence[str] | None = None) -> None:
    """Parses the command line, trains and prints."""
    options = parse(Arguments, arguments, prog="python -m experiments.two_layer_network", description=__doc__)
    check(options)
    quiet_libraries()
    outcomes: dict[str, dict[int, Outcome]] = {}
    rows = []
    for width, method, outcome in train(options):
        outcomes.setdefault(method, {})[width] = outcome
        rows.append(row(width, method, outcome))
        if sys.stderr.isatty():  # the table comes at the end
            print(f"\r{len(rows)} of {len(options.widths) * len(methods(options.steps))} rows", end="", file=sys.stderr)
    if sys.stderr.isatty():
        print("\r\033[K", end="", file=sys.stderr)
    if options.csv:
        writer = csv.writer(sys.stdout, lineterminator="\n")
        writer.writerow(COLUMNS)
        writer.writerows(rows)
    else:
        print_table(COLUMNS, rows)
    sys.stdout.flush()
    if options.figure is not None:
        draw(outcomes, options.figure)


def check(options: Arguments) -> None:
    """Raises ValueError for what cannot be run, before anything is."""
    for name in ("teachers", "starts", "steps"):
        if getattr(options, name) < 1:
            raise ValueError(f"{name} is {getattr(options, name)}: give 1 or more")
    if options.channels < 2:
        raise ValueError(f"{options.channels} channels have one order only: give 2 or more")
    if not options.widths or min(options.widths) < 1 or len(set(options.widths)) < len(options.widths):
        raise ValueError(
            f"the widths are {' '.join(map(str, options.widths)) or 'none'}: give some, each 1 or more, once"
        )
    if not 0 <= options.seed < 2**32:
        raise ValueError(f"the seed is {options.seed}: give one from 0 to {2**32 - 1}")
    if options.figure is not None and options.figure.suffix not in FORMATS:
        raise ValueError(f"a figure cannot be written as {options.figure.name!r}: name it {', '.join(FORMATS)}")


def methods(steps: int) -> dict[str, DescentConfig]:
    """What is compared. Rates and weights were chosen on other networks than those of any seed.

    "clamp" is the method's own way to keep a matrix bistochastic, without and with its penalty; "tangent" is the same
    along the constraint set, with the rate and the weight of "clamp".
    """
    from shuffle_jax.problems.descent import DescentConfig

    clamp = DescentConfig(relaxation="clamp", penalty="none", learning_rate=1.0, steps=steps, records=2)
    sinkhorn = replace(clamp, relaxation="sinkhorn", temperature=1.0, final_temperature=1.0)
    return {
        "clamp, no penalty": clamp,
        "clamp, penalty": replace(clamp, penalty="l1_minus_l2", weight=0.006),
        "tangent, no penalty": replace(clamp, relaxation="tangent"),
        "tangent, penalty": replace(clamp, relaxation="tangent", penalty="l1_minus_l2", weight=0.006),
        "Sinkhorn, no penalty": sinkhorn,
        "Sinkhorn, penalty": replace(sinkhorn, penalty="l1_minus_l2", weight=0.0006),
    }


def train(options: Arguments) -> Iterator[tuple[int, str, Outcome]]:
    """Every width and method in turn, with its outcome."""
    import jax
    import numpy as np

    for width in options.widths:
        keys = jax.random.split(jax.random.fold_in(jax.random.key(options.seed), width), options.teachers)
        for name, config in methods(options.steps).items():
            found = [learn(key, width, options.channels, options.starts, config) for key in keys]
            yield width, name, Outcome(*(np.stack(part) for part in zip(*found, strict=True)))


def learn(key: Key, width: int, channels: int, starts: int, config: DescentConfig) -> tuple[np.ndarray, ...]:
    """Draws a teacher and looks for its permutation from many starts; the fields of :class:`Outcome` for it alone."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from shuffle_jax.ops.permutation import to_matrix
    from shuffle_jax.ops.rounding import assignment
    from shuffle_jax.problems.descent import descend

    teacher_key, start_key = jax.random.split(key)
    teacher = draw_teacher(teacher_key, width, channels)
    # The curvature is of this order.
    scale = jnp.square(jnp.linalg.norm(teacher.weights * teacher.outputs[:, None], 2))
    matrix = descend(loss, teacher, channels, start_key, starts, config, scale).matrix
    permutation = jax.jit(assignment)(matrix)
    before, after = (jax.jit(loss)(found, teacher) for found in (matrix, to_matrix(permutation)))
    return np.asarray(before), np.asarray(after), np.all(permutation == teacher.permutation[None], -1)


def draw_teacher(key: Key, width: int, channels: int) -> Teacher:
    """Gaussian weights and outputs, scaled so that values stay of order 1, and a uniform permutation."""
    import jax

    from shuffle_jax.ops.permutation import random

    weight_key, output_key, order_key = jax.random.split(key, 3)
    weights = jax.random.normal(weight_key, (width, channels)) / channels**0.5
    return Teacher(weights, jax.random.normal(output_key, (width,)) / width**0.5, random(order_key, channels))


def loss(matrix: Matrix, teacher: Teacher) -> Float[Array, "*batch"]:
    """The expected loss of students, as :func:`~shuffle_jax.problems.descent.descend` wants it."""
    from shuffle_jax.ops.two_layer import two_layer_loss

    return two_layer_loss(teacher.weights, teacher.outputs, matrix, teacher.permutation)


def row(width: int, method: str, outcome: Outcome) -> tuple[str | int, ...]:
    """One line of the table."""
    teachers = len(outcome.recovered)
    best = outcome.recovered[range(teachers), outcome.rounded.argmin(1)]
    share = f"{100 * outcome.recovered.mean():.3g}"
    return (
        width,
        method,
        teachers,
        int(best.sum()),
        share,
        f"{outcome.loss.mean():.2g}",
        f"{outcome.rounded.mean():.2g}",
    )


def draw(outcomes: dict[str, dict[int, Outcome]], path: Path) -> None:
    """Writes the figure, whole or not at all."""
    from shuffle_jax.analysis.two_layer_figure import two_layer_figure
    from shuffle_jax.files import replacing

    recovered = {name: {width: found.recovered for width, found in some.items()} for name, some in outcomes.items()}
    with replacing(path) as temporary:
        two_layer_figure(recovered).savefig(temporary, format=path.suffix[1:])


if __name__ == "__main__":
    main(run)
