"""The first ShuffleNet against the paper's table and its unit written out."""

from __future__ import annotations

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from shuffle_jax.analysis.count import count_layers
from shuffle_jax.models import ShuffleNetV1
from shuffle_jax.models.shufflenet_v1 import CHANNELS, WIDTHS, Unit
from shuffle_jax.nn import ChannelShuffle, Identity, PointwiseConv

STEMS = {(3, 0.25): 6, (8, 0.25): 8, (3, 0.5): 12, (8, 0.5): 16}
KNOWN: dict = {}  # Layers counted before, shared by all tests.
INDIVISIBLE = {
    (2, 0.25): (25, 2),
    (4, 0.25): (17, 4),
    (2, 0.5): (25, 2),
    (2, 1.5): (75, 2),
    (4, 0.5): (34, 4),
    (4, 1.5): (102, 4),
}
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


def average_3x3(x):
    """Over a stride of 2, the zeros outside included."""
    kernel = jnp.full((3, 3, 1, x.shape[-1]), 1 / 9)
    numbers = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(
        x, kernel, (2, 2), ((1, 1), (1, 1)), dimension_numbers=numbers, feature_group_count=x.shape[-1]
    )


@pytest.mark.parametrize(("stride", "group_first"), [(1, True), (2, True), (2, False)])
def test_unit_equals_the_paper_s(stride, group_first, draw, native_layer):
    groups, channels, features = 3, 24, 24 * stride
    mixer = partial(ChannelShuffle, groups=groups)
    unit = Unit(features, stride, groups, mixer, PointwiseConv, group_first)

    def paper(variables, x):
        layer = partial(native_layer, variables)
        y = jax.nn.relu(layer(x, "pointwise1", "norm1", groups=groups if group_first else 1))
        n, h, w, c = y.shape
        y = y.reshape(n, h, w, groups, c // groups).swapaxes(3, 4).reshape(n, h, w, c)
        y = layer(y, "depthwise", "norm2", stride, groups=c)
        y = layer(y, "pointwise2", "norm3", groups=groups)
        if stride == 1:
            return jax.nn.relu(x + y)
        return jax.nn.relu(jnp.concatenate([average_3x3(x), y], -1))

    variables = draw(unit, (5, 8, channels))
    x = np.random.default_rng(1).standard_normal((2, 5, 8, channels)).astype(np.float32)
    actual, expected = compiled(lambda *args: (unit.apply(*args), paper(*args)))(variables, x)
    assert actual.shape == (2, 5 if stride == 1 else 3, 8 // stride, features)
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("groups", CHANNELS)
@pytest.mark.fast_cases(6)
def test_every_network_of_the_table_has_its_channels_and_sizes(groups, width):
    network = ShuffleNetV1(1000, groups, width)
    if (groups, width) in INDIVISIBLE:
        channels, parts = INDIVISIBLE[groups, width]
        with pytest.raises(ValueError, match=rf"{channels} channels cannot be split into {parts} groups: choose one"):
            count_layers(network, (224, 224, 3), known=KNOWN)
        return
    layers = {layer.path: layer.output_shape for layer in count_layers(network, (224, 224, 3), known=KNOWN)}
    assert layers["stem/conv"] == (112, 112, STEMS.get((groups, width), 48 if width == 2.0 else 24))
    for stage, size in ((2, 28), (3, 14), (4, 7)):
        features = int(CHANNELS[groups] * width * 2 ** (stage - 2))
        assert layers[f"stage{stage}_1/mixer"] == (size, size, features // 4)
        assert layers[f"stage{stage}_1/norm3"] == (size, size, features)
    assert layers["head"] == (1000,)


@pytest.mark.parametrize("groups", [3, 8])
def test_factories_are_called_where_the_paper_shuffles_and_convolves(groups, recorder):
    mixer, pointwise = recorder(Identity), recorder(PointwiseConv)
    network = ShuffleNetV1(10, groups, stem="small", mixer=mixer, pointwise=pointwise, dtype=jnp.dtype("float32"))
    shapes(network)
    assert mixer.calls == [{"name": "mixer"}] * 16
    expected = []
    for unit in UNITS:
        features = CHANNELS[groups] * 2 ** (int(unit[5]) - 2)
        into = {"stage2_0": 24}.get(unit, features // 2) if unit.endswith("_0") else 0
        first = {"features": features // 4, "groups": 1 if unit == "stage2_0" else groups, "name": "pointwise1"}
        second = {"features": features - into, "groups": groups, "name": "pointwise2"}
        expected += [{**first, "dtype": jnp.float32}, {**second, "dtype": jnp.float32}]
    assert pointwise.calls == expected


@pytest.mark.usefixtures("few_units")
@pytest.mark.parametrize("groups", CHANNELS)
def test_by_default_it_shuffles_in_as_many_groups_as_it_convolves(groups):
    assert groups_of_shuffles(ShuffleNetV1(2, groups)) == [groups] * 4


@pytest.mark.usefixtures("few_units")
def test_the_head_has_a_bias_unless_told_not_to():
    assert {*shapes(ShuffleNetV1(7))["params"]["head"]} == {"kernel", "bias"}
    assert {*shapes(ShuffleNetV1(7, head_bias=False))["params"]["head"]} == {"kernel"}
