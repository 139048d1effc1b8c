"""The layers equal flax.linen.Conv with the same parameters, forward and backward."""

from __future__ import annotations

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from shuffle_jax.nn import Conv, DepthwiseConv, PointwiseConv
from shuffle_jax.nn.convolution import fan_out_init, kernel_init

CHANNELS, SIZE = 6, (7, 9)


def flax_conv(features, k, stride=1, groups=1, bias=False):
    pads = ((k // 2, k // 2),) * 2
    kind = jnp.float64
    return nn.Conv(features, (k, k), stride, pads, feature_group_count=groups, use_bias=bias, param_dtype=kind)


PAIRS = {
    "3x3": (Conv(8), flax_conv(8, 3)),
    "3x3 stride 2 bias": (Conv(8, stride=2, use_bias=True), flax_conv(8, 3, 2, bias=True)),
    "5x5 stride 3": (Conv(4, kernel_size=5, stride=3), flax_conv(4, 5, 3)),
    "3x3 stride 2 in 3 groups": (Conv(9, stride=2, groups=3), flax_conv(9, 3, 2, 3)),
    "dense 1x1 stride 2": (Conv(4, kernel_size=1, stride=2), flax_conv(4, 1, 2)),
    "depthwise": (DepthwiseConv(), flax_conv(CHANNELS, 3, groups=CHANNELS)),
    "depthwise 5x5 stride 2": (DepthwiseConv(kernel_size=5, stride=2), flax_conv(CHANNELS, 5, 2, CHANNELS)),
    "pointwise": (PointwiseConv(8), flax_conv(8, 1)),
    "pointwise bias": (PointwiseConv(8, use_bias=True), flax_conv(8, 1, bias=True)),
    "pointwise 3 groups": (PointwiseConv(9, groups=3), flax_conv(9, 1, groups=3)),
    "pointwise 6 groups bias": (PointwiseConv(12, groups=6, use_bias=True), flax_conv(12, 1, groups=6, bias=True)),
}
LAYERS = {name: pair[0] for name, pair in PAIRS.items()}


def draw(shapes, seed=0, dtype=np.float32):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: jnp.asarray(rng.standard_normal(leaf.shape), dtype), shapes)


def shapes_of(layer, x):
    return jax.eval_shape(layer.init, jax.random.key(0), x)


def forward_and_backward(layer, variables, x, cotangent):
    y, pull_back = jax.vjp(layer.apply, variables, x)
    return y, pull_back(cotangent.astype(y.dtype))


@pytest.mark.parametrize("name", PAIRS)
def test_equals_flax_conv_with_its_parameters(name):
    layer, reference = PAIRS[name]
    with jax.enable_x64(True):
        x = draw(jax.ShapeDtypeStruct((2, *SIZE, CHANNELS), float), seed=1, dtype=np.float64)
        y, variables = draw(jax.eval_shape(reference.init_with_output, jax.random.key(0), x), seed=2, dtype=np.float64)
        both = jax.jit(lambda *args: [forward_and_backward(module, *args) for module in (layer, reference)])
        actual, expected = both(variables, x, y)
        assert jax.tree.structure(actual) == jax.tree.structure(expected)
        jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-11, atol=1e-11), actual, expected)


@pytest.mark.parametrize("name", PAIRS)
def test_declares_the_parameters_of_flax_conv_in_float32(name):
    layer, reference = PAIRS[name]
    x = jnp.zeros((1, *SIZE, CHANNELS))
    declared = jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), shapes_of(layer, x))
    expected = jax.tree.map(lambda leaf: (leaf.shape, jnp.float32), shapes_of(reference.clone(param_dtype=None), x))
    assert declared == expected


@pytest.mark.parametrize(
    ("layer", "parameters"),
    [
        (Conv(8), 9 * 6 * 8),
        (Conv(8, kernel_size=5, use_bias=True), 25 * 6 * 8 + 8),
        (Conv(9, groups=3), 9 * 6 * 9 // 3),
        (DepthwiseConv(), 9 * 6),
        (DepthwiseConv(kernel_size=5, stride=2), 25 * 6),
        (PointwiseConv(9), 6 * 9),
        (PointwiseConv(9, groups=3, use_bias=True), 6 * 9 // 3 + 9),
    ],
)
def test_parameters(layer, parameters):
    leaves = jax.tree.leaves(shapes_of(layer, jnp.zeros((1, *SIZE, CHANNELS))))
    assert sum(leaf.size for leaf in leaves) == parameters


@pytest.mark.parametrize("name", LAYERS)
def test_multiply_adds_are_output_values_times_weights_seen(name):
    layer, reference = PAIRS[name]
    x = jax.ShapeDtypeStruct((5, *SIZE, CHANNELS), jnp.float32)
    y, variables = jax.eval_shape(layer.init_with_output, jax.random.key(0), x)
    kh, kw, seen, _ = variables["params"]["kernel"].shape
    assert layer.multiply_adds(x, y) == y.shape[1] * y.shape[2] * reference.features * kh * kw * seen


def test_kernels_start_with_two_over_the_values_that_an_output_sees_as_variance():
    kernel = DepthwiseConv().init(jax.random.key(0), jnp.zeros((1, 3, 3, 4000)))["params"]["kernel"]
    assert float(kernel.var()) == pytest.approx(2 / 9, rel=0.05)


@pytest.mark.parametrize(
    ("make", "channels", "variance"),
    [
        (partial(Conv, 60), 20, 2 / (9 * 60)),
        (partial(Conv, 60, kernel_size=5), 20, 2 / (25 * 60)),
        (DepthwiseConv, 4000, 2 / (9 * 4000)),
        (partial(PointwiseConv, 60), 180, 2 / 60),
        (partial(PointwiseConv, 60, groups=3), 540, 2 / 60),
    ],
)
def test_fan_out_init_is_normal_with_two_over_the_taps_and_channels_out_as_variance(make, channels, variance):
    layer = make(kernel_init=fan_out_init)
    kernel = layer.init(jax.random.key(0), jnp.zeros((1, 3, 3, channels)))["params"]["kernel"]
    assert float(kernel.var()) == pytest.approx(variance, rel=0.05)
    assert float(jnp.abs(kernel).max()) > 3 * variance**0.5  # Nothing is cut off, as a truncated normal is at 2.3.


@pytest.mark.parametrize("name", ["3x3 stride 2 bias", "depthwise", "pointwise 6 groups bias"])
def test_dtype_is_that_of_the_computation_and_not_of_the_parameters(name):
    full, half = LAYERS[name], LAYERS[name].clone(dtype=jnp.bfloat16)
    x = draw(jax.ShapeDtypeStruct((1, *SIZE, CHANNELS), jnp.float32))
    y, variables = draw(jax.eval_shape(half.init_with_output, jax.random.key(0), x), seed=1)
    assert {leaf.dtype for leaf in jax.tree.leaves(shapes_of(half, x))} == {jnp.dtype(jnp.float32)}
    both = jax.jit(lambda *args: [forward_and_backward(module, *args) for module in (half, full)])
    (y, gradients), (expected, _) = both(variables, x, y)
    assert y.dtype == jnp.bfloat16
    assert {leaf.dtype for leaf in jax.tree.leaves(gradients)} == {jnp.dtype(jnp.float32)}
    np.testing.assert_allclose(y.astype(jnp.float32), expected, rtol=2**-6, atol=2**-6 * float(jnp.abs(expected).max()))


@pytest.mark.parametrize("name", ["3x3", "depthwise", "pointwise 3 groups"])
def test_train_changes_nothing(name):
    layer, x = LAYERS[name], draw(jax.ShapeDtypeStruct((1, *SIZE, CHANNELS), jnp.float32))
    variables = draw(shapes_of(layer, x), seed=1)
    train, evaluate = (str(jax.make_jaxpr(lambda v, x, t=t: layer.apply(v, x, train=t))(variables, x)) for t in (0, 1))
    assert train == evaluate


def test_groups_and_windows_that_cannot_be_are_named():
    for layer in (Conv(8, (3, 3)), DepthwiseConv((3, 3))):
        with pytest.raises(ValueError, match=r"side of a square window, such as 3: got \(3, 3\)"):
            shapes_of(layer, jnp.zeros((1, 4, 4, 6)))
    with pytest.raises(ValueError, match=r"6 channels cannot be split into 4 groups: choose one of \[1, 2, 3, 6\]"):
        shapes_of(PointwiseConv(8, groups=4), jnp.zeros((1, 2, 2, 6)))
    with pytest.raises(ValueError, match=r"6 channels cannot be split into 4 groups: choose one of \[1, 2, 3, 6\]"):
        shapes_of(Conv(8, groups=4), jnp.zeros((1, 2, 2, 6)))
    with pytest.raises(ValueError, match=r"8 channels cannot be split into 3 groups: choose one of \[1, 2, 4, 8\]"):
        shapes_of(PointwiseConv(8, groups=3), jnp.zeros((1, 2, 2, 6)))


@pytest.mark.parametrize("shape", [(1, 1, 24, 144), (2, 3, 5, 7)])
def test_kernels_drawn_in_a_row_are_those_of_flax(shape):
    theirs = nn.initializers.he_normal(), nn.initializers.variance_scaling(2.0, "fan_out", "normal")
    for own, other in zip((kernel_init, fan_out_init), theirs, strict=True):
        np.testing.assert_array_equal(own(jax.random.key(3), shape), other(jax.random.key(3), shape))
