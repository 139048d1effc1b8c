"""Batch normalisation with the settings that all networks here share."""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp
from jax import lax

from shuffle_jax.ops.normalization import Affine, normalize, normalize_by_batch
from shuffle_jax.typing import Array, Images

MOMENTUM = 0.9
"""Weight of the old running statistics in each update: ``running <- 0.9 running + 0.1 batch``."""

EPSILON = 1e-5


class BatchNorm(nn.Module):
    """Batch normalisation over (n, h, w), :func:`shuffle_jax.ops.normalization.normalize_by_batch`.

    Parameters ``scale`` and ``bias``, and the running ``mean`` and ``var`` in "batch_stats", are named as in
    ``flax.linen.BatchNorm`` and kept in float32; statistics are global over a sharded batch. The running variance
    averages the biased variances of the batches.

    Attributes:
        dtype: type of the output; that of the input by default.
        unbiased: the running variance averages ``m / (m - 1)`` times the variances of batches of m values (of one value
            it is 0 in either case), as torch does.
    """

    dtype: jnp.dtype | None = None
    unbiased: bool = False

    def __call__(self, x: Images, train: bool = False) -> Images:
        """Maps ``(n, h, w, c)`` to the same shape.

        Args:
            x: the images.
            train: normalise by the batch and update the running statistics; else use the running ones.
        """
        scale, bias, mean, var = self._variables(x.shape[-1])
        x = x.astype(self.dtype or x.dtype)
        if not train:
            return normalize(x, mean.value, var.value, scale, bias, EPSILON)
        y, batch_mean, batch_var = normalize_by_batch(x, scale, bias, mean.value, EPSILON)
        if not self.is_initializing():
            values = x.size // x.shape[-1]
            weight = values / max(values - 1, 1) if self.unbiased else 1.0
            mean.value = MOMENTUM * mean.value + (1 - MOMENTUM) * batch_mean
            var.value = MOMENTUM * var.value + (1 - MOMENTUM) * (weight * batch_var)
        return y

    def affine(self, channels: int) -> Affine:
        """What it does to an image of so many channels with the running statistics."""
        scale, bias, mean, var = self._variables(channels)
        factor = scale * lax.rsqrt(var.value + EPSILON)
        return Affine(factor, bias - mean.value * factor)

    @nn.compact
    def _variables(self, channels: int) -> tuple[Array, Array, nn.Variable, nn.Variable]:
        scale = self.param("scale", nn.initializers.ones_init(), (channels,))
        bias = self.param("bias", nn.initializers.zeros_init(), (channels,))
        mean = self.variable("batch_stats", "mean", jnp.zeros, (channels,))
        var = self.variable("batch_stats", "var", jnp.ones, (channels,))
        return scale, bias, mean, var
