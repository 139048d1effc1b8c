"""A network small enough to compile in a second, for tests that are not about networks."""

from __future__ import annotations

from typing import Any

import flax.linen as fnn
import pytest

from shuffle_jax import nn


class Small(fnn.Module):
    """The parts of a ShuffleNet, few of each."""

    classes: int
    dtype: Any = None

    @fnn.compact
    def __call__(self, x, train=False):
        x = nn.Conv(12, dtype=self.dtype)(x)
        for i in range(2):
            x = nn.PointwiseConv(12, groups=3, dtype=self.dtype)(x)
            x = fnn.relu(nn.BatchNorm(self.dtype)(x, train))
            x = nn.AutoShuffle(candidates=3, name=f"stage{i}_mixer")(x)
            x = nn.DepthwiseConv(dtype=self.dtype)(x)
        return fnn.Dense(self.classes)(x.mean((1, 2), dtype=fnn.dtypes.jnp.float32))


@pytest.fixture(scope="session")
def small_network():
    return Small
