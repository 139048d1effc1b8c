"""The first layers of a network: down to a part of the size for ImageNet, at full size for small images."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import flax.linen as nn
import jax.numpy as jnp

from shuffle_jax.nn import BatchNorm, Conv
from shuffle_jax.nn.convolution import kernel_init
from shuffle_jax.ops.pooling import largest
from shuffle_jax.typing import Images

StemKind = Literal["imagenet", "small"]


class Stem(nn.Module):
    """A convolution with normalisation and ReLU; for "imagenet" strided and followed by a 3x3 max-pooling.

    Attributes:
        features: output channels.
        kind: "imagenet" divides height and width by 4, by 2 without pooling; "small" (32 x 32 and below) keeps them.
        dtype: type of the computation.
        kernel_size: of the convolution.
        pool: False leaves out the max-pooling.
        activation: what follows the normalisation.
        kernel_init: start of the convolution's kernel.
    """

    features: int
    kind: StemKind
    dtype: jnp.dtype | None = None
    kernel_size: int = 3
    pool: bool = True
    activation: Callable[[Images], Images] = nn.relu
    kernel_init: nn.initializers.Initializer = kernel_init

    @nn.compact
    def __call__(self, x: Images, train: bool = False) -> Images:
        """Maps ``(n, h, w, c)`` to ``(n, h / s, w / s, features)``, s = 4, 2 or 1 by kind and pooling."""
        small = self.kind == "small"
        stride = 1 if small else 2
        x = Conv(self.features, self.kernel_size, stride, dtype=self.dtype, kernel_init=self.kernel_init, name="conv")(
            x
        )
        x = self.activation(BatchNorm(self.dtype, name="norm")(x, train))
        return largest(x) if self.pool and not small else x
