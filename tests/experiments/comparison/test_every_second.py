"""Sampling by a grid that is always the same."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from experiments.comparison.every_second import EverySecond
from shuffle_jax.models import NetworkConfig, build
from shuffle_jax.nn import Conv


def test_it_keeps_what_a_stride_keeps():
    x = jax.random.normal(jax.random.key(0), (2, 8, 6, 3))
    variables = Conv(4, padding="wrap").init(jax.random.key(1), x)
    strided = Conv(4, stride=2, padding="wrap").apply(variables, x)
    kept, choice = EverySecond().apply({}, Conv(4, padding="wrap").apply(variables, x))
    np.testing.assert_allclose(kept, strided, atol=1e-6)
    assert choice.tolist() == [0, 0]


def test_a_network_takes_it_and_follows_shifts_by_whole_pixels_of_its_last_stage_alone(draw):
    sampling = "experiments.comparison.every_second:EverySecond"
    network = build(NetworkConfig(family="resnet", depth=10, width=1 / 16, stem="small", sampling=sampling), 3)
    x = jax.random.normal(jax.random.key(0), (1, 16, 16, 3))
    variables = draw(network, (16, 16, 3))
    apply = jax.jit(network.apply)
    logits, whole, one = (apply(variables, jnp.roll(x, by, (1, 2))) for by in (0, 8, 1))
    np.testing.assert_allclose(logits, whole, rtol=1e-5, atol=1e-5)
    assert jnp.abs(logits - one).max() > 1e-2
