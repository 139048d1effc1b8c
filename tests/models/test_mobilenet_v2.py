"""MobileNetV2 against its published counts, the paper's table and its unit written out."""

from __future__ import annotations

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from shuffle_jax.analysis.count import count, count_layers
from shuffle_jax.models import mobilenet_v2
from shuffle_jax.models.mobilenet_v2 import InvertedResidual, MobileNetV2
from shuffle_jax.nn import AddressShift, PointwiseConv
from shuffle_jax.nn.dense import Dense

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


def multiply_adds(width):
    """The paper's table as a sum: 224 pixels, 1000 classes."""
    c, *stages = CHANNELS[width]
    total, size = 112 * 112 * 9 * 3 * c, 112
    for t, out, units, stride in zip((1, 6, 6, 6, 6, 6, 6), stages, REPEATS, (1, 2, 2, 2, 1, 2, 1), strict=True):
        for s in [stride] + [1] * (units - 1):
            middle, area = t * c, (size // s) ** 2
            total += size * size * c * middle * (t != 1) + area * middle * (9 + out)
            c, size = out, size // s
    return total + 49 * c * 1280 + 1280 * 1000


@pytest.mark.parametrize("width", PARAMETERS)
def test_multiply_adds_are_those_of_the_table(width):
    actual = count(MobileNetV2(1000, width), IMAGENET, known=KNOWN).multiply_adds
    assert actual == multiply_adds(width)
    if width == 1:
        assert actual == 300_774_272  # The paper's 300 M.


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


@pytest.mark.parametrize(
    ("stem", "size", "sizes"),
    [
        ("small", (32, 32), [(32, 32), (32, 32), (16, 16), (8, 8), (8, 8), (4, 4), (4, 4)]),
        ("small", (7, 9), [(7, 9), (7, 9), (4, 5), (2, 3), (2, 3), (1, 2), (1, 2)]),
        ("small", (1, 1), [(1, 1)] * 7),
        ("imagenet", (193, 33), [(97, 17), (49, 9), (25, 5), (13, 3), (13, 3), (7, 2), (7, 2)]),
        ("imagenet", (1, 2), [(1, 1)] * 7),
    ],
)
def test_odd_sizes_and_other_numbers_of_colours(stem, size, sizes):
    network = MobileNetV2(7, 0.35, stem)
    layers = {layer.path: layer.output_shape for layer in count_layers(network, (*size, 1), known=KNOWN)}
    assert layers["head"] == (7,)
    assert [layers[path][:2] for path in LAST_OF_STAGES] == sizes


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
    ("stride", "features", "expansion"), [(1, 12, 6), (1, 8, 6), (2, 12, 6), (2, 8, 6), (1, 12, 1), (1, 8, 1)]
)
def test_unit_equals_the_paper_s(stride, features, expansion, draw, native_layer):
    unit = InvertedResidual(features, stride, expansion, PointwiseConv)

    def paper(variables, x):
        layer, y = partial(native_layer, variables), x
        if expansion == 6:
            y = jnp.clip(layer(y, "expand", "norm1"), 0, 6)
        y = jnp.clip(layer(y, "depthwise", "norm2", stride, groups=12 * expansion), 0, 6)
        y = layer(y, "project", "norm3")
        return x + y if (stride, features) == (1, 12) else y

    variables, x = draw(unit, (5, 8, 12)), 2 * images(2, 5, 8, 12)
    actual, expected = jax.jit(lambda *args: (unit.apply(*args), paper(*args)))(variables, x)
    assert actual.shape == (2, 5 if stride == 1 else 3, 8 // stride, features)
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("stride", [1, 2])
def test_unit_with_an_address_shift_is_a_one_hot_depthwise_convolution_without_its_norm(stride, draw):
    unit = InvertedResidual(12, stride, 6, PointwiseConv, partial(AddressShift, boundary="zero"))
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
    np.testing.assert_allclose(unit.apply(variables, x), x + y if stride == 1 else y, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize(("stride", "features"), [(1, 12), (1, 8), (2, 12)])
def test_a_unit_whose_last_norm_is_zero_is_its_shortcut(stride, features, train, draw):
    unit, x = InvertedResidual(features, stride, 6, PointwiseConv), images(1, 5, 8, 12)
    variables = draw(unit, (5, 8, 12))
    variables["params"]["norm3"] = jax.tree.map(np.zeros_like, variables["params"]["norm3"])
    y, _ = unit.apply(variables, x, train, mutable=["batch_stats"])
    np.testing.assert_array_equal(y, x if (stride, features) == (1, 12) else np.zeros_like(y))


def test_factories_are_called_where_the_paper_expands_and_projects(recorder):
    pointwise, head, kind = recorder(PointwiseConv), recorder(Dense), jnp.dtype("float32")
    shapes(MobileNetV2(10, pointwise=pointwise, head=head, dtype=kind))
    _, *stages = CHANNELS[1.0]
    expected, c = [], 16
    for unit in UNITS[1:]:
        out = stages[int(unit[5]) - 1]
        expected += [{"features": 6 * c, "name": "expand"}, {"features": out, "name": "project"}]
        c = out
    assert pointwise.calls == [{**call, "groups": 1, "dtype": kind} for call in expected]
    assert len(pointwise.calls) == 2 * 16
    assert head.calls == [{"features": 10, "name": "head"}]


def test_exchangeable_layers_are_told_whether_it_trains():
    told = set()

    def visit(call, args, kwargs, context):
        if kwargs.get("train"):
            told.add("/".join(context.module.path))
        return call(*args, **kwargs)

    with nn.intercept_methods(visit):
        jax.eval_shape(partial(MobileNetV2(2).init, train=True), jax.random.key(0), jnp.zeros((1, 8, 8, 3)))
    exchangeable = {f"{unit}/{name}" for unit in UNITS[1:] for name in ("expand", "project")} | {"head"}
    assert told - {"", "stage1_0/project"} == exchangeable


def test_kernels_start_as_published(short):
    params = jax.jit(MobileNetV2(1000).init)(jax.random.key(0), jnp.zeros((1, 8, 8, 3)))["params"]
    for layer, fan_out in {"expand": 144, "depthwise": 9 * 144, "project": 24}.items():
        assert float(params["stage2_1"][layer]["kernel"].var()) == pytest.approx(2 / fan_out, rel=0.15)
    assert float(params["stem"]["conv"]["kernel"].var()) == pytest.approx(2 / (9 * 32), rel=0.2)
    assert float(params["last"]["kernel"].var()) == pytest.approx(2 / 48, rel=0.15)
    assert float(params["head"]["kernel"].std()) == pytest.approx(0.01, rel=0.02)
    assert not params["head"]["bias"].any()


@pytest.mark.parametrize(
    ("stem", "shape"), [("small", (1, 1, 1, 3)), ("small", (1, 5, 3, 3)), ("imagenet", (1, 9, 7, 3))]
)
def test_one_tiny_image_has_finite_logits_and_gradients(stem, shape, short, draw):
    network, x = MobileNetV2(3, 0.35, stem), images(*shape)
    variables = draw(network, shape[1:])

    def loss(params):
        logits, updated = network.apply({**variables, "params": params}, x, train=True, mutable=["batch_stats"])
        return (logits**2).sum(), (updated, network.apply(variables, x))

    gradient, others = jax.jit(jax.grad(loss, has_aux=True))(variables["params"])
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((gradient, others)))
    assert gradient["head"]["kernel"].any()


def test_bfloat16_computes_float32_logits_near_those_of_float32(short, draw):
    full, half = (MobileNetV2(3, 0.5, "small", dtype=kind) for kind in (None, jnp.bfloat16))
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


def test_dropout_is_before_the_head_and_in_training_only(short, draw):
    plain, dropping = (MobileNetV2(3, 0.35, "small", head=Pooled, dropout=share) for share in (0.0, 0.25))
    variables, x = draw(plain, (4, 4, 3)), images(4, 4, 4, 3)

    def run(network, train, **rngs):
        return network.apply(variables, x, train, mutable=["batch_stats"], **rngs)[0]

    pooled, dropped = run(plain, True), run(dropping, True, rngs={"dropout": jax.random.key(3)})
    kept = np.asarray(dropped != 0)
    np.testing.assert_allclose(dropped, np.where(kept, pooled / 0.75, 0), rtol=1e-5)
    assert kept[pooled != 0].mean() == pytest.approx(0.75, abs=0.1)
    np.testing.assert_array_equal(run(plain, False), run(dropping, False))


def test_what_is_not_published_is_refused_with_what_is():
    with pytest.raises(ValueError, match=r"MobileNetV2 has no width 1.5: choose one of \[0.35, 0.5, 0.75, 1.0\]"):
        shapes(MobileNetV2(10, width=1.5))


@pytest.mark.parametrize("dropout", [-0.1, 1.0])
def test_a_dropout_that_is_no_share_is_refused(dropout):
    with pytest.raises(ValueError, match=rf"a dropout of {dropout} is none: give a share .* at least 0 and below 1"):
        shapes(MobileNetV2(10, dropout=dropout))
