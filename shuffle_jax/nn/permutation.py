"""Mixers that are not learned: the fixed shuffle, any fixed permutation, and none.

A mixer is a module from ``(n, h, w, c)`` to ``(n, h, w, c)`` that carries information across channel groups. Networks
take a factory of mixers and call it as ``mixer(name=...)`` where their paper shuffles.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from shuffle_jax.nn.collections import PERMUTATIONS
from shuffle_jax.ops import mixing, permutation
from shuffle_jax.typing import Array, Images, Int


class Identity(nn.Module):
    """The mixer that mixes nothing: the control of every comparison."""

    @nn.compact
    def __call__(self, x: Images, train: bool = False) -> Images:
        """Returns x."""
        return x


class ChannelShuffle(nn.Module):
    """The fixed shuffle of ShuffleNet, :func:`shuffle_jax.ops.mixing.shuffle`.

    Attributes:
        groups: a divisor of the channels; as many as these, like 1, move nothing.
    """

    groups: int = 2

    @property
    def channel_multiple(self) -> int:
        """Of what the channels must be a multiple."""
        return self.groups

    @nn.compact
    def __call__(self, x: Images, train: bool = False) -> Images:
        """Maps ``(n, h, w, c)`` to ``(n, h, w, c)``."""
        return mixing.shuffle(x, self.groups)


class FixedPermutation(nn.Module):
    """A given or random permutation of the channels, kept as an index vector in the collection "permutations".

    Attributes:
        permutation: the index vector, ``y[..., i] = x[..., p[i]]``; drawn at random if None.
        seed: of the random permutation, which also depends on the place of the module in its network. Layers stacked by
            ``nn.scan`` or ``nn.vmap`` share their place, and draw from the random stream "params" too: each has its own
            with ``split_rngs={"params": True}``. One for all of them is one that is given.
    """

    permutation: Sequence[int] | None = None
    seed: int = 0

    @nn.compact
    def __call__(self, x: Images, train: bool = False) -> Images:
        """Maps ``(n, h, w, c)`` to ``(n, h, w, c)``.

        Raises:
            ValueError: the given permutation is not one, or not of c channels.
        """
        index = self.variable(PERMUTATIONS, "index", self._index, x.shape[-1])
        return mixing.permute(x, index.value)

    def _index(self, channels: int) -> Int[Array, " c"]:
        if self.permutation is None:
            # The same seed gives every layer its own permutation, whatever else the network holds.
            key = jax.random.fold_in(jax.random.key(self.seed), zlib.crc32("/".join(self.path).encode()))
            if any(place.startswith(("scan(", "vmap(")) for place in getattr(self.scope, "debug_path", ())):
                key = jax.random.fold_in(key, jax.random.bits(self.make_rng("params")))
            return permutation.random(key, channels)
        if sorted(self.permutation) != list(range(channels)):
            raise ValueError(
                f"the permutation given for {channels} channels has {len(self.permutation)} entries or repeats some: "
                f"give each of 0 .. {channels - 1} once"
            )
        return jnp.asarray(self.permutation, jnp.int32)
