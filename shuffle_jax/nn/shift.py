"""Shifts as modules: the channel shift as a mixer, shifts over the image, and the fused step of AddressNet."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import field
from functools import partial

import flax.linen as nn
import jax.numpy as jnp

from shuffle_jax.nn.convolution import PointwiseConv, in_float32
from shuffle_jax.nn.normalization import scale_outputs
from shuffle_jax.ops import shift
from shuffle_jax.ops.permutation import check_groups, half_group
from shuffle_jax.ops.shift import LEFT_UP_RIGHT_DOWN, Boundary, Offsets
from shuffle_jax.ops.shifted_pointwise import Form, shifted_pointwise
from shuffle_jax.ops.slicing import thinned
from shuffle_jax.typing import Images, Outputs


class ChannelShift(nn.Module):
    """The mixer of AddressNet: rotates the channels by half a group, :func:`shuffle_jax.ops.shift.channel_shift`.

    Attributes:
        groups: twice as many divide the channels.
    """

    groups: int = 2

    @property
    def channel_multiple(self) -> int:
        """Of what the channels must be a multiple."""
        return 2 * self.groups

    @nn.compact
    def __call__(self, x: Images, train: bool = False) -> Images:
        """Maps ``(n, h, w, c)`` to ``(n, h, w, c)``."""
        return shift.channel_shift(x, self.groups)


class ChannelRotation(nn.Module):
    """A mixer that rotates all channels, :func:`shuffle_jax.ops.shift.rotate`.

    Attributes:
        by: how far to the left: output i is input ``i + by``.
    """

    by: int = 1

    @nn.compact
    def __call__(self, x: Images, train: bool = False) -> Images:
        """Maps ``(n, h, w, c)`` to ``(n, h, w, c)``."""
        return shift.rotate(x, self.by)


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
    def __call__(self, x: Images, train: bool = False) -> Outputs:
        """Maps ``(n, h, w, c)`` to ``(n, ceil(h / stride), ceil(w / stride), c)``."""
        return thinned(shift.address_shift(x, self.offsets, self.boundary), self.stride)

    def breaks_shifts(self, x: Images) -> str:
        """See :func:`shuffle_jax.nn.convolution.breaks_shifts`."""
        return "strides" if self.stride > 1 else _beyond(self.offsets, self.boundary)


class GridShift(nn.Module):
    """The shift of ShiftNet in nine directions, :func:`shuffle_jax.ops.shift.grid_shift`."""

    @nn.compact
    def __call__(self, x: Images, train: bool = False) -> Images:
        """Maps ``(n, h, w, c)`` to ``(n, h, w, c)``."""
        return shift.grid_shift(x)

    def breaks_shifts(self, x: Images) -> str:
        """See :func:`shuffle_jax.nn.convolution.breaks_shifts`."""
        return "shifts zeros in"


class ShiftedPointwise(nn.Module):
    """A mixer, an address shift and a grouped 1x1 convolution: the step of AddressNet.

    The address shift and a :class:`shuffle_jax.nn.convolution.PointwiseConv` are one operation with the kernel as its
    own parameter, :func:`shuffle_jax.ops.shifted_pointwise.shifted_pointwise`, and a :class:`ChannelShift` is part of
    it; another mixer runs in front of it, and with another 1x1 layer nothing is fused.

    Attributes:
        features: output channels.
        groups: of the convolution.
        mixer: factory of the mixer, called as ``mixer(name="mixer")``; the channel shift in ``groups`` groups by
            default (None). A channel shift is in no more groups than the convolution.
        pointwise: factory of the 1x1 layer, called as
            ``pointwise(features=..., groups=..., dtype=..., name="pointwise")``.
        offsets: of the address shift; none for no address shift.
        boundary: of the address shift.
        form: of the fused operation.
        dtype: type of the computation; that of the input by default. Parameters are float32.
    """

    features: int
    groups: int = 4
    mixer: Callable[..., nn.Module] | None = None
    pointwise: Callable[..., nn.Module] = field(default_factory=lambda: PointwiseConv)
    offsets: Offsets = LEFT_UP_RIGHT_DOWN
    boundary: Boundary = "pointer"
    form: Form = "auto"
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, x: Images, train: bool = False) -> Outputs:
        """Maps ``(n, h, w, c)`` to ``(n, h, w, features)``."""
        mixer = (self.mixer or partial(ChannelShift, self.groups))(name="mixer")
        layer = self.pointwise(features=self.features, groups=self.groups, dtype=self.dtype, name="pointwise")
        rotation = 0
        if type(mixer) is ChannelShift:
            rotation = half_group(x.shape[-1], min(mixer.groups, self.groups))
        else:
            x = mixer(x, train=train)
        if type(layer) is not PointwiseConv or layer.use_bias:
            x = shift.address_shift(shift.rotate(x, rotation), self.offsets, self.boundary)
            return layer(x, train=train)
        check_groups(x.shape[-1], self.groups)
        shape = (1, 1, x.shape[-1] // self.groups, self.features)
        kernel = self.param("kernel", in_float32(layer.kernel_init), shape)
        dtype = self.dtype or x.dtype
        return shifted_pointwise(
            x.astype(dtype), kernel.astype(dtype), self.groups, rotation, self.offsets, self.boundary, self.form
        )

    def own_multiply_adds(self, x: Images, y: Images) -> int:
        """Multiply-adds of one image beside the layers inside: one for each output value and channel of its group."""
        fused = self.has_variable("params", "kernel")
        return math.prod(y.shape[1:]) * (x.shape[-1] // self.groups) if fused else 0

    def breaks_shifts(self, x: Images) -> str:
        """See :func:`shuffle_jax.nn.convolution.breaks_shifts`."""
        return _beyond(self.offsets, self.boundary)

    scale_outputs = staticmethod(scale_outputs)


def _beyond(offsets: Offsets, boundary: Boundary) -> str:
    """Why an address shift does not go with every circular shift, if it does not."""
    reads = {"pointer": "shifts by a moved pointer", "zero": "shifts zeros in", "wrap": ""}
    return reads[boundary] if any(map(any, offsets)) else ""
