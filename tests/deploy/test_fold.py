"""Folding: the same function with fewer steps; nothing left of norms, index vectors or gathers."""

from __future__ import annotations

import dataclasses
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shuffle_jax.deploy.fold import fold
from shuffle_jax.deploy.fold.layers import Affine, Block
from shuffle_jax.deploy.fold.shufflenet_v1 import exchange_blocks
from shuffle_jax.deploy.fold.shufflenet_v2 import routes
from shuffle_jax.deploy.harden import harden
from shuffle_jax.models import NetworkConfig, ShuffleNetV2, build
from shuffle_jax.nn import PointwiseConv
from shuffle_jax.ops import permutation

NETWORKS = {
    "v2 learned": NetworkConfig(width=0.5, mixer="auto"),
    "v2 fixed": NetworkConfig(width=0.5, mixer="shuffle"),
    "v2 random, imagenet": NetworkConfig(width=0.5, mixer="random", stem="imagenet"),
    "v1 learned": NetworkConfig(family="shufflenet_v1", width=0.5, mixer="auto"),
    "v1 g2 fixed, imagenet": NetworkConfig(family="shufflenet_v1", groups=2, mixer="shuffle", stem="imagenet"),
}


def trained_like(network, images):
    """Hardened variables, drawn and not initialised, which compiles for long: nothing is what it was at the start."""
    rng = np.random.default_rng(0)

    def drawn(path, leaf):
        name, shape = path[-1].key, leaf.shape
        if jnp.issubdtype(leaf.dtype, jnp.integer):
            return jnp.asarray(rng.permutation(shape[0]), leaf.dtype)  # an index vector
        match name:
            case "kernel":
                values = rng.normal(0, np.sqrt(2 / np.prod(shape[:-1])), shape)
            case "var" | "relaxed_permutation":
                values = rng.uniform(0.5, 2, shape)
            case _:
                values = (name == "scale") + rng.normal(0, 0.2, shape)
        return jnp.asarray(values, leaf.dtype)

    variables = dict(jax.eval_shape(network.init, jax.random.key(0), images))
    variables.pop("penalties", None)
    return harden(jax.tree.map_with_path(drawn, variables)).variables


@pytest.fixture(scope="module", params=list(NETWORKS))
def case(request):
    network = build(NETWORKS[request.param], 5)
    images = jnp.asarray(np.random.default_rng(1).normal(size=(2, 13, 9, 3)), jnp.float32)
    return network, trained_like(network, images), images


def test_the_folded_network_is_the_same_function(case):
    network, variables, images = case
    folded = fold(network, variables)
    expected = jax.jit(network.apply)(variables, images)
    found = jax.jit(folded.apply)(folded.params, images)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())
    assert {leaf.dtype for leaf in jax.tree.leaves(folded.params)} == {jnp.dtype(jnp.float32)}


def test_no_gather_no_norm_and_no_unread_copy_is_left(case):
    network, variables, images = case
    apply, params = fold(network, variables)
    text = str(jax.make_jaxpr(apply)(params, images))
    before = str(jax.make_jaxpr(network.apply)(variables, images))
    assert "rsqrt" in before and "rsqrt" not in text
    assert "gather[" not in text and "transpose[" not in text
    # Kernels and one bias for each convolution but the depthwise ones; the classifier has two arrays.
    kernels = [path for path, _ in jax.tree_util.tree_leaves_with_path(params) if path[-1].key == "kernel"]
    depthwise = sum("depthwise" in path[-2].key for path in kernels)
    assert len(jax.tree.leaves(params)) == 2 * len(kernels) - depthwise


def test_one_image_in_half_precision_is_computed_in_half_precision():
    network = build(NetworkConfig(width=0.5, dtype="bfloat16"), 5)
    images = jnp.asarray(np.random.default_rng(1).normal(size=(1, 8, 8, 3)), jnp.float32)
    variables = trained_like(network, images)
    apply, params = fold(network, variables)
    logits, wide = jax.jit(apply)(params, images), network.clone(dtype=jnp.float32).apply(variables, images)
    assert logits.dtype == jnp.float32
    assert np.abs(logits - wide).max() < 0.1 * np.abs(wide).max()
    products = [
        e.outvars[0].aval.dtype for e in jax.make_jaxpr(apply)(params, images).eqns if "dot" in e.primitive.name
    ]
    assert set(products[:-1]) == {jnp.dtype(jnp.bfloat16)}


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 9), st.integers(1, 12), st.integers(0, 10_000))
def test_routes_bring_every_channel_to_its_reader(units, half, seed):
    rng = np.random.default_rng(seed)
    mixers = [rng.permutation(2 * half) for _ in range(units)]
    # Channels as the units make them, under names that are all different; then a stage as the paper has it.
    outputs = np.arange((units + 1) * half).reshape(units + 1, half)
    read, state = [], np.concatenate(outputs[:2])[mixers[0]]
    for mixer, made_here in zip(mixers[1:], outputs[2:], strict=True):
        left, right = np.split(state, 2)
        read.append(right)
        state = np.concatenate([left, made_here])[mixer]
    read.append(state)

    made, readers = routes(mixers)
    arrays = [row[order] for row, order in zip(outputs, made, strict=True)]
    assert len(readers) == len(read)
    for reader, expected in zip(readers, read, strict=True):
        found = np.concatenate([arrays[b.source][b.start : b.stop] for b in reader.blocks])
        np.testing.assert_array_equal(found, expected[reader.order])
        assert len(reader.blocks) <= len({b.source for b in reader.blocks})  # one block from each unit at most
    # Nothing is read twice.
    every = [channel for names in read for channel in names.tolist()]
    assert sorted(every) == list(range((units + 1) * half))


@settings(max_examples=40, deadline=None)
@given(st.sampled_from([1, 2, 3, 8]), st.sampled_from([1, 2, 3, 8]), st.integers(1, 5), st.integers(0, 10_000))
def test_an_exchange_is_the_permutation_up_to_orders_within_groups(makers, readers, factor, seed):
    channels = makers * readers * factor
    p = np.random.default_rng(seed).permutation(channels)
    made_channels = np.arange(channels)
    exchange = exchange_blocks(p, makers, readers)
    memory = made_channels[exchange.made]
    np.testing.assert_array_equal(memory // (channels // makers), made_channels // (channels // makers))
    np.testing.assert_array_equal(made_channels[p][exchange.becomes], memory)
    found = np.concatenate([memory[b.start : b.stop] for b in exchange.blocks])
    np.testing.assert_array_equal(found, made_channels[p][exchange.read])
    np.testing.assert_array_equal(exchange.read // (channels // readers), made_channels // (channels // readers))
    assert len(exchange.blocks) <= makers * readers


def test_the_fixed_shuffle_exchanges_one_block_between_any_two_groups_and_none_after_free_channels():
    shuffle = np.asarray(permutation.channel_shuffle(18, 3))
    blocks = exchange_blocks(shuffle, 3, 3).blocks
    assert [(b.start, b.stop) for b in blocks] == [
        (6 * j + 2 * k, 6 * j + 2 * k + 2) for k in range(3) for j in range(3)
    ]
    assert exchange_blocks(shuffle, 1, 3).blocks == [Block(0, 0, 18)]
    assert exchange_blocks(np.arange(18), 3, 3).blocks == [Block(0, 0, 18)]


@pytest.mark.parametrize("groups", [1, 2, 3])
def test_a_constant_before_a_pointwise_convolution_moves_behind_it(groups):
    rng = np.random.default_rng(0)
    x, c, kernel, bias = (rng.normal(size=s) for s in ((4, 6), (6,), (1, 1, 6 // groups, 12), (12,)))

    def apply(layer, x):
        parts = zip(np.split(x, groups, -1), np.split(layer.kernel[0, 0], groups, -1), strict=True)
        return np.concatenate([part @ rows for part, rows in parts], -1) + layer.bias

    layer = Affine(kernel, bias)
    np.testing.assert_allclose(apply(layer.after(c, groups), x), apply(layer, x + c), rtol=1e-12)


class Unknown(nn.Module):
    """A mixer that depends on what it sees."""

    @nn.compact
    def __call__(self, x, train=False):
        return x[..., ::-1]


def test_what_cannot_be_folded_is_named():
    images = jnp.zeros((1, 8, 8, 3))
    config = NetworkConfig(width=0.5, mixer="auto")
    relaxed = jax.eval_shape(build(config, 5).init, jax.random.key(0), images)
    relaxed = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), relaxed)
    with pytest.raises(ValueError, match="stage2_0/mixer is still a relaxed matrix: harden the variables before"):
        fold(build(config, 5), relaxed)
    with pytest.raises(ValueError, match="stage2_0/mixer is a Unknown, not a permutation, and cannot be folded"):
        fold(ShuffleNetV2(5, 0.5, "small", mixer=Unknown), relaxed)
    with pytest.raises(ValueError, match="1x1 layers of Dense cannot be folded, only those of PointwiseConv"):
        fold(ShuffleNetV2(5, 0.5, "small", pointwise=partial(nn.Dense)), relaxed)
    with pytest.raises(ValueError, match="a Unknown cannot be folded, only ShuffleNets, MobileNetV2, Res"):
        fold(Unknown(), {})


def test_biases_of_the_convolutions_are_folded_too():
    network = ShuffleNetV2(5, 0.5, "small", pointwise=partial(PointwiseConv, use_bias=True))
    images = jnp.asarray(np.random.default_rng(1).normal(size=(1, 8, 8, 3)), jnp.float32)
    variables = trained_like(network, images)
    apply, params = fold(network, variables)
    np.testing.assert_allclose(apply(params, images), network.apply(variables, images), rtol=1e-4, atol=1e-4)
    plain = fold(dataclasses.replace(network, pointwise=PointwiseConv), variables)
    assert jax.tree.structure(plain.params) == jax.tree.structure(params)
