"""What the compiler must not fuse."""

from __future__ import annotations

from jax import lax

from shuffle_jax.typing import Array, Float


def computed_once(x: Float[Array, "*s"]) -> Float[Array, "*s"]:
    """The input as it is, computed once for all that read it.

    A layer that depends on the image reads it twice: to see it, and to convolve it. XLA on CPU otherwise fuses what
    makes the image into both, and computes it twice: in MobileNetV2 a depthwise convolution with its norm. That
    of JAX 0.10 does so all the same.

    >>> import jax.numpy as jnp
    >>> computed_once(jnp.ones(2)).tolist()
    [1.0, 1.0]
    """
    return lax.optimization_barrier(x)
