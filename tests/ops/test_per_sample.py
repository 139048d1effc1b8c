"""A kernel for each image is a loop over images, forward and backward, and stays on the device of its image."""

from __future__ import annotations

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax

from shuffle_jax.ops import convolution as static
from shuffle_jax.ops import per_sample
from shuffle_jax.sharding import batch_sharding, data_mesh

CASES = {  # h, w, c, o, kh, kw, stride, padding, groups
    "pointwise": (4, 3, 6, 8, 1, 1, 1, None, 1),
    "pointwise, strided, in groups": (5, 4, 6, 4, 1, 1, 2, None, 2),
    "as in the networks": (6, 5, 3, 4, 3, 3, 2, None, 1),
    "in groups": (5, 5, 6, 9, 3, 3, 1, None, 3),
    "depthwise": (5, 4, 4, 4, 3, 3, 1, None, 4),
    "several of each channel": (4, 4, 3, 6, 2, 3, 1, None, 3),
    "one position": (1, 1, 5, 4, 3, 3, 1, None, 1),
    "a sequence": (1, 7, 4, 6, 1, 5, 2, ((0, 0), (0, 3)), 2),
    "a rest that no window reaches": (7, 6, 2, 2, 2, 3, 3, ((0, 0), (0, 0)), 1),
    "rows and columns apart": (2, 7, 2, 4, 4, 3, 2, ((2, 0), (1, 4)), 1),
}


def loop(x, kernels, stride, padding, groups):
    """One image at a time, with the convolution that all images share."""
    one = partial(static.convolution, stride=stride, padding=padding, groups=groups)
    return jnp.concatenate([one(x[i : i + 1], kernels[i]) for i in range(x.shape[0])])


def draw(seed, *shapes, dtype=np.float64):
    rng = np.random.default_rng(seed)
    return [rng.standard_normal(shape).astype(dtype) for shape in shapes]


def shapes_of(case, n=3):
    h, w, c, o, kh, kw, stride, padding, groups = case
    return (n, h, w, c), (n, kh, kw, c // groups, o), {"stride": stride, "padding": padding, "groups": groups}


def with_gradients(op, *arrays):
    y, pull_back = jax.vjp(op, *arrays)
    (cotangent,) = draw(1, y.shape, dtype=y.dtype)
    return y, *pull_back(jnp.asarray(cotangent))


@pytest.mark.parametrize("name", CASES)
@pytest.mark.fast_cases(4)
def test_equals_a_loop_over_images_with_and_without_a_bias_for_each_in_value_and_gradients(name):
    x_shape, kernel_shape, options = shapes_of(CASES[name])
    n, kh, kw, _, features = kernel_shape
    arrays = draw(0, x_shape, kernel_shape, (n, features))

    def convolved(op, x, kernels, biases):
        return op(x, kernels, **options) + biases[:, None, None]

    def rows(x, kernels, biases):
        joined = jnp.concatenate([kernels.reshape(n, -1, features), biases[:, None]], axis=1)
        return per_sample.affine(x, joined, (kh, kw), **options)

    @jax.jit
    def every(*arrays):
        forms = partial(convolved, loop), partial(convolved, per_sample.convolution), rows
        return [with_gradients(form, *arrays) for form in forms]

    with jax.enable_x64(True):
        expected, *others = every(*arrays)
    for actual in others:
        for one, other in zip(actual, expected, strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-11, atol=1e-11, strict=True)


@settings(max_examples=10)
@given(
    n=st.integers(1, 3),
    h=st.integers(1, 6),
    w=st.integers(1, 6),
    kh=st.integers(1, 4),
    kw=st.integers(1, 4),
    stride=st.integers(1, 3),
    pads=st.none() | st.tuples(*[st.tuples(st.integers(0, 3), st.integers(0, 3))] * 2),
    groups=st.integers(1, 3),
    per_group=st.tuples(st.integers(1, 2), st.integers(1, 2)),
)
def test_equals_the_equation_wherever_the_window_fits(n, h, w, kh, kw, stride, pads, groups, per_group):
    inputs, outputs = per_group
    x, kernels = draw(2, (n, h, w, groups * inputs), (n, kh, kw, inputs, groups * outputs))
    op = partial(per_sample.convolution, stride=stride, padding=pads, groups=groups)
    explicit = pads or ((kh // 2, kh // 2), (kw // 2, kw // 2))
    padded = np.pad(x, ((0, 0), *explicit, (0, 0)))
    size = padded.shape[1] - kh, padded.shape[2] - kw
    if min(size) < 0:
        with pytest.raises(ValueError, match=f"a window of {kh} x {kw} does not fit an image of {h} x {w} padded by"):
            jax.eval_shape(op, np.float32(x), np.float32(kernels))
        return
    expected = np.zeros((n, size[0] // stride + 1, size[1] // stride + 1, groups * outputs))
    for image, i, j, out in np.ndindex(expected.shape):
        first = out // outputs * inputs
        seen = padded[image, i * stride : i * stride + kh, j * stride : j * stride + kw, first : first + inputs]
        expected[image, i, j, out] = (seen * kernels[image, :, :, :, out]).sum()
    y = jax.jit(op)(np.float32(x), np.float32(kernels))
    np.testing.assert_allclose(y, expected.astype(np.float32), rtol=1e-4, atol=1e-4, strict=True)


@pytest.mark.parametrize("name", ["as in the networks", "in groups"])
def test_half_precision_stays_half_and_is_rounded_once(name):
    x_shape, kernel_shape, options = shapes_of(CASES[name])
    rng = np.random.default_rng(5)
    # Integers whose sums are exact in float32, in any order, and far from it in bfloat16.
    x, kernels = (rng.integers(-100, 101, shape).astype(jnp.bfloat16) for shape in (x_shape, kernel_shape))
    y = jax.jit(partial(per_sample.convolution, **options))(x, kernels)
    exact = jax.jit(partial(loop, **options))(x.astype(np.float32), kernels.astype(np.float32))
    assert y.dtype == jnp.bfloat16
    np.testing.assert_array_equal(y, exact.astype(jnp.bfloat16))


def test_rows_that_are_no_kernel_with_a_bias_are_refused():
    x = jnp.ones((2, 3, 3, 4))
    with pytest.raises(ValueError, match="have the shape"):
        per_sample.affine(x, jnp.ones((2, 4, 8)), (1, 1))
    with pytest.raises(ValueError, match="have the shape"):
        per_sample.affine(x, jnp.ones((3, 5, 8)), (1, 1))


COLLECTIVES = "all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter"


def collectives(op, *arrays):
    """Those in the forward pass and both gradients, where the arrays are split over two devices."""

    def run(x, kernels):
        return jax.value_and_grad(lambda x, kernels: jnp.square(op(x, kernels)).sum(), (0, 1))(x, kernels)[1]

    split = batch_sharding(data_mesh(jax.devices()[:2]))
    arrays = [jax.device_put(array, split) for array in arrays]
    text = jax.jit(run, out_shardings=split).lower(*arrays).compile().as_text()
    assert "num_partitions=2" in text
    return set(re.findall(COLLECTIVES, text))


@pytest.mark.parametrize("name", ["pointwise", "as in the networks", "in groups", "depthwise"])
def test_no_image_and_no_kernel_leaves_its_device(name):
    x_shape, kernel_shape, options = shapes_of(CASES[name], n=4)
    arrays = draw(3, x_shape, kernel_shape, dtype=np.float32)
    assert collectives(partial(per_sample.convolution, **options), *arrays) == set()


def test_a_vmap_over_the_convolution_would_leave_it():
    # What the form is chosen for, and that the test above can fail.
    def mapped(x, kernels):
        one = partial(lax.conv_general_dilated, window_strides=(1, 1), padding="SAME")
        numbers = ("NHWC", "HWIO", "NHWC")
        return jax.vmap(lambda image, kernel: one(image[None], kernel, dimension_numbers=numbers)[0])(x, kernels)

    assert "all-gather" in collectives(mapped, *draw(3, (4, 5, 5, 6), (4, 3, 3, 6, 4), dtype=np.float32))


def test_errors_name_value_limit_and_remedy():
    x = jnp.ones((2, 4, 4, 6))
    for wrong, groups in [((3, 1, 1, 3, 4), 2), ((2, 1, 1, 6, 4), 2), ((2, 3, 3, 5, 4), 1)]:
        needed = re.escape(f"kernels for 2 images of 6 channels in {groups} groups have the shape (2, kh, kw, ")
        with pytest.raises(ValueError, match=needed + rf"{6 // groups}, o\), not {re.escape(str(wrong))}"):
            per_sample.convolution(x, jnp.ones(wrong), groups=groups)
    with pytest.raises(ValueError, match=r"6 channels cannot be split into 4 groups: choose one of \[1, 2, 3, 6\]"):
        per_sample.convolution(x, jnp.ones((2, 1, 1, 1, 8)), groups=4)
    with pytest.raises(ValueError, match=r"7 channels cannot be split into 2 groups: choose one of \[1, 7\]"):
        per_sample.convolution(x, jnp.ones((2, 1, 1, 3, 7)), groups=2)
    with pytest.raises(ValueError, match=r"window of 2 x 7 .* 4 x 4 padded by \(\(0, 0\), \(1, 1\)\): use a larger"):
        per_sample.convolution(x, jnp.ones((2, 2, 7, 6, 8)), padding=((0, 0), (1, 1)))
