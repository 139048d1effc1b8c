"""What a training loop of your own needs beside optax: one optimiser with its schedules, as the presets train."""

from __future__ import annotations

from typing import NamedTuple

import optax

from shuffle_jax.train.config import OptimizerConfig, PenaltyConfig
from shuffle_jax.train.optimizer import PERMUTATION_RATE, learning_rate, make_optimizer, penalty_weight, progress

OPTIMIZER = OptimizerConfig(
    learning_rate=0.1,
    warmup_epochs=0.05,  # of the one epoch that a recipe is
    weight_decay=5e-4,
    clip_norm=1.0,
    permutation_rate=PERMUTATION_RATE,
    constraint="balance",
)
"""SGD with Nesterov's momentum along a cosine, as the preset ``digits`` has it."""

PENALTY = PenaltyConfig(weight=0.1, end=0.5)
"""The weight of the penalties of relaxed permutations, and its ramp over the first half: those of the presets."""


class Recipe(NamedTuple):
    """What :func:`recipe` returns; schedules are functions of the step, from 0.

    Attributes:
        optimizer: an optax transformation whose updates need the parameters.
        learning_rate: that of the optimiser, to be shown.
        penalty_weight: what the loss multiplies :func:`shuffle_jax.nn.collections.penalty_sum` by.
        progress: what :func:`shuffle_jax.nn.collections.with_progress` tells the network, in (0, 1].
    """

    optimizer: optax.GradientTransformation
    learning_rate: optax.Schedule
    penalty_weight: optax.Schedule
    progress: optax.Schedule


def recipe(steps: int, optimizer: OptimizerConfig = OPTIMIZER, penalty: PenaltyConfig = PENALTY) -> Recipe:
    """The optimiser that is recommended for networks with learned and dynamic shuffles, and its schedules.

    It is that of the preset ``digits``: SGD with momentum 0.9 at the rate 0.1 along a cosine after a warm-up of a
    twentieth of the steps, the gradient limited to the norm 1, weight decay 5e-4 of kernels; relaxed permutations
    outside of limit and decay, with a tenth of the rate, and kept bistochastic. The penalties weigh 0.1 from half of
    the training on, and more in trainings of fewer than 1,100 steps
    (:class:`shuffle_jax.train.config.PenaltyConfig`).

    Args:
        steps: of the whole training.
        optimizer: another one, such as ``dataclasses.replace(OPTIMIZER, learning_rate=0.05)``; ``warmup_epochs`` is
            a share of the training here.
        penalty: another weight or ramp.

    Raises:
        ValueError: there are no steps, or the warm-up takes all of them.

    >>> plan = recipe(2_000)
    >>> [round(float(plan.penalty_weight(step)), 3) for step in (0, 500, 1_000, 2_000)]
    [0.0, 0.05, 0.1, 0.1]
    """
    if steps < 1:
        raise ValueError(f"a training must have at least 1 step, got {steps}")
    rate = learning_rate(optimizer, steps, steps)
    return Recipe(make_optimizer(optimizer, rate), rate, penalty_weight(penalty, steps), progress(steps))
