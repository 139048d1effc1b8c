"""One layer in many places of a network."""

from __future__ import annotations

import flax.linen as nn

from shuffle_jax.typing import Images

OWN = "own"
"""The name of a copy that one use has of a shared layer."""


class Use(nn.Module):
    """One use of a layer that a network calls in many places.

    It has no parameters: they are the layer's, once in the network, in its checkpoints and in its gradient. Where there
    are parameters below :data:`OWN` here, as after :func:`shuffle_jax.deploy.fold.fold` with ``copies``, the use is that
    of a copy.

    Attributes:
        layer: what is shared: one module, made by whoever makes its uses, and called as ``layer(x, train=...)``.
        own: start with a copy, which nobody shares.
    """

    layer: nn.Module
    own: bool = False

    @nn.compact
    def __call__(self, x: Images, train: bool = False) -> Images:
        """What the layer makes of x."""
        own = self.own or self.has_variable("params", OWN)
        layer = self.layer.clone(parent=self, name=OWN) if own else self.layer
        y: Images = layer(x, train=train)
        return y
