"""The modules of shifts: what they equal, what they cost, and that they fit where mixers and 1x1 layers stand."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from shuffle_jax.analysis.count import NOTHING, Count, count
from shuffle_jax.nn import (
    AddressShift,
    ChannelRotation,
    ChannelShift,
    ChannelShuffle,
    DynamicConv,
    FixedPermutation,
    GridShift,
    Identity,
    PointwiseConv,
    ShiftedPointwise,
    StaticDynamicShuffle,
)
from shuffle_jax.ops import convolution, shift

X = jnp.asarray(np.random.default_rng(0).standard_normal((2, 3, 5, 16)), jnp.float32)
SHAPE = X.shape[1:]
DIAGONALS = ((1, 1), (-1, -1))
compiled = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})  # Half the compilation.

SHIFTS = {
    "channels": (ChannelShift(), partial(shift.channel_shift, groups=2)),
    "channels in 4 groups": (ChannelShift(4), partial(shift.channel_shift, groups=4)),
    "all channels by one": (ChannelRotation(), lambda x: x[..., (np.arange(16) + 1) % 16]),
    "address": (AddressShift(), shift.address_shift),
    "wrap": (AddressShift(DIAGONALS, "wrap"), partial(shift.address_shift, offsets=DIAGONALS, boundary="wrap")),
    "every second pixel": (AddressShift(stride=2), lambda x: shift.address_shift(x)[:, [0, 2]][:, :, [0, 2, 4]]),
    "grid": (GridShift(), shift.grid_shift),
}


@pytest.mark.parametrize("name", SHIFTS)
def test_a_shift_is_its_operation_and_costs_nothing(name):
    module, op = SHIFTS[name]

    @compiled
    def both(x):
        y, variables = module.init_with_output(jax.random.key(0), x)
        return (y, module.apply({}, x, train=True), op(x)), variables

    for x in (X, X[:1].astype(jnp.bfloat16)):
        (y, trained, expected), variables = both(x)
        assert y.dtype == x.dtype
        assert not np.array_equal(y, x)
        np.testing.assert_array_equal(y, expected)
        np.testing.assert_array_equal(trained, expected)
        assert jax.tree.leaves(variables) == []
    assert count(module, SHAPE) == NOTHING


def assert_near(actual, expected, tolerance=1e-5):
    np.testing.assert_allclose(
        np.asarray(actual, np.float32), expected, rtol=0, atol=tolerance * np.abs(expected).max()
    )


STEPS = {
    "the paper's": {},
    "fewer out": {"features": 8},
    "two directions that wrap": {"groups": 2, "offsets": DIAGONALS, "boundary": "wrap"},
    "four directions in two groups": {"groups": 2, "offsets": ((0, 1), (1, 0), (0, -1), (-1, 0)), "boundary": "zero"},
    "no address shift": {"groups": 8, "offsets": ()},
    "plain": {"form": "plain"},
}


@pytest.mark.parametrize("name", STEPS)
def test_a_step_is_its_two_shifts_and_a_grouped_convolution_and_counts_as_that(name, draw):
    step = ShiftedPointwise(**{"features": 24, **STEPS[name]})
    variables, groups = draw(step, SHAPE), step.groups
    assert jax.tree.map(np.shape, variables) == {"params": {"kernel": (1, 1, 16 // groups, step.features)}}

    @compiled
    def results(x):
        shifted = shift.address_shift(shift.channel_shift(x, groups), step.offsets, step.boundary)
        return step.apply(variables, x), step.apply(variables, x[:1], train=True), shifted

    y, alone, shifted = results(X)
    rows, columns = np.split(shifted, groups, -1), np.split(variables["params"]["kernel"][0, 0], groups, -1)
    expected = np.concatenate([x @ weights for x, weights in zip(rows, columns, strict=True)], axis=-1)
    assert_near(y, expected)
    assert_near(alone, expected[:1])
    weights = 16 // groups * step.features
    assert count(step, SHAPE) == Count(weights, 0, 3 * 5 * weights, 0)


def test_no_mixer_is_the_channel_shift_with_the_same_kernel(draw):
    step = ShiftedPointwise(24)
    mixed = step.clone(mixer=partial(ChannelShift, groups=4))
    variables = draw(step, SHAPE)
    assert jax.tree.map(np.shape, draw(mixed, SHAPE)) == jax.tree.map(np.shape, variables)
    assert_near(*compiled(lambda x: [module.apply(variables, x) for module in (mixed, step)])(X))
    assert count(mixed, SHAPE) == count(step, SHAPE)


@pytest.mark.parametrize("mixer", [Identity, partial(ChannelShuffle, groups=4), FixedPermutation])
def test_another_mixer_stands_in_front_in_place_of_the_channel_shift(mixer, draw):
    step = ShiftedPointwise(24, mixer=mixer)
    variables = draw(step, SHAPE)
    kernel, own = (
        variables["params"]["kernel"],
        {name: tree["mixer"] for name, tree in variables.items() if "mixer" in tree},
    )

    @compiled
    def results(x):
        apart = convolution.pointwise(shift.address_shift(mixer().apply(own, x)), kernel, 4)
        default = ShiftedPointwise(24).apply({"params": {"kernel": kernel}}, x)
        return step.apply(variables, x), apart, default

    y, apart, default = results(X)
    assert_near(y, apart)
    assert np.abs(y - default).max() > 0.1
    weights = 16 // 4 * 24
    assert count(step, SHAPE) == Count(weights, 0, 3 * 5 * weights, 0)


@pytest.mark.parametrize(
    "pointwise", [partial(PointwiseConv, use_bias=True), StaticDynamicShuffle, partial(DynamicConv, latent=8)]
)
def test_another_1x1_layer_sees_what_was_shifted_and_counts_for_itself(pointwise, draw):
    step, layer = ShiftedPointwise(24, 4, pointwise=pointwise), pointwise(features=24, groups=4)
    variables = draw(step, SHAPE)
    own = {name: tree["pointwise"] for name, tree in variables.items()}

    @compiled
    def results(x):
        shifted = shift.address_shift(shift.channel_shift(x, 4))
        trained, _ = step.apply(variables, x[:1], train=True, mutable=["batch_stats", "penalties"])
        return step.apply(variables, x), layer.apply(own, shifted), trained

    y, apart, trained = results(X)
    assert_near(y, apart)
    assert trained.shape == (1, 3, 5, 24)
    assert np.isfinite(trained).all()
    assert set(variables["params"]) == {"pointwise"}
    assert count(step, SHAPE) == count(layer, SHAPE)


@pytest.mark.parametrize("pointwise", [PointwiseConv, partial(PointwiseConv, use_bias=True)])
def test_half_precision_stays_half_precision_with_parameters_in_float32(pointwise, draw):
    full = ShiftedPointwise(24, pointwise=pointwise)
    half = full.clone(dtype=jnp.bfloat16)
    declared = jax.eval_shape(half.init, jax.random.key(0), X)
    assert {leaf.dtype for leaf in jax.tree.leaves(declared)} == {jnp.dtype("float32")}
    variables = draw(half, SHAPE)
    inputs = (full, X), (half, X), (full, X.astype(jnp.bfloat16))
    expected, *halves = compiled(lambda: [module.apply(variables, x) for module, x in inputs])()
    assert expected.dtype == jnp.float32
    for y in halves:
        assert y.dtype == jnp.bfloat16
        assert_near(y, expected, 0.02)


def test_a_kernel_starts_as_that_of_the_grouped_convolution():
    layers = ShiftedPointwise(24), PointwiseConv(24, groups=4)
    step, layer = compiled(lambda key: [module.init(key, X) for module in layers])(jax.random.key(0))
    np.testing.assert_array_equal(step["params"]["kernel"], layer["params"]["kernel"])


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (ChannelShift(3), r"16 channels cannot be shifted by half of one of 3 groups: choose one of \[1, 2, 4, 8\]"),
        (ShiftedPointwise(24, groups=3), r"16 channels cannot be shifted by half of one of 3 groups"),
        (ShiftedPointwise(25), "25 channels cannot be split into 4 groups: choose one of"),
        (ShiftedPointwise(24, groups=3, mixer=Identity), "16 channels cannot be split into 3 groups"),
        (
            ShiftedPointwise(24, offsets=((0, 1), (1, 0), (0, 0))),
            "16 channels cannot move in 3 directions: give a multiple",
        ),
        (AddressShift(((0, 6),)), r"a shift by \(0, 6\) is larger than the image of 3 x 5: give offsets within it"),
        (AddressShift(boundary="torus"), "there is no boundary 'torus': choose one of"),
    ],
)
def test_what_does_not_fit_is_refused(module, message):
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(module.init, jax.random.key(0), X)
