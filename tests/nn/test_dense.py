"""The dense layer is flax.linen.Dense with ``train``."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from shuffle_jax.analysis.count import count_layers
from shuffle_jax.nn.dense import Dense


@pytest.mark.parametrize("bias", [True, False])
def test_starts_and_computes_as_flax_dense(bias):
    layer, reference = Dense(5, use_bias=bias), nn.Dense(5, use_bias=bias)
    x = np.random.default_rng(0).standard_normal((3, 7)).astype(np.float32)
    variables = reference.init(jax.random.key(1), x)
    jax.tree.map(np.testing.assert_array_equal, layer.init(jax.random.key(1), x), variables)
    if bias:
        variables["params"]["bias"] = jnp.arange(5.0)
    for train in (False, True):
        np.testing.assert_allclose(layer.apply(variables, x, train=train), reference.apply(variables, x), rtol=1e-6)


def test_kernel_init_is_of_the_kernel():
    params = Dense(5, kernel_init=nn.initializers.ones_init()).init(jax.random.key(0), jnp.zeros((1, 7)))["params"]
    assert (params["kernel"] == 1).all()
    assert not params["bias"].any()


@pytest.mark.parametrize("bias", [True, False])
def test_costs_what_flax_dense_costs(bias):
    (ours,), (theirs,) = (count_layers(make(5, use_bias=bias), (7,)) for make in (Dense, nn.Dense))
    assert ours == theirs
    assert ours.cost[0::2] == (35 + 5 * bias, 35)
