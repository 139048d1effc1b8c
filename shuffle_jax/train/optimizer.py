"""Learning-rate schedules and the optimiser chain, with the constraint on relaxed permutations at its end."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
import optax

from shuffle_jax.constraint import keep_bistochastic
from shuffle_jax.nn.collections import RELAXED
from shuffle_jax.ops.relaxation import balance, clamp_normalize
from shuffle_jax.typing import Matrix, PyTree


@dataclass(frozen=True)
class OptimizerConfig:
    """The optimiser and its learning rate over time."""

    kind: Literal["sgd", "adamw"] = "sgd"
    """"sgd" with momentum, or "adamw"."""

    learning_rate: float = 0.1
    """The peak, reached after the warm-up."""

    schedule: Literal["cosine", "linear", "step"] = "cosine"
    """How the learning rate falls from its peak: "cosine" and "linear" end at 0, "step" multiplies at boundaries."""

    warmup_epochs: float = 1.0
    """Epochs over which the learning rate rises linearly from 0."""

    step_boundaries: tuple[float, ...] = (0.5, 0.75)
    """Where the schedule "step" falls, as shares of the whole training, ascending."""

    step_factor: float = 0.1
    """What the schedule "step" multiplies the learning rate by at each boundary."""

    momentum: float = 0.9
    """Of SGD."""

    nesterov: bool = True
    """Whether SGD looks ahead along its momentum, as Nesterov's does. The code released with dynamic convolution
    decomposition does not."""

    clip_norm: float = 0.0
    """Largest norm of the gradient, relaxed permutations apart; 0 for no limit."""

    permutation_rate: float = 1.0
    """Learning rate of relaxed permutations over that of the other parameters."""

    constraint: Literal["one_pass", "balance"] = "one_pass"
    """What keeps relaxed permutations bistochastic after each step: one clamp-column-row pass as in the method's
    re-implementations, or as many as it takes from a positive floor."""

    weight_decay: float = 1e-4
    """On convolution and dense kernels; never on norms, biases and relaxed permutations."""


def learning_rate(config: OptimizerConfig, steps: int, steps_per_epoch: int) -> optax.Schedule:
    """The learning rate at each optimiser step.

    Args:
        config: peak, shape and warm-up.
        steps: steps of the whole training.
        steps_per_epoch: turns epochs of warm-up into steps.

    Returns:
        A function from the step to the learning rate.

    Raises:
        ValueError: the warm-up takes the whole training.
    """
    peak, warmup = config.learning_rate, round(config.warmup_epochs * steps_per_epoch)
    if warmup >= steps:
        raise ValueError(
            f"a warm-up of {warmup} steps leaves nothing of the {steps} steps of training: "
            "lower warmup_epochs or train longer"
        )
    match config.schedule:
        case "cosine":
            fall = optax.cosine_decay_schedule(peak, steps - warmup)
        case "linear":
            fall = optax.linear_schedule(peak, 0.0, steps - warmup)
        case "step":
            boundaries = {round(share * steps) - warmup: config.step_factor for share in config.step_boundaries}
            fall = optax.piecewise_constant_schedule(peak, boundaries)
    if warmup:
        fall = optax.join_schedules([optax.linear_schedule(0.0, peak, warmup), fall], [warmup])
    return in_float(fall)


def in_float(schedule: optax.Schedule) -> optax.Schedule:
    """The schedule with its step as a float, as strict type promotion asks; exact below 2^24 steps."""
    return lambda step: schedule(jnp.asarray(step, jnp.float32))


def make_optimizer(config: OptimizerConfig, schedule: optax.Schedule) -> optax.GradientTransformation:
    """The chain: the gradient's limit, decay of kernels, SGD or AdamW, and last the constraint on relaxed permutations.

    Relaxed permutations are outside the limit and the decay; their updates are scaled by their own rate.

    Args:
        config: kind and strengths.
        schedule: from :func:`learning_rate`.

    Returns:
        An optax transformation whose updates need the parameters.
    """
    match config.kind:
        case "sgd":
            descent = optax.chain(
                optax.add_decayed_weights(config.weight_decay, mask=decays),
                optax.sgd(schedule, config.momentum, nesterov=config.nesterov),
            )
        case "adamw":
            descent = optax.adamw(schedule, weight_decay=config.weight_decay, mask=decays)
    constrain: Callable[[Matrix], Matrix] = balance if config.constraint == "balance" else clamp_normalize
    relaxed = optax.chain(optax.scale(config.permutation_rate), keep_bistochastic(constrain))
    clip = optax.clip_by_global_norm(config.clip_norm) if config.clip_norm else optax.identity()
    return optax.chain(optax.masked(clip, is_not_relaxed), descent, optax.masked(relaxed, is_relaxed))


def decays(params: PyTree) -> PyTree:
    """Which leaves feel weight decay: those with two axes or more that are no relaxed permutations and no biases."""
    spared = (RELAXED, "biases")
    return jax.tree.map_with_path(lambda path, leaf: leaf.ndim > 1 and path[-1].key not in spared, params)


def is_relaxed(params: PyTree) -> PyTree:
    """Which leaves are relaxed permutations."""
    return jax.tree.map_with_path(lambda path, _: path[-1].key == RELAXED, params)


def is_not_relaxed(params: PyTree) -> PyTree:
    """Which leaves are not relaxed permutations."""
    return jax.tree.map(lambda relaxed: not relaxed, is_relaxed(params))
