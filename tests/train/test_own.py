"""What a loop of your own uses is what the library trains with, and adds up, tells and spares what it says."""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments.presets import recipes
from shuffle_jax import constraint, train
from shuffle_jax.nn.collections import penalty_sum, with_progress
from shuffle_jax.ops import relaxation
from shuffle_jax.train import permuting, recipe
from shuffle_jax.train.config import OptimizerConfig
from shuffle_jax.train.optimizer import make_optimizer
from shuffle_jax.train.own import OPTIMIZER, PENALTY

PARAMS = {
    "mixer": {"relaxed_permutation": relaxation.random_bistochastic(jax.random.key(0), 4)},
    "conv": {"kernel": jnp.ones((1, 1, 4, 4)), "bias": jnp.ones(4)},
}


def test_a_recipe_is_that_of_the_presets():
    digits = recipes.DIGITS.permuting().config
    assert replace(digits.optimizer, warmup_epochs=OPTIMIZER.warmup_epochs) == OPTIMIZER
    assert digits.penalty == PENALTY


def test_its_schedules_meet_their_corners():
    plan = recipe(2_000)
    np.testing.assert_allclose([plan.learning_rate(k) for k in (0, 50, 100, 2_000)], [0, 0.05, 0.1, 0], atol=1e-7)
    np.testing.assert_allclose([plan.penalty_weight(k) for k in (0, 500, 1_000, 1_999)], [0, 0.05, 0.1, 0.1], rtol=1e-6)
    np.testing.assert_allclose([plan.progress(k) for k in (0, 999, 1_999)], [0.0005, 0.5, 1], rtol=1e-6)
    assert float(recipe(550).penalty_weight(549)) == pytest.approx(0.4)  # a short training has a heavier one
    with pytest.raises(ValueError, match=r"at least 1 step, got 0"):
        recipe(0)


def test_permuting_behind_any_descent_is_the_chain_of_the_library():
    config = OptimizerConfig(weight_decay=0.0, clip_norm=0.0, permutation_rate=0.1, constraint="balance")
    of_library = make_optimizer(config, optax.constant_schedule(0.1))
    own = optax.chain(optax.sgd(optax.constant_schedule(0.1), 0.9, nesterov=True), permuting())
    gradient = jax.tree.map(lambda leaf: jnp.sin(leaf + jnp.arange(1.0 * leaf.size).reshape(leaf.shape)), PARAMS)
    updates = [jax.jit(o.update)(gradient, o.init(PARAMS), PARAMS)[0] for o in (of_library, own)]
    jax.tree.map(np.testing.assert_array_equal, *updates)
    moved = optax.apply_updates(PARAMS, updates[0])["mixer"]["relaxed_permutation"]
    np.testing.assert_allclose([moved.sum(0), moved.sum(1)], np.ones((2, 4)), atol=0.02)


def test_permuting_leaves_a_network_without_relaxed_permutations_alone():
    optimizer, gradient = permuting(), {"kernel": jnp.ones((3, 3))}
    updates, _ = optimizer.update(gradient, optimizer.init(gradient), gradient)
    np.testing.assert_array_equal(updates["kernel"], gradient["kernel"])


def test_penalties_are_summed_over_layers_and_stacks():
    sown = {"a": {"l1_minus_l2": jnp.float32(0.5)}, "layers": {"orthogonality": jnp.array([1.0, 2.0])}}
    assert float(penalty_sum({"penalties": sown, "batch_stats": {}})) == 3.5
    assert float(penalty_sum({"batch_stats": {"norm": {"mean": jnp.ones(2)}}})) == float(penalty_sum({})) == 0
    with pytest.raises(ValueError, match=r"penalty_sum takes all variables .* got a dictionary of a, layers"):
        penalty_sum(sown)  # the collection itself: a sum of 0 would go unseen


def test_progress_is_told_to_every_layer_and_changes_nothing_else():
    variables = {"params": PARAMS, "progress": {"a": {"share": jnp.ones(())}, "layers": {"share": jnp.ones(3)}}}
    told = with_progress(variables, 0.25)
    assert jax.tree.map(np.unique, told["progress"]) == {"a": {"share": 0.25}, "layers": {"share": 0.25}}
    assert told["params"] is PARAMS and float(variables["progress"]["a"]["share"]) == 1
    assert with_progress({"params": PARAMS}, 0.5) == {"params": PARAMS}


def test_they_are_one_import_away():
    assert train.is_relaxed is constraint.is_relaxed and train.penalty_sum is penalty_sum
    assert all(hasattr(train, name) for name in train.__all__)
