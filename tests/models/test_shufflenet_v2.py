"""ShuffleNetV2 against the paper's table and its unit written out."""

from __future__ import annotations

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from shuffle_jax.analysis.count import count_layers
from shuffle_jax.models import ShuffleNetV2
from shuffle_jax.models.shufflenet_v2 import WIDTHS, Unit
from shuffle_jax.nn import ChannelShuffle, Identity, PointwiseConv

compiled = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})  # Half the compilation.
UNITS = [f"stage{stage}_{i}" for stage, units in ((2, 4), (3, 8), (4, 4)) for i in range(units)]


def shapes(network):
    """Variables for images of 32 x 32 pixels, without running anything."""
    return jax.eval_shape(network.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))


def groups_of_shuffles(network):
    found = []

    def visit(call, args, kwargs, context):
        if isinstance(context.module, ChannelShuffle):
            found.append(context.module.groups)
        return call(*args, **kwargs)

    with nn.intercept_methods(visit):
        shapes(network)
    return found


@pytest.mark.parametrize("stride", [1, 2])
def test_unit_equals_the_paper_s(stride, draw, native_layer):
    channels, features = 12, 12 * stride
    unit = Unit(features, stride, ChannelShuffle, PointwiseConv)

    def paper(variables, x):
        layer = partial(native_layer, variables)
        left, right = (x[..., :6], x[..., 6:]) if stride == 1 else (x, x)
        if stride == 2:
            left = layer(left, "left_depthwise", "left_norm1", stride, groups=channels)
            left = jax.nn.relu(layer(left, "left_pointwise", "left_norm2"))
        right = jax.nn.relu(layer(right, "pointwise1", "norm1"))
        right = layer(right, "depthwise", "norm2", stride, groups=features // 2)
        right = jax.nn.relu(layer(right, "pointwise2", "norm3"))
        return jnp.stack([left, right], -1).reshape(*left.shape[:3], features)  # Left, right, left, right, ...

    variables = draw(unit, (5, 8, channels))
    x = np.random.default_rng(1).standard_normal((2, 5, 8, channels)).astype(np.float32)
    actual, expected = compiled(lambda *args: (unit.apply(*args), paper(*args)))(variables, x)
    assert actual.shape == (2, 5 if stride == 1 else 3, 8 // stride, features)
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("width", WIDTHS)
def test_every_network_of_the_table_has_its_channels_and_sizes(width):
    layers = {layer.path: layer.output_shape for layer in count_layers(ShuffleNetV2(1000, width), (224, 224, 3))}
    *stages, last = WIDTHS[width]
    assert layers["stem/conv"] == (112, 112, 24)
    assert layers["stage2_0/pointwise1"][:2] == (56, 56)
    for stage, features, size in zip((2, 3, 4), stages, (28, 14, 7), strict=True):
        assert layers[f"stage{stage}_0/left_pointwise"] == (size, size, features // 2)
        assert layers[f"stage{stage}_3/mixer"] == (size, size, features)
    assert layers["norm5"] == (7, 7, last)
    assert layers["head"] == (1000,)


def test_factories_are_called_where_the_paper_shuffles_and_convolves(recorder):
    mixer, pointwise = recorder(Identity), recorder(PointwiseConv)
    kind = jnp.dtype("float32")
    shapes(ShuffleNetV2(10, stem="small", mixer=mixer, pointwise=pointwise, dtype=kind))
    assert mixer.calls == [{"name": "mixer"}] * 16
    expected = []
    for unit in UNITS:
        names = ["pointwise1", *["left_pointwise"] * unit.endswith("_0"), "pointwise2"]
        features = 116 * 2 ** (int(unit[5]) - 2)
        expected += [{"features": features // 2, "groups": 1, "dtype": kind, "name": name} for name in names]
    assert pointwise.calls == [*expected, {"features": 1024, "groups": 1, "dtype": kind, "name": "conv5"}]


@pytest.mark.usefixtures("few_units")
def test_by_default_it_shuffles_in_two_groups():
    assert groups_of_shuffles(ShuffleNetV2(2, 0.5)) == [2] * 4
