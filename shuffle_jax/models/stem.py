"""The first layers of a network: down to a quarter of the size for ImageNet, at full size for small images."""

from __future__ import annotations

from typing import Literal

import flax.linen as nn
import jax.numpy as jnp

from shuffle_jax.nn import BatchNorm, Conv
from shuffle_jax.typing import Images

StemKind = Literal["imagenet", "small"]


class Stem(nn.Module):
    """A 3x3 convolution with normalisation and ReLU; for "imagenet" strided and followed by a 3x3 max-pooling.

    Attributes:
        features: output channels.
        kind: "imagenet" divides height and width by 4; "small" (32 x 32 and below) keeps them.
        dtype: type of the computation.
    """

    features: int
    kind: StemKind
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, x: Images, train: bool = False) -> Images:
        """Maps ``(n, h, w, c)`` to ``(n, h / 4, w / 4, features)`` or ``(n, h, w, features)``."""
        small = self.kind == "small"
        x = Conv(self.features, stride=1 if small else 2, dtype=self.dtype, name="conv")(x)
        x = nn.relu(BatchNorm(self.dtype, name="norm")(x, train))
        return x if small else nn.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))
