"""What changes over the training: the learning rate, the weight of the penalties, the progress; and the optimiser."""

from __future__ import annotations

import operator
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import optax

from shuffle_jax.constraint import RELAXED, is_relaxed, keep_bistochastic, parameter_name
from shuffle_jax.nn.collections import STATIC
from shuffle_jax.ops.relaxation import balance, clamp_normalize
from shuffle_jax.train.adas import scale_by_adas
from shuffle_jax.train.config import OptimizerConfig, PenaltyConfig, TrainConfig
from shuffle_jax.train.frozen import body, frozen
from shuffle_jax.typing import Array, Int, Matrix, PyTree

PERMUTATION_RATE = 0.1
"""The recommended learning rate of relaxed permutations over that of the other parameters, under SGD with momentum."""

HEAVIEST = 100.0
"""What the weight of the penalties is multiplied by at most: matrices that move too fast do not settle."""


def learning_rate(config: OptimizerConfig, steps: int, steps_per_epoch: int) -> optax.Schedule:
    """The learning rate at each optimiser step.

    Args:
        config: peak, shape and warm-up, which takes at most ``warmup_share`` of the training.
        steps: steps of the whole training.
        steps_per_epoch: turns epochs of warm-up into steps.

    Returns:
        A function from the step to the learning rate.

    Raises:
        ValueError: the warm-up takes the whole training.
    """
    wanted, most = round(config.warmup_epochs * steps_per_epoch), round(config.warmup_share * steps)
    peak, warmup = config.learning_rate, min(wanted, most)
    if warmup >= steps:
        raise ValueError(
            f"optimizer.warmup_epochs must be less than the training: a warm-up of {wanted} steps leaves nothing of "
            f"{steps}; lower it, or train for more epochs"
        )
    match config.schedule:
        case "cosine":
            fall = optax.cosine_decay_schedule(peak, steps - warmup)
        case "linear":
            fall = optax.linear_schedule(peak, 0.0, steps - warmup)
        case "step":
            boundaries = {round(part * steps) - warmup: config.step_factor for part in config.step_boundaries}
            fall = optax.piecewise_constant_schedule(peak, boundaries)
        case "constant":
            fall = optax.constant_schedule(peak)
    if warmup:
        fall = optax.join_schedules([optax.linear_schedule(0.0, peak, warmup), fall], [warmup])
    return _in_float(fall)


def penalty_weight(config: PenaltyConfig, steps: int) -> optax.Schedule:
    """The weight of the penalties at each step of a training of ``steps`` steps."""
    first, last = round(config.start * steps), round(config.end * steps)
    weight = config.weight * min(max(1.0, config.for_steps / steps) ** 2, HEAVIEST)
    return _in_float(optax.linear_schedule(0.0, weight, max(last - first, 1), transition_begin=first))


def progress(steps: int) -> optax.Schedule:
    """How much of a training of ``steps`` steps is done after each step, in (0, 1]."""
    return _in_float(lambda step: (step + 1) / steps)


def moving_average(average: PyTree, params: PyTree, step: Int[Array, ""], config: TrainConfig) -> PyTree:
    """The average after step n, ``d average + (1 - d) params`` with ``d = min(average_decay, (1 + n) / (10 + n))``.

    So the parameters that were drawn at random are forgotten in a few steps, and later ones in a tenth of the training
    or, if that is shorter, in ``1 / (1 - average_decay)`` steps. Without ``average_ramp`` d is ``average_decay``.

    Args:
        average: before the step.
        params: after it.
        step: n, from 0.
        config: of the run.

    Source: ``ExponentialMovingAverage`` of TensorFlow, with ``num_updates``.
    """
    if not config.average_ramp:
        return optax.incremental_update(params, average, 1 - config.average_decay)
    done = jnp.asarray(step, jnp.float32)
    share = 1 - jnp.minimum(config.average_decay, (1 + done) / (10 + done))
    return jax.tree.map(lambda new, old: optax.incremental_update(new, old, share.astype(old.dtype)), params, average)


def _in_float(schedule: optax.Schedule) -> optax.Schedule:
    """The schedule with its step as a float, as strict type promotion asks; exact below 2^24 steps."""
    return lambda step: schedule(jnp.asarray(step, jnp.float32))


def make_optimizer(config: OptimizerConfig, schedule: optax.Schedule) -> optax.GradientTransformation:
    """The chain: limit of the gradient, decay of kernels, SGD, AdaS or AdamW, last the constraint on permutations.

    Relaxed permutations are outside the limit and the decay; their updates are scaled by their own rate. What is frozen
    is outside of all, and has no state.

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
        case "adas":
            descent = optax.chain(
                optax.add_decayed_weights(config.weight_decay, mask=decays),
                optax.trace(config.momentum, nesterov=config.nesterov),
                scale_by_adas(),
                optax.scale_by_learning_rate(schedule),
            )
        case "adamw":
            descent = optax.adamw(schedule, weight_decay=config.weight_decay, mask=decays)
    relaxed = permuting(config.permutation_rate, balance if config.constraint == "balance" else clamp_normalize)
    clip = optax.clip_by_global_norm(config.clip_norm) if config.clip_norm else optax.identity()
    slower = () if config.body_rate == 1 else (optax.masked(optax.scale(config.body_rate), body),)
    chain = optax.chain(optax.masked(clip, is_not_relaxed), descent, *slower, relaxed)
    if not config.freeze:
        return chain
    off = partial(frozen, patterns=config.freeze)
    on = lambda params: jax.tree.map(operator.not_, off(params))  # noqa: E731
    return optax.chain(optax.masked(chain, on), optax.masked(optax.set_to_zero(), off))


def permuting(
    rate: float = PERMUTATION_RATE, constrain: Callable[[Matrix], Matrix] = balance
) -> optax.GradientTransformation:
    """The last link of a chain for a network with relaxed permutations: their own rate, then the constraint.

    Other leaves go by as they are, and all of them where none is a relaxed permutation. What stands before it in a
    chain of your own should not decay them: ``optax.adamw(1e-3, mask=decays)``.

    Args:
        rate: what the updates of relaxed permutations are multiplied by.
        constrain: as :func:`shuffle_jax.constraint.keep_bistochastic` takes it.

    >>> optimizer = optax.chain(optax.sgd(0.1), permuting())
    >>> params = {"mixer": {"relaxed_permutation": jnp.full((2, 2), 0.5)}, "bias": jnp.zeros(2)}
    >>> gradient = jax.tree.map(jnp.ones_like, params)
    >>> updates, _ = optimizer.update(gradient, optimizer.init(params), params)
    >>> updates["mixer"]["relaxed_permutation"].tolist(), updates["bias"].tolist()
    ([[0.0, 0.0], [0.0, 0.0]], [-0.1, -0.1])
    """
    return optax.masked(optax.chain(optax.scale(rate), keep_bistochastic(constrain)), is_relaxed)


def decays(params: PyTree) -> PyTree:
    """Which leaves feel weight decay: those with two axes or more but for relaxed permutations, biases and scales.

    These are known by their names, for stacked layers (``nn.scan``, ``nn.vmap``) have an axis more.
    """
    return jax.tree.map_with_path(lambda path, leaf: leaf.ndim > 1 and parameter_name(path) not in SPARED, params)


SPARED = (RELAXED, STATIC, "bias", "biases", "scale")
"""Names of parameters that are never decayed."""


def is_not_relaxed(params: PyTree) -> PyTree:
    """Which leaves are not relaxed permutations."""
    return jax.tree.map(lambda relaxed: not relaxed, is_relaxed(params))
