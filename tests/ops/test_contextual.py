"""Contextual convolutions equal their equation and the authors' figures, forward and backward."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shuffle_jax.ops import convolution as conv
from shuffle_jax.ops.contextual import FRACTIONS, contextual, contextual_depthwise, level_outputs


def images(shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


def oracle(x, kernel, outputs, dilations, stride, groups, wrap):
    """The equation, one output and one tap at a time, with indices that leave the image or come back around."""
    n, h, w, channels = x.shape
    kh, kw, inputs, features = kernel.shape
    y = np.zeros((n, -(-h // stride), -(-w // stride), features))
    o = 0
    for level, d in zip(outputs, dilations, strict=True):
        for k in range(level):
            seen = x[..., k * groups // level * inputs :][..., :inputs]
            for i, j, a, b in np.ndindex(*y.shape[1:3], kh, kw):
                row, column = stride * i + d * (a - kh // 2), stride * j + d * (b - kw // 2)
                if wrap or (0 <= row < h and 0 <= column < w):
                    y[:, i, j, o] += seen[:, row % h, column % w] @ kernel[a, b, :, o]
            o += 1
    assert channels == groups * inputs
    return y


LAYERS = {  # (h, w), channels, outputs, dilations, stride, groups, window, padding
    "strided, odd and even dilations": ((7, 5), 5, (2, 1, 3), (2, 3, 4), 2, 1, (3, 3), "zeros"),
    "groups": ((5, 5), 6, (4, 2), None, 1, 2, (3, 3), "zeros"),
    "published, 4 levels": ((7, 6), 5, (1, 1, 1, 1), None, 1, 1, (3, 3), "zeros"),
    "wrapped beyond the image": ((3, 2), 5, (1, 2), (1, 4), 2, 1, (3, 3), "wrap"),
    "another window, few channels": ((4, 6), 2, (3, 1), (3, 1), 3, 1, (1, 5), "zeros"),
}


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.fast_cases(2)
def test_the_layer_and_its_gradients_equal_the_equation(name):
    size, channels, outputs, dilations, stride, groups, window, padding = LAYERS[name]
    x, kernel = images((2, *size, channels)), images((*window, channels // groups, sum(outputs)), 1)
    by_level = dilations or range(1, len(outputs) + 1)
    op = partial(contextual, outputs=outputs, dilations=dilations, stride=stride, padding=padding, groups=groups)
    equation = partial(
        oracle, outputs=outputs, dilations=by_level, stride=stride, groups=groups, wrap=padding == "wrap"
    )
    expected = equation(x, kernel)
    cotangent, dx, dk = images(expected.shape, 2), images(x.shape, 3), images(kernel.shape, 4)

    @jax.jit
    def both(x, kernel):
        y, pull = jax.vjp(op, x, kernel)
        return y, pull(cotangent)

    with jax.enable_x64(True):
        y, (gx, gk) = both(x, kernel)
    np.testing.assert_allclose(y, expected, rtol=1e-12, atol=1e-12)
    # It is linear in each: the gradient along a direction is the layer of that direction.
    np.testing.assert_allclose((np.asarray(gx) * dx).sum(), (equation(dx, kernel) * cotangent).sum(), rtol=1e-10)
    np.testing.assert_allclose((np.asarray(gk) * dk).sum(), (equation(x, dk) * cotangent).sum(), rtol=1e-10)


@pytest.mark.parametrize(("stride", "dilation"), [(1, 2), (2, 3)])
@pytest.mark.fast_cases(1)
def test_a_dilated_depthwise_convolution_is_one_with_zeros_between_its_taps(stride, dilation):
    x, kernel = images((2, 7, 6, 3)), images((3, 3, 1, 3), 1)
    wide = np.zeros((2 * dilation + 1, 2 * dilation + 1, 1, 3))
    wide[::dilation, ::dilation] = kernel

    @jax.jit
    def gradients(x, kernel, wide):
        y, pull = jax.vjp(partial(conv.depthwise, stride=stride, dilation=dilation), x, kernel)
        other, pull_other = jax.vjp(partial(conv.depthwise, stride=stride), x, wide)
        gx, gk = pull(jnp.sin(y))
        other_gx, other_gk = pull_other(jnp.sin(other))
        return (y, gx, gk), (other, other_gx, other_gk[::dilation, ::dilation])

    with jax.enable_x64(True):
        for a, b in zip(*gradients(x, kernel, wide), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12)


def test_the_depthwise_form_is_the_layer_with_one_channel_in_each_group():
    x, kernel = images((2, 5, 4, 6)).astype(np.float32), images((3, 3, 1, 6), 1).astype(np.float32)
    outputs, stride = (3, 1, 2), 2
    actual = jax.jit(partial(contextual_depthwise, channels=outputs, stride=stride))(x, kernel)
    parts = np.split(x, (3, 4), axis=-1), np.split(kernel, (3, 4), axis=-1)
    for d, (part, own, found) in enumerate(zip(*parts, np.split(actual, (3, 4), axis=-1), strict=True), start=1):
        expected = oracle(part, own, (part.shape[-1],), (d,), stride, part.shape[-1], wrap=False)
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


@given(st.integers(1, 5), st.integers(1, 40), st.booleans())
def test_fractions_sum_to_all_outputs_or_are_refused(levels, features, rest):
    least = max(FRACTIONS[levels])
    if features < least or (features % least and not rest):
        with pytest.raises(ValueError, match=f"divide a multiple of {least} channels, got {features}"):
            level_outputs(features, levels, rest)
        return
    found = level_outputs(features, levels, rest)
    assert (sum(found), len(found)) == (features, levels)
    assert found[1:] == tuple(features // part for part in FRACTIONS[levels][1:])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"outputs": (2, 1)}, r"sum to 4, got \(2, 1\)"),
        ({"outputs": (4, 0)}, r"must be positive and sum to 4, got \(4, 0\)"),
        ({"outputs": (2, 2), "dilations": (1,)}, r"a dilation for each of 2 levels, got \(1,\)"),
        ({"outputs": (2, 2), "dilations": (0, 1)}, "dilation must be at least 1, got 0"),
        ({"outputs": (3, 1), "groups": 2}, r"2 groups must divide the outputs of every level, got \(3, 1\)"),
        ({"outputs": (2, 2), "padding": "mirror"}, "no padding 'mirror'"),
        ({"outputs": (2, 2), "kernel": (2, 3)}, "an odd size, got 2 x 3"),
    ],
)
def test_what_does_not_fit_is_refused(options, message):
    window, groups = options.pop("kernel", (3, 3)), options.get("groups", 1)
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(partial(contextual, **options), jnp.zeros((1, 5, 5, 6)), jnp.zeros((*window, 6 // groups, 4)))
    with pytest.raises(ValueError, match=r"levels must be one of \[1, 2, 3, 4, 5\], got 6"):
        level_outputs(48, 6)


LAYERS_THERE = [
    "layer_l1_s2_7",
    "layer_l2_s1_8",
    "layer_l3_s2_9",
    "layer_l4_s1_7",
    "layer_l5_s1_12",
    "general_5_3_2_s1",
]


@pytest.mark.parametrize("name", LAYERS_THERE)
@pytest.mark.fast_cases(1)
def test_the_authors_layers(name, contextual_figures):
    case, arrays = contextual_figures(name)
    kernel, biases = (
        [array for key, array in arrays.items() if key.startswith("w/") and key.endswith(kind)]
        for kind in ("weight", "bias")
    )
    kernel = np.concatenate([level.transpose(2, 3, 1, 0) for level in kernel], axis=-1)
    bias = np.concatenate(biases) if biases else np.zeros(0, np.float32)
    assert kernel.size + bias.size == case["params"]
    outputs = tuple(case["outs"]) if "outs" in case else level_outputs(case["planes"], case["levels"])
    op = partial(contextual, outputs=outputs, dilations=case.get("dilations"), stride=case["stride"])
    x, expected = (arrays[key].transpose(0, 2, 3, 1) for key in ("x", "y"))
    cotangent = arrays.get("ct", arrays["y"]).transpose(0, 2, 3, 1)

    @jax.jit
    def both(x, kernel):
        y, pull = jax.vjp(op, x, kernel)
        return y, pull(cotangent)

    y, (gx, gk) = both(x, kernel)
    y = np.asarray(y) + bias if bias.size else y
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=3e-6 * np.abs(expected).max())
    if "ct" in arrays:
        wanted = np.concatenate([array for key, array in arrays.items() if key.startswith("g/")])
        np.testing.assert_allclose(gx.transpose(0, 3, 1, 2), arrays["gx"], rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(gk.transpose(3, 2, 0, 1), wanted, rtol=1e-4, atol=1e-4)
