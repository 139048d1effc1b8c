"""How large the published ResNets make the dynamic part of their dynamic convolutions.

MobileNetV2 goes by the rule that a layer has by itself, :func:`shuffle_jax.nn.dynamic_conv.default_sizes`.
"""

from __future__ import annotations

import math

from shuffle_jax.nn.dynamic_conv import Sizes


def basic_sizes(channels: int, features: int, squeeze: int = 16) -> Sizes:
    """The sizes of a layer in a basic unit, of ResNet-18 and -34.

    Args:
        channels: in.
        features: out.
        squeeze: divides the width of the head.

    >>> basic_sizes(16, 32)
    Sizes(pool=2, latent=8, hidden=4)
    """
    latent = math.isqrt(4 * channels)
    return Sizes(2, latent, max(4, max(4 * channels, latent**2) // squeeze))


def bottleneck_sizes(channels: int, features: int, squeeze: int = 16) -> Sizes:
    """The sizes of a layer in a bottleneck, of ResNet-50 and deeper.

    Args:
        channels: in.
        features: out.
        squeeze: divides the width of the head.

    >>> bottleneck_sizes(64, 256)
    Sizes(pool=1, latent=8, hidden=4)
    """
    latent = math.isqrt(channels)
    return Sizes(1, latent, max(1, max(channels, latent**2) // squeeze))
