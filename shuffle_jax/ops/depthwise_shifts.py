"""A depthwise convolution as a sum of shifted copies: the form for CPU, with its gradients."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from shuffle_jax.ops.mesh import varying_alike
from shuffle_jax.ops.precision import at_least_float32
from shuffle_jax.ops.reduction import sums
from shuffle_jax.ops.slicing import strided
from shuffle_jax.typing import Array, Float, Images, Outputs

Pads = tuple[tuple[int, int], tuple[int, int]]
"""Zeros before and after the rows, and before and after the columns."""


def sum_of_shifts(stride: int, pads: Pads, x: Images, kernel: Float[Array, "kh kw 1 c"], dilation: int = 1) -> Outputs:
    """A depthwise convolution, see :func:`shuffle_jax.ops.convolution.depthwise`.

    The kernel's gradient is one variadic reduction for all taps, the image's a sum of shifted copies as well. Both can
    be differentiated again; there is no forward-mode derivative.

    Args:
        stride: s, at least 1.
        pads: zeros around the image.
        x: ``(n, h, w, c)``.
        kernel: ``(kh, kw, 1, c)``, at most as large as the padded image, dilation included.
        dilation: from one tap to the next.

    Returns:
        ``(n, oh, ow, c)``.
    """
    return _sum_of_shifts(stride, dilation, pads, *varying_alike(x, kernel))


@partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _sum_of_shifts(stride: int, dilation: int, pads: Pads, x: Images, kernel: Float[Array, "kh kw 1 c"]) -> Outputs:
    kh, kw, _, _ = kernel.shape
    return _sum_of_taps(shifted(padded(x, pads), kh, kw, stride, dilation), kernel)


def _forward(
    stride: int, dilation: int, pads: Pads, x: Images, kernel: Float[Array, "kh kw 1 c"]
) -> tuple[Outputs, tuple[Images, Float[Array, "kh kw 1 c"]]]:
    return _sum_of_shifts(stride, dilation, pads, x, kernel), (x, kernel)


def _backward(
    stride: int, dilation: int, pads: Pads, saved: tuple[Images, Float[Array, "kh kw 1 c"]], gradient: Outputs
) -> tuple[Images, Float[Array, "kh kw 1 c"]]:
    x, kernel = saved
    kh, kw, _, channels = kernel.shape
    wide_gradient = at_least_float32(gradient)

    # The barrier keeps XLA from padding anew inside each of the kh kw products.
    wide = lax.optimization_barrier(padded(x, pads))
    products = tuple(at_least_float32(tap) * wide_gradient for tap in shifted(wide, kh, kw, stride, dilation))
    kernel_gradient = jnp.stack(sums(products)).reshape(kh, kw, 1, channels).astype(kernel.dtype)
    return _image_gradient(stride, pads, (x.shape[1], x.shape[2]), gradient, kernel, dilation), kernel_gradient


_sum_of_shifts.defvjp(_forward, _backward)


def _image_gradient(
    stride: int,
    pads: Pads,
    size: tuple[int, int],
    gradient: Outputs,
    kernel: Float[Array, "kh kw 1 c"],
    dilation: int = 1,
) -> Images:
    """The gradient by the image: of every s-th row and column a correlation of its own, with the taps that read it.

    At stride 2 and 3 x 3 taps those are one, two, two and four: a quarter of what it takes to spread the output's
    gradient out between zeros and correlate that.
    """
    axes = [
        _Readers.of(*axis, stride, dilation)
        for axis in zip(size, kernel.shape[:2], (before for before, _ in pads), gradient.shape[1:3], strict=True)
    ]
    zero = jnp.zeros((), gradient.dtype)
    rows, columns = axes
    around = lax.pad(gradient, zero, ((0, 0, 0), (*rows.pad, 0), (*columns.pad, 0), (0, 0, 0)))

    def part(of_row: list[tuple[int, int]], of_column: list[tuple[int, int]]) -> Images:
        pairs = [(a, i, b, j) for a, i in of_row for b, j in of_column]
        if not pairs:
            return jnp.pad(gradient[:, :0, :0], ((0, 0), (0, rows.length), (0, columns.length), (0, 0)))
        taps = [around[:, i : i + rows.length, j : j + columns.length] for _, i, _, j in pairs]
        return _sum_of_taps(taps, jnp.stack([kernel[a, b] for a, _, b, _ in pairs]))

    return interleave([[part(r, c) for c in columns.taps] for r in rows.taps], size)


class _Readers(NamedTuple):
    """Which outputs of a strided window read which inputs, along one axis.

    Input ``s q + r`` is read through the taps a with ``d a = r + before`` modulo s, by the outputs
    ``q + (r + before - d a) / s``.

    Attributes:
        pad: of the outputs, so that all that are named are there.
        length: how many values of q there are.
        taps: for each r the taps, each with where its outputs start after that padding.
    """

    pad: tuple[int, int]
    length: int
    taps: list[list[tuple[int, int]]]

    @classmethod
    def of(cls, size: int, window: int, before: int, out: int, stride: int, dilation: int) -> _Readers:
        length = -(-size // stride)
        ahead = [[(a, r + before - dilation * a) for a in reversed(range(window))] for r in range(stride)]
        reads = [[(a, rows // stride) for a, rows in taps if rows % stride == 0] for taps in ahead]
        starts = [start for taps in reads for _, start in taps]
        low = -min(starts)
        pad = low, length + max(starts) - out
        return cls(pad, length, [[(a, start + low) for a, start in taps] for taps in reads])


def interleave(parts: Sequence[Sequence[Images]], size: tuple[int, int]) -> Outputs:
    """An image from its values in every s-th row and column, cut to a size.

    Args:
        parts: s times s images ``(n, oh, ow, c)``; ``parts[i][j]`` is rows i, i + s, ... and columns j, j + s, ...
        size: rows and columns of the result, at most s times theirs.

    >>> one = jnp.ones((1, 1, 1, 1))
    >>> interleave([[0 * one, 1 * one], [2 * one, 3 * one]], (2, 2))[0, :, :, 0].tolist()
    [[0.0, 1.0], [2.0, 3.0]]
    """
    n, rows, columns, channels = parts[0][0].shape
    lines = [jnp.stack(line, axis=3).reshape(n, rows, len(line) * columns, channels) for line in parts]
    whole = jnp.stack(lines, axis=2).reshape(n, len(lines) * rows, lines[0].shape[2], channels)
    return whole[:, : size[0], : size[1]]


def padded(x: Images, pads: Pads) -> Outputs:
    """Zeros around rows and columns."""
    return jnp.pad(x, ((0, 0), *pads, (0, 0)))


def shifted(x: Images, kh: int, kw: int, stride: int, dilation: int = 1) -> list[Outputs]:
    """The shifted, strided views of a padded image, one for each position of the kernel, in row-major order."""
    down, across = range(0, kh * dilation, dilation), range(0, kw * dilation, dilation)
    rows = (x.shape[1] - down[-1] - 1) // stride * stride + 1
    columns = (x.shape[2] - across[-1] - 1) // stride * stride + 1
    starts = [(a, b) for a in down for b in across]
    return [strided(x, range(a, a + rows, stride), range(b, b + columns, stride)) for a, b in starts]


def _sum_of_taps(taps: list[Images], kernel: Float[Array, "*taps 1 c"]) -> Images:
    channels = kernel.shape[-1]
    weights = kernel.reshape(-1, 1, 1, 1, channels)
    products = [at_least_float32(tap) * at_least_float32(w) for tap, w in zip(taps, weights, strict=True)]
    return sum(products[1:], start=products[0]).astype(taps[0].dtype)
