"""MobileNetV2 against its published counts, the paper's table and its unit written out."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from shuffle_jax.analysis.count import count, count_layers
from shuffle_jax.models import mobilenet_v2
from shuffle_jax.models.mobilenet_v2 import InvertedResidual, MobileNetV2
from shuffle_jax.nn import AddressShift, ChannelShuffle, Identity, PointwiseConv
from shuffle_jax.nn.dense import Dense

compiled = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})  # Half the compilation.
IMAGENET = (224, 224, 3)
KNOWN: dict = {}  # Layers counted before, shared by all tests.
PARAMETERS = {0.35: 1_677_128, 0.5: 1_968_680, 0.75: 2_636_424, 1.0: 3_504_872}
CHANNELS = {  # Of the stem and of stages 1 to 7.
    0.35: (16, 8, 8, 16, 24, 32, 56, 112),
    0.5: (16, 8, 16, 16, 32, 48, 80, 160),
    0.75: (24, 16, 24, 24, 48, 72, 120, 240),
    1.0: (32, 16, 24, 32, 64, 96, 160, 320),
}
REPEATS = (1, 2, 3, 4, 3, 3, 1)
UNITS = [f"stage{stage}_{i}" for stage, units in enumerate(REPEATS, start=1) for i in range(units)]
LAST_OF_STAGES = [f"stage{stage}_{units - 1}/norm3" for stage, units in enumerate(REPEATS, start=1)]


@pytest.fixture
def short(monkeypatch):
    """Four units and not 17, of every kind."""
    monkeypatch.setattr(mobilenet_v2, "TABLE", ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 1, 2)))
    monkeypatch.setattr(mobilenet_v2, "LAST", 48)


def shapes(network):
    """Variables for images of 32 x 32 pixels, without running anything."""
    return jax.eval_shape(network.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))


def images(*shape):
    return np.random.default_rng(1).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("width", PARAMETERS)
def test_published_parameters(width):
    assert count(MobileNetV2(1000, width), IMAGENET, known=KNOWN).parameters == PARAMETERS[width]


def multiply_adds(width, groups=1):
    """The paper's table as a sum: 224 pixels, 1000 classes."""
    c, *stages = CHANNELS[width]
    total, size = 112 * 112 * 9 * 3 * c, 112
    for t, out, units, stride in zip((1, 6, 6, 6, 6, 6, 6), stages, REPEATS, (1, 2, 2, 2, 1, 2, 1), strict=True):
        for s in [stride] + [1] * (units - 1):
            middle, area = t * c, (size // s) ** 2
            g = 1 if t == 1 else groups
            total += size * size * c * middle * (t != 1) // g + area * middle * (9 + out // g)
            c, size = out, size // s
    return total + 49 * c * 1280 + 1280 * 1000


@pytest.mark.parametrize("width", PARAMETERS)
def test_multiply_adds_are_those_of_the_table(width):
    actual = count(MobileNetV2(1000, width), IMAGENET, known=KNOWN).multiply_adds
    assert actual == multiply_adds(width)
    if width == 1:
        assert actual == 300_774_272  # The paper's 300 M.


@pytest.mark.parametrize(("width", "groups"), [(0.35, 8), (1.0, 2)])
def test_groups_divide_the_weights_of_units_that_expand_and_mixers_have_none(width, groups):
    network = MobileNetV2(1000, width, groups=groups, mixer=partial(ChannelShuffle, groups))
    found = count(network, IMAGENET, known=KNOWN)
    _, c, *stages = CHANNELS[width]
    weights = 0
    for out, units in zip(stages, REPEATS[1:], strict=True):
        for _ in range(units):
            weights += 6 * c * (c + out)
            c = out
    assert found.parameters == PARAMETERS[width] - weights + weights // groups
    assert found.multiply_adds == multiply_adds(width, groups)


@pytest.mark.parametrize("width", PARAMETERS)
def test_with_address_shifts_it_lacks_depthwise_kernels_and_their_norms(width):
    found = count(MobileNetV2(1000, width, shift=AddressShift), IMAGENET, known=KNOWN)
    c, *stages = CHANNELS[width]
    products = parameters = 0
    for t, out, units, stride, size in zip(
        (1, 6, 6, 6, 6, 6, 6), stages, REPEATS, (1, 2, 2, 2, 1, 2, 1), (112, 112, 56, 28, 14, 14, 7), strict=True
    ):
        for i in range(units):
            parameters += (9 + 2) * t * c
            products += (size // stride if i == 0 or stride == 2 else size) ** 2 * 9 * t * c
            c = out
    assert found.parameters == PARAMETERS[width] - parameters
    assert found.multiply_adds == multiply_adds(width) - products


@pytest.mark.parametrize("width", CHANNELS)
def test_channels_and_sizes_of_the_table(width):
    layers = {layer.path: layer.output_shape for layer in count_layers(MobileNetV2(1000, width), IMAGENET, known=KNOWN)}
    stem, *stages = CHANNELS[width]
    assert layers["stem/conv"] == (112, 112, stem)
    sizes = (112, 56, 28, 14, 14, 7, 7)
    assert [layers[path] for path in LAST_OF_STAGES] == [(size, size, c) for size, c in zip(sizes, stages, strict=True)]
    assert layers["last_norm"] == (7, 7, 1280)
    assert layers["head"] == (1000,)


def test_parameters_do_not_depend_on_the_stem_or_the_size():
    tree = shapes(MobileNetV2(7, 0.35))["params"]
    other = jax.eval_shape(MobileNetV2(7, 0.35, "small").init, jax.random.key(0), jnp.zeros((1, 1, 1, 3)))["params"]
    assert tree == other
    assert set(tree) == {"stem", *UNITS, "last", "last_norm", "head"}
    assert set(tree["stem"]) == {"conv", "norm"}
    assert set(tree["stage1_0"]) == {"depthwise", "norm2", "project", "norm3"}
    assert set(tree["stage2_0"]) == {"expand", "norm1", *tree["stage1_0"]}
    assert set(tree["head"]) == {"kernel", "bias"}


@pytest.mark.parametrize(
    ("stride", "features", "expansion", "groups"), [(1, 12, 6, 1), (1, 8, 6, 2), (2, 12, 6, 4), (1, 12, 1, 1)]
)
def test_unit_equals_the_paper_s_with_a_shuffle_between_groups(stride, features, expansion, groups, draw, native_layer):
    unit = InvertedResidual(features, stride, expansion, groups, partial(ChannelShuffle, groups), PointwiseConv)

    def paper(variables, x):
        layer, y = partial(native_layer, variables), x
        if expansion == 6:
            y = jnp.clip(layer(y, "expand", "norm1", groups=groups), 0, 6)
            y = y.reshape(*y.shape[:3], groups, -1).swapaxes(3, 4).reshape(y.shape)
        y = jnp.clip(layer(y, "depthwise", "norm2", stride, groups=12 * expansion), 0, 6)
        y = layer(y, "project", "norm3", groups=groups)
        return x + y if (stride, features) == (1, 12) else y

    variables, x = draw(unit, (5, 8, 12)), 2 * images(2, 5, 8, 12)
    actual, expected = compiled(lambda *args: (unit.apply(*args), paper(*args)))(variables, x)
    assert actual.shape == (2, 5 if stride == 1 else 3, 8 // stride, features)
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("stride", [1, 2])
def test_unit_with_an_address_shift_is_a_one_hot_depthwise_convolution_without_its_norm(stride, draw):
    unit = InvertedResidual(12, stride, 6, 1, Identity, PointwiseConv, partial(AddressShift, boundary="zero"))
    variables, x = draw(unit, (5, 8, 12)), 2 * images(2, 5, 8, 12)
    assert set(variables["params"]) == {"expand", "norm1", "project", "norm3"}

    def layer(y, name, norm):
        y = y @ variables["params"][name]["kernel"][0, 0]
        p, s = variables["params"][norm], variables["batch_stats"][norm]
        return (y - s["mean"]) / np.sqrt(s["var"] + 1e-5) * p["scale"] + p["bias"]

    y = np.clip(layer(x, "expand", "norm1"), 0, 6)
    padded = np.pad(y, ((0, 0), (1, 1), (1, 1), (0, 0)))
    parts = [
        padded[:, 1 + dh : 6 + dh, 1 + dw : 9 + dw, 18 * k : 18 * k + 18]
        for k, (dh, dw) in enumerate(((0, 1), (1, 0), (0, -1), (-1, 0)))
    ]
    y = layer(np.concatenate(parts, -1)[:, ::stride, ::stride], "project", "norm3")
    np.testing.assert_allclose(compiled(unit.apply)(variables, x), x + y if stride == 1 else y, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("stride", "features"), [(1, 12), (1, 8), (2, 12)])
def test_a_unit_whose_last_norm_is_zero_is_its_shortcut(stride, features, draw):
    unit, x = InvertedResidual(features, stride, 6, 1, Identity, PointwiseConv), images(1, 5, 8, 12)
    variables = draw(unit, (5, 8, 12))
    variables["params"]["norm3"] = jax.tree.map(np.zeros_like, variables["params"]["norm3"])
    both = compiled(lambda x: [unit.apply(variables, x, train, mutable=["batch_stats"])[0] for train in (False, True)])
    for y in both(x):
        np.testing.assert_array_equal(y, x if (stride, features) == (1, 12) else np.zeros_like(y))


def test_factories_are_called_where_the_paper_expands_and_projects(recorder):
    pointwise, head, kind = recorder(PointwiseConv), recorder(Dense), jnp.dtype("float32")
    shapes(MobileNetV2(10, pointwise=pointwise, head=head, dtype=kind, groups=2))
    _, *stages = CHANNELS[1.0]
    expected, c = [], 16
    for unit in UNITS[1:]:
        out = stages[int(unit[5]) - 1]
        expected += [{"features": 6 * c, "name": "expand"}, {"features": out, "name": "project"}]
        c = out
    assert pointwise.calls == [{**call, "groups": 2, "dtype": kind} for call in expected]
    assert len(pointwise.calls) == 2 * 16
    assert head.calls == [{"features": 10, "name": "head"}]


def test_kernels_start_as_published(short):
    params = compiled(MobileNetV2(1000).init)(jax.random.key(0), jnp.zeros((1, 8, 8, 3)))["params"]
    for layer, fan_out in {"expand": 144, "depthwise": 9 * 144, "project": 24}.items():
        assert float(params["stage2_1"][layer]["kernel"].var()) == pytest.approx(2 / fan_out, rel=0.15)
    assert float(params["stem"]["conv"]["kernel"].var()) == pytest.approx(2 / (9 * 32), rel=0.2)
    assert float(params["last"]["kernel"].var()) == pytest.approx(2 / 48, rel=0.15)
    assert float(params["head"]["kernel"].std()) == pytest.approx(0.01, rel=0.02)
    assert not params["head"]["bias"].any()
