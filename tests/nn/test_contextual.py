"""Contextual layers: parameters, their start, what they share with the plain layers, and their places in networks."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from shuffle_jax.analysis.count import count
from shuffle_jax.models import NetworkConfig, build
from shuffle_jax.nn import ContextualConv, ContextualDepthwise, Conv, DepthwiseConv
from shuffle_jax.nn.contextual import by_level
from shuffle_jax.nn.convolution import fan_out_init
from shuffle_jax.ops.contextual import contextual

IMAGES = jax.ShapeDtypeStruct((1, 5, 4, 8), jnp.float32)


@pytest.mark.parametrize("options", [{"levels": 5}, {"groups": 2, "use_bias": True}, {"outputs": (10, 6), "stride": 2}])
def test_the_layer_has_the_parameters_and_shape_of_the_plain_one(options):
    layer = ContextualConv(16, **options)
    plain = Conv(16, **{name: value for name, value in options.items() if name not in ("levels", "outputs")})
    found, other = (jax.eval_shape(one.init_with_output, jax.random.key(0), IMAGES) for one in (layer, plain))
    assert found == other
    y = found[0]
    assert layer.multiply_adds(IMAGES, y) == plain.multiply_adds(IMAGES, y)


def test_every_level_starts_by_itself_and_one_level_as_the_plain_layer():
    drawn = []

    def init(key, shape):
        drawn.append((jax.random.key_data(key).tolist(), shape))
        return np.full(shape, len(drawn), np.float32)

    key = jax.random.key(0)
    kernel = by_level(init, (2, 3))(key, (3, 3, 4, 5))
    assert np.asarray(kernel[0, 0, 0]).tolist() == [1, 1, 2, 2, 2]
    by_level(init, (5,))(key, (3, 3, 4, 5))
    (first, *shapes), (second, *others), (whole, *of_one) = drawn
    assert first != second and whole == jax.random.key_data(key).tolist()
    assert (shapes, others, of_one) == ([(3, 3, 4, 2)], [(3, 3, 4, 3)], [(3, 3, 4, 5)])


def test_half_precision_is_inside_only_and_a_bias_is_added():
    layer = ContextualConv(4, levels=2, use_bias=True, dtype=jnp.dtype(jnp.bfloat16))
    rng = np.random.default_rng(0)
    x, kernel = rng.standard_normal((1, 5, 4, 8)), rng.standard_normal((3, 3, 8, 4))
    x, kernel, bias = (np.asarray(a, np.float32) for a in (x, kernel, rng.standard_normal(4)))
    apply = jax.jit(lambda x, **params: (layer.apply({"params": params}, x), contextual(x, params["kernel"], (2, 2))))
    y, expected = apply(x, kernel=kernel, bias=bias)
    assert y.dtype == jnp.bfloat16
    expected = np.asarray(expected) + bias
    np.testing.assert_allclose(np.asarray(y).astype(np.float32), expected, rtol=0.05, atol=0.15)


@pytest.mark.parametrize("family", ["shufflenet_v2", "shufflenet_v1", "mobilenet_v2"])
@pytest.mark.fast_cases(1)
def test_the_depthwise_form_is_in_networks_with_equal_variables_and_counts(family, few_units):
    configs = [NetworkConfig(family, spatial=kind, mixer="identity", width=0.5) for kind in ("contextual", "depthwise")]
    found, plain = (build(config, 3) for config in configs)
    shape = jax.ShapeDtypeStruct((1, 17, 9, 3), jnp.float32)
    kinds = []

    def record(call, args, kwargs, context):
        if isinstance(context.module, DepthwiseConv):
            kinds.append((type(context.module), context.module.kernel_init))
        return call(*args, **kwargs)

    with nn.intercept_methods(record):
        variables = jax.eval_shape(found.init, jax.random.key(0), shape)
    assert variables == jax.eval_shape(plain.init, jax.random.key(0), shape)
    start = fan_out_init if family == "mobilenet_v2" else DepthwiseConv().kernel_init
    assert set(kinds) == {(ContextualDepthwise, start)}
    known: dict = {}
    assert count(found, (16, 16, 3), known=known) == count(plain, (16, 16, 3), known=known)


def test_levels_are_an_option_of_the_command_line():
    network = build(NetworkConfig("shufflenet_v2", spatial="contextual", contextual={"levels": 3}), 3)
    assert network.depthwise().levels == 3
    with pytest.raises(
        ValueError, match=r"resnet has no place for --network.spatial contextual: choose depthwise, or a"
    ):
        build(NetworkConfig("resnet", spatial="contextual", mixer="identity"), 3)
