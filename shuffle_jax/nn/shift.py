"""Shifts as modules: the channel shift as a mixer, shifts over the image, and the fused step of AddressNet."""

from __future__ import annotations

import math
from collections.abc import Callable

import flax.linen as nn
import jax.numpy as jnp

from shuffle_jax.nn.convolution import kernel_init
from shuffle_jax.nn.normalization import scale_outputs
from shuffle_jax.ops import shift
from shuffle_jax.ops.permutation import check_groups, half_group
from shuffle_jax.ops.shift import LEFT_UP_RIGHT_DOWN, Boundary, Offsets
from shuffle_jax.ops.shifted_pointwise import Form, shifted_pointwise
from shuffle_jax.typing import Images


class ChannelShift(nn.Module):
    """The mixer of AddressNet: rotates the channels by half a group, :func:`shuffle_jax.ops.shift.channel_shift`.

    Attributes:
        groups: twice as many divide the channels.
    """

    groups: int = 2

    @nn.compact
    def __call__(self, x: Images, train: bool = False) -> Images:
        """Maps ``(n, h, w, c)`` to ``(n, h, w, c)``."""
        return shift.channel_shift(x, self.groups)


class AddressShift(nn.Module):
    """Moves groups of channels over the image, :func:`shuffle_jax.ops.shift.address_shift`.

    Attributes:
        offsets: where each group reads from; their number divides the channels.
        boundary: what is read beyond the edge: "pointer", "zero" or "wrap".
        stride: of the rows and columns that are kept, from the first on.
    """

    offsets: Offsets = LEFT_UP_RIGHT_DOWN
    boundary: Boundary = "pointer"
    stride: int = 1

    @nn.compact
    def __call__(self, x: Images, train: bool = False) -> Images:
        """Maps ``(n, h, w, c)`` to ``(n, ceil(h / stride), ceil(w / stride), c)``."""
        return shift.address_shift(x, self.offsets, self.boundary)[:, :: self.stride, :: self.stride]


class GridShift(nn.Module):
    """The shift of ShiftNet in nine directions, :func:`shuffle_jax.ops.shift.grid_shift`."""

    @nn.compact
    def __call__(self, x: Images, train: bool = False) -> Images:
        """Maps ``(n, h, w, c)`` to ``(n, h, w, c)``."""
        return shift.grid_shift(x)


class ShiftedPointwise(nn.Module):
    """A mixer, an address shift and a grouped 1x1 convolution: the step of AddressNet.

    With the channel shift (the default) and a plain convolution it is one operation,
    :func:`shuffle_jax.ops.shifted_pointwise.shifted_pointwise`; another mixer runs in front of it, and with another 1x1
    layer nothing is fused.

    Attributes:
        features: output channels.
        groups: of the convolution and of the channel shift.
        mixer: factory of another mixer, called as ``mixer(name="mixer")``; None for the channel shift.
        pointwise: factory of another 1x1 layer, called as
            ``pointwise(features=..., groups=..., dtype=..., name="pointwise")``; None for the plain one.
        offsets: of the address shift; none for no address shift.
        boundary: of the address shift.
        form: of the plain 1x1 layer.
        dtype: type of the computation; that of the input by default. Parameters are float32.
        kernel_init: start of the plain kernel.
    """

    features: int
    groups: int = 4
    mixer: Callable[..., nn.Module] | None = None
    pointwise: Callable[..., nn.Module] | None = None
    offsets: Offsets = LEFT_UP_RIGHT_DOWN
    boundary: Boundary = "pointer"
    form: Form = "auto"
    dtype: jnp.dtype | None = None
    kernel_init: nn.initializers.Initializer = kernel_init

    @nn.compact
    def __call__(self, x: Images, train: bool = False) -> Images:
        """Maps ``(n, h, w, c)`` to ``(n, h, w, features)``."""
        rotation = 0
        if self.mixer is None:
            rotation = half_group(x.shape[-1], self.groups)
        else:
            x = self.mixer(name="mixer")(x, train=train)
        if self.pointwise is not None:
            x = shift.address_shift(shift.rotate(x, rotation), self.offsets, self.boundary)
            layer = self.pointwise(features=self.features, groups=self.groups, dtype=self.dtype, name="pointwise")
            return layer(x, train=train)
        check_groups(x.shape[-1], self.groups)
        kernel = self.param("kernel", self.kernel_init, (1, 1, x.shape[-1] // self.groups, self.features))
        dtype = self.dtype or x.dtype
        return shifted_pointwise(
            x.astype(dtype), kernel.astype(dtype), self.groups, rotation, self.offsets, self.boundary, self.form
        )

    def own_multiply_adds(self, x: Images, y: Images) -> int:
        """Multiply-adds of one image beside the layers inside: one for each output value and channel of its group."""
        return 0 if self.pointwise is not None else math.prod(y.shape[1:]) * (x.shape[-1] // self.groups)

    scale_outputs = staticmethod(scale_outputs)
