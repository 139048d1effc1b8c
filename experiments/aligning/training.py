"""Trains the networks of several seeds side by side, by the library's own step, and counts as they go."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.aligning.counts import Counts, count, worst
from experiments.aligning.methods import Method
from experiments.aligning.task import (
    CLASSES,
    SIDE,
    TASK,
    Pictures,
    Scrambled,
    balanced_numbers,
    draw,
    in_order,
)
from shuffle_jax.data import AugmentConfig, Batch, normalize
from shuffle_jax.nn.collections import FACTORS, PROGRESS
from shuffle_jax.sharding import data_mesh
from shuffle_jax.streams import ORDER
from shuffle_jax.train.config import OptimizerConfig, PenaltyConfig, TrainConfig
from shuffle_jax.train.optimizer import learning_rate, make_optimizer
from shuffle_jax.train.state import TrainState, init_state
from shuffle_jax.train.step import make_train_step
from shuffle_jax.typing import Array, Float, Int, PyTree

BATCH = 64
STEPS_PER_EPOCH = 22
"""Those of the digits in batches of 64."""


@dataclass(frozen=True)
class Setting:
    """What the methods are compared on."""

    images: str = "digits"
    orders: int = 4
    channels: int = 12
    groups: int = 1
    depth: int = 1
    steps: int = 900


@dataclass(frozen=True)
class Record:
    """Where one seed of a method stands after some steps, in evaluation.

    Attributes:
        step: steps done.
        distinct: see :class:`~experiments.aligning.counts.Counts`; of several mixers the smallest of each number.
        valid: as well.
        aligned: as well.
        accuracy: on the test images, each in one of the orders.
    """

    step: int
    distinct: int
    valid: float
    aligned: float
    accuracy: float


def configuration(steps: int) -> TrainConfig:
    """The settings of the preset ``digits-dynamic``, for so many epochs of the digits as make these steps."""
    return TrainConfig(
        optimizer=OptimizerConfig(learning_rate=0.1, warmup_epochs=2, weight_decay=5e-4, clip_norm=1.0),
        penalty=PenaltyConfig(weight=0.1, for_steps=0, end=0.5),
        augment=AugmentConfig(),
        epochs=max(1, round(steps / STEPS_PER_EPOCH)),
        batch_size=BATCH,
    )


def train(
    method: Method, setting: Setting, pictures: Pictures, seeds: Sequence[int], records: int = 12
) -> Iterator[dict[int, Record]]:
    """Trains a network for each seed, all in one compiled program.

    The orders, the offsets, the start and the batches are those of the seed; numbers may differ in their last bits by
    which seeds stand beside it.

    Args:
        method: of mixing.
        setting: the task.
        pictures: to train and test on.
        seeds: at least one.
        records: how many, evenly over the training.

    Yields:
        After each part of the training where each seed stands.
    """
    orders = 1 if method.oracle else setting.orders
    network = Scrambled(method.make(setting.channels, setting.groups), setting.channels, orders, setting.depth)
    config = configuration(setting.steps)
    copies = setting.groups if method.per_group else 1
    sizes = {"groups": setting.groups, "copies": copies, "depth": setting.depth}
    drawn = [draw(seed, setting.channels, orders, **sizes) for seed in seeds]
    tasks = {name: np.stack([one[name] for one in drawn]) for name in drawn[0]}
    states, axes = start(network, config, seeds, tasks)
    run = _runner(network, config, pictures, axes)
    numbers = balanced_numbers(len(pictures.test_images), orders)
    look = jax.jit(jax.vmap(partial(_look, network, pictures, numbers), in_axes=(axes,)))
    total = config.epochs * STEPS_PER_EPOCH
    ends = sorted({round(total * (i + 1) / records) for i in range(records)} - {0})
    for begin, end in zip([0, *ends], ends, strict=False):
        states = run(states, end - begin)
        accuracy, factors = jax.device_get(look(states))
        yield {
            seed: Record(end, *_counts(factors, i, tasks["orders"][i], numbers, setting.groups), float(accuracy[i]))
            for i, seed in enumerate(seeds)
        }


def start(
    network: Scrambled, config: TrainConfig, seeds: Sequence[int], tasks: Mapping[str, np.ndarray]
) -> tuple[TrainState, TrainState]:
    """The states of all seeds, stacked, and the axes of the stack: none of what is the same for all."""
    optimizer = make_optimizer(
        config.optimizer, learning_rate(config.optimizer, config.epochs * STEPS_PER_EPOCH, STEPS_PER_EPOCH)
    )

    def one(key: Array, task: dict[str, Array]) -> TrainState:
        state = init_state(key, network, jnp.zeros((1, SIDE, SIDE, 2)), optimizer)
        return state.replace(collections={**state.collections, TASK: task})

    keys = jax.vmap(jax.random.key)(jnp.asarray(seeds, jnp.uint32))
    states = jax.jit(jax.vmap(one))(keys, dict(tasks))
    axes = jax.tree.map(lambda _: 0, states)
    axes = _with_shared(axes, lambda _: None)
    return _with_shared(states, lambda leaf: leaf[0]), axes


def _with_shared(states: TrainState, change: Callable[[Any], Any]) -> TrainState:
    """The states with something done to the step and to the progress, which are one for all seeds.

    So a layer that changes at some time chooses between two programs, and does not compute both.
    """
    collections = dict(states.collections)
    if PROGRESS in collections:
        collections[PROGRESS] = jax.tree.map(change, collections[PROGRESS])
    return states.replace(step=change(states.step), collections=collections)


def _runner(
    network: Scrambled, config: TrainConfig, pictures: Pictures, axes: TrainState
) -> Callable[[TrainState, int], TrainState]:
    """A function that does some steps of all seeds, each with batches of its own."""
    step = make_train_step(
        network,
        config,
        data_mesh(jax.devices()[:1]),
        steps_per_epoch=STEPS_PER_EPOCH,
        classes=CLASSES,
        mean_std=pictures.mean_std,
    )
    images, labels = jnp.asarray(pictures.images), jnp.asarray(pictures.labels)

    def one(state: TrainState) -> TrainState:
        which, order = jax.random.split(jax.random.fold_in(jax.random.fold_in(state.key, ORDER), state.step))
        chosen = jax.random.randint(which, (BATCH,), 0, len(images))
        numbers = jax.random.randint(order, (BATCH,), 0, network.orders)
        state, _ = step(state, Batch(in_order(images[chosen], numbers), labels[chosen], jnp.ones(BATCH)))
        return state

    every = jax.vmap(one, in_axes=(axes,), out_axes=axes)

    @partial(jax.jit, donate_argnums=0)
    def run(states: TrainState, steps: Int[Array, ""]) -> TrainState:
        return jax.lax.fori_loop(0, steps, lambda _, states: every(states), states)

    return lambda states, steps: run(states, jnp.asarray(steps, jnp.int32))


def _look(
    network: Scrambled, pictures: Pictures, numbers: Int[np.ndarray, " m"], state: TrainState
) -> tuple[Float[Array, ""], PyTree]:
    """The accuracy on the test images, and their row-argmaxes."""
    images = in_order(jnp.asarray(pictures.test_images), jnp.asarray(numbers))
    logits, sown = network.apply(
        state.variables(), normalize(images, *pictures.mean_std), train=False, mutable=[FACTORS]
    )
    accuracy = jnp.mean(logits.argmax(-1) == jnp.asarray(pictures.test_labels), dtype=jnp.float32)
    return accuracy, jax.tree.map(lambda factor: factor.argmax(-1), sown.get(FACTORS, {}))


def _counts(
    factors: PyTree, place: int, orders: Int[np.ndarray, "d K c"], numbers: Int[np.ndarray, " m"], groups: int
) -> Counts:
    """Of the seed at one place of the stack, over its mixers."""
    c = orders.shape[-1] // groups
    none = {"outer": np.zeros((1, 1, 1), int), "inner": np.arange(c)[None, None]}
    own = jax.tree.map(lambda index: index[place], factors)
    pairs = [_pair(own.get(f"mixer{number}", {})) or none for number in range(len(orders))]
    return worst(
        [count(**pair, orders=o, numbers=numbers, groups=groups) for pair, o in zip(pairs, orders, strict=True)]
    )


def _pair(factors: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The one pair of factors in what a layer sowed; None if it has none."""
    while factors and "outer" not in factors:
        (factors,) = factors.values()
    return factors or None
