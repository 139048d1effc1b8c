"""Batch normalisation as the networks use it, against NumPy."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from shuffle_jax.nn import BatchNorm


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).normal(2.0, 3.0, (4, 5, 3, 6)).astype(np.float32)


@pytest.fixture(scope="module")
def variables():
    rng = np.random.default_rng(1)
    scale, bias, mean = rng.normal(size=(3, 6)).astype(np.float32)
    var = rng.uniform(0.5, 2, 6).astype(np.float32)
    return {"params": {"scale": scale, "bias": bias}, "batch_stats": {"mean": mean, "var": var}}


def normalized(x, mean, var, params):
    return (x - mean) / np.sqrt(var + 1e-5) * params["scale"] + params["bias"]


def test_training_uses_the_batch_and_moves_the_statistics_by_a_tenth(images, variables):
    y, updated = BatchNorm().apply(variables, images, train=True, mutable=["batch_stats"])
    mean, var = images.mean((0, 1, 2)), images.var((0, 1, 2))
    np.testing.assert_allclose(y, normalized(images, mean, var, variables["params"]), rtol=1e-4, atol=1e-4)
    old, new = variables["batch_stats"], updated["batch_stats"]
    np.testing.assert_allclose(new["mean"], 0.9 * old["mean"] + 0.1 * mean, rtol=1e-5)
    np.testing.assert_allclose(new["var"], 0.9 * old["var"] + 0.1 * var, rtol=1e-5)


def test_evaluation_uses_the_running_statistics_and_keeps_them(images, variables):
    y, updated = BatchNorm().apply(variables, images, mutable=["batch_stats"])
    expected = normalized(images, **variables["batch_stats"], params=variables["params"])
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-4)
    jax.tree.map(np.testing.assert_array_equal, updated, {"batch_stats": variables["batch_stats"]})


def test_declares_two_parameters_and_two_statistics_per_channel_and_starts_as_the_identity(images):
    variables = BatchNorm().init(jax.random.key(0), images)
    shapes = jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), variables)
    vector = ((6,), jnp.float32)
    assert shapes == {"params": {"scale": vector, "bias": vector}, "batch_stats": {"mean": vector, "var": vector}}
    np.testing.assert_allclose(BatchNorm().apply(variables, images), images, rtol=1e-4)


def test_half_precision_keeps_its_statistics_in_float32(images, variables):
    half = jnp.asarray(2 + images / 1500, jnp.bfloat16)
    y, updated = BatchNorm(jnp.bfloat16).apply(variables, half, train=True, mutable=["batch_stats"])
    assert y.dtype == jnp.bfloat16
    assert {leaf.dtype for leaf in jax.tree.leaves(updated)} == {jnp.dtype(jnp.float32)}
    mean = np.asarray(half, np.float32).mean((0, 1, 2))
    expected = 0.9 * variables["batch_stats"]["mean"] + 0.1 * mean
    np.testing.assert_allclose(updated["batch_stats"]["mean"], expected, rtol=1e-5, atol=1e-6)


def test_one_image_of_one_pixel_becomes_the_bias(variables):
    y, _ = BatchNorm().apply(variables, jnp.full((1, 1, 1, 6), 7.0), train=True, mutable=["batch_stats"])
    np.testing.assert_allclose(y[0, 0, 0], variables["params"]["bias"], rtol=1e-6)


def test_equals_flax_in_values_statistics_and_gradients(images, variables):
    flax_norm = nn.BatchNorm(use_running_average=False, momentum=0.9, epsilon=1e-5)

    def weighted(apply):
        def loss(params, x):
            y, updated = apply({**variables, "params": params}, x)
            return (y * jnp.cos(jnp.arange(y.size, dtype=jnp.float32)).reshape(y.shape)).sum(), (y, updated)

        return jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(variables["params"], images)

    ours = weighted(lambda v, x: BatchNorm().apply(v, x, train=True, mutable=["batch_stats"]))
    theirs = weighted(lambda v, x: flax_norm.apply(v, x, mutable=["batch_stats"]))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5), ours, theirs)
