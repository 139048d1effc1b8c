"""Batch normalisation with the settings that all networks here share."""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp

MOMENTUM = 0.9
"""Weight of the old running statistics in each update: ``running <- 0.9 running + 0.1 batch``."""

EPSILON = 1e-5


def batch_norm(train: bool, dtype: jnp.dtype | None = None, name: str | None = None) -> nn.BatchNorm:
    """Batch normalisation over (n, h, w); statistics are global over a sharded batch and kept in float32.

    Args:
        train: normalise by the batch and update the running statistics; else use the running ones.
        dtype: type of the output; that of the input by default.
        name: of the module.

    Returns:
        A module from ``(n, h, w, c)`` to ``(n, h, w, c)`` with parameters ``scale`` and ``bias``.
    """
    return nn.BatchNorm(use_running_average=not train, momentum=MOMENTUM, epsilon=EPSILON, dtype=dtype, name=name)
