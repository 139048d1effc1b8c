"""Every form of every convolution equals the native one, forward and backward."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax import lax

from shuffle_jax.ops import convolution as conv


def native(x, kernel, stride, pads, groups=1):
    return lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        pads,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )


def draw(seed, *shapes, dtype=np.float64):
    rng = np.random.default_rng(seed)
    return [jnp.asarray(rng.standard_normal(shape), dtype) for shape in shapes]


def assert_same_with_gradients(one, other, *args, rtol=1e-12):
    expected, pull_back = jax.vjp(other, *args)
    actual, pull_back_actual = jax.vjp(one, *args)
    np.testing.assert_allclose(actual, expected, rtol=rtol, atol=rtol)
    (cotangent,) = draw(9, expected.shape, dtype=expected.dtype)
    for a, b in zip(pull_back_actual(cotangent), pull_back(cotangent), strict=True):
        np.testing.assert_allclose(a, b, rtol=rtol, atol=rtol * 10)


@given(
    h=st.integers(1, 7),
    w=st.integers(1, 7),
    kh=st.integers(1, 4),
    kw=st.integers(1, 5),
    stride=st.integers(1, 3),
    pads=st.none() | st.tuples(*[st.tuples(st.integers(0, 4), st.integers(0, 4))] * 2),
)
def test_depthwise_equals_native_for_any_window(h, w, kh, kw, stride, pads):
    with jax.enable_x64(True):
        x, kernel = draw(0, (2, h, w, 3), (kh, kw, 1, 3))
        explicit = pads or ((kh // 2, kh // 2), (kw // 2, kw // 2))
        if h + sum(explicit[0]) < kh or w + sum(explicit[1]) < kw:
            with pytest.raises(ValueError, match="does not fit an image"):
                conv.depthwise(x, kernel, stride, pads)
            return
        assert_same_with_gradients(
            lambda x, k: conv.depthwise(x, k, stride, pads),
            lambda x, k: native(x, k, stride, explicit, groups=3),
            x,
            kernel,
        )


@pytest.mark.parametrize("groups", [1, 2, 3, 6])
def test_pointwise_equals_native(groups):
    with jax.enable_x64(True):
        x, kernel = draw(1, (2, 3, 5, 6), (1, 1, 6 // groups, 12))
        assert_same_with_gradients(
            lambda x, k: conv.pointwise(x, k, groups),
            lambda x, k: native(x, k, 1, ((0, 0), (0, 0)), groups),
            x,
            kernel,
        )


@pytest.mark.parametrize(("channels", "window", "stride"), [(1, 3, 1), (3, 3, 2), (4, 1, 2), (5, 3, 2), (3, 7, 2)])
def test_convolution_equals_native(channels, window, stride):
    with jax.enable_x64(True):
        x, kernel = draw(2, (2, 7, 6, channels), (window, window, channels, 4))
        pads = ((window // 2, window // 2),) * 2
        assert_same_with_gradients(
            lambda x, k: conv.convolution(x, k, stride), lambda x, k: native(x, k, stride, pads), x, kernel
        )


OPS = {
    "depthwise": (partial(conv.depthwise, stride=2), (3, 3, 1, 4)),
    "pointwise": (conv.pointwise, (1, 1, 4, 6)),
    "grouped": (partial(conv.pointwise, groups=2), (1, 1, 2, 6)),
    "convolution": (conv.convolution, (3, 3, 4, 5)),
}


@pytest.mark.parametrize("name", OPS)
def test_jit_and_vmap_equal_eager(name):
    op, shape = OPS[name]
    x, kernel = draw(3, (3, 2, 5, 5, 4), (3, *shape), dtype=np.float32)
    eager = jnp.stack([op(x[i], kernel[i]) for i in range(3)])
    np.testing.assert_allclose(jax.vmap(op)(x, kernel), eager, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(jax.jit(op)(x[0], kernel[0]), eager[0], rtol=1e-5, atol=1e-5)

    def loss(x, kernel):
        return jnp.sin(op(x, kernel)).sum()

    per_sample = jax.vmap(jax.grad(loss, argnums=1))(x, kernel)
    np.testing.assert_allclose(per_sample[1], jax.grad(loss, argnums=1)(x[1], kernel[1]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", OPS)
def test_half_precision_is_summed_in_float32(name):
    op, shape = OPS[name]
    x, kernel = draw(4, (2, 9, 9, 4), shape, dtype=np.float32)
    x, kernel = x.astype(jnp.bfloat16), kernel.astype(jnp.bfloat16)
    half = op(x, kernel)
    assert half.dtype == jnp.bfloat16
    full = op(x.astype(jnp.float32), kernel.astype(jnp.float32))
    np.testing.assert_allclose(half.astype(np.float32), full, rtol=2**-7, atol=2**-7)
    gradient = jax.grad(lambda k: op(x, k).astype(jnp.float32).sum())(kernel)
    exact = jax.grad(lambda k: op(x.astype(jnp.float32), k).sum())(kernel.astype(jnp.float32))
    np.testing.assert_allclose(gradient.astype(np.float32), exact, rtol=2**-7, atol=2**-6)


@pytest.mark.parametrize("name", OPS)
def test_gpu_and_tpu_lower_to_the_native_convolution_and_cpu_never_does(name):
    op, shape = OPS[name]
    x, kernel = draw(5, (2, 6, 6, 4), shape, dtype=np.float32)
    traced = jax.jit(jax.grad(lambda x, k: op(x, k).sum(), argnums=(0, 1))).trace(x, kernel)
    cpu = traced.lower(lowering_platforms=("cpu",)).as_text()
    cuda = traced.lower(lowering_platforms=("cuda",)).as_text()
    assert "stablehlo.convolution" not in cpu
    assert ("stablehlo.convolution" in cuda) == (name != "pointwise")


def test_errors_name_value_limit_and_remedy():
    x = jnp.ones((1, 4, 4, 6))
    with pytest.raises(ValueError, match=r"6 channels cannot be split into 4 groups: choose one of \[1, 2, 3, 6\]"):
        conv.pointwise(x, jnp.ones((1, 1, 1, 8)), groups=4)
    with pytest.raises(ValueError, match=r"shape \(1, 1, 3, o\), not \(1, 1, 6, 8\)"):
        conv.pointwise(x, jnp.ones((1, 1, 6, 8)), groups=2)
    with pytest.raises(ValueError, match=r"shape \(kh, kw, 1, 6\), not \(3, 3, 6, 1\)"):
        conv.depthwise(x, jnp.ones((3, 3, 6, 1)))
    with pytest.raises(ValueError, match=r"shape \(kh, kw, 6, o\), not \(3, 3, 1, 8\)"):
        conv.convolution(x, jnp.ones((3, 3, 1, 8)))
