"""Finds the permutation before a two-layer network: `python -m experiments.two_layer_network`.

A teacher is a network of one hidden layer behind a permutation of its inputs; the student is the same network with a
relaxed permutation in its place, trained on the expected loss, which has a closed form: no data, no noise. Weights are
Gaussian, or the identity with outputs that differ a little; with equal ones any permutation would do. Each row is a
width and a method: how many teachers the best of several starts recovers (best by the loss after rounding, which needs
no knowledge of the answer), what share of all starts does, what share ends so near a permutation that rounding is
certified, whichever permutation it is, and the mean loss before and after rounding by assignment. Every method meets
the same teachers. Over doubly stochastic matrices the permutation is the only zero of the loss for any width: where a
method misses it, it got stuck.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, NamedTuple

import tyro

from experiments.cli import check_figure_file, keep_programs, main, parse, print_rows, quiet_libraries, save_figure

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
    "certified_percent",
    "loss",
    "loss_rounded",
)

WeightKind = Literal["gaussian", "identity"]


@dataclass(frozen=True)
class Arguments:
    """Which networks, how often, and how to print it."""

    weights: WeightKind = "gaussian"
    """Of the hidden units. With "identity" each sees one input, and the outputs are evenly spaced from 1 to 2."""

    widths: tuple[int, ...] = (2, 4, 8, 16, 32)
    """Hidden units, one group of rows each."""

    channels: int = 16
    """Inputs, which are permuted; 2 or more. With identity weights they are as many as hidden units."""

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
    """Also draw what is recovered and certified against the width into this file: .png, .pdf or .svg."""


class Outcome(NamedTuple):
    """What one method did at one width, for each teacher and start.

    Attributes:
        loss: before rounding.
        rounded: after it.
        recovered: whether it is the teacher's permutation.
        certified: whether the matrix is proved to be near a permutation before rounding, be it another one.
    """

    loss: Float[np.ndarray, "teachers starts"]
    rounded: Float[np.ndarray, "teachers starts"]
    recovered: Bool[np.ndarray, "teachers starts"]
    certified: Bool[np.ndarray, "teachers starts"]


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
    keep_programs()
    outcomes: dict[str, dict[int, Outcome]] = {}
    rows = []
    for width, method, outcome in train(options):
        outcomes.setdefault(method, {})[width] = outcome
        rows.append(row(width, method, outcome))
        if sys.stderr.isatty():  # the table comes at the end
            total = len(options.widths) * len(methods(options.weights, options.steps))
            print(f"\r{len(rows)} of {total} rows", end="", file=sys.stderr)
    if sys.stderr.isatty():
        print("\r\033[K", end="", file=sys.stderr)
    print_rows(COLUMNS, rows, options.csv)
    if options.figure is not None:
        draw(outcomes, options.figure)


def check(options: Arguments) -> None:
    """Raises ValueError for what cannot be run, before anything is."""
    for name in ("teachers", "starts", "steps"):
        if getattr(options, name) < 1:
            raise ValueError(f"{name} must be at least 1, got {getattr(options, name)}")
    if options.weights == "identity" and options.channels != Arguments.channels:
        raise ValueError(
            f"with identity weights there are as many channels as units: leave out --channels {options.channels}"
        )
    if not options.widths or min(options.widths) < 1 or len(set(options.widths)) < len(options.widths):
        raise ValueError(f"widths must be different and at least 1, got {' '.join(map(str, options.widths)) or 'none'}")
    channels = min(inputs(options, width) for width in options.widths)
    if channels < 2:
        raise ValueError(f"there must be at least 2 channels to permute, got {channels}")
    if not 0 <= options.seed < 2**32:
        raise ValueError(f"the seed must be from 0 to {2**32 - 1}, got {options.seed}")
    check_figure_file(options.figure)


def inputs(options: Arguments, width: int) -> int:
    """How many channels a network of this width permutes."""
    return width if options.weights == "identity" else options.channels


def methods(weights: WeightKind, steps: int) -> dict[str, DescentConfig]:
    """What is compared: ways to keep a matrix bistochastic, without and with a penalty.

    "clamp" is the method's own way, "tangent" the same along the constraint set. Their weights were chosen on networks
    of 4 and 16 units (and 32, where weights are the identity) of seed 4,000,000,000, by the share of starts recovered
    and then by that certified; rates, and Sinkhorn's weight for Gaussian networks, were chosen before on others.
    """
    from shuffle_jax.problems.descent import DescentConfig

    rate, clamp_weight, tangent_weight, sinkhorn_weight = {
        "gaussian": (1.0, 0.02, 0.06, 0.0006),
        "identity": (0.125, 0.1, 0.1, 0.1),
    }[weights]
    clamp = DescentConfig(relaxation="clamp", penalty="none", learning_rate=rate, steps=steps, records=2)
    tangent = replace(clamp, relaxation="tangent")
    sinkhorn = replace(clamp, relaxation="sinkhorn", temperature=1.0, final_temperature=1.0)
    return {
        "clamp, no penalty": clamp,
        "clamp, penalty": replace(clamp, penalty="l1_minus_l2", weight=clamp_weight),
        "tangent, no penalty": tangent,
        "tangent, penalty": replace(tangent, penalty="l1_minus_l2", weight=tangent_weight),
        "Sinkhorn, no penalty": sinkhorn,
        "Sinkhorn, penalty": replace(sinkhorn, penalty="l1_minus_l2", weight=sinkhorn_weight),
    }


def train(options: Arguments) -> Iterator[tuple[int, str, Outcome]]:
    """Every width and method in turn, with its outcome."""
    import jax
    import numpy as np

    for width in options.widths:
        keys = jax.random.split(jax.random.fold_in(jax.random.key(options.seed), width), options.teachers)
        for name, config in methods(options.weights, options.steps).items():
            found = [learn(key, width, options, config) for key in keys]
            yield width, name, Outcome(*(np.stack(part) for part in zip(*found, strict=True)))


def learn(key: Key, width: int, options: Arguments, config: DescentConfig) -> tuple[np.ndarray, ...]:
    """Draws a teacher and looks for its permutation from many starts; the fields of :class:`Outcome` for it alone."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from shuffle_jax.ops.permutation import to_matrix
    from shuffle_jax.ops.rounding import assignment, certificate
    from shuffle_jax.problems.descent import descend

    channels = inputs(options, width)
    teacher_key, start_key = jax.random.split(key)
    teacher = draw_teacher(teacher_key, options.weights, width, channels)
    # The curvature is of this order.
    scale = jnp.square(jnp.linalg.norm(teacher.weights * teacher.outputs[:, None], 2))
    matrix = descend(loss, teacher, channels, start_key, options.starts, config, scale).matrix
    permutation = jax.jit(assignment)(matrix)
    before, after = (np.asarray(jax.jit(loss)(found, teacher)) for found in (matrix, to_matrix(permutation)))
    recovered = np.all(permutation == teacher.permutation[None], -1)
    return before, after, recovered, np.asarray(certificate(matrix).guaranteed)


def draw_teacher(key: Key, kind: WeightKind, width: int, channels: int) -> Teacher:
    """Weights and outputs as the kind says, Gaussian ones scaled to values of order 1, and a uniform permutation."""
    import jax
    import jax.numpy as jnp

    from shuffle_jax.ops.permutation import random

    weight_key, output_key, order_key = jax.random.split(key, 3)
    permutation = random(order_key, channels)
    if kind == "identity":
        return Teacher(jnp.eye(width, channels), jnp.linspace(1.0, 2.0, width), permutation)
    weights = jax.random.normal(weight_key, (width, channels)) / channels**0.5
    return Teacher(weights, jax.random.normal(output_key, (width,)) / width**0.5, permutation)


def loss(matrix: Matrix, teacher: Teacher) -> Float[Array, "*batch"]:
    """The expected loss of students, as :func:`~shuffle_jax.problems.descent.descend` wants it."""
    from shuffle_jax.ops.two_layer import two_layer_loss

    return two_layer_loss(teacher.weights, teacher.outputs, matrix, teacher.permutation)


def row(width: int, method: str, outcome: Outcome) -> tuple[str | int, ...]:
    """One line of the table."""
    teachers = len(outcome.recovered)
    best = outcome.recovered[range(teachers), outcome.rounded.argmin(1)]
    return (
        width,
        method,
        teachers,
        int(best.sum()),
        f"{100 * outcome.recovered.mean():.3g}",
        f"{100 * outcome.certified.mean():.3g}",
        f"{outcome.loss.mean():.2g}",
        f"{outcome.rounded.mean():.2g}",
    )


def draw(outcomes: dict[str, dict[int, Outcome]], path: Path) -> None:
    """Writes the figure, whole or not at all."""
    from experiments.matching.two_layer_figure import two_layer_figure

    recovered = {name: {width: found.recovered for width, found in some.items()} for name, some in outcomes.items()}
    certified = {name: {width: found.certified for width, found in some.items()} for name, some in outcomes.items()}
    save_figure(two_layer_figure(recovered, certified), path)


if __name__ == "__main__":
    main(run)
