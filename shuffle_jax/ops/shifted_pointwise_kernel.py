"""The fused step of AddressNet as one kernel for GPU, which reads every channel where its shift points to.

Neither the rotated nor the shifted image is ever made: a program computes some outputs of one group at some pixels, and
both shifts are arithmetic on the addresses that it loads from. Written in Pallas for its Triton backend. Importing this
module imports Pallas; :mod:`~shuffle_jax.ops.shifted_pointwise` does so only where the kernel is asked for.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from shuffle_jax.ops import convolution, shift
from shuffle_jax.ops.shift import LEFT_UP_RIGHT_DOWN, Boundary, Offsets, check_shift
from shuffle_jax.ops.shifted_pointwise_folded import folded
from shuffle_jax.typing import Array, Bool, Float, Images, Int


def shift_and_convolve(
    x: Images,
    kernel: Float[Array, "1 1 i o"],
    groups: int = 4,
    rotation: int = 0,
    offsets: Offsets = LEFT_UP_RIGHT_DOWN,
    boundary: Boundary = "pointer",
    interpret: bool = False,
) -> Float[Array, "n h w o"]:
    """Rotates the channels, moves them over the image, and convolves them in groups, reading from where they were.

    ``y = pointwise(address_shift(rotate(x, r), offsets, boundary), K, g)``

    Products of float32 are of the platform's default precision, TF32 on recent GPUs, as XLA's are;
    ``jax.default_matmul_precision`` changes both. Sums are float32, rounded once.

    Backward, the image's gradient is the same kernel with the offsets negated, where the boundary is "zero" or "wrap"
    (or nothing moves) and the number of offsets divides the groups. All else is the gradient of
    :func:`~shuffle_jax.ops.shifted_pointwise_folded.folded`, by XLA: that of the 1x1 kernel always, and with the
    boundary "pointer", whose groups read some cells twice, both. There is no forward-mode derivative.

    XLA does not divide a kernel over devices: call this within ``jax.shard_map``, with ``check_vma=False``, or each of
    several devices gets the whole batch. JAX 0.12 warns that a later version will drop the Triton backend. The kernel
    has been interpreted and compiled, but not yet run on a GPU.

    Args:
        x: ``(n, h, w, c)``, of float32, bfloat16 or float16, of fewer than 2^31 values.
        kernel: ``(1, 1, c / g, o)``, of the type of x.
        groups: g, a divisor of c and o.
        rotation: r, any integer: channels by which they rotate to the left.
        offsets: of the address shift; none for no address shift.
        boundary: of the address shift.
        interpret: run it by XLA, step by step, on any platform. It is slow; for tests.

    Returns:
        ``(n, h, w, o)``.

    Raises:
        ValueError: as :func:`~shuffle_jax.ops.shifted_pointwise.shifted_pointwise`, or the type or the size is none of
            the above, or this is no GPU.

    >>> x, kernel = jnp.arange(4.0).reshape(1, 1, 1, 4), jnp.ones((1, 1, 2, 2))
    >>> shift_and_convolve(x, kernel, groups=2, rotation=1, offsets=(), interpret=True).ravel().tolist()
    [3.0, 3.0]

    Source: He, Liu, Zhong and Ma, AddressNet, 2019, who have one for the forward pass; this kernel is this project's.
    """
    check_shift(x.shape, offsets, boundary)
    if x.dtype not in (jnp.float32, jnp.bfloat16, jnp.float16) or kernel.dtype != x.dtype:
        raise ValueError(
            f"the kernel takes float32, bfloat16 or float16, one type for both, not {x.dtype} and {kernel.dtype}: cast "
            'them, or take the form "folded"'
        )
    y = jax.eval_shape(partial(convolution.pointwise, groups=groups), x, kernel)  # for what it raises
    if max(math.prod(x.shape), math.prod(y.shape)) >= 2**31:
        raise ValueError(
            f"images of {x.shape} to {y.shape} are beyond the 2^31 values that the kernel can address: split the batch"
        )
    if not interpret and (platform := _platform()) not in ("gpu", "cuda"):
        raise ValueError(
            f'the form "kernel" runs on GPU and this is {platform!r}: take the form "folded", or interpret=True in '
            "shift_and_convolve; to lower for a GPU elsewhere, do it under jax.sharding.use_abstract_mesh"
        )
    moved = offsets if any(dh or dw for dh, dw in offsets) else ()
    return _step(_Step(groups, rotation % x.shape[-1], moved, boundary, interpret), x, kernel)


@dataclass(frozen=True)
class _Step:
    """What is static. ``rotate(y, rotated) = pointwise(address_shift(rotate(x, rotation), ...), K, groups)``."""

    groups: int
    rotation: int
    offsets: Offsets
    boundary: Boundary
    interpret: bool
    rotated: int = 0

    @property
    def as_one(self) -> bool:
        """Whether all channels of a group of the convolution move in one direction."""
        return not self.offsets or self.groups % len(self.offsets) == 0


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _step(step: _Step, x: Images, kernel: Float[Array, "1 1 i o"]) -> Images:
    n, h, w, c = x.shape
    features = kernel.shape[-1]
    inputs, outputs = c // step.groups, features // step.groups
    tiles = _block(n * h * w, 64), _block(inputs, 32), _block(outputs, 128)
    y = pl.pallas_call(
        partial(_program, step, x.shape, features, tiles),
        out_shape=jax.ShapeDtypeStruct((n * h * w * features,), x.dtype),
        grid=(pl.cdiv(n * h * w, tiles[0]), step.groups, pl.cdiv(outputs, tiles[2])),
        compiler_params=triton.CompilerParams(num_warps=4, num_stages=2),  # within 64 KiB of shared memory
        interpret=step.interpret,
        name="shift_and_convolve",
    )(x.ravel(), kernel.ravel())
    return y.reshape(n, h, w, features)


def _forward(
    step: _Step, x: Images, kernel: Float[Array, "1 1 i o"]
) -> tuple[Images, tuple[Images, Float[Array, "1 1 i o"]]]:
    return _step(step, x, kernel), (x, kernel)


def _backward(
    step: _Step, saved: tuple[Images, Float[Array, "1 1 i o"]], gradient: Images
) -> tuple[Images, Float[Array, "1 1 i o"]]:
    x, kernel = saved
    options = (step.groups, step.rotation, step.offsets, step.boundary)

    def by_xla(x: Images, kernel: Float[Array, "1 1 i o"]) -> Images:
        return shift.rotate(folded(x, kernel, *options), -step.rotated)

    if not step.as_one or (step.offsets and step.boundary == "pointer"):
        return jax.vjp(by_xla, x, kernel)[1](gradient)
    back = replace(
        step,
        rotation=step.rotated,
        rotated=step.rotation,
        offsets=tuple((-dh, -dw) for dh, dw in step.offsets),
    )
    blocks = kernel.reshape(kernel.shape[2], step.groups, -1)
    (kernel_gradient,) = jax.vjp(partial(by_xla, x), kernel)[1](gradient)
    return _step(back, gradient, blocks.T.reshape(1, 1, -1, x.shape[-1])), kernel_gradient


_step.defvjp(_forward, _backward)


def _program(
    step: _Step,
    shape: tuple[int, ...],
    features: int,
    tiles: tuple[int, int, int],
    x_ref: Any,
    kernel_ref: Any,
    y_ref: Any,
) -> None:
    """Some outputs of one group at some pixels: a sum of products over its channels."""
    n, h, w, c = shape
    inputs, outputs = c // step.groups, features // step.groups
    pixels, size, _ = tiles
    group = pl.program_id(1)
    pixel = (pl.program_id(0) * pixels + _count(pixels))[:, None]
    output = (pl.program_id(2) * tiles[2] + _count(tiles[2]))[None, :]
    inside, wanted = pixel < n * h * w, output < outputs

    def add(turn: Int[Array, ""], total: Float[Array, "p o"]) -> Float[Array, "p o"]:
        channel = turn * size + _count(size)
        row, column = channel[:, None], channel[None, :]
        address, seen = _read(step, shape, pixel, group * inputs + column, group * inputs)
        x = triton.load(x_ref.at[address], mask=inside & (column < inputs) & seen, other=0.0)
        weights = triton.load(
            kernel_ref.at[row * features + group * outputs + output], mask=(row < inputs) & wanted, other=0.0
        )
        return total + triton.dot(x, weights)

    total = lax.fori_loop(0, pl.cdiv(inputs, size), add, jnp.zeros((pixels, tiles[2]), jnp.float32))
    place = pixel * features + _modulo(group * outputs + output + step.rotated, features)
    # What is not stored gets an address beyond the end: the interpreter would write back there what it has read, and
    # undo what is stored.
    stored = inside & wanted
    place = jnp.where(stored, place, n * h * w * features)
    triton.store(y_ref.at[place], total.astype(y_ref.dtype), mask=stored)


def _read(
    step: _Step,
    shape: tuple[int, ...],
    pixel: Int[Array, "p 1"],
    position: Int[Array, "1 i"],
    first: Int[Array, ""],
) -> tuple[Int[Array, "p i"], Bool[Array, "p _"] | bool]:
    """Addresses of the channels at ``position``, as they are rotated, and whether the image has them.

    Only where channels of a group move apart does each have its own direction; else that of the first is a scalar, and
    a pixel's channels lie side by side.
    """
    _, h, w, c = shape
    directions = max(len(step.offsets), 1)
    direction = _divide((first if step.as_one else position) * directions, c)
    offsets = step.offsets or ((0, 0),)
    image, place = _divmod(pixel, h * w)
    seen: Bool[Array, "p _"] | bool = True
    if step.boundary == "pointer":
        # The ring of c h w numbers: how many channels further on, and how many pixels.
        further, start = zip(*(divmod(dh * w + dw, h * w) for dh, dw in offsets), strict=True)
        carry, place = _divmod(place + _choose(start, direction), h * w)
        position = position + carry + _choose([by % c for by in further], direction)
    else:
        row, column = _divmod(place, w)
        if step.boundary == "wrap":
            row = _modulo(row + _choose([dh % h for dh, _ in offsets], direction), h)
            column = _modulo(column + _choose([dw % w for _, dw in offsets], direction), w)
        else:
            row = row + _choose([dh for dh, _ in offsets], direction)
            column = column + _choose([dw for _, dw in offsets], direction)
            seen = (row >= 0) & (row < h) & (column >= 0) & (column < w)
        place = row * w + column
    return (image * (h * w) + place) * c + _modulo(position + step.rotation, c), seen


def _choose(table: Sequence[int], index: Int[Array, "*s"]) -> Int[Array, "*s"] | int:
    """``table[index]`` by comparisons: a kernel has no constants to look up in."""
    if len(set(table)) == 1:
        return table[0]
    chosen = jnp.full_like(index, table[0])
    for k, value in enumerate(table[1:], start=1):
        chosen = jnp.where(index == k, value, chosen)
    return chosen


def _count(size: int) -> Int[Array, "i"]:
    return jnp.arange(size, dtype=jnp.int32)


# Of what is not negative, where the remainder of the processor is that of mathematics.
def _divide(a: Int[Array, "*s"], by: int) -> Int[Array, "*s"]:
    return lax.div(a, jnp.full_like(a, by))


def _modulo(a: Int[Array, "*s"], by: int) -> Int[Array, "*s"]:
    return lax.rem(a, jnp.full_like(a, by))


def _divmod(a: Int[Array, "*s"], by: int) -> tuple[Int[Array, "*s"], Int[Array, "*s"]]:
    return _divide(a, by), _modulo(a, by)


def _block(size: int, most: int) -> int:
    """A power of two, as Triton's arrays have, of at least 16, as its products have."""
    return min(max(pl.next_power_of_2(size), 16), most)


def _platform() -> str:
    """Of the device that the program is for, which may be an abstract one."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return device.platform if device else jax.default_backend()
