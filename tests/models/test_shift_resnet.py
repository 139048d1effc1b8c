"""ShiftResNet against its counts and its unit written out."""

from __future__ import annotations

from functools import partial

import jax
import numpy as np
import pytest

from shuffle_jax.analysis.count import count
from shuffle_jax.models import ShiftResNet
from shuffle_jax.models.shift_resnet import Unit
from shuffle_jax.nn import AddressShift, ChannelShuffle, GridShift, PointwiseConv

KNOWN: dict = {}
compiled = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})  # Half the compilation.


def test_parameters_are_the_published_ones_and_multiply_adds_but_for_the_stem():
    found = count(ShiftResNet(10, 20, 3), (32, 32, 3), known=KNOWN)
    assert found.parameters == 95_642
    # The released counter takes the stem for 9 x 64 products a pixel. They are 9 x 3 x 16.
    assert found.multiply_adds + (9 * 64 - 9 * 3 * 16) * 32 * 32 == 16_581_248
    assert found.multiply_adds == 16_433_792


@pytest.mark.parametrize(("depth", "expansion", "groups"), [(20, 1, 1), (56, 3, 4), (110, 3, 1), (8, 9, 2)])
def test_counts_of_other_depths_expansions_and_groups(depth, expansion, groups):
    parameters, products, c, size = 27 * 16 + 32 + 650, 27 * 16 * 1024 + 640, 16, 32
    for out in (16, 32, 64):
        for i in range((depth - 2) // 6):
            inner, after = expansion * out, size // 2 if i == 0 and out > 16 else size
            weights, shortcut = (c * inner // groups, inner * out // groups), c * out * (c != out)
            parameters += sum(weights) + 2 * (inner + out) + shortcut + 2 * out * (c != out)
            products += weights[0] * size**2 + (weights[1] + shortcut) * after**2
            c, size = out, after
    network = ShiftResNet(10, depth, expansion, groups=groups, mixer=partial(ChannelShuffle, groups))
    found = count(network, (32, 32, 3), known=KNOWN)
    assert (found.parameters, found.multiply_adds) == (parameters, products)


@pytest.mark.parametrize(("channels", "stride", "groups"), [(9, 1, 3), (4, 1, 1), (4, 2, 1)])
def test_unit_equals_its_definition(channels, stride, groups, draw):
    unit = Unit(9, stride, 2, groups, partial(ChannelShuffle, groups), GridShift, PointwiseConv)
    x = np.random.default_rng(1).standard_normal((2, 5, 4, channels)).astype(np.float32)
    variables = draw(unit, x.shape[1:])
    params, statistics = variables["params"], variables["batch_stats"]

    def layer(y, name, norm, groups=1):
        parts = zip(np.split(y, groups, -1), np.split(params[name]["kernel"][0, 0], groups, -1), strict=True)
        y = np.concatenate([part @ weights for part, weights in parts], -1)
        s, p = statistics[norm], params[norm]
        return (y - s["mean"]) / np.sqrt(s["var"] + 1e-5) * p["scale"] + p["bias"]

    y = np.maximum(layer(x, "pointwise1", "norm1", groups), 0)
    y = y.reshape(*y.shape[:3], groups, -1).swapaxes(3, 4).reshape(y.shape)
    shifted, padded = np.zeros_like(y), np.pad(y, ((0, 0), (1, 1), (1, 1), (0, 0)))
    for i in range(18):
        dh, dw = i // 3 % 3 - 1, i % 3 - 1
        shifted[..., i] = padded[:, 1 + dh : 6 + dh, 1 + dw : 5 + dw, i]
    y = np.maximum(layer(shifted[:, ::stride, ::stride], "pointwise2", "norm2", groups), 0)
    past = x if channels == 9 else layer(x[:, ::stride, ::stride], "downsample", "downsample_norm")
    np.testing.assert_allclose(compiled(unit.apply)(variables, x), past + y, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_another_shift_is_another_network(draw):
    network, x = ShiftResNet(5, 8, 4), np.random.default_rng(1).standard_normal((1, 8, 8, 3)).astype(np.float32)
    variables = draw(network, (8, 8, 3))
    logits, other = compiled(
        lambda x: [network.clone(shift=shift).apply(variables, x) for shift in (GridShift, AddressShift)]
    )(x)
    assert logits.shape == other.shape == (1, 5)
    assert np.abs(logits - other).max() > 0.1
