"""The classifier of a network as a layer that takes ``train``, so that a dynamic one can stand in its place."""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp

from shuffle_jax.nn.convolution import in_float32
from shuffle_jax.nn.normalization import scale_outputs
from shuffle_jax.typing import Array, Float


class Dense(nn.Module):
    """``y = x W + b``, with the parameters of ``flax.linen.Dense``.

    Attributes:
        features: numbers in the output.
        use_bias: adds a learned constant, zero at the start.
        kernel_init: start of W, as in ``flax.linen.Dense`` by default.
    """

    features: int
    use_bias: bool = True
    kernel_init: nn.initializers.Initializer = nn.initializers.lecun_normal()

    @nn.compact
    def __call__(self, x: Float[Array, "n c"], train: bool = False) -> Float[Array, "n features"]:
        """Maps ``(n, c)`` to ``(n, features)``; ``train`` changes nothing."""
        y = x @ self.param("kernel", in_float32(self.kernel_init), (x.shape[-1], self.features)).astype(x.dtype)
        if not self.use_bias:
            return y
        bias = self.param("bias", nn.initializers.zeros_init(), (self.features,), jnp.float32)
        return y + bias.astype(y.dtype).reshape(1, -1)

    def multiply_adds(self, x: Float[Array, "n c"], y: Float[Array, "n features"]) -> int:
        """Multiply-adds of one image: one for each pair of a value in and a value out."""
        return x.shape[-1] * self.features

    scale_outputs = staticmethod(scale_outputs)
