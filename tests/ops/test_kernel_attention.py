"""A weighted sum of kernels is one function, whether kernels or features are summed."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax

from shuffle_jax.ops import convolution, kernel_attention, per_sample

CASES = {  # h, w, c, o, kh, kw, stride, padding, groups, K
    "pointwise": (3, 4, 6, 8, 1, 1, 1, None, 1, 4),
    "pointwise in groups": (3, 4, 6, 4, 1, 1, 1, None, 2, 3),
    "as in the networks": (6, 5, 5, 4, 3, 3, 2, None, 1, 4),
    "in groups": (4, 4, 6, 9, 3, 3, 1, None, 3, 2),
    "depthwise": (4, 5, 4, 4, 3, 3, 2, None, 4, 3),
    "one position": (1, 1, 5, 4, 3, 3, 1, None, 1, 4),
    "a single kernel": (4, 3, 5, 6, 2, 3, 1, ((1, 0), (0, 2)), 1, 1),
}


def draw(case, n=3, dtype=np.float64):
    h, w, c, o, kh, kw, _, _, groups, count = case
    rng = np.random.default_rng(0)
    shapes = (n, h, w, c), (count, kh, kw, c // groups, o), (n, count)
    return [rng.standard_normal(shape).astype(dtype) for shape in shapes]


def options_of(case):
    return {"stride": case[6], "padding": case[7], "groups": case[8]}


def one_by_one(x, kernels, weights, **options):
    """``sum_k r_k (W_k * x)``, kernel by kernel, as the definition reads."""
    ys = [convolution.convolution(x, kernel, **options) for kernel in kernels]
    return sum(weights[:, k].reshape(-1, 1, 1, 1) * y for k, y in enumerate(ys))


def with_kernels(x, kernels, weights, **options):
    return per_sample.convolution(x, kernel_attention.aggregate(weights, kernels), **options)


def with_gradients(op, *arrays):
    y, pull_back = jax.vjp(op, *arrays)
    cotangent = np.random.default_rng(1).standard_normal(y.shape)
    return y, *pull_back(jnp.asarray(cotangent, y.dtype))


@pytest.mark.parametrize("name", CASES)
@pytest.mark.fast_cases(3)
def test_features_and_kernels_are_the_definition_with_all_gradients(name):
    case = CASES[name]
    ops = [partial(op, **options_of(case)) for op in (kernel_attention.mix_features, with_kernels, one_by_one)]
    with jax.enable_x64(True):
        every = jax.jit(lambda *arrays: [with_gradients(op, *arrays) for op in ops])
        features, kernels, expected = every(*draw(case))
        for one, other, wanted in zip(features, kernels, expected, strict=True):
            np.testing.assert_allclose(one, wanted, rtol=1e-11, atol=1e-11, strict=True)
            np.testing.assert_allclose(other, wanted, rtol=1e-11, atol=1e-11, strict=True)


@settings(max_examples=5)
@given(
    count=st.integers(1, 4),
    window=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    size=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    stride=st.integers(1, 2),
    groups=st.integers(1, 3),
    per_group=st.tuples(st.integers(1, 2), st.integers(1, 2)),
)
def test_a_one_hot_row_chooses_one_kernel(count, window, size, stride, groups, per_group):
    inputs, outputs = per_group
    case = (*size, groups * inputs, groups * outputs, *window, stride, None, groups, count)
    x, kernels, _ = draw(case, dtype=np.float32)
    chosen = np.arange(3) % count
    weights, options = np.eye(count, dtype=np.float32)[chosen], options_of(case)

    @jax.jit
    def every(x, kernels, weights):
        static = [convolution.convolution(x, kernel, **options) for kernel in kernels]
        return static, [op(x, kernels, weights, **options) for op in (kernel_attention.mix_features, with_kernels)]

    static, mixed = every(x, kernels, weights)
    expected = np.stack([static[k][i] for i, k in enumerate(chosen)])
    for y in mixed:
        np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5, strict=True)


def test_aggregates_parts_of_any_shape():
    rng = np.random.default_rng(2)
    weights = rng.standard_normal((3, 4)).astype(np.float32)
    for shape in ((), (5,), (2, 1, 3)):
        parts = rng.standard_normal((4, *shape)).astype(np.float32)
        expected = np.stack([sum(r * part for r, part in zip(row, parts, strict=True)) for row in weights])
        np.testing.assert_allclose(jax.jit(kernel_attention.aggregate)(weights, parts), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["as in the networks", "in groups"])
def test_half_precision_stays_half(name):
    half = [array.astype(jnp.bfloat16) for array in draw(CASES[name])]
    options = options_of(CASES[name])

    @jax.jit
    def every(full, half):
        mixed = [op(*half, **options) for op in (kernel_attention.mix_features, with_kernels)]
        return one_by_one(*full, **options), mixed

    expected, mixed = every([array.astype(np.float32) for array in half], half)
    for y in mixed:
        assert y.dtype == jnp.bfloat16
        np.testing.assert_allclose(np.asarray(y, np.float32), expected, atol=2**-6 * float(np.abs(expected).max()))


def multiplications(jaxpr):
    """Scalar products that a program takes, from the shapes in it."""
    total = 0
    for equation in jaxpr.eqns:
        out = equation.outvars[0].aval
        match equation.primitive.name:
            case "dot_general":
                (contracted, _), _ = equation.params["dimension_numbers"]
                total += out.size * int(np.prod([equation.invars[0].aval.shape[axis] for axis in contracted]))
            case "conv_general_dilated":
                total += out.size * int(np.prod(equation.invars[1].aval.shape[:3]))
            case "mul":
                total += out.size
        inner = [getattr(value, "jaxpr", value) for value in equation.params.values()]
        total += sum(multiplications(value) for value in inner if hasattr(value, "eqns"))
    return total


@pytest.mark.parametrize("name", CASES)
def test_multiply_adds_are_the_products_in_the_program_of_one_image(name, monkeypatch):
    monkeypatch.setattr(lax, "platform_dependent", lambda *args, default, **platforms: default(*args))
    case = CASES[name]
    _, _, c, o, kh, kw, _, _, groups, count = case
    x, kernels, weights = draw(case, n=1, dtype=np.float32)
    biases = np.zeros((count, o), np.float32)
    programs = [
        jax.make_jaxpr(partial(op, **options_of(case)))(x, kernels, weights)
        for op in (kernel_attention.mix_features, with_kernels)
    ]
    positions = programs[0].out_avals[0].size // o
    taken = tuple(multiplications(program.jaxpr) for program in programs)
    assert kernel_attention.multiply_adds(positions, (kh, kw), c, o, groups, count, use_bias=False) == taken
    extra = multiplications(jax.make_jaxpr(kernel_attention.aggregate)(weights, biases).jaxpr)
    with_biases = kernel_attention.multiply_adds(positions, (kh, kw), c, o, groups, count, use_bias=True)
    assert with_biases == tuple(number + extra for number in taken)


def test_kernels_are_cheaper_unless_positions_are_few():
    def cheaper(positions, count):
        features, kernels = kernel_attention.multiply_adds(positions, (1, 1), 64, 64, 1, count, use_bias=False)
        return "features" if features <= kernels else "kernels"

    assert [cheaper(1, count) for count in (1, 4, 64, 65)] == ["features", "features", "features", "kernels"]
    assert cheaper(2, 4) == cheaper(49, 4) == "kernels"


def test_groups_that_do_not_fit_are_named():
    x, kernels, weights = draw(CASES["pointwise"], dtype=np.float32)
    with pytest.raises(ValueError, match=r"8 channels cannot be split into 3 groups: choose one of \[1, 2, 4, 8\]"):
        kernel_attention.mix_features(x, kernels, weights, groups=3)
    with pytest.raises(ValueError, match=r"6 channels in 2 groups .* \(kh, kw, 3, o\), not \(1, 1, 6, 32\)"):
        kernel_attention.mix_features(x, kernels, weights, groups=2)
