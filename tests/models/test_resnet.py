"""ResNet against its published counts, the paper's table and its units written out."""

from __future__ import annotations

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from shuffle_jax.analysis.count import count, count_layers
from shuffle_jax.models import resnet
from shuffle_jax.models.resnet import BasicUnit, Bottleneck, ResNet
from shuffle_jax.nn import Conv, PointwiseConv
from shuffle_jax.nn.dense import Dense

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
TINY = {"width": 1 / 16, "stem": "small"}  # 4 channels in the stem.


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


def multiply_adds(depth, width=1):
    """The paper's table as a sum: 224 pixels, 1000 classes."""
    c = int(64 * width)
    total, size, middle = 112 * 112 * 49 * 3 * c, 56, c
    for stage, repeats in enumerate(REPEATS[depth]):
        for i in range(repeats):
            before, size = size, size // 2 if stage and i == 0 else size
            if depth < 50:
                out = middle
                total += size * size * 9 * (c * middle + middle * out)
            else:
                out = 4 * middle
                total += before * before * c * middle + size * size * (9 * middle * middle + middle * out)
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


@pytest.mark.parametrize("depth", REPEATS)
def test_channels_and_sizes_of_the_table(depth):
    layers = {layer.path: layer.output_shape for layer in count_layers(ResNet(1000, depth), IMAGENET, known=KNOWN)}
    assert layers["stem/conv"] == (112, 112, 64)
    last, times = ("norm2", 1) if depth < 50 else ("norm3", 4)
    found = [layers[f"stage{stage}_{repeats - 1}/{last}"] for stage, repeats in enumerate(REPEATS[depth], start=1)]
    assert found == [(size, size, times * c) for size, c in ((56, 64), (28, 128), (14, 256), (7, 512))]
    assert layers["head"] == (1000,)


@pytest.mark.parametrize(
    ("stem", "size", "sizes"),
    [
        ("small", (32, 32), [(32, 32), (16, 16), (8, 8), (4, 4)]),
        ("small", (7, 9), [(7, 9), (4, 5), (2, 3), (1, 2)]),
        ("small", (1, 1), [(1, 1)] * 4),
        ("imagenet", (193, 33), [(49, 9), (25, 5), (13, 3), (7, 2)]),
        ("imagenet", (8, 8), [(2, 2), (1, 1), (1, 1), (1, 1)]),
        ("imagenet", (1, 2), [(1, 1)] * 4),
    ],
)
@pytest.mark.parametrize(("depth", "last"), [(10, "norm2"), (50, "norm3")])
def test_odd_sizes_and_other_numbers_of_colours(depth, last, stem, size, sizes):
    network = ResNet(7, depth, stem=stem)
    layers = {layer.path: layer.output_shape for layer in count_layers(network, (*size, 1), known=KNOWN)}
    assert layers["head"] == (7,)
    assert [layers[f"stage{stage}_0/{last}"][:2] for stage in (1, 2, 3, 4)] == sizes


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


def make_unit(kind, features, stride):
    """A unit with so many output channels."""
    if kind == "basic":
        return BasicUnit(features, stride, Conv)
    return Bottleneck(features // 4, stride, Conv, PointwiseConv)


@pytest.mark.parametrize("kind", ["basic", "bottleneck"])
@pytest.mark.parametrize(("stride", "features"), [(1, 12), (1, 8), (2, 12), (2, 24)])
def test_unit_equals_the_paper_s(kind, stride, features, draw, native_layer):
    unit = make_unit(kind, features, stride)

    def paper(variables, x):
        layer = partial(native_layer, variables)
        if kind == "basic":
            y = layer(jax.nn.relu(layer(x, "conv1", "norm1", stride)), "conv2", "norm2")
        else:
            y = jax.nn.relu(layer(x, "conv1", "norm1"))
            y = layer(jax.nn.relu(layer(y, "conv2", "norm2", stride)), "conv3", "norm3")
        shortcut = x if (stride, features) == (1, 12) else layer(x, "downsample", "downsample_norm", stride)
        return jax.nn.relu(shortcut + y)

    variables, x = draw(unit, (5, 8, 12)), images(2, 5, 8, 12)
    actual, expected = jax.jit(lambda *args: (unit.apply(*args), paper(*args)))(variables, x)
    assert actual.shape == (2, 5 if stride == 1 else 3, 8 // stride, features)
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize(("kind", "last"), [("basic", "norm2"), ("bottleneck", "norm3")])
def test_a_unit_whose_last_norm_is_zero_is_the_relu_of_its_shortcut(kind, last, train, draw):
    unit, x = make_unit(kind, 12, 1), images(1, 5, 8, 12)
    variables = draw(unit, (5, 8, 12))
    variables["params"][last] = jax.tree.map(np.zeros_like, variables["params"][last])
    y, _ = unit.apply(variables, x, train, mutable=["batch_stats"])
    np.testing.assert_array_equal(y, np.maximum(x, 0))


@pytest.mark.parametrize("depth", [34, 50])
def test_factories_are_called_for_every_convolution_of_every_unit(depth, recorder):
    conv, pointwise, head = recorder(Conv), recorder(PointwiseConv), recorder(Dense)
    kind = jnp.dtype("float32")
    shapes(ResNet(10, depth, conv=conv, pointwise=pointwise, head=head, dtype=kind))
    convs, pointwises = [], []
    for unit in units(depth):
        c = 64 * 2 ** (int(unit[5]) - 1)
        stride = 2 if unit.endswith("_0") and unit[5] != "1" else 1
        names = {"conv1": stride, "conv2": 1} if depth == 34 else {"conv2": stride}
        convs += [
            {"features": c, "kernel_size": 3, "stride": s, "dtype": kind, "name": name} for name, s in names.items()
        ]
        pointwises += [
            {"features": features, "groups": 1, "dtype": kind, "name": name}
            for name, features in (("conv1", c), ("conv3", 4 * c))
        ]
    assert conv.calls == convs
    assert pointwise.calls == (pointwises if depth == 50 else [])
    assert head.calls == [{"features": 10, "name": "head"}]


def test_exchangeable_layers_are_told_whether_it_trains():
    def visit(call, args, kwargs, context):
        if kwargs.get("train"):
            told.add("/".join(context.module.path))
        return call(*args, **kwargs)

    for depth, convs in ((10, ("conv1", "conv2")), (50, ("conv1", "conv2", "conv3"))):
        told: set[str] = set()
        with nn.intercept_methods(visit):
            jax.eval_shape(partial(ResNet(2, depth).init, train=True), jax.random.key(0), jnp.zeros((1, 8, 8, 3)))
        assert told - {""} == {f"{unit}/{conv}" for unit in units(depth) for conv in convs} | {"head"}


def test_kernels_start_as_published(monkeypatch):
    monkeypatch.setitem(resnet.UNITS, 50, (1,))
    params = jax.jit(ResNet(50, 50, width=0.5).init)(jax.random.key(0), jnp.zeros((1, 1, 1, 3)))["params"]
    for name, fan_out in {"conv1": 32, "conv2": 9 * 32, "conv3": 128, "downsample": 128}.items():
        assert float(params["stage1_0"][name]["kernel"].var()) == pytest.approx(2 / fan_out, rel=0.15)
    assert float(params["stem"]["conv"]["kernel"].var()) == pytest.approx(2 / (49 * 32), rel=0.15)
    assert float(params["head"]["kernel"].var()) == pytest.approx(1 / 128, rel=0.15)
    assert (params["stage1_0"]["norm3"]["scale"] == 1).all()


@pytest.mark.parametrize(
    ("depth", "stem", "size"), [(10, "imagenet", (8, 8)), (10, "small", (1, 3)), (50, "small", (8, 8))]
)
def test_one_tiny_image_has_finite_logits_and_gradients(depth, stem, size, draw, monkeypatch):
    monkeypatch.setitem(resnet.UNITS, 50, (1, 1))
    network, x = ResNet(3, depth, 1 / 16, stem), images(1, *size, 3)
    variables = draw(network, (*size, 3))

    def loss(params):
        logits, updated = network.apply({**variables, "params": params}, x, train=True, mutable=["batch_stats"])
        return (logits**2).sum(), (updated, network.apply(variables, x))

    gradient, others = jax.jit(jax.grad(loss, has_aux=True))(variables["params"])
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((gradient, others)))
    assert gradient["head"]["kernel"].any()


def test_bfloat16_computes_float32_logits_near_those_of_float32(draw):
    full, half = (ResNet(3, 10, **TINY, dtype=kind) for kind in (None, jnp.bfloat16))
    variables, x = draw(full, (6, 6, 3)), images(2, 6, 6, 3)
    expected, actual = jax.jit(lambda *args: (full.apply(*args), half.apply(*args)))(variables, x)
    assert actual.dtype == jnp.float32
    np.testing.assert_allclose(actual, expected, atol=0.05 * np.abs(expected).max())
    assert np.any(actual != expected)
    assert {leaf.dtype for leaf in jax.tree.leaves(shapes(half))} == {jnp.dtype("float32")}


class Pooled(nn.Module):
    """A head that shows its input."""

    features: int

    @nn.compact
    def __call__(self, x, train=False):
        return x


def test_dropout_is_before_the_head_and_in_training_only(draw):
    plain, dropping = (ResNet(3, 10, **TINY, head=Pooled, dropout=share) for share in (0.0, 0.25))
    variables, x = draw(plain, (4, 4, 3)), images(8, 4, 4, 3)

    def run(network, train, **rngs):
        return network.apply(variables, x, train, mutable=["batch_stats"], **rngs)[0]

    pooled, dropped = run(plain, True), run(dropping, True, rngs={"dropout": jax.random.key(3)})
    kept = np.asarray(dropped != 0)
    np.testing.assert_allclose(dropped, np.where(kept, pooled / 0.75, 0), rtol=1e-5)
    assert kept[pooled != 0].mean() == pytest.approx(0.75, abs=0.1)
    np.testing.assert_array_equal(run(plain, False), run(dropping, False))


def test_a_depth_that_is_none_is_refused_with_those_there_are():
    with pytest.raises(ValueError, match=r"ResNet has no depth 20: choose one of \[10, 18, 34, 50, 101, 152\]"):
        shapes(ResNet(10, 20))


@pytest.mark.parametrize(("width", "channels"), [(0.35, "22.4"), (0, "0"), (-1, "-64")])
def test_a_width_without_a_whole_number_of_channels_is_refused(width, channels):
    with pytest.raises(
        ValueError, match=rf"ResNet of width {width} has {channels} channels: give a multiple of 1/64 above 0"
    ):
        shapes(ResNet(10, width=width))


@pytest.mark.parametrize("dropout", [-0.1, 1.0])
def test_a_dropout_that_is_no_share_is_refused(dropout):
    with pytest.raises(ValueError, match=rf"a dropout of {dropout} is none: give a share .* at least 0 and below 1"):
        shapes(ResNet(10, dropout=dropout))
