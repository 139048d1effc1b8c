"""Windows of channels that roll: against the equation, the released layer's figures and the grouped convolution."""

from __future__ import annotations

import json
import re
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shuffle_jax.ops import convolution, rolling_pointwise
from shuffle_jax.ops.rolling_pointwise import window_starts

FIGURES = np.load(Path(__file__).parents[1] / "fixtures" / "rolling_pointwise.npz")
PUBLISHED = json.loads(str(FIGURES["manifest"]))


def draw(seed, *shapes):
    rng = np.random.default_rng(seed)
    return [rng.standard_normal(shape) for shape in shapes]


def matrix(channels, features, groups, overlap):
    """Ones where an output sees a channel, by the sentence in which the layer is described."""
    width = channels // groups
    step = width - int(round(overlap * width, 6))
    starts = [0]
    while (following := (starts[-1] + step) % channels) != 0:
        starts.append(following)
    seen = np.zeros((channels, features), bool)
    for o in range(features):
        first = starts[int(o * len(starts) / features)]
        for j in range(width):
            seen[(first + j) % channels, o] = True
    return seen, len(starts)


def with_gradients(op, x, kernel, cotangent):
    y, pull_back = jax.vjp(op, x, kernel)
    return (y, *pull_back(cotangent))


def dense(kernel, starts, channels):
    """The kernel as a matrix of all channels, one weight at a time."""
    found = np.zeros((channels, kernel.shape[-1]), kernel.dtype)
    for o, first in enumerate(starts):
        for j in range(kernel.shape[2]):
            found[(first + j) % channels, o] += kernel[0, 0, j, o]
    return found


@pytest.mark.parametrize("case", PUBLISHED)
def test_figures_of_the_released_layer(case):
    about = PUBLISHED[case]
    x, y, cotangent, gx = (FIGURES[f"{case}/{name}"].transpose(0, 2, 3, 1) for name in ("x", "y", "ct", "gx"))
    weight, bias, gw, gb = (FIGURES[f"{case}/{name}"] for name in ("w/weight", "w/bias", "g/weight", "g/bias"))
    op = partial(rolling_pointwise.rolling_pointwise, groups=about["groups"], overlap=about["overlap"])
    actual = jax.jit(partial(with_gradients, op))(x, weight.transpose(2, 3, 1, 0), cotangent)
    for found, expected in zip(actual, (y - bias, gx, gw.transpose(2, 3, 1, 0)), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=2e-6)
    np.testing.assert_allclose(cotangent.sum((0, 1, 2)), gb, rtol=1e-5, atol=1e-5)
    sizes = about["cin"], about["cout"], about["groups"], about["overlap"]
    starts = window_starts(*sizes)
    assert starts[:: about["cout"] // about["windows"]].tolist() == FIGURES[f"{case}/starts"].tolist()
    assert weight.size + bias.size == about["params"] == about["cout"] * (about["cin"] // about["groups"] + 1)


CASES = [  # channels, outputs, groups, overlap: even windows, uneven ones, fewer outputs than windows, wide slices
    (8, 8, 2, 0.5),
    (12, 25, 3, 0.25),
    (10, 4, 2, 0.5),
    (6, 80, 3, 0.5),
    (9, 7, 3, 0.0),
]


@pytest.mark.parametrize("sizes", CASES)
@pytest.mark.fast_cases(1)
def test_every_form_equals_the_equation_with_gradients(sizes):
    channels, features, groups, overlap = sizes
    starts = window_starts(*sizes)
    kernel, x, cotangent = draw(0, (1, 1, channels // groups, features), (2, 1, 3, channels), (2, 1, 3, features))
    weights = dense(kernel, starts, channels)
    own = np.stack([cotangent.reshape(-1, features).T @ np.roll(x, -s, -1).reshape(-1, channels) for s in starts])
    kernel_gradient = np.stack([own[o, o, : channels // groups] for o in range(features)], -1)[None, None]
    expected = x @ weights, cotangent @ weights.T, kernel_gradient
    forms = [
        partial(rolling_pointwise.rolling_pointwise, groups=groups, overlap=overlap),
        partial(rolling_pointwise._product, starts),
        partial(rolling_pointwise._slices, starts),
    ]
    with jax.enable_x64(True):
        found = jax.jit(lambda *args: [with_gradients(form, *args) for form in forms])(x, kernel, cotangent)
    for one in found:
        for a, b in zip(one, expected, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12)


@given(st.integers(1, 8), st.integers(1, 6), st.integers(1, 60), st.integers(0, 19).map(lambda k: k / 20))
def test_windows_are_those_of_the_sentence_and_all_channels_are_read(groups, width, features, overlap):
    sizes = groups * width, features, groups, overlap
    seen, windows = matrix(*sizes)
    if groups == 1:
        assert not window_starts(*sizes).any()
    elif seen.any(1).all():
        starts = window_starts(*sizes)
        found = dense(np.ones((1, 1, width, features)), starts, groups * width)
        np.testing.assert_array_equal(found, seen)
        assert found.sum() == width * features
    else:
        assert features < windows
        with pytest.raises(ValueError, match=rf"outputs leave .* in {windows} windows of {width}: give at least"):
            window_starts(*sizes)


@pytest.mark.parametrize(("width", "overlap", "step"), [(100, 0.29, 71), (3, 1 / 3, 2), (3, 2 / 3, 1), (10, 0.7, 3)])
def test_an_overlap_is_not_cut_short_by_rounding(width, overlap, step):
    assert int(0.29 * 100) == 28
    assert np.unique(window_starts(2 * width, 2000, 2, overlap))[1] == np.gcd(2 * width, step)
    assert window_starts(2 * width, 2 * width // np.gcd(2 * width, step), 2, overlap)[1] == step


def test_without_overlap_it_is_the_grouped_convolution_and_in_one_group_the_plain_one_to_the_bit():
    x, kernel, whole = (one.astype(np.float32) for one in draw(1, (2, 3, 3, 8), (1, 1, 2, 12), (1, 1, 8, 12)))
    for groups, overlap, weights in ((4, 0.0, kernel), (1, 0.5, whole), (1, 0.0, whole)):
        rolling = jax.make_jaxpr(partial(rolling_pointwise.rolling_pointwise, groups=groups, overlap=overlap))
        grouped = jax.make_jaxpr(partial(convolution.pointwise, groups=groups))
        assert str(rolling(x, weights)) == str(grouped(x, weights))


@pytest.mark.parametrize(
    ("shape", "groups", "overlap", "message"),
    [
        ((1, 1, 4, 8), 3, 0.5, "8 channels cannot be split into 3 groups"),
        ((1, 1, 4, 8), 2, 1.0, "overlap must be from 0 to below 1, got 1.0"),
        ((1, 1, 4, 8), 2, -0.1, "overlap must be from 0 to below 1, got -0.1"),
        ((1, 1, 8, 8), 2, 0.5, "a rolling 1x1 kernel for 8 channels in 2 groups has the shape (1, 1, 4, o), not "),
        ((1, 1, 2, 2), 4, 0.0, "2 outputs leave 4 of 8 channels unread, in 4 windows of 2: give at least 4 outputs, "),
    ],
)
def test_what_does_not_fit_is_refused(shape, groups, overlap, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        rolling_pointwise.rolling_pointwise(jnp.ones((1, 2, 2, 8)), jnp.ones(shape), groups, overlap)


def reaches(channels, groups, overlap, layers):
    """The mean number of channels that an output sees after one layer, two, and so on, all of as many channels."""
    (seen, _), found = matrix(channels, channels, groups, overlap), []
    starts = window_starts(channels, channels, groups, overlap)
    np.testing.assert_array_equal(dense(np.ones((1, 1, channels // groups, channels)), starts, channels), seen)
    through = np.eye(channels)
    for _ in range(layers):
        through = np.minimum(through @ seen, 1)
        found.append(through.sum(0).mean())
    return found


@pytest.mark.parametrize(
    ("channels", "groups", "overlap", "step"),
    [(16, 2, 0.5, 4), (16, 4, 0.5, 2), (24, 2, 0.75, 3), (12, 3, 0.25, 3), (8, 4, 0.0, 2)],
)
def test_windows_in_a_row_reach_as_far_as_their_overlaps(channels, groups, overlap, step):
    """``min(c, w + (n - 1) step (ceil(w / step) - 1))`` if step divides c: less than n channel shifts."""
    width = channels // groups
    expected = [min(channels, width + n * step * (-(-width // step) - 1)) for n in range(6)]
    assert reaches(channels, groups, overlap, 6) == expected
    if overlap == 0.5:
        assert expected == [min(channels, width * (n + 1) / 2) for n in range(1, 7)]


def test_windows_whose_step_does_not_divide_the_channels_are_scattered_like_a_shuffle():
    assert reaches(24, 4, 0.25, 2)[1] == 24 and reaches(8, 2, 0.25, 2)[1] == 8
    assert reaches(16, 4, 0.25, 3)[1:] == [13, 16]
