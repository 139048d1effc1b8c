"""The decomposition: each piece against its definition, and the synthesised kernel against the sum of features."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shuffle_jax.ops import convolution, dynamic_conv, per_sample
from shuffle_jax.ops.normalization import Affine

rng = np.random.default_rng(0)
adaptive_mean = jax.jit(dynamic_conv.adaptive_mean, static_argnums=1)


def normal(*shape):
    return rng.standard_normal(shape).astype(np.float32)


def test_the_gate_is_one_at_zero_and_between_zero_and_two():
    z = jnp.linspace(-9, 9, 101)
    np.testing.assert_allclose(dynamic_conv.hard_gate(z), np.clip(np.asarray(z) / 3 + 1, 0, 2), atol=1e-6)


@settings(max_examples=8)
@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 4))
def test_adaptive_means_are_those_of_the_definition(h, w, size):
    x = np.random.default_rng(h * w).standard_normal((2, h, w, 3)).astype(np.float32)
    bins = [[range(i * m // size, int(np.ceil((i + 1) * m / size))) for i in range(size)] for m in (h, w)]
    expected = [
        [x[n][np.ix_(bins[0][i], bins[1][j], [c])].mean() for c, i, j in np.ndindex(3, size, size)] for n in range(2)
    ]
    np.testing.assert_allclose(adaptive_mean(x, size), expected, atol=1e-6)


def test_means_over_no_positions_are_the_channels_and_over_a_sequence_its_bins():
    x = normal(2, 5)
    np.testing.assert_array_equal(adaptive_mean(x, 2), x)
    x = normal(2, 7, 3)
    expected = np.stack([x[:, 0:4].mean(1), x[:, 3:7].mean(1)], axis=-1).reshape(2, 6)
    np.testing.assert_allclose(adaptive_mean(x, 2), expected, atol=1e-6)


@pytest.mark.parametrize("copies, blocks, size", [(1, 1, 4), (3, 1, 2), (1, 3, 2), (2, 2, 3)])
def test_fusing_is_the_block_diagonal_product_of_each_image(copies, blocks, size):
    q, phi = normal(2, 3, 1, copies * blocks * size), normal(2, copies, blocks, size, size)
    expected = np.zeros((2, 3, 1, blocks * size))
    for n, e, b in itertools.product(range(2), range(copies), range(blocks)):
        own = slice((e * blocks + b) * size, (e * blocks + b + 1) * size)
        expected[n, ..., b * size : (b + 1) * size] += q[n][..., own] @ phi[n, e, b].T
    np.testing.assert_allclose(jax.jit(dynamic_conv.fuse)(q, phi), expected, atol=1e-5)


@pytest.mark.parametrize(
    "window, stride, padding",
    [
        ((1, 1), 2, None),
        ((3, 3), 1, None),
        ((3, 3), 2, ((0, 1), (2, 0))),
        ((2, 4), 1, None),
        ((2, 4), 2, ((0, 1), (2, 0))),
        ((5, 1), 2, None),
    ],
)
def test_what_the_latents_see_is_the_middle_of_the_window(window, stride, padding):
    x, q = normal(2, 7, 6, 4), normal(1, 1, 4, 2)
    pads = convolution.resolve_padding((7, 6), window, padding)
    kernel = np.zeros((*window, 4, 2), np.float32)
    kernel[window[0] // 2, window[1] // 2] = q[0, 0]

    @jax.jit
    def both(x, q, kernel):
        seen = dynamic_conv.latents(x, q, window, stride, pads)
        return seen, convolution.convolution(x, kernel, stride, pads)

    actual, expected = both(x, q, kernel)
    np.testing.assert_allclose(actual, expected, atol=1e-5)


def layer(groups, blocks, copies, window=(3, 3), c=8, o=12, size=2, n=2):
    """Arrays of a layer; without factors over the elements for copies = 0."""
    e, latent = max(copies, 1), blocks * size
    return {
        "kernel": normal(*window, c // groups, o),
        "gate": rng.uniform(0, 2, (n, o)).astype(np.float32),
        "phi": normal(n, e, blocks, size, size),
        "q": normal(1, 1, c // blocks, latent),
        "p": normal(1, 1, size, o),
        "first": Affine(normal(e * latent), normal(e * latent)),
        "second": Affine(normal(latent), normal(latent)),
        "elements": normal(*window, copies) if copies else None,
        "bias": normal(o),
    }


def added(x, parts, stride, pads, groups, blocks):
    """The layer in evaluation as its equation reads: features added."""

    def affine(x, by):
        return x * by.scale.reshape(1, 1, 1, -1) + by.shift.reshape(1, 1, 1, -1)

    kernel, q, elements = parts["kernel"], parts["q"], parts["elements"]
    z = affine(dynamic_conv.latents(x, q, kernel.shape[:2], stride, pads, blocks, elements), parts["first"])
    identity = z.reshape(*z.shape[:-1], parts["phi"].shape[1], -1).sum(-2)
    fused = affine(dynamic_conv.fuse(z, parts["phi"]), parts["second"]) + identity
    y = convolution.convolution(x, kernel, stride, pads, groups) + parts["bias"].reshape(1, 1, 1, -1)
    return y * parts["gate"][:, None, None] + convolution.pointwise(fused, parts["p"], blocks)


def synthesised(x, parts, stride, pads, groups, blocks):
    return per_sample.affine(x, dynamic_conv.synthesise(**parts), parts["kernel"].shape[:2], stride, pads, groups)


LAYERS = {  # g, B, E, window, c, o, stride
    "pointwise, fewer out": (1, 1, 0, (1, 1), 12, 8, 1),
    "pointwise, more out": (1, 1, 0, (1, 1), 8, 12, 2),
    "grouped": (2, 2, 0, (3, 3), 8, 12, 2),
    "blocks": (1, 4, 0, (3, 3), 8, 12, 1),
    "blocks in groups": (2, 4, 0, (3, 3), 8, 12, 1),
    "elements": (1, 1, 3, (3, 3), 8, 12, 1),
    "elements of blocks in groups": (2, 4, 2, (2, 3), 8, 4, 2),
}


@pytest.mark.parametrize("shape", LAYERS.values(), ids=LAYERS)
@pytest.mark.fast_cases(3)
def test_kernels_do_what_adding_features_does_in_value_and_gradient(shape):
    groups, blocks, copies, window, c, o, stride = shape
    parts = jax.tree.map(jnp.asarray, layer(groups, blocks, copies, window, c, o))
    x = jnp.asarray(normal(2, 7, 5, c))
    pads = convolution.resolve_padding((7, 5), window, ((1, 0), (1, 1)))
    arguments = stride, pads, groups, blocks

    @jax.jit
    def both(x, parts):
        pairs = []
        for form in (added, synthesised):
            y, pull_back = jax.vjp(lambda x, parts, form=form: form(x, parts, *arguments), x, parts)
            pairs.append((y, pull_back(jnp.cos(y))))
        return pairs

    results = both(x, parts)
    for a, b in zip(*map(jax.tree.leaves, results), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4 * float(jnp.abs(a).max()))


def test_multiply_adds_are_those_of_the_products():
    # 5 x 5 positions, 8 -> 12 channels, L = 4: Q, Phi and P at each; or Phi through Q's 8 channels, then P.
    features, kernels = dynamic_conv.multiply_adds((25, 25), (3, 3), 8, 12, 1, (0, 1, 4))
    assert features == 25 * (9 * 8 * 12 + 8 * 4 + 4 * 4 + 4 * 12 + 12)
    assert kernels == 25 * 9 * 8 * 12 + 9 * 8 * 12 + 4 * 4 + 8 * 4 * 4 + 8 * 4 * 12
    # Two blocks halve Q and P, and quarter Phi twice; two factors over the elements act at the input's 49 positions.
    features, kernels = dynamic_conv.multiply_adds((49, 16), (3, 3), 8, 12, 1, (2, 2, 4))
    assert features == 16 * 9 * 8 * 12 + 49 * 8 * 4 // 2 + 16 * (9 * 2 * 4 + 2 * 2 * 2 * 2 + 4 * 12 // 2 + 12)
    synthesised = 9 * 8 * 12 + 2 * 2 * 4 * 2 * 2 + 2 * 2 * 4 * 2 * 6 + 9 * 2 * 8 * 12 // 2
    assert kernels == 16 * 9 * 8 * 12 + synthesised + 2 * 2 * 2 * 2
