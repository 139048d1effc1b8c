"""Routing: the same function of a ShuffleNet without gathers; permutations are found by running the mixers."""

from __future__ import annotations

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shuffle_jax.deploy.folding import fold
from shuffle_jax.deploy.hardening import harden
from shuffle_jax.deploy.routing import Block, _permutation, exchange, route, routes
from shuffle_jax.models import ResNet, ShuffleNetV1, ShuffleNetV2
from shuffle_jax.nn import (
    AutoShuffle,
    ChannelShift,
    ChannelShuffle,
    ContextualDepthwise,
    Dense,
    DynamicConv,
    DynamicShuffle,
    FixedPermutation,
    Identity,
    PointwiseConv,
    PolyphaseSampling,
    SqueezeExcitation,
)
from shuffle_jax.ops import permutation

SHAPE = (9, 6, 3)


class Turned(nn.Module):
    """A mixer from outside: a permutation."""

    @nn.compact
    def __call__(self, x, train=False):
        return x[..., ::-1]


class Rolled(nn.Module):
    """A mixer from outside that is a permutation of its own at each row."""

    @nn.compact
    def __call__(self, x, train=False):
        return jnp.concatenate([x[:, :1], jnp.roll(x[:, 1:], 1, axis=-1)], axis=1)


class Doubled(nn.Module):
    """A mixer from outside that reads half of the channels twice."""

    @nn.compact
    def __call__(self, x, train=False):
        return jnp.concatenate([x[..., : x.shape[-1] // 2]] * 2, axis=-1)


biased = partial(PointwiseConv, use_bias=True)
NETWORKS = {
    # A network, and whether its norms are folded first.
    "v1 learned": (ShuffleNetV1(5, 3, 0.5, "small", mixer=AutoShuffle), True),
    "v1 with norms": (ShuffleNetV1(5, 2, 1.0, "imagenet", mixer=Turned, pointwise=biased), False),
    "v2 learned": (ShuffleNetV2(5, 0.5, "small", mixer=AutoShuffle, head=partial(Dense, use_bias=False)), True),
    "v2 with norms": (ShuffleNetV2(5, 0.5, "imagenet", mixer=FixedPermutation, pointwise=biased), False),
}


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow if n in ("v1 learned", "v2 with norms") else ()) for n in NETWORKS]
)
def test_the_routed_network_is_the_same_function_without_gathers(name, draw, few_units, compiled):
    network, folded = NETWORKS[name]
    variables = harden(jax.tree.map(jnp.asarray, draw(network, SHAPE))).variables
    routed = route(network, fold(network, variables, SHAPE).variables if folded else variables, SHAPE)
    x = np.random.default_rng(1).standard_normal((2, *SHAPE)).astype(np.float32)
    expected, found = compiled(lambda v, p, x: (network.apply(v, x), routed.apply(p, x)))(variables, routed.params, x)
    assert routed.reason == "" and np.std(expected) > 0.01
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
    text = str(jax.make_jaxpr(routed.apply)(routed.params, x[:1]))
    assert "gather[" not in text and "transpose[" not in text
    assert ("rsqrt" in text) == (not folded) and "permutations" not in routed.params
    assert {leaf.dtype for leaf in jax.tree.leaves(routed.params)} == {jnp.dtype(jnp.float32)}


MIXERS = {
    "identity": (Identity(), np.arange(12)),
    "shuffle": (ChannelShuffle(3), permutation.channel_shuffle(12, 3)),
    "shift": (ChannelShift(2), permutation.channel_shift(12, 2)),
    "outside": (Turned(), np.arange(12)[::-1]),
    "rows": (Rolled(), None),
    "doubled": (Doubled(), None),
}


@pytest.mark.parametrize("name", MIXERS)
def test_the_permutation_of_a_mixer_is_found_by_running_it(name):
    mixer, expected = MIXERS[name]
    found = _permutation(mixer, {}, 12)
    assert found is None if expected is None else found.tolist() == list(expected)


def test_index_vectors_of_hardened_and_frozen_mixers_are_found():
    rng = np.random.default_rng(0)
    index, outer, inner = rng.permutation(12), rng.permutation(2)[None], rng.permutation(3)[None]
    for mixer in (AutoShuffle(), FixedPermutation()):
        assert _permutation(mixer, {"permutations": {"index": index}}, 12).tolist() == index.tolist()
    frozen = {"permutations": {"generator": {"outer": outer, "inner": inner}}}
    found = _permutation(DynamicShuffle(2, factors=(2, 3)), frozen, 12)
    x = np.arange(12.0).reshape(1, 1, 1, 12)
    np.testing.assert_array_equal(x[..., found], DynamicShuffle(2, factors=(2, 3)).apply(frozen, x))


@pytest.mark.parametrize(
    ("network", "reason"),
    [
        (ShuffleNetV2(5, 0.5, "small", AutoShuffle), "stage2_0/mixer, a AutoShuffle, has parameters: harden or freeze"),
        (ShuffleNetV1(5, 3, 0.5, "small", SqueezeExcitation), "stage2_0/mixer, a SqueezeExcitation, has parameters"),
        (ShuffleNetV2(5, 0.5, "small", Doubled), "stage2_0/mixer, a Doubled, is no permutation of the channels"),
        (
            ShuffleNetV2(5, 0.5, "small", pointwise=DynamicConv),
            "stage2_0/pointwise1, a DynamicConv, is no PointwiseConv",
        ),
        (
            ShuffleNetV2(5, 0.5, "small", depthwise=ContextualDepthwise),
            "stage2_0/left_depthwise, a ContextualDepthwise, is no DepthwiseConv",
        ),
        (ResNet(5, 10, 1 / 8), ""),
    ],
)
@pytest.mark.fast_cases(3)
def test_what_cannot_be_routed_stays_as_it_is_with_the_reason(network, reason, draw, few_units):
    variables = draw(network, SHAPE)
    apply, params, why = route(network, variables, SHAPE)
    assert params is variables and why.startswith(reason) and bool(why) == bool(reason)
    x = jnp.zeros((1, *SHAPE))
    assert str(jax.make_jaxpr(apply)(params, x)) == str(jax.make_jaxpr(network.apply)(variables, x))


@pytest.mark.parametrize("family", [ShuffleNetV1, ShuffleNetV2])
def test_a_network_that_samples_by_its_channels_stays_as_it_is(family):
    variables = {"params": {}}
    _, params, why = route(family(5, sampling=PolyphaseSampling), variables, SHAPE)
    assert params is variables and why.startswith("its samplings choose by all channels")


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
    before = np.arange(channels)
    made, blocks, read = exchange(p, makers, readers)
    np.testing.assert_array_equal(made // (channels // makers), before // (channels // makers))
    found = np.concatenate([before[made][b.start : b.stop] for b in blocks])
    np.testing.assert_array_equal(found, before[p][read])
    np.testing.assert_array_equal(read // (channels // readers), before // (channels // readers))
    assert len(blocks) <= makers * readers


def test_the_fixed_shuffle_exchanges_one_block_between_any_two_groups_and_none_after_free_channels():
    shuffle = np.asarray(permutation.channel_shuffle(18, 3))
    _, blocks, _ = exchange(shuffle, 3, 3)
    assert [(b.start, b.stop) for b in blocks] == [
        (6 * j + 2 * k, 6 * j + 2 * k + 2) for k in range(3) for j in range(3)
    ]
    assert exchange(shuffle, 1, 3)[1] == [Block(0, 0, 18)]
    assert exchange(np.arange(18), 3, 3)[1] == [Block(0, 0, 18)]
