"""Convolution layers with the kernels of ``flax.linen.Conv`` and the platform-aware forms of ``ops.convolution``.

The parameter is called ``kernel`` and has the HWIO shape that ``flax.linen.Conv`` gives it. ``train`` is taken and
ignored, so that layers which need it (dynamic ones) can stand in the same place.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from shuffle_jax.nn.normalization import scale_outputs
from shuffle_jax.ops import convolution as ops
from shuffle_jax.ops.convolution import Padding
from shuffle_jax.ops.permutation import check_groups
from shuffle_jax.typing import Array, Float, Images, Key, Outputs, PyTree


def variance_scaling(
    scale: float, mode: Literal["fan_in", "fan_out"], distribution: Literal["truncated_normal", "normal"]
) -> nn.initializers.Initializer:
    """``flax.linen.initializers.variance_scaling`` of a kernel ``(..., c_in, c_out)``, drawn in a row: equal numbers.

    XLA takes seconds to compile random bits of four dimensions for the CPU, a tenth of one for the same bits in a row,
    and a network draws a kernel for each convolution.
    """

    def init(key: Key, shape: Sequence[int], dtype: DTypeLike = jnp.float32) -> Array:
        fan = math.prod(shape[:-2]) * shape[-2 if mode == "fan_in" else -1]
        row = nn.initializers.variance_scaling(scale / fan, "fan_in", distribution)  # of a fan of 1
        return row(key, (1, math.prod(shape)), dtype).reshape(shape)

    return init


def in_float32(init: nn.initializers.Initializer) -> Callable[[Key, Sequence[int]], Array]:
    """What an initialiser gives by its default type, in float32: that is another under ``jax_enable_x64``."""
    return lambda key, shape: jnp.asarray(init(key, shape), jnp.float32)


kernel_init = variance_scaling(2.0, "fan_in", "truncated_normal")

fan_out_init = variance_scaling(2.0, "fan_out", "normal")
"""N(0, 2 / (k^2 c_out)), with which MobileNetV2 and ResNet start. A depthwise kernel for c channels has c_out = c,
though each output sees one of them: that is what the published networks use, and they normalise behind it."""


class Conv(nn.Module):
    """A dense or grouped convolution, :func:`shuffle_jax.ops.convolution.convolution`.

    Attributes:
        features: output channels.
        kernel_size: k of the square k x k window.
        stride: the same for rows and columns.
        groups: divides the channels in and out.
        use_bias: adds a learned constant to every output channel.
        padding: the ``k // 2`` values beyond each side of the image: "zeros", or those of the opposite side, "wrap".
        dtype: type of the computation; that of the input by default. Parameters are float32.
        kernel_init: start of the kernel.
    """

    features: int
    kernel_size: int = 3
    stride: int = 1
    groups: int = 1
    use_bias: bool = False
    padding: Padding = "zeros"
    dtype: jnp.dtype | None = None
    kernel_init: nn.initializers.Initializer = kernel_init

    @nn.compact
    def __call__(self, x: Images, train: bool = False) -> Outputs:
        """Maps ``(n, h, w, c)`` to ``(n, oh, ow, features)``."""
        check_groups(x.shape[-1], self.groups)
        shape = (*square(self.kernel_size), x.shape[-1] // self.groups, self.features)
        x, kernel = cast(x, self.param("kernel", in_float32(self.kernel_init), shape), self.dtype)
        y = ops.convolution(x, kernel, self.stride, self.padding, self.groups)
        return add_bias(self, y) if self.use_bias else y

    def multiply_adds(self, x: Images, y: Images) -> int:
        """Multiply-adds of one image: one for each output value and weight it sees."""
        return math.prod(y.shape[1:]) * self.kernel_size**2 * (x.shape[-1] // self.groups)

    def breaks_shifts(self, x: Images) -> str:
        """See :func:`breaks_shifts`."""
        return breaks_shifts(self.kernel_size, self.stride, self.padding)

    scale_outputs = staticmethod(scale_outputs)


class DepthwiseConv(nn.Module):
    """A depthwise convolution, :func:`shuffle_jax.ops.convolution.depthwise`: as many channels out as in.

    Attributes:
        kernel_size: k of the square k x k window.
        stride: the same for rows and columns.
        padding: the ``k // 2`` values beyond each side of the image: "zeros", or those of the opposite side, "wrap".
        dtype: type of the computation; that of the input by default. Parameters are float32.
        kernel_init: start of the kernel.
    """

    kernel_size: int = 3
    stride: int = 1
    padding: Padding = "zeros"
    dtype: jnp.dtype | None = None
    kernel_init: nn.initializers.Initializer = kernel_init

    @nn.compact
    def __call__(self, x: Images, train: bool = False) -> Outputs:
        """Maps ``(n, h, w, c)`` to ``(n, oh, ow, c)``."""
        shape = (*square(self.kernel_size), 1, x.shape[-1])
        x, kernel = cast(x, self.param("kernel", in_float32(self.kernel_init), shape), self.dtype)
        return ops.depthwise(x, kernel, self.stride, self.padding)

    def multiply_adds(self, x: Images, y: Images) -> int:
        """Multiply-adds of one image: one for each output value and tap of its window."""
        return math.prod(y.shape[1:]) * self.kernel_size**2

    def breaks_shifts(self, x: Images) -> str:
        """See :func:`breaks_shifts`."""
        return breaks_shifts(self.kernel_size, self.stride, self.padding)

    scale_outputs = staticmethod(scale_outputs)


class PointwiseConv(nn.Module):
    """A 1x1 convolution, plain or grouped, :func:`shuffle_jax.ops.convolution.pointwise`.

    This is the default of every network's ``pointwise`` factory, which is called as
    ``pointwise(features=..., groups=..., dtype=..., name=...)`` and gives a module ``(x, train) -> y``.

    Attributes:
        features: output channels.
        groups: divides the channels in and out.
        use_bias: adds a learned constant to every output channel.
        dtype: type of the computation; that of the input by default. Parameters are float32.
        kernel_init: start of the kernel.
    """

    features: int
    groups: int = 1
    use_bias: bool = False
    dtype: jnp.dtype | None = None
    kernel_init: nn.initializers.Initializer = kernel_init

    @nn.compact
    def __call__(self, x: Images, train: bool = False) -> Outputs:
        """Maps ``(n, h, w, c)`` to ``(n, h, w, features)``."""
        check_groups(x.shape[-1], self.groups)
        shape = (1, 1, x.shape[-1] // self.groups, self.features)
        x, kernel = cast(x, self.param("kernel", in_float32(self.kernel_init), shape), self.dtype)
        y = ops.pointwise(x, kernel, self.groups)
        return add_bias(self, y) if self.use_bias else y

    def multiply_adds(self, x: Images, y: Images) -> int:
        """Multiply-adds of one image: one for each output value and channel of its group."""
        return math.prod(y.shape[1:]) * (x.shape[-1] // self.groups)

    scale_outputs = staticmethod(scale_outputs)

    @staticmethod
    def constant_outputs(
        variables: dict[str, PyTree], constant: Float[np.ndarray, " c"]
    ) -> Float[np.ndarray, " features"]:
        """What a constant added to every position of the inputs adds to the outputs, in float64.

        Args:
            variables: the layer's own collections.
            constant: of each input channel.
        """
        kernel = np.asarray(variables["params"]["kernel"], np.float64)[0, 0]
        groups = len(constant) // len(kernel)
        parts = zip(np.split(constant, groups), np.split(kernel, groups, axis=-1), strict=True)
        return np.concatenate([part @ rows for part, rows in parts])


def breaks_shifts(kernel_size: int | tuple[int, ...], stride: int, padding: object) -> str:
    """Why a convolution of an image that is moved circularly is not the same, moved; empty if it is.

    Layers say it of themselves, for :func:`shuffle_jax.analysis.shift_consistency.shift_breakers`.
    """
    if stride > 1:
        return "strides"
    return "pads with zeros" if np.max(kernel_size) > 1 and padding != "wrap" else ""


def square(kernel_size: int) -> tuple[int, int]:
    """Rows and columns of a window of that side; a ValueError for anything but one number."""
    if np.ndim(kernel_size):
        raise ValueError(f"kernel_size is the side of a square window, such as 3: got {kernel_size}")
    return kernel_size, kernel_size


def cast(x: Images, kernel: Float[Array, "..."], dtype: jnp.dtype | None) -> tuple[Images, Float[Array, "..."]]:
    """Both in the type of a layer's computation, which by default is that of the images."""
    dtype = dtype or x.dtype
    return x.astype(dtype), kernel.astype(dtype)


def add_bias(layer: Conv | PointwiseConv, y: Images) -> Images:
    """Adds the layer's own parameter "bias", from zeros, inside the layer that is called."""
    bias = layer.param("bias", nn.initializers.zeros_init(), (layer.features,), jnp.float32)
    return y + bias.astype(y.dtype).reshape(1, 1, 1, -1)
