"""Sampling by a grid that is always the same, in the place of one that the image chooses: for comparisons."""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp

from shuffle_jax.typing import Array, Images, Int


class EverySecond(nn.Module):
    """Keeps the even rows and columns, as a stride of 2 does.

    As ``sampling`` of a network it is adaptive polyphase sampling without the adaption: convolutions wrap and do the
    same work, and the size must halve to the whole. What is left between the two is the choice of the grid.
    """

    @nn.compact
    def __call__(self, x: Images, choice: Int[Array, " n"] | None = None) -> tuple[Images, Int[Array, " n"]]:
        """Maps ``(n, h, w, c)`` to ``(n, ceil(h / 2), ceil(w / 2), c)``, and says that each sample kept the grid 0."""
        return x[:, ::2, ::2], jnp.zeros(len(x), jnp.int32)
