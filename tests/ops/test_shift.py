"""Every shift reads from where its definition says, and its gradient writes there: both told value by value."""

from __future__ import annotations

import re
from functools import partial
from typing import get_args

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax

from shuffle_jax.ops import mixing, permutation, shift
from shuffle_jax.ops.shift import GRID, LEFT_UP_RIGHT_DOWN

BOUNDARIES = get_args(shift.Boundary)


def integers(*shapes, seed=0):
    """Small integers in float32: their sums of products are exact in any order."""
    rng = np.random.default_rng(seed)
    return [rng.integers(-8, 9, shape).astype(np.float32) for shape in shapes]


def source(shape, offsets, boundary):
    """Where in an image each value of a shifted one comes from, as an index into the raveled image; -1 for a zero."""
    _, height, width, channels = shape
    index = np.full(shape[1:], -1)
    for h, w, i in np.ndindex(height, width, channels):
        dh, dw = offsets[i * len(offsets) // channels] if offsets else (0, 0)
        row, column, channel = h + dh, w + dw, i
        if boundary == "pointer":  # In memory that holds one channel after the other.
            cell = ((i * height + h) * width + w + dh * width + dw) % (channels * height * width)
            channel, row, column = cell // (height * width), cell // width % height, cell % width
        elif boundary == "wrap":
            row, column = row % height, column % width
        if 0 <= row < height and 0 <= column < width:
            index[h, w, i] = (row * width + column) * channels + channel
    return index


def gather(x, index):
    """What an image reads by :func:`source`."""
    return np.where(index < 0, 0, x.reshape(len(x), -1)[:, index])


def scatter(y, index):
    """The transpose of :func:`gather`: every value is added to where it came from."""
    x = np.zeros((len(y), index.size), y.dtype)
    for image, values in zip(x, y, strict=True):
        np.add.at(image, index[index >= 0], values[index >= 0])
    return x.reshape(y.shape)


def value_and_derivatives(op, x, tangent, cotangent):
    """``S x``, ``dS t`` and ``S^T u``."""
    y, moved = jax.jvp(op, (x,), (tangent,))
    (back,) = jax.vjp(op, x)[1](cotangent)
    return y, moved, back


@partial(jax.jit, static_argnums=(3, 4))
def of_address_shift(x, tangent, cotangent, offsets, boundaries=BOUNDARIES):
    shifts = [partial(shift.address_shift, offsets=offsets, boundary=boundary) for boundary in boundaries]
    return [value_and_derivatives(op, x, tangent, cotangent) for op in shifts]


def assert_reads(index, results, x, tangent, cotangent):
    """The results of :func:`value_and_derivatives`, bit for bit, and the law of the adjoint."""
    y, moved, back = map(np.asarray, results)
    np.testing.assert_array_equal(y, gather(x, index))
    np.testing.assert_array_equal(moved, gather(tangent, index))
    np.testing.assert_array_equal(back, scatter(cotangent, index))
    assert np.vdot(y, cotangent) == np.vdot(x, back)


CASES = {  # n, h, w, c, offsets
    "the four of the paper": ((2, 3, 5, 8), LEFT_UP_RIGHT_DOWN),
    "one pixel": ((2, 1, 1, 8), LEFT_UP_RIGHT_DOWN),
    "one row": ((1, 1, 4, 4), LEFT_UP_RIGHT_DOWN),
    "one column": ((1, 4, 1, 4), LEFT_UP_RIGHT_DOWN),
    "one direction": ((1, 3, 4, 3), ((1, -1),)),
    "nine directions": ((1, 3, 2, 18), GRID),
    "the image's size": ((1, 2, 3, 6), ((2, 0), (0, 3), (-2, 0), (0, -3), (2, 3), (-2, -3))),
    "a first channel that reads before it": ((1, 2, 3, 2), ((-2, -3), (2, 3))),
    "no move": ((1, 2, 2, 2), ((0, 0), (0, 0))),
    "no direction": ((1, 2, 2, 3), ()),
}


@pytest.mark.parametrize("name", CASES)
def test_address_shift_and_its_derivatives_read_value_by_value(name):
    shape, offsets = CASES[name]
    arrays = integers(shape, shape, shape)
    for boundary, results in zip(BOUNDARIES, of_address_shift(*arrays, offsets), strict=True):
        assert_reads(source(shape, offsets, boundary), results, *arrays)


@st.composite
def shifts(draw):
    height, width = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    offset = st.tuples(st.integers(-height, height), st.integers(-width, width))
    offsets = draw(st.lists(offset, min_size=1, max_size=5))
    return (draw(st.integers(1, 2)), height, width, len(offsets) * draw(st.integers(1, 3))), tuple(offsets)


@settings(max_examples=8)
@given(shifts(), st.sampled_from(BOUNDARIES))
def test_any_offsets_within_the_image_of_any_size(case, boundary):
    shape, offsets = case
    x, cotangent = integers(shape, shape)

    @jax.jit
    def value_and_gradient(x, cotangent):
        y, pull_back = jax.vjp(partial(shift.address_shift, offsets=offsets, boundary=boundary), x)
        return y, *pull_back(cotangent)

    y, back = value_and_gradient(x, cotangent)
    index = source(shape, offsets, boundary)
    np.testing.assert_array_equal(y, gather(x, index))
    np.testing.assert_array_equal(back, scatter(cotangent, index))


def test_the_second_derivative_of_cubes_is_read_and_written_as_well():
    x, tangent = integers((2, 3, 2, 8), (2, 3, 2, 8))
    shifts = [partial(shift.address_shift, boundary=boundary) for boundary in BOUNDARIES]

    @jax.jit
    def along_tangent(x, tangent):
        gradients = [jax.grad(lambda x, op=op: (op(x) ** 3).sum()) for op in shifts]
        return [jax.jvp(gradient, (x,), (tangent,))[1] for gradient in gradients]

    for boundary, second in zip(BOUNDARIES, along_tangent(x, tangent), strict=True):
        index = source(x.shape, LEFT_UP_RIGHT_DOWN, boundary)
        np.testing.assert_array_equal(second, scatter(6 * gather(x, index) * gather(tangent, index), index))


SHAPES = [(2, 1, 1, 4), (1, 1, 5, 8), (1, 5, 1, 4), (2, 3, 5, 12)]


@pytest.mark.parametrize("shape", SHAPES)
def test_a_pointer_is_moved_in_channel_major_memory_and_stays_in_its_sample(shape):
    n, h, w, c = shape
    x, *others = integers(shape, shape, shape)
    memory, size = x.transpose(0, 3, 1, 2).reshape(n, -1), c // 4 * h * w
    # A slice that left the sample would be cut short: no wrap-around is there to be used.
    reads = [memory[:, i * size + o : (i + 1) * size + o] for i, o in enumerate((1, w, -1, -w))]
    assert [read.shape for read in reads] == [(n, size)] * 4
    expected = np.concatenate(reads, axis=1).reshape(n, c, h, w).transpose(0, 2, 3, 1)
    (results,) = of_address_shift(x, *others, LEFT_UP_RIGHT_DOWN, ("pointer",))
    np.testing.assert_array_equal(results[0], expected)


@pytest.mark.parametrize("offsets", [LEFT_UP_RIGHT_DOWN, ((2, -1), (0, 2), (-1, -1), (0, 0), (1, 2), (-2, 1))])
def test_zeros_make_a_depthwise_convolution_with_one_tap_each(offsets):
    x, (rows, columns) = integers((2, 4, 5, 12))[0], np.abs(offsets).max(0)
    kernel = np.zeros((2 * rows + 1, 2 * columns + 1, 1, 12), np.float32)
    for i in range(12):
        dh, dw = offsets[i * len(offsets) // 12]
        kernel[rows + dh, columns + dw, 0, i] = 1
    layout = ("NHWC", "HWIO", "NHWC")
    pads = ((rows, rows), (columns, columns))
    expected = lax.conv_general_dilated(x, kernel, (1, 1), pads, dimension_numbers=layout, feature_group_count=12)
    np.testing.assert_array_equal(jax.jit(partial(shift.address_shift, offsets=offsets, boundary="zero"))(x), expected)


def test_wrap_is_a_roll_of_every_group_and_left_moves_to_the_left():
    (x,) = integers((2, 3, 4, 8))
    y = jax.jit(partial(shift.address_shift, boundary="wrap"))(x)
    moves = zip(np.split(x, 4, -1), ((-1, 2), (-1, 1), (1, 2), (1, 1)), strict=True)
    np.testing.assert_array_equal(y, np.concatenate([np.roll(part, by, axis) for part, (by, axis) in moves], -1))
    np.testing.assert_array_equal(np.asarray(y)[:, :, :-1, :2], x[:, :, 1:, :2])  # Left, the first.


def test_boundaries_agree_inside_and_there_alone():
    offsets = ((0, 1), (2, 0), (0, -1), (-1, -1))
    x = np.random.default_rng(0).standard_normal((1, 5, 6, 8)).astype(np.float32)
    pointer, zero, wrap = (np.asarray(results[0]) for results in of_address_shift(x, x, x, offsets))
    inside = np.zeros(x.shape, bool)
    inside[:, :, :-1, :2] = inside[:, :-2, :, 2:4] = inside[:, :, 1:, 4:6] = inside[:, 1:, 1:, 6:] = True
    for a, b in ((pointer, zero), (zero, wrap), (wrap, pointer)):
        np.testing.assert_array_equal(a == b, inside)


def test_rolls_are_permutations_and_zeros_make_a_partial_one():
    x, y = integers((2, 3, 4, 8), (2, 3, 4, 8))

    def there_and_back(op):
        return jax.jit(lambda x: jax.vjp(op, x)[1](op(x))[0])(x)  # S^T S x

    np.testing.assert_array_equal(there_and_back(partial(shift.address_shift, boundary="wrap")), x)
    np.testing.assert_array_equal(there_and_back(partial(shift.channel_shift, groups=2)), x)
    kept = x.copy()
    kept[:, :, 0, :2] = kept[:, 0, :, 2:4] = kept[:, :, -1, 4:6] = kept[:, -1, :, 6:] = 0  # Moved out of the image.
    np.testing.assert_array_equal(there_and_back(partial(shift.address_shift, boundary="zero")), kept)
    # A pointer reads some values twice, as the neighbour of their own channel and of another.
    back = there_and_back(shift.address_shift)
    assert np.vdot(back, y) != np.vdot(x, y)


@given(st.integers(1, 12), st.integers(-60, 60))
def test_pointer_reads_are_one_run_of_memory(pixels, offset):
    reads = shift.pointer_reads(pixels, offset)
    cells = [channel * pixels + pixel for start, stop, channel in reads for pixel in range(start, stop)]
    assert cells == list(range(offset, offset + pixels))


@pytest.mark.parametrize("shape", [(2, 3, 2, 4), (1, 1, 1, 9), (2, 1, 4, 10), (2, 3, 2, 20)])
def test_grid_shift_takes_turns_in_nine_directions_and_leaves_the_rest(shape):
    _, *size, channels = shape
    index = np.full(shape[1:], -1)
    for h, w, i in np.ndindex(*shape[1:]):
        moves = i < channels // 9 * 9
        row, column = (h + i // 3 % 3 - 1, w + i % 3 - 1) if moves else (h, w)
        if 0 <= row < size[0] and 0 <= column < size[1]:
            index[h, w, i] = (row * size[1] + column) * channels + i
    arrays = integers(shape, shape, shape)
    assert_reads(index, jax.jit(partial(value_and_derivatives, shift.grid_shift))(*arrays), *arrays)


@pytest.mark.parametrize("groups", [1, 2, 3, 6])
def test_channel_shift_is_a_roll_by_half_a_group_and_equals_its_index_vector(groups):
    arrays = integers((2, 3, 1, 12), (2, 3, 1, 12), (2, 3, 1, 12))
    by = 12 // (2 * groups)
    results = jax.jit(partial(value_and_derivatives, partial(shift.channel_shift, groups=groups)))(*arrays)
    x, tangent, cotangent = arrays
    expected = [np.roll(x, -by, -1), np.roll(tangent, -by, -1), np.roll(cotangent, by, -1)]
    for actual, value in zip(results, expected, strict=True):
        np.testing.assert_array_equal(actual, value)
    np.testing.assert_array_equal(mixing.permute(jnp.asarray(x), permutation.channel_shift(12, groups)), expected[0])


def test_twice_as_many_channel_shifts_as_groups_are_none_and_fewer_are_not():
    x = jnp.arange(24)
    after = [y := x] + [y := shift.channel_shift(y, 3) for _ in range(6)]
    assert [bool((y == x).all()) for y in after] == [True, False, False, False, False, False, True]


@pytest.mark.parametrize("channels", [1, 2, 5])
def test_rotations_and_runs_of_channels_are_read_around_the_end(channels):
    starts, size = range(-2 * channels - 1, 2 * channels + 2), channels // 2 + 1

    @jax.jit
    def every(x):
        rotated = [shift.rotate(x, by) for by in starts]
        return rotated, [shift.channels_from(x, start, size) for start in starts]

    x = np.arange(channels)
    for start, rotated, run in zip(starts, *every(x), strict=True):
        assert rotated.tolist() == np.roll(x, -start).tolist()
        assert run.tolist() == [(start + i) % channels for i in range(size)]


def test_shortcut_shift_slides_a_window_along_everything_that_was_made():
    x, *new = integers((2, 3, 1, 6), (2, 3, 1, 3), (2, 3, 1, 1), (2, 3, 1, 6), (2, 3, 1, 2))
    made, y = x, x
    for k in new:
        made, y = np.concatenate([made, k], -1), shift.shortcut_shift(jnp.asarray(y), jnp.asarray(k))
        np.testing.assert_array_equal(y, made[..., -6:])


def test_the_gradient_of_shortcut_shift_is_that_of_each_channel_that_stays():
    x, new, cotangent = integers((2, 5), (2, 2), (2, 5))
    of_x, of_new = jax.jit(lambda x, new, u: jax.vjp(shift.shortcut_shift, x, new)[1](u))(x, new, cotangent)
    np.testing.assert_array_equal(of_x, np.pad(cotangent[:, :3], ((0, 0), (2, 0))))
    np.testing.assert_array_equal(of_new, cotangent[:, 3:])


def every_op(x):
    """All shifts of an image."""
    addresses = [shift.address_shift(x, boundary=boundary) for boundary in BOUNDARIES]
    return *addresses, shift.grid_shift(x), shift.channel_shift(x, 2), shift.shortcut_shift(x, x[..., :3])


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.int8, jnp.uint8])
def test_every_shift_keeps_the_type_and_moves_integers(dtype):
    x = np.random.default_rng(0).integers(0, 100, (2, 3, 4, 12))
    expected = jax.jit(every_op)(x.astype(np.float32))
    for y, value in zip(jax.jit(every_op)(x.astype(dtype)), expected, strict=True):
        assert y.dtype == dtype
        np.testing.assert_array_equal(np.asarray(y, np.float32), value)


def test_compiled_eager_and_mapped_are_equal():
    def few(x):  # Each operation of an eager one is compiled by itself.
        moved = shift.shortcut_shift(shift.channel_shift(x, 2), x[..., :3])
        return *[shift.address_shift(x, ((1, -1), (0, 0)), boundary) for boundary in BOUNDARIES], moved

    (x,) = integers((3, 1, 3, 4, 12))
    eager = few(jnp.asarray(x[:, 0]))
    for one, mapped, y in zip(jax.jit(few)(x[:, 0]), jax.jit(jax.vmap(few))(x), eager, strict=True):
        np.testing.assert_array_equal(one, y)
        np.testing.assert_array_equal(mapped[:, 0], y)


def operations(function, *args):
    """The names of all operations in a compiled program, those inside fusions as well."""
    program = jax.jit(function).lower(*args).compile().as_text()
    return set(re.findall(r"[\])}] ([a-z][a-z-]*)\(", program))


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="what is merged differs between platforms")
@pytest.mark.parametrize("boundary", BOUNDARIES)
def test_between_other_operations_it_is_slices_that_are_put_together(boundary):
    def between(x):
        return jax.nn.relu(shift.address_shift(jax.nn.relu(x), boundary=boundary))

    x = jax.ShapeDtypeStruct((2, 6, 6, 16), jnp.float32)
    slow = {"gather", "scatter", "transpose", "dynamic-slice", "dynamic-update-slice", "while", "copy", "convolution"}
    value = operations(between, x)
    gradient = operations(lambda x, u: jax.vjp(between, x)[1](u), x, x)
    for found in (value, gradient):
        assert {"slice", "concatenate", "fusion", "maximum"} <= found
        assert not found & slow
    assert "select" in gradient  # That of a ReLU: it is the gradient's program.


def test_errors_name_value_limit_and_remedy():
    x = jnp.ones((1, 3, 2, 6))
    with pytest.raises(ValueError, match=r"6 channels cannot move in 4 directions: give a multiple of 4"):
        shift.address_shift(x)
    for offset in ((0, 3), (0, -3), (4, 0), (-4, 0)):
        message = rf"a shift by {offset} is larger than the image of 3 x 2: give offsets within it"
        with pytest.raises(ValueError, match=re.escape(message)):
            shift.address_shift(x, ((0, 0), offset), "wrap")
    with pytest.raises(ValueError, match=r"no boundary 'torus': choose one of \['pointer', 'zero', 'wrap'\]"):
        shift.address_shift(x, ((0, 0),), "torus")
    with pytest.raises(
        ValueError, match=r"6 channels cannot be shifted by half of one of 2 groups: choose .* \[1, 3\]"
    ):
        shift.channel_shift(x, 2)
    with pytest.raises(ValueError, match=r"half of one of 0 groups: choose one of \[1, 3\]"):
        shift.channel_shift(x, 0)
    with pytest.raises(ValueError, match=r"5 channels .* half of one of 1 groups: give an even number of channels"):
        shift.channel_shift(x[..., :5], 1)
    for wrong in (jnp.ones((1, 3, 2, 7)), jnp.ones((1, 3, 2, 0)), jnp.ones((2, 3, 2, 1)), jnp.ones((3, 2, 6))):
        message = f"an array of the shape {wrong.shape} cannot follow one of (1, 3, 2, 6): give 1 to 6 new channels"
        with pytest.raises(ValueError, match=re.escape(message)):
            shift.shortcut_shift(x, wrong)
