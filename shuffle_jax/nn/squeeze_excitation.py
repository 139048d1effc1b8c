"""Squeeze-excitation as a mixer: what a head of the same size does when it scales channels and does not move them."""

from __future__ import annotations

import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from shuffle_jax.nn.limits import check_positive
from shuffle_jax.ops import mixing
from shuffle_jax.typing import Images


class SqueezeExcitation(nn.Module):
    """The fixed shuffle of gated channels, ``S_g (2 x * sigmoid(W2 relu(W1 mean(x) + b1) + b2))``.

    A control for :class:`shuffle_jax.nn.dynamic_shuffle.DynamicShuffle`: it sees the same mean over positions through a
    head of about the same size (the same for ``p^2 + q^2 = c``), and decides for each image how strong channels are,
    not where they go. The 2 makes it start near the plain shuffle, as the others do: without it each mixer halves what
    it passes on, and a unit of ShuffleNetV2 passes half of its channels on as they are.

    Attributes:
        groups: of the shuffle, a divisor of the channels.
        hidden: width of the hidden layer, at least 1; ``max(4, c / 16)`` by default (None).

    Source: Hu, Shen and Sun, Squeeze-and-Excitation Networks, 2018; as a mixer it is this project's control.
    """

    groups: int = 2
    hidden: int | None = None

    @property
    def channel_multiple(self) -> int:
        """Of what the channels must be a multiple."""
        return self.groups

    @nn.compact
    def __call__(self, x: Images, train: bool = False) -> Images:
        """Maps ``(n, h, w, c)`` to ``(n, h, w, c)``.

        Raises:
            ValueError: no hidden units, or the groups do not divide the channels.
        """
        check_positive(hidden=self.hidden)
        channels = x.shape[-1]
        pooled = x.mean(tuple(range(1, x.ndim - 1)), dtype=jnp.float32)
        hidden = self.hidden if self.hidden is not None else max(4, channels // 16)
        gate = 2 * jax.nn.sigmoid(nn.Dense(channels, name="gate")(nn.relu(nn.Dense(hidden, name="hidden")(pooled))))
        gate = gate.astype(x.dtype).reshape(x.shape[0], *(1,) * (x.ndim - 2), channels)
        return mixing.shuffle(x * gate, self.groups)

    def own_multiply_adds(self, x: Images, y: Images) -> int:
        """Multiply-adds of one image beside those of the head: one for each value."""
        return math.prod(y.shape[1:])
