"""Training: configuration, state, step, loop, checkpoints, metrics; and what a loop of your own needs of it."""

from shuffle_jax.constraint import is_relaxed, keep_bistochastic
from shuffle_jax.nn.collections import penalty_sum, with_progress
from shuffle_jax.nn.remat import rematerialized
from shuffle_jax.train.optimizer import decays, permuting
from shuffle_jax.train.own import Recipe, recipe

__all__ = [
    "Recipe",
    "decays",
    "is_relaxed",
    "keep_bistochastic",
    "penalty_sum",
    "permuting",
    "recipe",
    "rematerialized",
    "with_progress",
]
