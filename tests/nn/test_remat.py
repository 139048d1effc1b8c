"""Children of a network are computed again, whole and once, and nothing else is."""

from __future__ import annotations

from contextlib import nullcontext

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from shuffle_jax.nn import BatchNorm
from shuffle_jax.nn.remat import rematerialized

X = jnp.asarray(np.random.default_rng(0).normal(size=(4, 3, 3, 2)), jnp.float32)
RUNS: list[tuple[str, ...]] = []


class Unit(nn.Module):
    """Two layers, a statistic, a penalty and dropout; with more than one argument."""

    @nn.compact
    def __call__(self, x, train, *, scale=1.0):
        RUNS.append(self.path)
        x = jnp.tanh(BatchNorm(name="norm")(nn.Dense(2, name="dense")(x), train))
        self.sow("penalties", "size", jnp.square(x).mean())
        return scale * nn.Dropout(0.5, deterministic=not train, name="dropout")(x)


class Network(nn.Module):
    """Units one after the other, of which one is called twice."""

    def setup(self):
        self.first, self.second = Unit(), Unit()

    def __call__(self, x, train=False):
        return self.second(self.first(self.first(x, train), train, scale=2.0), train).sum((1, 2))


def slopes(context):
    network = Network()
    variables = network.init(jax.random.key(0), X)
    RUNS.clear()

    def loss(params):
        with context:
            rest = {"params": params, "batch_stats": variables["batch_stats"]}
            y, told = network.apply(
                rest, X, train=True, mutable=["batch_stats", "penalties"], rngs={"dropout": jax.random.key(1)}
            )
        return jnp.square(y).mean() + sum(map(jnp.sum, jax.tree.leaves(told["penalties"]))), told

    return jax.value_and_grad(loss, has_aux=True)(variables["params"])


def test_statistics_penalties_dropout_and_a_unit_called_twice():
    again = slopes(rematerialized())
    assert RUNS == [("first",), ("first",), ("second",)]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(b, a, rtol=1e-5, atol=1e-6), slopes(nullcontext()), again)


def test_without_a_gradient_and_after_it_nothing_changes():
    network = Network()
    with rematerialized():
        variables = network.init(jax.random.key(0), X)
        within = network.apply(variables, X)
    np.testing.assert_array_equal(within, network.apply(variables, X))
    text = str(jax.make_jaxpr(lambda x: network.apply(variables, x))(X))
    assert "custom_vjp" not in text


def test_an_error_within_is_the_error_and_leaves_the_context_usable():
    class Failing(nn.Module):
        @nn.compact
        def __call__(self, x):
            raise KeyError("of the unit")

    class Outer(nn.Module):
        @nn.compact
        def __call__(self, x):
            return Failing()(x)

    with rematerialized():
        for _ in range(2):
            try:
                Outer().apply({}, X)
            except KeyError as error:
                assert error.args == ("of the unit",)
            else:
                raise AssertionError("nothing was raised")
