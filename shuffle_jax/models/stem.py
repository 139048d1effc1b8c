"""The first layers of a network: down to a part of the size for ImageNet, at full size for small images."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import flax.linen as nn
import jax.numpy as jnp

from shuffle_jax.models.sampling import Halving, Sampling
from shuffle_jax.nn import BatchNorm, Conv
from shuffle_jax.nn.convolution import kernel_init
from shuffle_jax.ops.polyphase import largest_ahead
from shuffle_jax.ops.pooling import largest
from shuffle_jax.typing import Images, Outputs

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
        sampling: factory of what samples in place of the stride and, by a choice of its own, behind a 2x2 max-pooling.
    """

    features: int
    kind: StemKind
    dtype: jnp.dtype | None = None
    kernel_size: int = 3
    pool: bool = True
    activation: Callable[[Images], Images] = nn.relu
    kernel_init: nn.initializers.Initializer = kernel_init
    sampling: Sampling | None = None

    @nn.compact
    def __call__(self, x: Images, train: bool = False) -> Outputs:
        """Maps ``(n, h, w, c)`` to ``(n, h / s, w / s, features)``, s = 4, 2 or 1 by kind and pooling."""
        small = self.kind == "small"
        halving = Halving(1 if small else 2, self.sampling)
        conv = Conv(
            self.features,
            self.kernel_size,
            halving.stride,
            padding=halving.padding,
            dtype=self.dtype,
            kernel_init=self.kernel_init,
            name="conv",
        )
        (x,) = halving(self.activation(BatchNorm(self.dtype, name="norm")(conv(x), train)))
        if small or not self.pool:
            return x
        return largest(x) if self.sampling is None else halving(largest_ahead(x), name="pool_sampling")[0]
