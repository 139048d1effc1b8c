"""The classifier of a network as a layer that takes ``train``: plain, or dynamic."""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp

from shuffle_jax.nn.convolution import in_float32
from shuffle_jax.nn.dynamic_conv import DynamicConv
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


class DynamicDense(nn.Module):
    """A dense layer by the decomposition of a dynamic convolution, for the pooled features that a classifier sees.

    :class:`~shuffle_jax.nn.dynamic_conv.DynamicConv` at one position, with a bias:
    ``y = lambda (W0 x + b) + P (N2(Phi q) + q)``.

    Attributes:
        features: number of logits.
        latent: L, the number of latent channels; all of the input's where there are fewer.
        hidden: s, the width of the head.
        kernel_init: of W0, P and Q.
        head_init: of the head.

    Source: Li et al., Revisiting Dynamic Convolution via Matrix Decomposition, 2021.
    """

    features: int
    latent: int = 32
    hidden: int = 32
    kernel_init: nn.initializers.Initializer = nn.initializers.normal(0.01)
    head_init: nn.initializers.Initializer = nn.initializers.normal(0.01)

    @nn.compact
    def __call__(self, x: Float[Array, "n c"], train: bool = False) -> Float[Array, "n o"]:
        """Maps ``(n, c)`` to ``(n, features)``."""
        layer = DynamicConv(
            self.features,
            pool=1,
            latent=min(self.latent, x.shape[-1]),
            hidden=self.hidden,
            use_bias=True,
            kernel_init=self.kernel_init,
            head_init=self.head_init,
            name="layer",
        )
        return layer(x[:, None], train)[:, 0]
