"""Networks whose channels are chosen one by one: published counts, and sizes that are those of their layers."""

from __future__ import annotations

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from shuffle_jax.analysis.count import count
from shuffle_jax.deploy.folding import fold
from shuffle_jax.models import MobileNetV2, NetworkConfig, ShuffleNetV2, build, mobilenet_v2
from shuffle_jax.models.resnet import ResNet
from shuffle_jax.nn import AutoShuffle, ChannelShift, ChannelShuffle, DynamicShuffle
from shuffle_jax.train.config import TrainConfig, from_json, to_json

NETWORKS = {"resnet": partial(ResNet, depth=10), "shufflenet_v2": ShuffleNetV2, "mobilenet_v2": MobileNetV2}


@pytest.fixture(autouse=True)
def small(few_units, monkeypatch):
    """MobileNetV2 of three stages, which hold every kind of unit."""
    monkeypatch.setattr(mobilenet_v2, "TABLE", mobilenet_v2.TABLE[:3])


def params(network):
    shapes = jax.eval_shape(network.init, jax.random.key(0), jnp.zeros((1, 16, 16, 3)))["params"]
    return flatten_dict(shapes, sep="/")


def number(network):
    return sum(math.prod(leaf.shape) for leaf in params(network).values())


@pytest.mark.parametrize(
    ("classes", "sizes", "parameters"),
    [(10, (32,) * 20, 301_482), (100, (32,) * 20, 304_452), (10, (), 21_282_122), (100, (), 21_328_292)],
)
@pytest.mark.fast_cases(1)
def test_published_parameters(classes, sizes, parameters):
    assert number(ResNet(classes, 34, stem="small", sizes=sizes)) == parameters


@pytest.mark.slow
def test_published_multiply_adds():
    assert count(ResNet(10, 34, stem="small", sizes=(32,) * 20), (32, 32, 3)).multiply_adds == 84_689_216


@pytest.mark.parametrize("family", NETWORKS)
def test_sizes_are_those_of_the_sides_that_are_read(family):
    own = NETWORKS[family](7).all_sizes()
    chosen = tuple(4 * (5 + i) for i in range(len(own)))
    network = NETWORKS[family](7, stem="small", sizes=chosen)
    leaves, nodes, read = params(network), network.nodes(), set()
    assert tuple(node.channels for node in nodes) == chosen
    for i, node in enumerate(nodes):
        for path, side in node.sides:
            channels = leaves[f"{path}/kernel"].shape[2 if side == "in" else 3]
            first = family == "resnet" and path.endswith("_0/conv1") and side == "in"
            before = chosen[max(i - 2, 0)] if first else node.channels  # theirs: the size of the stage before
            assert channels in (before, before // 2), (node.name, path, side)
            read.add((path, side))
    kernels = {path.removesuffix("/kernel") for path, leaf in leaves.items() if len(leaf.shape) == 4}
    left_out = {path for path, _ in {(k, side) for k in kernels for side in ("in", "out")} - read}
    assert all(path.startswith("stem") or path.endswith(("depthwise", "downsample")) for path in left_out)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["shufflenet_v2", "mobilenet_v2"])
def test_the_sizes_of_a_width_give_the_network_of_that_width(family):
    narrow = NETWORKS[family](7, width=0.5, stem="small")
    given = NETWORKS[family](7, stem="small", sizes=narrow.all_sizes())
    assert {path: leaf.shape for path, leaf in params(narrow).items()} == {
        path: leaf.shape for path, leaf in params(given).items()
    }


def multiples(network):
    return sorted({node.multiple for node in network.nodes()})


def test_what_groups_and_mixers_need():
    assert multiples(ResNet(7, 10)) == [1]
    assert multiples(ResNet(7, 10, groups=3, mixer=partial(ChannelShift, 3))) == [3, 6]
    assert multiples(MobileNetV2(7, groups=2, mixer=partial(ChannelShift, 2))) == [1, 2, 4]
    assert multiples(ShuffleNetV2(7)) == [1, 2]
    assert multiples(ShuffleNetV2(7, mixer=partial(ChannelShuffle, 3))) == [1, 6]
    assert multiples(ShuffleNetV2(7, mixer=AutoShuffle)) == [1, 2]
    assert multiples(ShuffleNetV2(7, mixer=partial(DynamicShuffle, 2))) == [1, 8]
    assert multiples(ShuffleNetV2(7, mixer=partial(DynamicShuffle, 2, factors=(3, 4)))) == [1, 24]


@pytest.mark.slow
@pytest.mark.parametrize("family", NETWORKS)
def test_uneven_sizes_fold_and_compute_in_half_precision(family, draw):
    sizes = tuple(4 * (3 + 5 * i % 7) for i in range(len(NETWORKS[family](7).all_sizes())))
    network, shape = NETWORKS[family](7, stem="small", sizes=sizes), (16, 16, 3)
    variables, x = draw(network, shape), np.random.default_rng(3).standard_normal((2, *shape)).astype(np.float32)
    true = jax.jit(network.apply)(variables, x)
    folded = fold(network, variables, shape)
    assert folded.folded and not folded.kept
    np.testing.assert_allclose(
        jax.jit(network.apply)(folded.variables, x), true, rtol=0, atol=1e-4 * np.abs(true).max()
    )
    half = jax.jit(network.clone(dtype=jnp.dtype(jnp.bfloat16)).apply)(variables, x)
    np.testing.assert_allclose(half, true, rtol=0, atol=0.1 * np.abs(true).max())


def test_a_configuration_holds_them_and_another_family_has_none():
    config = NetworkConfig("resnet", depth=10, mixer="identity", sizes=(8, 6, 8, 8, 8, 4, 12, 8))
    assert build(config, 7).all_sizes() == config.sizes
    assert config.of_family("shufflenet_v2").sizes == ()
    run = TrainConfig(network=config)
    kept = to_json(run)
    assert from_json(TrainConfig, kept) == run
    del kept["network"]["sizes"]  # as earlier versions wrote it
    assert from_json(TrainConfig, kept).network.sizes == ()


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (ResNet(7, 10, sizes=(8,) * 7), "sizes of this ResNet-10 must be 8 numbers of channels, got 7"),
        (ResNet(7, 10, sizes=(8,) * 7 + (0,)), "sizes must be at least 1, got 0"),
        (ResNet(7, 10, 0.5, sizes=(8,) * 8), "width must be 1 beside sizes, .* got 0.5"),
        (ResNet(7, 50, sizes=(8,) * 8), "sizes must be of a ResNet of basic units, .* got depth 50: leave them out"),
        (ResNet(7, 10, groups=3, sizes=(9, 8) * 4), "8 channels cannot be split into 3 groups"),
    ],
)
def test_wrong_sizes_are_refused(network, message):
    with pytest.raises(ValueError, match=message):
        params(network)


def test_networks_without_sizes_say_so():
    with pytest.raises(ValueError, match=r"addressnet has no sizes, got \(8,\): leave --network.sizes at \(\)"):
        build(NetworkConfig("addressnet", mixer="shift", sizes=(8,)), 7)
    with pytest.raises(ValueError, match="ResNet-50 has no sizes of its own"):
        ResNet(7, 50).nodes()
