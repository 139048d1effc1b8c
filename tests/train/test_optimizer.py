"""Schedules meet their corners, decay spares what it should, and relaxed permutations go their own way."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from shuffle_jax.ops import relaxation
from shuffle_jax.train.config import OptimizerConfig, PenaltyConfig
from shuffle_jax.train.optimizer import decays, is_relaxed, learning_rate, make_optimizer, penalty_weight

PARAMS = {
    "unit": {
        "conv": {"kernel": jnp.ones((1, 1, 4, 4))},
        "norm": {"scale": jnp.ones(4), "bias": jnp.ones(4)},
        "mixer": {"relaxed_permutation": relaxation.random_bistochastic(jax.random.key(0), 4)},
        "sum": {"kernels": jnp.ones((2, 1, 1, 4, 4)), "biases": jnp.ones((2, 4))},
    },
    "head": {"kernel": jnp.ones((4, 2)), "bias": jnp.ones(2)},
}
KERNELS, MIXER = {"unit/conv/kernel", "unit/sum/kernels", "head/kernel"}, {"unit/mixer/relaxed_permutation"}


def standard_promotion():
    """Optax's Adam takes powers of a float to an integer, which strict promotion refuses."""
    return jax.numpy_dtype_promotion("standard")


@pytest.mark.parametrize("schedule", ["cosine", "linear", "step"])
def test_warmup_rises_linearly_to_the_peak(schedule):
    rate = learning_rate(OptimizerConfig(learning_rate=0.4, schedule=schedule, warmup_epochs=2), 100, 10)
    np.testing.assert_allclose([rate(0), rate(5), rate(10), rate(20)], [0, 0.1, 0.2, 0.4], rtol=1e-6)


def test_schedules_fall_as_their_names_say():
    def rate(schedule, step):
        config = OptimizerConfig(learning_rate=0.4, schedule=schedule, warmup_epochs=2, step_boundaries=(0.5, 0.75))
        return float(learning_rate(config, 100, 10)(step))

    np.testing.assert_allclose([rate("linear", 60), rate("linear", 100)], [0.2, 0.0], atol=1e-7)
    np.testing.assert_allclose([rate("cosine", 60), rate("cosine", 100)], [0.2, 0.0], atol=1e-7)
    assert rate("cosine", 40) > rate("linear", 40) and rate("cosine", 80) < rate("linear", 80)
    np.testing.assert_allclose([rate("step", s) for s in (49, 51, 74, 76, 99)], [0.4, 0.04, 0.04, 0.004, 0.004])


def test_no_warmup_starts_at_the_peak_and_a_long_one_is_refused():
    assert float(learning_rate(OptimizerConfig(learning_rate=0.3, warmup_epochs=0), 10, 5)(0)) == pytest.approx(0.3)
    with pytest.raises(ValueError, match=r"a warm-up of 10 steps leaves nothing of 10"):
        learning_rate(OptimizerConfig(warmup_epochs=2, warmup_share=1.0), 10, 5)


def test_a_short_training_has_a_short_warmup_and_a_weight_that_brings_permutations_as_far():
    rate = learning_rate(OptimizerConfig(learning_rate=0.4, warmup_epochs=2), 20, 10)
    np.testing.assert_allclose([rate(0), rate(4), rate(5)], [0, 0.32, 0.4], rtol=1e-6)
    config = PenaltyConfig(weight=0.1, end=0.5, for_steps=1000)
    for steps, top in ((20, 10.0), (100, 10.0), (500, 0.4), (1000, 0.1), (4000, 0.1)):
        weight = penalty_weight(config, steps)
        found = [weight(steps // 4), weight(steps // 2), weight(steps)]
        np.testing.assert_allclose(found, [top / 2, top, top], rtol=1e-6)
    assert float(penalty_weight(PenaltyConfig(weight=0.1, for_steps=0), 10)(10)) == pytest.approx(0.1)


def test_which_leaves_decay_and_which_are_relaxed():
    stacked = jax.tree.map(lambda leaf: jnp.stack([leaf] * 3), PARAMS)
    listed = jax.tree.map(lambda leaf: [leaf, leaf], stacked)
    for params in (PARAMS, stacked, listed):  # as they are, as nn.scan stacks them, and in lists
        for choice, expected in ((decays, KERNELS), (is_relaxed, MIXER)):
            leaves = jax.tree.leaves_with_path(choice(params))
            chosen = ["/".join(key.key for key in path if hasattr(key, "key")) for path, on in leaves if on]
            assert set(chosen) == expected and len(chosen) == len(expected) * (2 if params is listed else 1)


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_without_gradient_only_kernels_move_and_by_the_decay(kind):
    config = OptimizerConfig(kind=kind, learning_rate=0.1, weight_decay=0.5, warmup_epochs=0, momentum=0.0)
    optimizer = make_optimizer(config, optax.constant_schedule(0.1))
    zeros = jax.tree.map(jnp.zeros_like, PARAMS)
    with standard_promotion():
        updates, _ = jax.jit(optimizer.update)(zeros, optimizer.init(PARAMS), PARAMS)
    moved = optax.apply_updates(PARAMS, updates)
    np.testing.assert_allclose(moved["head"]["kernel"], 0.95, rtol=1e-6)
    np.testing.assert_allclose(moved["unit"]["conv"]["kernel"], 0.95, rtol=1e-6)
    for path in (("head", "bias"), ("unit", "norm", "scale"), ("unit", "norm", "bias")):
        leaf = moved
        for name in path:
            leaf = leaf[name]
        np.testing.assert_array_equal(leaf, 1.0)
    before, after = (p["unit"]["mixer"]["relaxed_permutation"] for p in (PARAMS, moved))
    np.testing.assert_allclose(after, before, atol=1e-6)


@pytest.mark.parametrize(("nesterov", "expected"), [(True, [-1.9, -2.71]), (False, [-1.0, -1.9])])
def test_momentum_by_hand(nesterov, expected):
    config = OptimizerConfig(momentum=0.9, nesterov=nesterov, weight_decay=0.0)
    optimizer = make_optimizer(config, optax.constant_schedule(1.0))
    params, gradient = {"bias": jnp.zeros(1)}, {"bias": jnp.ones(1)}
    state = optimizer.init(params)
    moves = []
    for _ in range(2):
        update, state = optimizer.update(gradient, state, params)
        moves.append(float(update["bias"][0]))
    # velocity v <- 0.9 v + 1 (1, then 1.9); Nesterov moves by 0.9 v + 1, plain momentum by v
    np.testing.assert_allclose(moves, expected, rtol=1e-6)


def test_relaxed_permutations_move_at_their_own_rate():
    gradient = jax.tree.map(jnp.zeros_like, PARAMS)
    gradient["unit"]["mixer"]["relaxed_permutation"] = jnp.asarray(
        np.random.default_rng(0).standard_normal((4, 4)), jnp.float32
    )

    def moved(rate):
        config = OptimizerConfig(permutation_rate=rate, momentum=0.0)
        optimizer = make_optimizer(config, optax.constant_schedule(0.02))
        updates, _ = optimizer.update(gradient, optimizer.init(PARAMS), PARAMS)
        return optax.apply_updates(PARAMS, updates)["unit"]["mixer"]["relaxed_permutation"]

    start = PARAMS["unit"]["mixer"]["relaxed_permutation"]
    expected = relaxation.clamp_normalize(start - 0.01 * gradient["unit"]["mixer"]["relaxed_permutation"])
    np.testing.assert_allclose(moved(0.5), expected, atol=1e-6)
    np.testing.assert_allclose(moved(0.0), start, atol=1e-6)


def test_gradients_are_clipped_and_those_of_permutations_apart():
    config = OptimizerConfig(momentum=0.0, weight_decay=0.0, clip_norm=2.0)
    optimizer = make_optimizer(config, optax.constant_schedule(1.0))
    gradient = jax.tree.map(lambda p: jnp.full_like(p, 3.0), PARAMS)
    updates, _ = optimizer.update(gradient, optimizer.init(PARAMS), PARAMS)
    moved = updates["unit"]["mixer"].pop("relaxed_permutation")
    np.testing.assert_allclose(optax.tree.norm(updates), 2.0, rtol=1e-5)
    start = PARAMS["unit"]["mixer"]["relaxed_permutation"]
    np.testing.assert_allclose(start + moved, relaxation.clamp_normalize(start - 3.0), atol=1e-6)
