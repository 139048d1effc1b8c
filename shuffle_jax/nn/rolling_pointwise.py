"""The 1x1 convolution whose groups of channels overlap, as a layer."""

from __future__ import annotations

import math

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from shuffle_jax.nn.convolution import in_float32, kernel_init
from shuffle_jax.nn.limits import check_positive
from shuffle_jax.nn.normalization import scale_outputs
from shuffle_jax.ops.rolling_pointwise import rolling_pointwise, window_starts
from shuffle_jax.typing import Float, Images, Outputs, PyTree


class RollingPointwise(nn.Module):
    """A 1x1 convolution of overlapping windows, :func:`shuffle_jax.ops.rolling_pointwise.rolling_pointwise`.

    It takes the place of :class:`shuffle_jax.nn.convolution.PointwiseConv`, with as many weights in as many groups:
    ``w features`` for windows of ``w = c / g`` channels. In one group it is that layer.

    Attributes:
        features: output channels.
        groups: of the network; with 1, those of ``default_groups``.
        overlap: share of a window that the next one sees as well, from 0 to below 1; with 0 windows are groups.
        default_groups: windows of the channels over this, where the network has no groups of its own; the largest
            number that divides both it and the channels. By default 2 in networks without groups, and 1 in others, some
            layers of which see all channels on purpose.
        use_bias: adds a learned constant to every output channel.
        dtype: type of the computation; that of the input by default. Parameters are float32.
        kernel_init: start of the kernel.

    Source: Wang, Feng, Peng and Ding, 3DRF, 2020, and the code of its layer; ``default_groups`` is this project's own.
    """

    features: int
    groups: int = 1
    overlap: float = 0.5
    default_groups: int | None = None
    use_bias: bool = False
    dtype: jnp.dtype | None = None
    kernel_init: nn.initializers.Initializer = kernel_init

    @nn.compact
    def __call__(self, x: Images, train: bool = False) -> Outputs:
        """Maps ``(n, h, w, c)`` to ``(n, h, w, features)``.

        Raises:
            ValueError: the groups do not divide the channels, the overlap is out of range, or some channels are in no
                window of an output.
        """
        groups = self._groups(x.shape[-1])
        shape = (1, 1, x.shape[-1] // max(groups, 1), self.features)
        kernel = self.param("kernel", in_float32(self.kernel_init), shape)
        dtype = self.dtype or x.dtype
        y = rolling_pointwise(x.astype(dtype), kernel.astype(dtype), groups, self.overlap)
        if not self.use_bias:
            return y
        bias = self.param("bias", nn.initializers.zeros_init(), (self.features,), jnp.float32)
        return y + bias.astype(dtype).reshape(1, 1, 1, -1)

    def multiply_adds(self, x: Images, y: Images) -> int:
        """Multiply-adds of one image: one for each output value and channel of its window."""
        return math.prod(y.shape[1:]) * (x.shape[-1] // self._groups(x.shape[-1]))

    scale_outputs = staticmethod(scale_outputs)

    def constant_outputs(
        self, variables: dict[str, PyTree], constant: Float[np.ndarray, " c"]
    ) -> Float[np.ndarray, " features"]:
        """What a constant added to every position of the inputs adds to the outputs, in float64.

        Args:
            variables: the layer's own collections.
            constant: of each input channel.
        """
        kernel, channels = np.asarray(variables["params"]["kernel"], np.float64)[0, 0], len(constant)
        starts = window_starts(channels, self.features, self._groups(channels), self.overlap)
        seen = constant[(starts + np.arange(len(kernel))[:, None]) % channels]
        return (kernel * seen).sum(axis=0)

    def _groups(self, channels: int) -> int:
        check_positive(default_groups=self.default_groups)
        return self.groups if self.groups != 1 else math.gcd(self.default_groups or 1, channels)
