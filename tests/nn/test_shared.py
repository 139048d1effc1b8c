"""One layer in many places: a network that shares one, written here, in everything that looks at layers one by one."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import flax.linen as nn
import jax
import numpy as np
import pytest

from shuffle_jax.analysis.channel_reach import channel_reach
from shuffle_jax.analysis.count import count, count_layers
from shuffle_jax.deploy.folding import fold
from shuffle_jax.nn import BatchNorm, ChannelShuffle, DynamicShuffle, PointwiseConv, Use
from shuffle_jax.nn.dense import Dense

SHAPE = (2, 2, 8)
compiled = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})  # Half the compilation.


class Step(nn.Module):
    layer: nn.Module
    mixer: Callable[..., nn.Module]
    own: bool

    @nn.compact
    def __call__(self, x, train=False):
        y = BatchNorm(name="norm")(Use(self.layer, self.own, name="use")(x, train=train), train)
        return nn.relu(self.mixer(name="mixer")(y, train=train))


class Network(nn.Module):
    mixer: Callable[..., nn.Module] = partial(ChannelShuffle, 4)
    own: bool = False

    @nn.compact
    def __call__(self, x, train=False):
        layer = PointwiseConv(8, groups=4, name="layer")
        for i in range(3):
            x = Step(layer, self.mixer, self.own, name=f"stage1_{i}")(x, train)
        return Dense(3, name="head")(x.mean((1, 2)))


def images(n):
    return np.random.default_rng(1).standard_normal((n, *SHAPE)).astype(np.float32)


def test_there_is_one_kernel_whose_gradient_is_the_sum_of_those_of_its_uses(draw):
    shared, own = Network(), Network(own=True)
    variables = draw(shared, SHAPE)
    params = variables["params"]
    assert set(params) == {"layer", "head", *(f"stage1_{i}" for i in range(3))}
    assert all(set(params[f"stage1_{i}"]) == {"norm"} for i in range(3))
    copies = {**params, **{f"stage1_{i}": {**params[f"stage1_{i}"], "use": {"own": params["layer"]}} for i in range(3)}}
    del copies["layer"]

    @compiled
    def gradients(params, copies, x):
        def loss(params, network):
            y, _ = network.apply({**variables, "params": params}, x, train=True, mutable=["batch_stats"])
            return (y**2).sum(), y

        by = partial(jax.grad, has_aux=True)
        # The variables decide: with copies the network of one kernel is that of three.
        return by(loss)(params, shared), by(loss)(copies, own), by(loss)(copies, shared)

    (one, y), (three, expected), (again, same) = gradients(params, copies, images(4))
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(same, expected)
    jax.tree.map(np.testing.assert_array_equal, again, three)
    total = sum(three[f"stage1_{i}"]["use"]["own"]["kernel"] for i in range(3))
    np.testing.assert_allclose(one["layer"]["kernel"], total, rtol=0, atol=1e-5 * np.abs(total).max())
    started = jax.eval_shape(own.init, jax.random.key(0), images(1))["params"]
    assert jax.tree.map(np.shape, started) == jax.tree.map(np.shape, copies)


def test_each_use_counts_its_work_and_one_the_parameters():
    layers = [layer for layer in count_layers(Network(), SHAPE) if layer.path == "layer"]
    assert [(layer.cost.parameters, layer.cost.multiply_adds) for layer in layers] == [(16, 64), (0, 64), (0, 64)]
    # What is known from elsewhere is what a layer costs there that nobody shares.
    known: dict = {}
    assert count(Network(), SHAPE, known=known).parameters == 16 + 3 * 16 + 27
    assert count(Network(own=True), SHAPE, known=known) == count(Network(own=True), SHAPE)
    assert count(Network(own=True), SHAPE).parameters == 3 * (16 + 16) + 27


def test_units_that_share_a_layer_connect_what_units_with_layers_of_their_own_do(draw):
    reaches = [channel_reach(network, draw(network, SHAPE), SHAPE) for network in (Network(), Network(own=True))]
    assert [[step.share for step in steps] for steps in reaches[0].values()] == [[0.25, 0.5, 1.0]]
    assert reaches[0] == reaches[1]


@pytest.mark.slow
def test_copies_are_made_where_a_norm_follows_and_are_folded(draw):
    network = Network(mixer=partial(DynamicShuffle, 2))
    variables = draw(network, SHAPE)
    kept, copied = fold(network, variables, SHAPE), fold(network, variables, SHAPE, copies=True)
    names = {f"stage1_{i}/norm" for i in range(3)}
    assert set(kept.kept) == names and "layer" in kept.variables["params"]
    assert names <= set(copied.folded) and "layer" not in copied.variables["params"]
    expected, *found = compiled(lambda *all_of_them: [network.apply(one, images(2)) for one in all_of_them])(
        variables, kept.variables, copied.variables
    )
    for y in found:
        np.testing.assert_allclose(y, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
