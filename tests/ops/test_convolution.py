"""Every form of every convolution equals its equation, forward and backward."""

from __future__ import annotations

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax import lax

from shuffle_jax.ops import convolution as conv
from shuffle_jax.ops import depthwise_shifts
from shuffle_jax.ops.depthwise_shifts import interleave

NO_PADS = ((0, 0), (0, 0))


def oracle(x, kernel, cotangent, stride, pads, groups):
    """The equation and its two adjoints in float64, one output pixel at a time."""
    kh, kw, per_group, features = kernel.shape
    padded = np.pad(np.asarray(x, np.float64), ((0, 0), *pads, (0, 0)))
    grouped_kernel = np.asarray(kernel, np.float64).reshape(kh, kw, per_group, groups, features // groups)
    cotangent = np.asarray(cotangent, np.float64).reshape(*cotangent.shape[:3], groups, features // groups)
    y, padded_gradient = np.zeros(cotangent.shape), np.zeros(padded.shape)
    kernel_gradient = np.zeros(grouped_kernel.shape)
    for i in range(cotangent.shape[1]):
        for j in range(cotangent.shape[2]):
            here = np.s_[:, i * stride : i * stride + kh, j * stride : j * stride + kw]
            window = padded[here].reshape(-1, kh, kw, groups, per_group)
            y[:, i, j] = np.einsum("nabgc,abcgo->ngo", window, grouped_kernel)
            spread = np.einsum("ngo,abcgo->nabgc", cotangent[:, i, j], grouped_kernel)
            padded_gradient[here] += spread.reshape(padded[here].shape)
            kernel_gradient += np.einsum("nabgc,ngo->abcgo", window, cotangent[:, i, j])
    (top, _), (left, _) = pads
    x_gradient = padded_gradient[:, top : top + x.shape[1], left : left + x.shape[2]]
    return y.reshape(*y.shape[:3], features), x_gradient, kernel_gradient.reshape(kernel.shape)


def output_shape(x, kernel, stride, pads):
    rows, columns = (
        (size + sum(pad) - k) // stride + 1 for size, pad, k in zip(x.shape[1:3], pads, kernel.shape[:2], strict=True)
    )
    return (x.shape[0], rows, columns, kernel.shape[-1])


def half_of(kernel):
    """The default padding, ``k // 2`` on every side."""
    return tuple((k // 2, k // 2) for k in kernel.shape[:2])


def with_gradients(op, x, kernel, cotangent):
    y, pull_back = jax.vjp(op, x, kernel)
    return (y, *pull_back(cotangent))


def draw(seed, *shapes):
    rng = np.random.default_rng(seed)
    return [rng.standard_normal(shape) for shape in shapes]


def assert_equals_the_equation(op, x, kernel, stride, pads, groups):
    """In float64, values and both gradients from a single compilation."""
    (cotangent,) = draw(9, output_shape(x, kernel, stride, pads))
    with jax.enable_x64(True):
        actual = jax.jit(partial(with_gradients, op))(x, kernel, cotangent)
    for a, b in zip(actual, oracle(x, kernel, cotangent, stride, pads, groups), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12)


def as_elsewhere(*args, default, **platforms):
    """What `lax.platform_dependent` is on all platforms but CPU."""
    return default(*args)


@pytest.fixture
def elsewhere(monkeypatch):
    """Runs the test in the form of all platforms but CPU."""
    monkeypatch.setattr(lax, "platform_dependent", as_elsewhere)


WINDOWS = {  # h, w, kh, kw, stride, padding
    "one pixel, one tap": (1, 1, 1, 1, 1, None),
    "a window larger than the image": (1, 1, 3, 3, 2, None),
    "as in the networks": (6, 5, 3, 3, 2, None),
    "an even window grows the image": (4, 6, 2, 4, 1, None),
    "a long window": (7, 6, 4, 5, 3, None),
    "an odd rest that no window reaches": (7, 6, 2, 3, 3, NO_PADS),
    "gaps between windows": (7, 5, 1, 2, 3, NO_PADS),
    "a single output": (4, 5, 4, 5, 1, NO_PADS),
    "more padding than window": (3, 5, 3, 1, 1, ((4, 0), (0, 4))),
    "padded taps": (5, 4, 1, 1, 2, ((3, 2), (0, 1))),
    "rows and columns apart": (2, 7, 4, 3, 2, ((2, 0), (1, 4))),
    "zeros alone under the first windows": (1, 2, 2, 5, 3, ((3, 4), (4, 4))),
}


@pytest.mark.parametrize("name", WINDOWS)
def test_depthwise_and_its_gradients_equal_its_equation(name):
    h, w, kh, kw, stride, pads = WINDOWS[name]
    x, kernel = draw(0, (2, h, w, 3), (kh, kw, 1, 3))
    explicit = pads or half_of(kernel)
    (cotangent,) = draw(9, output_shape(x, kernel, stride, explicit))

    with jax.enable_x64(True):
        depthwise = partial(conv.depthwise, stride=stride, padding=pads)
        actual = jax.jit(partial(with_gradients, depthwise))(x, kernel, cotangent)
    expected = oracle(x, kernel, cotangent, stride, explicit, groups=3)
    for a, b in zip(actual, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12)


@given(
    h=st.integers(1, 7),
    w=st.integers(1, 7),
    kh=st.integers(1, 4),
    kw=st.integers(1, 5),
    stride=st.integers(1, 3),
    pads=st.none() | st.tuples(*[st.tuples(st.integers(0, 4), st.integers(0, 4))] * 2),
)
def test_every_window_that_fits_has_the_stated_size_and_every_other_is_refused(h, w, kh, kw, stride, pads):
    x, kernel = np.zeros((2, h, w, 3), np.float32), np.zeros((kh, kw, 1, 3), np.float32)
    explicit = pads or half_of(kernel)
    op = partial(conv.depthwise, stride=stride, padding=pads)
    if h + sum(explicit[0]) < kh or w + sum(explicit[1]) < kw:
        with pytest.raises(ValueError, match=f"a window of {kh} x {kw} does not fit an image of {h} x {w} padded by"):
            jax.eval_shape(op, x, kernel)
        return
    cotangent = np.zeros(output_shape(x, kernel, stride, explicit), np.float32)
    shapes = [result.shape for result in jax.eval_shape(partial(with_gradients, op), x, kernel, cotangent)]
    assert shapes == [cotangent.shape, x.shape, kernel.shape]


@pytest.mark.parametrize(("stride", "pads"), [(1, None), (2, ((0, 1), (2, 1)))])
def test_depthwise_is_the_same_elsewhere(elsewhere, stride, pads):
    x, kernel = draw(1, (2, 5, 6, 3), (3, 3, 1, 3))
    op = partial(conv.depthwise, stride=stride, padding=pads)
    assert_equals_the_equation(op, x, kernel, stride, pads or half_of(kernel), groups=3)


WRAPPED = {  # the op, x, its kernel, the convolution without padding
    "depthwise": (conv.depthwise, (2, 4, 3, 3), (3, 5, 1, 3), 3),
    "stem": (conv.convolution, (2, 3, 4, 3), (3, 3, 3, 4), 1),
    "groups": (partial(conv.convolution, groups=2), (1, 1, 4, 10), (3, 3, 5, 4), 2),
}


@pytest.mark.fast_cases(1)
@pytest.mark.parametrize("name", WRAPPED)
def test_what_wraps_is_the_equation_on_the_tiled_image_as_are_its_gradients(name):
    op, shape, window, groups = WRAPPED[name]
    x, kernel = draw(3, shape, window)
    pads = half_of(kernel)
    (cotangent,) = draw(9, output_shape(x, kernel, 1, pads))
    with jax.enable_x64(True):
        y, dx, dk = jax.jit(partial(with_gradients, partial(op, padding="wrap")))(x, kernel, cotangent)
    rows, columns = (np.arange(-a, n + b) % n for n, (a, b) in zip(shape[1:3], pads, strict=True))
    around, dx_around, dk_around = oracle(x[:, rows][:, :, columns], kernel, cotangent, 1, NO_PADS, groups)
    expected = np.zeros(shape)
    np.add.at(expected, np.s_[:, rows[:, None], columns[None]], dx_around)
    for a, b in ((y, around), (dx, expected), (dk, dk_around)):
        np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12)
    with pytest.raises(ValueError, match="there is no padding 'circular': choose one of"):
        op(x, kernel, padding="circular")


@pytest.fixture
def form_of_groups(request, monkeypatch):
    """Runs the test in each of the two forms that CPU takes of a grouped 1x1 convolution, and in that of the others."""
    only = {"blocks": conv._pointwise_blocks, "slices": conv._pointwise_slices}
    if request.param == "elsewhere":
        monkeypatch.setattr(lax, "platform_dependent", as_elsewhere)
    else:
        for name in ("_pointwise_blocks", "_pointwise_slices"):
            monkeypatch.setattr(conv, name, only[request.param])


FORMS = [("elsewhere", 1), ("elsewhere", 3), ("blocks", 2), ("blocks", 3), ("slices", 2), ("slices", 3), ("slices", 6)]


@pytest.mark.parametrize(("form_of_groups", "groups"), FORMS, indirect=["form_of_groups"])
def test_pointwise_and_its_gradients_equal_the_equation_of_rotated_channels(form_of_groups, groups):
    x, kernel, cotangent = draw(6, (2, 1, 3, 12), (1, 1, 12 // groups, 18), (2, 1, 3, 18))
    rotations = 0, 5, -24 // groups, 31

    @jax.jit
    def every_rotation(*arrays):
        return [with_gradients(partial(conv.pointwise, groups=groups, rotation=r), *arrays) for r in rotations]

    with jax.enable_x64(True):
        results = every_rotation(x, kernel, cotangent)
    for r, actual in zip(rotations, results, strict=True):
        y, x_gradient, kernel_gradient = oracle(np.roll(x, -r, -1), kernel, cotangent, 1, NO_PADS, groups)
        for a, b in zip(actual, (y, np.roll(x_gradient, r, -1), kernel_gradient), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("inputs", "outputs", "groups"), [(1, 3, 5), (6, 1, 4)])
def test_groups_of_one_channel_equal_the_equation_in_both_forms(inputs, outputs, groups):
    arrays = draw(7, (2, 3, 1, groups * inputs), (1, 1, inputs, groups * outputs), (2, 3, 1, groups * outputs))
    forms = [partial(form, groups, 0) for form in (conv._pointwise_blocks, conv._pointwise_slices)]
    with jax.enable_x64(True):
        results = jax.jit(lambda *arrays: [with_gradients(form, *arrays) for form in forms])(*arrays)
    for result in results:
        for a, b in zip(result, oracle(*arrays, 1, NO_PADS, groups), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("groups", [2, 3, 8])
@pytest.mark.parametrize("rotation", [0, 4])
def test_groups_of_few_channels_are_one_product_on_cpu_and_large_ones_a_product_each(groups, rotation):
    for inputs, outputs, products in ((8, 8, 1), (64, 1, 1), (256, 256, groups)):
        x = np.zeros((1, 2, 2, groups * inputs), np.float32)
        kernel = np.zeros((1, 1, inputs, groups * outputs), np.float32)
        traced = jax.jit(partial(conv.pointwise, groups=groups, rotation=rotation)).trace(x, kernel)
        assert traced.lower(lowering_platforms=("cpu",)).as_text().count("stablehlo.dot_general") == products
        assert has_convolution(traced, "cuda")


@pytest.mark.parametrize(
    ("channels", "window", "stride", "pads", "groups"),
    [
        (1, 3, 1, None, 1),
        (3, 3, 2, None, 1),
        (4, 1, 2, None, 1),
        (5, 1, 1, None, 1),
        (3, 4, 2, None, 1),
        (3, 2, 1, ((0, 1), (2, 0)), 1),
        (6, 3, 1, None, 2),
        (6, 3, 2, None, 2),
        (6, 1, 2, None, 2),
    ],
)
def test_convolution_equals_its_equation(channels, window, stride, pads, groups):
    x, kernel = draw(2, (2, 7, 6, channels), (window, window, channels // groups, 4))
    op = partial(conv.convolution, stride=stride, padding=pads, groups=groups)
    assert_equals_the_equation(op, x, kernel, stride, pads or half_of(kernel), groups)


@pytest.mark.parametrize(
    ("channels", "window", "pads", "groups"), [(4, 1, None, 1), (5, 3, ((0, 1), (2, 0)), 1), (6, 3, None, 2)]
)
def test_convolution_is_the_same_elsewhere(elsewhere, channels, window, pads, groups):
    test_convolution_equals_its_equation(channels, window, 2, pads, groups)


OPS = {  # op, kernel shape, stride, groups
    "depthwise": (partial(conv.depthwise, stride=2), (3, 3, 1, 4), 2, 4),
    "pointwise": (conv.pointwise, (1, 1, 4, 6), 1, 1),
    "grouped": (partial(conv.pointwise, groups=2), (1, 1, 2, 6), 1, 2),
    "convolution": (conv.convolution, (3, 3, 4, 5), 1, 1),
}


@pytest.mark.parametrize("name", OPS)
def test_eager_and_a_kernel_per_sample_under_vmap_and_jit(name):
    op, shape, stride, groups = OPS[name]
    x, kernel = draw(3, (3, 2, 5, 5, 4), (3, *shape))
    pads = half_of(kernel[0])
    (cotangent,) = draw(4, (3, *output_shape(x[0], kernel[0], stride, pads)))
    x, kernel, cotangent = (a.astype(np.float32) for a in (x, kernel, cotangent))
    per_sample = jax.jit(jax.vmap(partial(with_gradients, op)))(x, kernel, cotangent)
    for i in range(3):
        expected = oracle(x[i], kernel[i], cotangent[i], stride, pads, groups)
        for actual, value in zip(per_sample, expected, strict=True):
            np.testing.assert_allclose(actual[i], value, rtol=1e-5, atol=1e-5)
    eager = op(jnp.asarray(x[2]), jnp.asarray(kernel[2]))
    np.testing.assert_allclose(eager, expected[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", OPS)
def test_half_precision_is_summed_in_float32_and_rounded_once(name):
    op, shape, stride, groups = OPS[name]
    rng = np.random.default_rng(5)
    pads = half_of(np.empty(shape))
    out = output_shape(np.empty((2, 9, 9, 4)), np.empty(shape), stride, pads)
    # Integers whose sums are exact in float32, in any order, and far from it in bfloat16.
    arrays = [rng.integers(-100, 101, size).astype(jnp.bfloat16) for size in ((2, 9, 9, 4), shape, out)]
    actual = jax.jit(partial(with_gradients, op))(*arrays)
    results = zip(("y", "x", "kernel"), actual, oracle(*arrays, stride, pads, groups), strict=True)
    for of, a, exact in results:
        assert a.dtype == jnp.bfloat16
        if (name, of) != ("convolution", "x"):  # no training takes an image's gradient: it is summed in half precision
            np.testing.assert_array_equal(np.asarray(a, np.float64), exact.astype(jnp.bfloat16).astype(np.float64))


@pytest.mark.parametrize("name", OPS)
def test_gpu_and_tpu_lower_to_the_native_convolution_and_cpu_never_does(name):
    op, shape, _, _ = OPS[name]
    x, kernel = np.zeros((2, 6, 6, 4), np.float32), np.zeros(shape, np.float32)
    traced = jax.jit(jax.grad(lambda x, k: op(x, k).sum(), argnums=(0, 1))).trace(x, kernel)
    assert not has_convolution(traced, "cpu")
    for platform in ("cuda", "tpu"):
        assert has_convolution(traced, platform) == (name != "pointwise")


def test_beyond_a_stem_the_native_convolution_is_taken_on_cpu_too():
    x, kernel = np.zeros((2, 6, 6, 5), np.float32), np.zeros((3, 3, 5, 2), np.float32)
    assert has_convolution(jax.jit(conv.convolution).trace(x, kernel), "cpu")


@pytest.mark.parametrize("groups", [1, 2])
def test_a_1x1_kernel_is_a_product_on_cpu_with_any_stride_and_groups(groups):
    x, kernel = np.zeros((2, 6, 6, 8), np.float32), np.zeros((1, 1, 8 // groups, 4), np.float32)
    traced = jax.jit(lambda x, k: conv.convolution(x, k, stride=2, groups=groups)).trace(x, kernel)
    assert not has_convolution(traced, "cpu")
    assert has_convolution(traced, "cuda")


def has_convolution(traced, platform):
    return "stablehlo.convolution" in traced.lower(lowering_platforms=(platform,)).as_text()


def test_an_image_is_put_together_from_every_third_row_and_column():
    x = np.random.default_rng(0).standard_normal((2, 8, 7, 2)).astype(np.float32)
    around = np.pad(x, ((0, 0), (0, 1), (0, 2), (0, 0)))
    parts = [[around[:, i::3, j::3] for j in range(3)] for i in range(3)]
    np.testing.assert_array_equal(jax.jit(partial(interleave, size=(8, 7)))(parts), x)


@pytest.mark.parametrize("stride", [1, 2, 3])
def test_the_image_gradient_of_a_depthwise_convolution_on_cpu_multiplies_no_zeros(stride):
    gradient, kernel = (np.zeros(shape, np.float32) for shape in ((1, 36 // stride, 36 // stride, 2), (3, 3, 1, 2)))
    form = partial(depthwise_shifts._image_gradient, stride, ((1, 1), (1, 1)), (36, 36))
    text = jax.jit(form).lower(gradient, kernel).as_text()
    products = re.findall(r"stablehlo.multiply .* tensor<(\d+)x(\d+)x(\d+)x(\d+)xf32>", text)
    assert sum(np.prod([int(n) for n in shape]) for shape in products) == 9 * gradient.size


def test_errors_name_value_limit_and_remedy():
    x = np.ones((1, 4, 4, 6), np.float32)

    def kernel(*shape):
        return np.ones(shape, np.float32)

    with pytest.raises(ValueError, match=r"6 channels cannot be split into 4 groups: choose one of \[1, 2, 3, 6\]"):
        conv.pointwise(x, kernel(1, 1, 1, 8), groups=4)
    with pytest.raises(ValueError, match=r"7 channels cannot be split into 2 groups: choose one of \[1, 7\]"):
        conv.pointwise(x, kernel(1, 1, 3, 7), groups=2)
    with pytest.raises(ValueError, match=r"6 channels in 2 groups .* \(1, 1, 3, o\), not \(1, 1, 6, 8\)"):
        conv.pointwise(x, kernel(1, 1, 6, 8), groups=2)
    with pytest.raises(ValueError, match=r"shape \(1, 1, 6, o\), not \(3, 1, 6, 8\)"):
        conv.pointwise(x, kernel(3, 1, 6, 8))
    for wrong in [(3, 3, 6, 1), (3, 3, 1, 12), (3, 3, 2, 6)]:
        with pytest.raises(ValueError, match=re.escape(f"6 channels has the shape (kh, kw, 1, 6), not {wrong}")):
            conv.depthwise(x, kernel(*wrong))
    with pytest.raises(ValueError, match=r"6 channels has the shape \(kh, kw, 6, o\), not \(3, 3, 1, 8\)"):
        conv.convolution(x, kernel(3, 3, 1, 8))
    with pytest.raises(ValueError, match=r"window of 2 x 7 .* 4 x 4 padded by \(\(0, 0\), \(1, 1\)\): use a larger"):
        conv.convolution(x, kernel(2, 7, 6, 8), padding=((0, 0), (1, 1)))
