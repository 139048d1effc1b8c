"""The fused step is its definition in every form, and compiles to what the folding promises."""

from __future__ import annotations

import re
from functools import partial
from math import prod
from typing import get_args

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax

from shuffle_jax.ops import convolution
from shuffle_jax.ops.shift import GRID, LEFT_UP_RIGHT_DOWN, Boundary
from shuffle_jax.ops.shifted_pointwise import shifted_pointwise

BOUNDARIES = get_args(Boundary)
FORMS = ("plain", "folded")
compiled = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})  # half the compilation


def sources(shape, rotation, offsets, boundary):
    """Where each value of the shifted image comes from, ``(c, h, w)`` indices into a raveled image; -1 for a zero."""
    _, h, w, c = shape
    cells = np.roll(np.arange(h * w * c).reshape(h, w, c).transpose(2, 0, 1), -rotation, axis=0)
    moved = cells.copy()
    for i in range(c):
        dh, dw = offsets[i * len(offsets) // c] if offsets else (0, 0)
        if boundary == "pointer":  # the flat buffer, one channel after the other, seen from a moved pointer
            moved[i] = np.roll(cells.ravel(), -(dh * w + dw)).reshape(c, h, w)[i]
        elif boundary == "wrap":
            moved[i] = np.roll(cells[i], (-dh, -dw), axis=(0, 1))
        else:
            moved[i] = np.pad(cells[i], ((h, h), (w, w)), constant_values=-1)[h + dh :, w + dw :][:h, :w]
    return moved


def oracle(x, kernel, cotangent, groups, rotation, offsets, boundary):
    """The definition and its two adjoints."""
    index = sources(x.shape, rotation, offsets, boundary)
    n, h, w, c = x.shape
    groups_of = (n, groups, -1, h, w)
    shifted = np.where(index < 0, 0, x.reshape(n, -1)[:, index]).reshape(groups_of)
    matrices = kernel.reshape(c // groups, groups, -1)
    y = np.einsum("nkihw,iko->nhwko", shifted, matrices)
    gradient = cotangent.reshape(y.shape)
    kernel_gradient = np.einsum("nkihw,nhwko->iko", shifted, gradient).reshape(kernel.shape)
    spread = np.einsum("nhwko,iko->nkihw", gradient, matrices).reshape(n, -1)
    x_gradient = np.zeros((n, h * w * c), x.dtype)
    for image, values in zip(x_gradient, spread, strict=True):
        np.add.at(image, index[index >= 0], values[index.ravel() >= 0])
    return y.reshape(cotangent.shape), x_gradient.reshape(x.shape), kernel_gradient


def integers(shape, outputs, groups, seed=0):
    """Image, kernel and cotangent, whose sums of products are exact in float32 in any order."""
    rng = np.random.default_rng(seed)
    shapes = shape, (1, 1, shape[-1] // groups, outputs), (*shape[:-1], outputs)
    return [rng.integers(-8, 9, size).astype(np.float32) for size in shapes]


def with_gradients(op, x, kernel, cotangent):
    y, pull_back = jax.vjp(op, x, kernel)
    return y, *pull_back(cotangent)


def ops(groups, rotation, offsets, boundaries=BOUNDARIES, forms=FORMS):
    options = {"groups": groups, "rotation": rotation, "offsets": offsets}
    return {
        (boundary, form): partial(shifted_pointwise, **options, boundary=boundary, form=form)
        for boundary in boundaries
        for form in forms
    }


def assert_is_the_definition(shape, outputs, groups, rotation, offsets, boundaries=BOUNDARIES, forms=FORMS):
    arrays = integers(shape, outputs, groups)
    variants = ops(groups, rotation, offsets, boundaries, forms)
    results = compiled(lambda *arrays: [with_gradients(op, *arrays) for op in variants.values()])(*arrays)
    for (boundary, form), actual in zip(variants, results, strict=True):
        expected = oracle(*arrays, groups, rotation, offsets, boundary)
        for name, a, b in zip(("y", "dx", "dK"), actual, expected, strict=True):
            np.testing.assert_array_equal(a, b, err_msg=f"{name} of {form!r} with {boundary!r}", strict=True)


CASES = {  # shape of x, outputs, groups, rotation, offsets
    "as in AddressNet": ((2, 3, 5, 8), 4, 4, 1, LEFT_UP_RIGHT_DOWN),
    "several groups to a direction, rotated to the right": ((1, 3, 2, 16), 8, 8, -3, LEFT_UP_RIGHT_DOWN),
    "several directions to a group, rotated past the end": ((1, 2, 3, 8), 2, 2, 11, LEFT_UP_RIGHT_DOWN),
    "three directions across two groups": ((1, 3, 2, 12), 2, 2, 2, ((1, -1), (-1, 0), (0, 1))),
    "one group": ((1, 3, 3, 12), 2, 1, 1, LEFT_UP_RIGHT_DOWN),
    "more outputs than inputs": ((1, 2, 3, 4), 8, 4, 3, LEFT_UP_RIGHT_DOWN),
    "one pixel": ((1, 1, 1, 8), 4, 4, 1, LEFT_UP_RIGHT_DOWN),
    "as far as the image, not rotated": ((1, 2, 3, 6), 3, 3, 0, ((2, 3), (-2, -3), (0, 0))),
    "no direction": ((2, 2, 3, 6), 4, 2, 4, ()),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.fast_cases(4)
def test_both_forms_are_the_definition_and_so_are_their_gradients(name):
    assert_is_the_definition(*CASES[name])


@st.composite
def steps(draw):
    height, width = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    offset = st.tuples(st.integers(-height, height), st.integers(-width, width))
    offsets = tuple(draw(st.lists(offset, max_size=4)))
    groups = draw(st.integers(1, 4))
    channels = np.lcm(groups, max(len(offsets), 1)) * draw(st.integers(1, 2))
    shape = (draw(st.integers(1, 2)), height, width, int(channels))
    return shape, groups * draw(st.integers(1, 2)), groups, draw(st.integers(-30, 30)), offsets


@settings(max_examples=8)
@given(steps(), st.sampled_from(BOUNDARIES))
def test_any_groups_directions_rotation_and_size(case, boundary):
    assert_is_the_definition(*case, boundaries=[boundary], forms=["folded"])


@pytest.mark.parametrize("where", ["in slices, as CPU does for many channels", "elsewhere"])
def test_the_folding_does_not_depend_on_how_groups_are_convolved(where, monkeypatch):
    if where == "elsewhere":
        monkeypatch.setattr(lax, "platform_dependent", lambda *args, default, **platforms: default(*args))
    else:
        monkeypatch.setattr(convolution, "_BLOCK_CHANNELS", 0)
    assert_is_the_definition(*CASES["as in AddressNet"], forms=["folded"])
    assert_is_the_definition((1, 2, 3, 8), 4, 4, 2, LEFT_UP_RIGHT_DOWN, ["pointer"], ["folded"])


def test_eager_jit_and_vmap_agree_and_auto_is_folded():
    shape, outputs, groups, rotation, offsets = CASES["as in AddressNet"]
    several = [
        np.stack(arrays) for arrays in zip(*(integers(shape, outputs, groups, seed) for seed in (1, 2)), strict=True)
    ]
    op = partial(shifted_pointwise, groups=groups, rotation=rotation, offsets=offsets)
    mapped = compiled(jax.vmap(partial(with_gradients, op)))(*several)
    for i in range(2):
        expected = oracle(*(array[i] for array in several), groups, rotation, offsets, "pointer")
        for a, b in zip(mapped, expected, strict=True):
            np.testing.assert_array_equal(a[i], b, strict=True)
    x, kernel = (jnp.asarray(array[0]) for array in several[:2])
    np.testing.assert_array_equal(op(x, kernel), mapped[0][0], strict=True)
    auto, folded = (str(jax.make_jaxpr(partial(op, form=form))(x, kernel)) for form in ("auto", "folded"))
    assert auto == folded != str(jax.make_jaxpr(partial(op, form="plain"))(x, kernel))


@pytest.mark.parametrize("name", ["one group", "more outputs than inputs"])
def test_folded_is_plain_with_one_group_and_with_more_products_than_image(name):
    shape, outputs, groups, *rest = CASES[name]
    x, kernel, _ = integers(shape, outputs, groups)
    plain, folded = (str(jax.make_jaxpr(op)(x, kernel)) for op in ops(groups, *rest, ["zero"]).values())
    assert folded == plain


@pytest.mark.parametrize("form", FORMS)
def test_half_precision_is_summed_in_float32_and_rounded_once(form):
    # Integers whose sums are exact in float32, and far from it in bfloat16.
    rng = np.random.default_rng(3)
    x, kernel = (rng.integers(-100, 101, size).astype(np.float32) for size in ((1, 3, 3, 8), (1, 1, 4, 2)))
    y = compiled(partial(shifted_pointwise, groups=2, rotation=3, offsets=GRID[:2], form=form))(
        x.astype(jnp.bfloat16), kernel.astype(jnp.bfloat16)
    )
    exact = oracle(x, kernel, np.zeros((1, 3, 3, 2), np.float32), 2, 3, GRID[:2], "pointer")[0]
    np.testing.assert_array_equal(y, exact.astype(jnp.bfloat16), strict=True)


def compile_for(op, shape, outputs, groups):
    return jax.jit(op).lower(*integers(shape, outputs, groups)[:2]).compile()


def bytes_accessed(program):
    analysis = program.cost_analysis()
    return (analysis[0] if isinstance(analysis, list) else analysis)["bytes accessed"]


def written(program):
    """How many values each array holds that the compiled program writes, except results of its fused operations."""
    entry = program.as_text().split("\nENTRY ")[1]
    lines = re.findall(r"= \w+\[([\d,]*)\]\S* ([\w-]+)\(", entry)
    return [prod(map(int, filter(None, size.split(",")))) for size, op in lines if op not in ("parameter", "bitcast")]


def test_a_channel_shift_alone_costs_no_pass_over_the_image():
    outputs, groups, rotation = 16, 4, 4
    block_matrix = 4 * 32 * outputs  # bytes; its rows are rotated once
    for n in (2, 8):
        shape = (n, 8, 8, 32)
        image = 4 * prod(shape)
        without = bytes_accessed(compile_for(partial(convolution.pointwise, groups=groups), shape, outputs, groups))
        step = partial(shifted_pointwise, groups=groups, rotation=rotation, offsets=())
        plain, folded = (
            bytes_accessed(compile_for(partial(step, form=form), shape, outputs, groups)) for form in FORMS
        )
        assert folded - without <= 2 * block_matrix
        assert plain - without >= 2 * image


def test_of_many_channels_a_rotation_puts_one_group_together_and_by_whole_groups_none():
    shape, outputs, groups = (2, 4, 4, 256), 64, 4
    image = 4 * prod(shape)
    without = bytes_accessed(compile_for(partial(convolution.pointwise, groups=groups), shape, outputs, groups))

    def more(rotation, form):
        step = partial(shifted_pointwise, groups=groups, rotation=rotation, offsets=(), form=form)
        return bytes_accessed(compile_for(step, shape, outputs, groups)) - without

    assert more(-64, "folded") <= 0
    assert more(32, "folded") <= 2 * image / groups
    assert more(32, "plain") >= 2 * image


@pytest.mark.parametrize("boundary", BOUNDARIES)
def test_folded_writes_nothing_larger_than_its_output(boundary):
    shape, outputs, groups = (2, 5, 7, 32), 4, 4  # the output is half as large as a group of the image
    largest = {
        form: max(written(compile_for(op, shape, outputs, groups)))
        for (_, form), op in ops(groups, 4, LEFT_UP_RIGHT_DOWN, [boundary]).items()
    }
    assert largest["folded"] <= 2 * 5 * 7 * outputs
    assert largest["plain"] == prod(shape)


def test_errors_name_value_limit_and_remedy():
    x, kernel, _ = integers((1, 3, 2, 8), 4, 4)
    for error, options in {
        r"no form 'fast': choose one of \['auto', 'plain', 'folded', 'kernel'\]": {"form": "fast"},
        r"no boundary 'same': choose one of \['pointer', 'zero', 'wrap'\]": {"boundary": "same"},
        r"8 channels cannot move in 3 directions: give a multiple of 3": {"offsets": ((0, 1), (1, 0), (0, 0))},
        r"a shift by \(0, -3\) is larger than the image of 3 x 2: give offsets within it": {"offsets": ((0, -3),)},
        r"8 channels cannot be split into 3 groups: choose one of \[1, 2, 4, 8\]": {"groups": 3},
        r"8 channels in 2 groups has the shape \(1, 1, 4, o\), not \(1, 1, 2, 4\)": {"groups": 2},
        r"\"kernel\" runs on GPU and this is 'cpu': take the form \"folded\"": {"form": "kernel"},
    }.items():
        with pytest.raises(ValueError, match=error):
            shifted_pointwise(x, kernel, **options)
