"""Contextual convolutions as modules: the layer, and its depthwise form.

The kernels of the levels are one parameter, one after the other, of the shape that a plain convolution has: what holds
of its kernel, and what is written of it in a checkpoint, holds of this.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from shuffle_jax.nn.convolution import Conv, DepthwiseConv, add_bias, cast, in_float32, square
from shuffle_jax.ops.contextual import contextual, contextual_depthwise, level_outputs
from shuffle_jax.ops.permutation import check_groups
from shuffle_jax.typing import Array, Images, Key, Outputs


class ContextualConv(Conv):
    """A contextual convolution, :func:`shuffle_jax.ops.contextual.contextual`.

    Attributes:
        groups: divides the channels in, and the outputs of every level.
        padding: what is beyond each side of the image: "zeros", or the values of the opposite side, "wrap".
        kernel_init: start of the kernel of each level by itself, which has fewer outputs than the layer.
        levels: 1 to 5, of the dilations 1, 2, ..., with the published fractions of the outputs.
        outputs: of each level, in place of ``levels``; they sum to ``features``.
        dilations: of each level, other than 1, 2, ...
    """

    levels: int = 4
    outputs: tuple[int, ...] | None = None
    dilations: tuple[int, ...] | None = None

    @nn.compact
    def __call__(self, x: Images, train: bool = False) -> Outputs:
        """Maps ``(n, h, w, c)`` to ``(n, ceil(h / stride), ceil(w / stride), features)``.

        Raises:
            ValueError: levels, outputs, dilations, groups or window do not fit.
        """
        check_groups(x.shape[-1], self.groups)
        outputs = self.outputs or level_outputs(self.features, self.levels)
        shape = (*square(self.kernel_size), x.shape[-1] // self.groups, self.features)
        init = by_level(self.kernel_init, outputs)
        x, kernel = cast(x, self.param("kernel", in_float32(init), shape), self.dtype)
        y = contextual(x, kernel, outputs, self.dilations, self.stride, self.padding, self.groups)
        return add_bias(self, y) if self.use_bias else y


class ContextualDepthwise(DepthwiseConv):
    """A depthwise convolution in levels, :func:`shuffle_jax.ops.contextual.contextual_depthwise`.

    It has the kernel of the plain one, with the same start. What the fractions leave over is of the first level. It is
    this project's own.

    Attributes:
        padding: what is beyond each side of the image: "zeros", or the values of the opposite side, "wrap".
        levels: 1 to 5, of the dilations 1, 2, ..., with the published fractions of the channels.
    """

    place: ClassVar[str] = "depthwise"  # of a network, which takes it as --network.spatial
    levels: int = 4

    @nn.compact
    def __call__(self, x: Images, train: bool = False) -> Outputs:
        """Maps ``(n, h, w, c)`` to ``(n, ceil(h / stride), ceil(w / stride), c)``.

        Raises:
            ValueError: there is no such number of levels, or there are fewer channels than it divides.
        """
        channels = level_outputs(x.shape[-1], self.levels, rest=True)
        shape = (*square(self.kernel_size), 1, x.shape[-1])
        x, kernel = cast(x, self.param("kernel", in_float32(self.kernel_init), shape), self.dtype)
        return contextual_depthwise(x, kernel, channels, stride=self.stride, padding=self.padding)


def by_level(init: nn.initializers.Initializer, outputs: tuple[int, ...]) -> nn.initializers.Initializer:
    """What starts a kernel as the kernels of its levels one after the other, each by itself; one level as it is."""

    def start(key: Key, shape: Sequence[int]) -> Array:
        if len(outputs) == 1:
            return init(key, shape)
        keys = jax.random.split(key, len(outputs))
        levels = [init(one, (*shape[:-1], level)) for one, level in zip(keys, outputs, strict=True)]
        return jnp.concatenate(levels, axis=-1)

    return start
