"""ResNet against its published counts, the paper's table and its units written out."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from shuffle_jax.analysis.count import count, count_layers
from shuffle_jax.models import resnet
from shuffle_jax.models.resnet import BasicUnit, Bottleneck, ResNet
from shuffle_jax.nn import ChannelShuffle, Conv, PointwiseConv
from shuffle_jax.nn.dense import Dense

compiled = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})  # Half the compilation.
IMAGENET = (224, 224, 3)
KNOWN: dict = {}  # Layers counted before, shared by all tests.
PARAMETERS = {18: 11_689_512, 34: 21_797_672, 50: 25_557_032, 101: 44_549_160, 152: 60_192_808}
REPEATS = {
    10: (1, 1, 1, 1),
    18: (2, 2, 2, 2),
    34: (3, 4, 6, 3),
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
}


def units(depth):
    return [f"stage{stage}_{i}" for stage, repeats in enumerate(REPEATS[depth], start=1) for i in range(repeats)]


def shapes(network, size=(32, 32)):
    """Variables without running anything."""
    return jax.eval_shape(network.init, jax.random.key(0), jnp.zeros((1, *size, 3)))


def images(*shape):
    return np.random.default_rng(1).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("depth", PARAMETERS)
def test_published_parameters(depth):
    assert count(ResNet(1000, depth), IMAGENET, known=KNOWN).parameters == PARAMETERS[depth]


def multiply_adds(depth, width=1, groups=1):
    """The paper's table as a sum: 224 pixels, 1000 classes."""
    c = int(64 * width)
    total, size, middle = 112 * 112 * 49 * 3 * c, 56, c
    for stage, repeats in enumerate(REPEATS[depth]):
        for i in range(repeats):
            before, size = size, size // 2 if stage and i == 0 else size
            if depth < 50:
                out = middle
                total += size * size * 9 * (c * middle + middle * out) // groups
            else:
                out = 4 * middle
                products = before * before * c * middle + size * size * (9 * middle * middle + middle * out)
                total += products // groups
            total += size * size * c * out * (i == 0 and (stage > 0 or depth >= 50))
            c = out
        middle *= 2
    return total + c * 1000


@pytest.mark.parametrize(("depth", "width"), [(10, 1), (18, 1), (18, 0.25), (34, 1), (50, 1), (50, 0.5), (101, 1)])
def test_multiply_adds_are_those_of_the_table(depth, width):
    actual = count(ResNet(1000, depth, width), IMAGENET, known=KNOWN).multiply_adds
    assert actual == multiply_adds(depth, width)
    if (depth, width) == (18, 1):
        assert actual == 1_814_073_344  # The paper's 1.8 G.
    if (depth, width) == (50, 1):  # The paper's 3.8 G have the stride on the first convolution of a bottleneck.
        spared = sum(3 * (size // 2) ** 2 * c * c // 2 for size, c in ((56, 256), (28, 512), (14, 1024)))
        assert actual == 4_089_184_256
        assert 3.8e9 < actual - spared < 3.9e9


@pytest.mark.parametrize(("depth", "groups"), [(18, 4), (50, 2)])
def test_groups_divide_the_weights_of_units_and_mixers_have_none(depth, groups):
    found = count(ResNet(1000, depth, groups=groups, mixer=partial(ChannelShuffle, groups)), IMAGENET, known=KNOWN)
    weights, c = 0, 64
    for stage, repeats in enumerate(REPEATS[depth]):
        middle = 64 * 2**stage
        for _ in range(repeats):
            out = middle if depth < 50 else 4 * middle
            weights += 9 * (c + out) * middle if depth < 50 else (c + out + 9 * middle) * middle
            c = out
    assert found.parameters == PARAMETERS[depth] - weights + weights // groups
    assert found.multiply_adds == multiply_adds(depth, groups=groups)


@pytest.mark.parametrize("depth", REPEATS)
def test_channels_and_sizes_of_the_table(depth):
    layers = {layer.path: layer.output_shape for layer in count_layers(ResNet(1000, depth), IMAGENET, known=KNOWN)}
    assert layers["stem/conv"] == (112, 112, 64)
    last, times = ("norm2", 1) if depth < 50 else ("norm3", 4)
    found = [layers[f"stage{stage}_{repeats - 1}/{last}"] for stage, repeats in enumerate(REPEATS[depth], start=1)]
    assert found == [(size, size, times * c) for size, c in ((56, 64), (28, 128), (14, 256), (7, 512))]
    assert layers["head"] == (1000,)


@pytest.mark.parametrize(("depth", "parts"), [(18, 2), (50, 3)])
def test_names_of_parameters(depth, parts):
    tree = shapes(ResNet(7, depth))["params"]
    assert tree == shapes(ResNet(7, depth), size=(1, 1))["params"]
    assert set(tree) == {"stem", *units(depth), "head"}
    assert set(tree["stem"]) == {"conv", "norm"}
    assert set(tree["head"]) == {"kernel", "bias"}
    inside = {f"{kind}{part + 1}" for kind in ("conv", "norm") for part in range(parts)}
    projected = {"stage2_0", "stage3_0", "stage4_0"} | ({"stage1_0"} if depth == 50 else set())
    for unit in units(depth):
        downsample = {"downsample", "downsample_norm"} if unit in projected else set()
        assert set(tree[unit]) == inside | downsample


@pytest.mark.parametrize(("kind", "window"), [("imagenet", 7), ("small", 3)])
def test_the_stem_has_the_window_of_its_kind(kind, window):
    assert shapes(ResNet(7, stem=kind))["params"]["stem"]["conv"]["kernel"].shape == (window, window, 3, 64)


def make_unit(kind, features, stride, groups=1):
    """A unit with so many output channels."""
    mixer = partial(ChannelShuffle, groups)
    if kind == "basic":
        return BasicUnit(features, stride, groups, mixer, Conv)
    return Bottleneck(features // 4, stride, groups, mixer, Conv, PointwiseConv)


@pytest.mark.parametrize("kind", ["basic", "bottleneck"])
@pytest.mark.parametrize(("stride", "features", "groups"), [(1, 12, 1), (1, 8, 2), (2, 24, 3)])
def test_unit_equals_the_paper_s_with_a_shuffle_between_groups(kind, stride, features, groups, draw, native_layer):
    unit = make_unit(kind, features, stride, groups)

    def shuffled(y):
        y = jax.nn.relu(y)
        return y.reshape(*y.shape[:3], groups, -1).swapaxes(3, 4).reshape(y.shape)

    def paper(variables, x):
        layer = partial(native_layer, variables, groups=groups)
        if kind == "basic":
            y = layer(shuffled(layer(x, "conv1", "norm1", stride)), "conv2", "norm2")
        else:
            y = shuffled(layer(x, "conv1", "norm1"))
            y = layer(jax.nn.relu(layer(y, "conv2", "norm2", stride)), "conv3", "norm3")
        shortcut = native_layer(variables, x, "downsample", "downsample_norm", stride) if features != 12 else x
        return jax.nn.relu(shortcut + y)

    variables, x = draw(unit, (5, 8, 12)), images(2, 5, 8, 12)
    actual, expected = compiled(lambda *args: (unit.apply(*args), paper(*args)))(variables, x)
    assert actual.shape == (2, 5 if stride == 1 else 3, 8 // stride, features)
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("kind", "last"), [("basic", "norm2"), ("bottleneck", "norm3")])
def test_a_unit_whose_last_norm_is_zero_is_the_relu_of_its_shortcut(kind, last, draw):
    unit, x = make_unit(kind, 12, 1), images(1, 5, 8, 12)
    variables = draw(unit, (5, 8, 12))
    variables["params"][last] = jax.tree.map(np.zeros_like, variables["params"][last])
    both = compiled(lambda x: [unit.apply(variables, x, train, mutable=["batch_stats"])[0] for train in (False, True)])
    for y in both(x):
        np.testing.assert_array_equal(y, np.maximum(x, 0))


@pytest.mark.parametrize("depth", [34, 50])
def test_factories_are_called_for_every_convolution_of_every_unit(depth, recorder):
    conv, pointwise, head = recorder(Conv), recorder(PointwiseConv), recorder(Dense)
    kind = jnp.dtype("float32")
    shapes(ResNet(10, depth, conv=conv, pointwise=pointwise, head=head, dtype=kind, groups=2))
    convs, pointwises = [], []
    for unit in units(depth):
        c = 64 * 2 ** (int(unit[5]) - 1)
        stride = 2 if unit.endswith("_0") and unit[5] != "1" else 1
        names = {"conv1": stride, "conv2": 1} if depth == 34 else {"conv2": stride}
        convs += [
            {"features": c, "kernel_size": 3, "stride": s, "groups": 2, "dtype": kind, "name": name}
            for name, s in names.items()
        ]
        pointwises += [
            {"features": features, "groups": 2, "dtype": kind, "name": name}
            for name, features in (("conv1", c), ("conv3", 4 * c))
        ]
    assert conv.calls == convs
    assert pointwise.calls == (pointwises if depth == 50 else [])
    assert head.calls == [{"features": 10, "name": "head"}]


def test_kernels_start_as_published(monkeypatch):
    monkeypatch.setitem(resnet.UNITS, 50, (1,))
    params = compiled(ResNet(50, 50, width=0.5).init)(jax.random.key(0), jnp.zeros((1, 1, 1, 3)))["params"]
    for name, fan_out in {"conv1": 32, "conv2": 9 * 32, "conv3": 128, "downsample": 128}.items():
        assert float(params["stage1_0"][name]["kernel"].var()) == pytest.approx(2 / fan_out, rel=0.15)
    assert float(params["stem"]["conv"]["kernel"].var()) == pytest.approx(2 / (49 * 32), rel=0.15)
    assert float(params["head"]["kernel"].var()) == pytest.approx(1 / 128, rel=0.15)
    assert (params["stage1_0"]["norm3"]["scale"] == 1).all()
