"""Measures operations and networks on this machine: `python -m experiments.benchmark`.

Everything in one table is measured in one process, the candidates in turn, round after round, so that whatever else the
machine does meets all of them alike. Each line gives the median time and, over the rounds, the minimum, median and
maximum of its ratio to the first line of its table. Let nothing else run meanwhile.
"""

from __future__ import annotations

import json
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro

from experiments.cli import main, quiet_libraries
from experiments.table import print_table
from shuffle_jax.data import AugmentConfig, Batch
from shuffle_jax.deploy import harden
from shuffle_jax.models import NetworkConfig, build
from shuffle_jax.models.build import MixerKind
from shuffle_jax.ops import convolution, mixing, permutation, relaxation
from shuffle_jax.sharding import data_mesh
from shuffle_jax.train.optimizer import OptimizerConfig, make_optimizer
from shuffle_jax.train.state import init_state
from shuffle_jax.train.step import make_train_step
from shuffle_jax.typing import Array

Case = Callable[[], object]
LABELS: dict[MixerKind, str] = {"shuffle": "fixed shuffle", "identity": "no shuffle", "auto": "learned, relaxed"}


@dataclass(frozen=True)
class Arguments:
    """How much to measure."""

    rounds: int = 15
    """Rounds of each table."""

    batch_size: int = 64
    """Images of a step or an inference."""

    image_size: int = 32
    """Height and width of the images."""

    width: float = 1.0
    """Of ShuffleNetV2."""

    json: Path | None = None
    """Also write the times of every round, in seconds, to this file."""


def run(arguments: Sequence[str] | None = None) -> None:
    """Parses the command line, measures and prints."""
    options = tyro.cli(Arguments, args=arguments, prog="python -m experiments.benchmark", description=__doc__)
    quiet_libraries()
    machine = {
        "device": jax.devices()[0].device_kind,
        "processor": platform.processor() or platform.machine(),
        "jax": jax.__version__,
    }
    print(", ".join(f"{name} {value}" for name, value in machine.items()))
    tables = {
        "moving channels, forward": moving_channels(options, backward=False),
        "moving channels, forward and backward": moving_channels(options, backward=True),
        "depthwise 3x3, forward and backward": depthwise(options),
        "grouped 1x1 in 3 groups, forward and backward": grouped_pointwise(options),
        "ShuffleNetV2 inference": inference(options),
        "ShuffleNetV2 training step": training(options),
    }
    results = {}
    for title, cases in tables.items():
        times = measure(cases, options.rounds)
        results[title] = times
        print(f"\n{title}")
        print_table(("", "median_ms", "ratio_min", "ratio_median", "ratio_max"), [*summary(times)])
    if options.json is not None:
        about = {**machine, "options": {k: str(v) for k, v in vars(options).items()}}
        options.json.write_text(json.dumps({"about": about, "seconds": results}, indent=1) + "\n")


def measure(cases: dict[str, Case], rounds: int) -> dict[str, list[float]]:
    """Seconds of each case in each round, the cases in turn; compiled and run once before."""
    for case in cases.values():
        jax.block_until_ready(case())
    times: dict[str, list[float]] = {name: [] for name in cases}
    for _ in range(rounds):
        for name, case in cases.items():
            started = time.perf_counter()
            jax.block_until_ready(case())
            times[name].append(time.perf_counter() - started)
    return times


def summary(times: dict[str, list[float]]) -> list[tuple[str, ...]]:
    """One row for each case: its name, median milliseconds, and its ratio to the first case, round by round."""
    first = next(iter(times.values()))
    rows = []
    for name, values in times.items():
        ratios = [value / base for value, base in zip(values, first, strict=True)]
        spread = (min(ratios), statistics.median(ratios), max(ratios))
        rows.append((name, f"{1e3 * statistics.median(values):.2f}", *(f"{ratio:.2f}" for ratio in spread)))
    return rows


def moving_channels(options: Arguments, backward: bool) -> dict[str, Case]:
    """Ways to permute the channels of stage 2, against a plain copy of the same bytes."""
    x = normal(options.batch_size, options.image_size // 2, options.image_size // 2, 116)
    p = permutation.channel_shuffle(116, 2)
    matrix = relaxation.random_bistochastic(jax.random.key(0), 116)
    forms: dict[str, Callable[[Array], Array]] = {
        "copy": lambda x: x + 1,
        "shuffle (reshape)": lambda x: mixing.shuffle(x, 2),
        "permute (gather)": lambda x: mixing.permute(x, p),
        "jnp.take": lambda x: jnp.take(x, p, axis=-1),
        "mix (matrix)": lambda x: mixing.mix(x, matrix),
    }
    return {name: partial(jax.jit(squared_gradient(form) if backward else form), x) for name, form in forms.items()}


def depthwise(options: Arguments) -> dict[str, Case]:
    """The platform's depthwise convolution against XLA's native one."""
    x, kernel = normal(options.batch_size, options.image_size // 2, options.image_size // 2, 116), normal(3, 3, 1, 116)
    forms: dict[str, Callable[..., Array]] = {
        "native": partial(native, groups=116, padding="SAME"),
        "ops.depthwise": convolution.depthwise,
    }
    return {name: partial(jax.jit(squared_gradient(form)), x, kernel) for name, form in forms.items()}


def grouped_pointwise(options: Arguments) -> dict[str, Case]:
    """The platform's grouped 1x1 convolution against XLA's native one."""
    x, kernel = normal(options.batch_size, options.image_size // 2, options.image_size // 2, 240), normal(1, 1, 80, 60)
    forms: dict[str, Callable[..., Array]] = {
        "native": partial(native, groups=3, padding="VALID"),
        "ops.pointwise": partial(convolution.pointwise, groups=3),
    }
    return {name: partial(jax.jit(squared_gradient(form)), x, kernel) for name, form in forms.items()}


def inference(options: Arguments) -> dict[str, Case]:
    """The network with the fixed shuffle, with none, relaxed and hardened."""
    images = normal(options.batch_size, options.image_size, options.image_size, 3)
    cases: dict[str, Case] = {}
    for mixer, label in LABELS.items():
        network = build(NetworkConfig(width=options.width, mixer=mixer), 10)
        variables = jax.jit(network.init)(jax.random.key(0), images[:1])
        variables.pop("penalties", None)
        apply = jax.jit(network.apply)
        cases[label] = partial(apply, variables, images)
        if mixer == "auto":
            cases["learned, hardened"] = partial(apply, harden(variables).variables, images)
    return cases


def training(options: Arguments) -> dict[str, Case]:
    """One optimiser step with each mixer."""
    mesh = data_mesh(jax.devices()[:1])
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (options.batch_size, options.image_size, options.image_size, 3), np.uint8)
    labels = rng.integers(0, 10, options.batch_size, np.int32)
    batch = Batch(jnp.asarray(pixels), jnp.asarray(labels), jnp.ones(options.batch_size))
    optimizer = make_optimizer(OptimizerConfig(), optax.constant_schedule(1e-3))
    cases: dict[str, Case] = {}
    for mixer, label in LABELS.items():
        network = build(NetworkConfig(width=options.width, mixer=mixer), 10)
        step = make_train_step(
            network,
            optimizer,
            optax.constant_schedule(1e-3),
            mesh,
            classes=10,
            pixels=((0.5,) * 3, (0.25,) * 3),
            augmentation=AugmentConfig(),
        )
        start = jax.jit(partial(init_state, network=network, images=jnp.zeros((1, 32, 32, 3)), optimizer=optimizer))
        state = [start(jax.random.key(0))]

        def advance(step: Callable = step, state: list = state) -> object:
            state[0], metrics = step(state[0], batch)  # the state is donated: keep the new one
            return state[0], metrics

        cases[label] = advance
    return cases


def native(x: Array, kernel: Array, groups: int, padding: str) -> Array:
    """XLA's own convolution."""
    layout = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(
        x, kernel, (1, 1), padding, dimension_numbers=layout, feature_group_count=groups
    )


def squared_gradient(form: Callable[..., Array]) -> Callable[..., object]:
    """The gradient of the sum of squares of an operation's output by all its arguments."""

    def gradient(*arguments: Array) -> object:
        return jax.grad(lambda *a: jnp.square(form(*a)).sum(), argnums=tuple(range(len(arguments))))(*arguments)

    return gradient


def normal(*shape: int) -> Array:
    """Normally distributed numbers, the same at each call."""
    return jnp.asarray(np.random.default_rng(0).standard_normal(shape), jnp.float32)


if __name__ == "__main__":
    main(run)
