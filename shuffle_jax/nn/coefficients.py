"""The head of a dynamic convolution: its coefficients for each image."""

from __future__ import annotations

import math

import flax.linen as nn

from shuffle_jax.ops import dynamic_conv
from shuffle_jax.typing import Array, Float


class Coefficients(nn.Module):
    """The head: ``h = A v``, ``h = h * gate(B h)``; ``Phi = F h``, ``lambda = gate(G h)``, without biases, in float32.

    ``gate`` is :func:`shuffle_jax.ops.dynamic_conv.hard_gate`.

    Attributes:
        hidden: s, at least 1.
        features: o.
        shape: (E, B, l, l), the coefficients of one image.
        kernel_init: of all four.
    """

    hidden: int
    features: int
    shape: tuple[int, int, int, int]
    kernel_init: nn.initializers.Initializer

    @nn.compact
    def __call__(self, v: Float[Array, "n f"]) -> tuple[Float[Array, "n o"], dynamic_conv.Phi]:
        """Maps what is seen of each image to lambda and Phi."""

        def linear(features: int, name: str) -> nn.Dense:
            return nn.Dense(features, use_bias=False, kernel_init=self.kernel_init, name=name)

        h = linear(self.hidden, "squeeze")(v)
        h = h * dynamic_conv.hard_gate(linear(self.hidden, "gate")(h))
        phi = linear(math.prod(self.shape), "fusion")(h)
        gate = dynamic_conv.hard_gate(linear(self.features, "scale")(h))
        return gate, phi.reshape(phi.shape[0], *self.shape)
