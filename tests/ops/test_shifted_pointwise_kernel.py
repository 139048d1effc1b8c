"""The kernel for GPU, interpreted, equals the definition; it lowers for GPU, and to nothing but itself."""

from __future__ import annotations

import re
import subprocess
import sys
from functools import partial
from typing import get_args

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from shuffle_jax.ops import shifted_pointwise_kernel
from shuffle_jax.ops.shift import LEFT_UP_RIGHT_DOWN, Boundary
from shuffle_jax.ops.shifted_pointwise import shifted_pointwise
from shuffle_jax.ops.shifted_pointwise_kernel import shift_and_convolve
from shuffle_jax.sharding import BATCH_AXIS, data_mesh

BOUNDARIES = get_args(Boundary)
TRITON = "__gpu$xla.gpu.triton"
compiled = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})  # half the compilation
interpreted = partial(shift_and_convolve, interpret=True)
plain = partial(shifted_pointwise, form="plain")


def integers(shape, outputs, groups, seed=0, largest=8):
    """Image, kernel and cotangent, whose sums of products are exact in float32 in any order."""
    rng = np.random.default_rng(seed)
    shapes = shape, (1, 1, shape[-1] // groups, outputs), (*shape[:-1], outputs)
    return [rng.integers(-largest, largest + 1, size).astype(np.float32) for size in shapes]


def of(groups, rotation, offsets, boundary="pointer"):
    return {"groups": groups, "rotation": rotation, "offsets": offsets, "boundary": boundary}


def with_gradients(op, x, kernel, cotangent):
    y, pull_back = jax.vjp(op, x, kernel)
    return y, *pull_back(cotangent)


def assert_equal(actual, expected):
    for a, b in zip(actual, expected, strict=True):
        np.testing.assert_array_equal(a, b, strict=True)


CASES = {  # shape of x, outputs, groups, rotation, offsets
    "as in AddressNet": ((2, 3, 5, 8), 12, 4, 1, LEFT_UP_RIGHT_DOWN),
    "one pixel, several groups to a direction": ((1, 1, 1, 16), 8, 8, -3, LEFT_UP_RIGHT_DOWN),
    "several directions to a group": ((1, 3, 2, 12), 4, 2, 17, LEFT_UP_RIGHT_DOWN),
    # 84 pixels, 36 channels and 130 outputs of a group are two blocks each, the second one not full.
    "as far as the image, beyond a block": ((2, 6, 7, 72), 260, 2, 18, ((6, -7), (-5, 7))),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.fast_cases(2)
def test_value_and_gradients_are_the_definition(name):
    shape, outputs, *options = CASES[name]
    arrays = integers(shape, outputs, options[0])
    boundaries = BOUNDARIES if max(shape) < 20 else ["pointer", "zero"]

    @compiled
    def both(*arrays):
        steps = [[partial(op, **of(*options, boundary)) for op in (interpreted, plain)] for boundary in boundaries]
        return [[with_gradients(op, *arrays) for op in pair] for pair in steps]

    for actual, expected in both(*arrays):
        assert_equal(actual, expected)


@pytest.mark.parametrize("offsets", [(), ((0, 0), (0, 0))])
def test_a_channel_shift_alone_with_the_gradient_of_its_gradient(offsets):
    arrays = integers((1, 2, 2, 8), 4, 2)
    tangents = integers((1, 2, 2, 8), 4, 2, seed=1)

    @compiled
    def twice(arrays, tangents):
        steps = [partial(op, **of(2, 3, offsets)) for op in (interpreted, plain)]
        return [jax.vjp(partial(with_gradients, op), *arrays)[1](tuple(tangents[k] for k in (2, 0, 1))) for op in steps]

    assert_equal(*twice(arrays, tangents))


def test_the_gradient_of_the_gradient_where_the_image_moves():
    arrays, tangents = (integers((1, 2, 3, 4), 8, 4, seed) for seed in (1, 2))

    @compiled
    def twice(arrays, tangents):
        steps = [partial(op, **of(4, 1, LEFT_UP_RIGHT_DOWN, "zero")) for op in (interpreted, plain)]
        return [jax.vjp(partial(with_gradients, op), *arrays)[1](tuple(tangents[k] for k in (2, 0, 1))) for op in steps]

    assert_equal(*twice(arrays, tangents))


@pytest.mark.parametrize("shared", [False, True])
def test_under_vmap_jit_and_eager(shared):
    options = of(2, 1, ((1, 0), (-1, -1)), "wrap")
    several = [
        np.stack(arrays) for arrays in zip(*(integers((1, 2, 3, 4), 2, 2, seed) for seed in (1, 2)), strict=True)
    ]
    axes = (0, None if shared else 0, 0)
    arrays = [array[0] if axis is None else array for array, axis in zip(several, axes, strict=True)]

    @compiled
    def both(*arrays):
        actual = jax.vmap(partial(with_gradients, partial(interpreted, **options)), axes)(*arrays)
        ones = [[a if axis is None else a[i] for a, axis in zip(arrays, axes, strict=True)] for i in range(2)]
        return actual, [with_gradients(partial(plain, **options), *one) for one in ones]

    mapped, expected = both(*arrays)
    for i in range(2):
        assert_equal([result[i] for result in mapped], expected[i])
    if not shared:
        np.testing.assert_array_equal(interpreted(*(jnp.asarray(a[0]) for a in arrays[:2]), **options), mapped[0][0])


def test_within_shard_map_each_device_computes_its_images():
    arrays = integers((2, 2, 3, 4), 2, 2)
    options = of(2, 1, ((1, 0), (0, -1)), "zero")
    over, whole = PartitionSpec(BATCH_AXIS), PartitionSpec()
    specs = {"in_specs": (over, whole), "out_specs": over, "check_vma": False}
    divided = jax.shard_map(partial(interpreted, **options), mesh=data_mesh(jax.devices()[:2]), **specs)
    assert_equal(*(compiled(partial(with_gradients, op))(*arrays) for op in (divided, partial(plain, **options))))


def test_half_precision_is_summed_in_float32_and_rounded_once():
    # Integers whose sums are exact in float32, and far from it in bfloat16.
    arrays = integers((1, 3, 3, 8), 4, 2, seed=3, largest=100)
    options = of(2, 3, ((0, 1), (1, 0)), "zero")
    halves = [array.astype(jnp.bfloat16) for array in arrays]
    actual = compiled(partial(with_gradients, partial(interpreted, **options)))(*halves)
    exact = compiled(partial(with_gradients, partial(plain, **options)))(*arrays)
    assert_equal(actual[:2], [array.astype(jnp.bfloat16) for array in exact[:2]])
    assert actual[2].dtype == jnp.bfloat16
    np.testing.assert_allclose(actual[2].astype(np.float32), exact[2], rtol=2**-7)


def test_what_is_infinite_stays_in_its_group():
    # Blocks are wider than groups: beyond them both operands are zeros, and none is the other's infinity times zero.
    x, kernel, _ = integers((1, 2, 2, 6), 4, 2)
    op = compiled(partial(interpreted, **of(2, 0, ())))
    finite = np.asarray(op(x, kernel))
    loud = x.copy()
    loud[..., 3:] = np.inf
    np.testing.assert_array_equal(op(loud, kernel)[..., :2], finite[..., :2])
    loud = kernel.copy()
    loud[..., -1] = np.inf
    np.testing.assert_array_equal(op(x, loud)[..., :3], finite[..., :3])


def for_gpu():
    """A context in which programs are traced and lowered for a GPU that is not there."""
    device = jax.sharding.AbstractDevice(device_kind="NVIDIA H100", num_cores=None, platform="gpu")
    return jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((), (), abstract_device=device))


def lowered(op, *arrays):
    with for_gpu():
        return jax.jit(op).trace(*arrays).lower(lowering_platforms=("cuda",)).as_text()


announced = pytest.mark.filterwarnings("ignore:The Pallas Triton backend is deprecated:DeprecationWarning")


def test_the_form_kernel_is_this_kernel_with_the_same_arguments(monkeypatch):
    x, kernel, _ = integers((1, 2, 2, 4), 2, 2)
    given, result = [], np.zeros((1, 2, 2, 2), np.float32)
    monkeypatch.setattr(shifted_pointwise_kernel, "shift_and_convolve", lambda *a: given.append(a) or result)
    arguments = (x, kernel, 2, 3, ((0, 1),), "wrap")
    assert shifted_pointwise(*arguments, form="kernel") is result
    assert given == [arguments]


@announced
@pytest.mark.parametrize("boundary", BOUNDARIES)
@pytest.mark.parametrize("name", CASES)
def test_lowers_to_one_kernel_and_no_other_operation(name, boundary):
    shape, outputs, *options = CASES[name]
    x, kernel, _ = integers(shape, outputs, options[0])
    op = partial(shifted_pointwise, **of(*options, boundary), form="kernel")
    for dtype in (jnp.float32, jnp.bfloat16) if name == "as in AddressNet" else (jnp.float32,):
        text = lowered(op, x.astype(dtype), kernel.astype(dtype))
        assert set(re.findall(r"stablehlo\.(\w+)", text)) == {"reshape", "custom_call"}
        assert text.count(TRITON) == 1


@announced
@pytest.mark.parametrize(
    ("groups", "offsets", "boundary", "kernels"),
    [
        (4, LEFT_UP_RIGHT_DOWN, "zero", 2),
        (8, LEFT_UP_RIGHT_DOWN, "wrap", 2),
        (4, LEFT_UP_RIGHT_DOWN, "pointer", 1),
        (2, LEFT_UP_RIGHT_DOWN, "wrap", 1),
        (4, (), "pointer", 2),
        (4, ((0, 0),) * 8, "pointer", 2),
    ],
)
def test_backward_lowers_to_a_second_kernel_where_the_docstring_says_so(groups, offsets, boundary, kernels):
    arrays = integers((2, 3, 5, 8), 16, groups)
    op = partial(shift_and_convolve, **of(groups, 1, offsets, boundary))
    assert lowered(partial(with_gradients, op), *arrays).count(TRITON) == kernels


@announced
def test_lowers_however_often_it_is_mapped():
    x, kernel, _ = (array[None, None, None] for array in integers((2, 3, 5, 8), 12, 4))
    op = partial(shift_and_convolve, **of(4, 1, LEFT_UP_RIGHT_DOWN))
    assert lowered(jax.vmap(jax.vmap(jax.vmap(op))), x, kernel).count(TRITON) == 1


def test_pallas_is_imported_only_where_it_is_asked_for():
    code = "import sys, shuffle_jax.ops; print([m for m in sys.modules if m.startswith('jax.experimental.pallas')])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=600, check=True)
    assert done.stdout.strip() == "[]"


def test_errors_name_value_limit_and_remedy():
    x, kernel, _ = integers((1, 3, 2, 8), 4, 4)
    large = jax.ShapeDtypeStruct((2**9, 2**9, 2**9, 16), jnp.float32), jax.ShapeDtypeStruct((1, 1, 4, 4), jnp.float32)
    for error, arrays, options in [
        (r"takes float32, bfloat16 or float16, .* not int32 and float32: cast", (x.astype(np.int32), kernel), {}),
        (r"not float32 and bfloat16: cast them", (x, kernel.astype(jnp.bfloat16)), {}),
        (r"\(512, 512, 512, 16\) to \(512, 512, 512, 4\) are beyond the 2\^31 values .*: split the batch", large, {}),
        (r"runs on GPU and this is 'cpu': take the form \"folded\", or interpret=True", (x, kernel), {}),
        (r"no boundary 'same': choose", (x, kernel), {"boundary": "same"}),
        (r"8 channels cannot be split into 3 groups: choose one of \[1, 2, 4, 8\]", (x, kernel), {"groups": 3}),
        (r"in 2 groups has the shape \(1, 1, 4, o\), not \(1, 1, 2, 4\)", (x, kernel), {"groups": 2}),
    ]:
        with pytest.raises(ValueError, match=error):
            jax.eval_shape(partial(shift_and_convolve, **options), *arrays)
