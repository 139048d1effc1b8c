"""Rolling pointwise layers: their counts, and their place in networks with groups and without."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from shuffle_jax.analysis.count import count, count_layers
from shuffle_jax.deploy.folding import fold
from shuffle_jax.deploy.routing import route
from shuffle_jax.models import NetworkConfig, ShuffleNetV1, build, shufflenet_v1
from shuffle_jax.nn import RollingPointwise
from shuffle_jax.ops.rolling_pointwise import rolling_pointwise

PLAIN = {"shufflenet_v1": 913138, "addressnet": 68590}
"""Parameters of networks with groups of their own, with plain grouped layers; g = 8, depth 20."""


def test_it_is_its_operation_with_a_bias_in_the_type_asked_for():
    layer, x = RollingPointwise(6, 2, use_bias=True, dtype=jnp.bfloat16), np.ones((1, 2, 2, 8), np.float32)
    shapes = jax.eval_shape(layer.init, jax.random.key(0), x)
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype.name), shapes) == {
        "params": {"kernel": ((1, 1, 4, 6), "float32"), "bias": ((6,), "float32")}
    }
    kernel = np.random.default_rng(0).standard_normal((1, 1, 4, 6)).astype(np.float32)
    variables = {"params": {"kernel": kernel, "bias": np.arange(6, dtype=np.float32)}}
    y, plain, product = jax.jit(
        lambda v: (layer.apply(v, x), layer.clone(dtype=None).apply(v, x), rolling_pointwise(jnp.asarray(x), kernel, 2))
    )(variables)
    assert (y.dtype, plain.dtype) == (jnp.bfloat16, jnp.float32)
    np.testing.assert_allclose(plain, np.asarray(product) + np.arange(6), rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(np.float32(y), plain, rtol=0.02, atol=0.02)


def test_what_it_costs():
    layer = RollingPointwise(96, 3, overlap=0.25, use_bias=True)
    found = count(layer, (5, 7, 48))
    assert (found.parameters, found.multiply_adds) == (96 * (16 + 1), 5 * 7 * 96 * 16)
    own = RollingPointwise(96, default_groups=32)  # 48 channels have 16 in common with them.
    assert count(own, (5, 7, 48)) == count(RollingPointwise(96, 16), (5, 7, 48))
    assert count(RollingPointwise(96), (5, 7, 48)).parameters == 96 * 48


@pytest.mark.parametrize("overlap", [0.0, 0.5])
def test_a_constant_behind_it_and_a_scale_are_what_folding_takes_them_for(overlap):
    layer, rng = RollingPointwise(12, 4, overlap=overlap), np.random.default_rng(0)
    variables = {"params": {"kernel": rng.standard_normal((1, 1, 2, 12)).astype(np.float32)}}
    constant, scale = rng.standard_normal(8).astype(np.float32), rng.standard_normal(12)
    x = rng.standard_normal((1, 2, 2, 8)).astype(np.float32)

    def difference(variables, x, constant):
        return layer.apply(variables, x + constant.reshape(1, 1, 1, -1)) - layer.apply(variables, x)

    scaled = jax.tree.map(np.float32, layer.scale_outputs(variables, scale))
    moved, one, other = jax.jit(lambda *given: (difference(*given), layer.apply(*given[:2]), layer.apply(scaled, x)))(
        variables, x, constant
    )
    np.testing.assert_allclose(moved[0, 0, 0], layer.constant_outputs(variables, constant), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(other, np.asarray(one) * scale, rtol=1e-5, atol=1e-5)


def groups_of(network):
    layers = count_layers(network, (32, 32, 3))
    found = [layer for layer in layers if layer.kind == "RollingPointwise"]
    return found, sum(layer.cost.parameters for layer in layers)


@pytest.mark.slow
@pytest.mark.parametrize("family", PLAIN)
def test_a_network_with_groups_keeps_its_counts(family):
    options = {"groups": 8} if family == "shufflenet_v1" else {}
    layers, parameters = groups_of(build(NetworkConfig(family, mixer="identity", pointwise="rolling", **options), 10))
    assert layers and parameters == PLAIN[family]


@pytest.mark.slow
def test_a_network_without_groups_has_two():
    network = build(NetworkConfig("shift_resnet", mixer="identity", pointwise="rolling"), 10)
    assert network.pointwise(features=4).default_groups == 2
    _, parameters = groups_of(network)
    grouped = build(NetworkConfig("shift_resnet", mixer="identity", groups=2), 10)
    assert parameters == count(grouped, (32, 32, 3)).parameters
    four = NetworkConfig("shift_resnet", mixer="identity", pointwise="rolling", rolling={"default_groups": 4})
    assert build(four, 10).pointwise(features=4).default_groups == 4
    of_network = build(NetworkConfig("shift_resnet", mixer="identity", pointwise="rolling", groups=4), 10)
    assert of_network.pointwise(features=4).default_groups == 1


def test_a_network_without_a_place_for_it_says_so():
    with pytest.raises(ValueError, match=r"^resnet of this form has no 1x1 layer that another can replace: leave "):
        build(NetworkConfig("resnet", depth=10, pointwise="rolling"), 2)


@pytest.mark.slow
def test_a_network_of_them_folds_routes_and_computes_in_half_precision(draw, monkeypatch):
    """Of one image and odd sizes. 68 channels in 4 groups are windows of 17, which no half is a whole part of."""
    monkeypatch.setattr(shufflenet_v1, "UNITS", (2, 1))
    network = ShuffleNetV1(classes=3, groups=4, stem="small", pointwise=partial(RollingPointwise, overlap=0.5))
    x = np.random.default_rng(0).standard_normal((1, 9, 11, 3)).astype(np.float32)
    variables = draw(network, (9, 11, 3))
    folded = fold(network, variables, (9, 11, 3))
    assert not folded.kept and "batch_stats" not in folded.variables
    routed, half = route(network, folded.variables, (9, 11, 3)), network.clone(dtype=jnp.bfloat16)
    one, other, third, coarse = jax.jit(
        lambda v, w: (network.apply(v, x), network.apply(w, x), routed.apply(routed.params, x), half.apply(v, x))
    )(variables, folded.variables)
    for same in (other, third):
        np.testing.assert_allclose(one, same, rtol=1e-3, atol=1e-3 * np.abs(one).max())
    assert coarse.dtype == jnp.float32
    np.testing.assert_allclose(one, coarse, atol=0.1 * np.abs(one).max())
