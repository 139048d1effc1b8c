"""Batch normalisation with the settings that all networks here share."""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jax import lax

from shuffle_jax.ops.normalization import Affine, normalize, normalize_by_batch
from shuffle_jax.ops.precision import at_least_float32
from shuffle_jax.typing import Array, Float, Images, PyTree

MOMENTUM = 0.9
"""Weight of the old running statistics in each update: ``running <- 0.9 running + 0.1 batch``."""

EPSILON = 1e-5


class BatchNorm(nn.Module):
    """Batch normalisation over (n, h, w), :func:`shuffle_jax.ops.normalization.normalize_by_batch`.

    Parameters ``scale`` and ``bias``, and the running ``mean`` and ``var`` in "batch_stats", are named as in
    ``flax.linen.BatchNorm`` and kept in float32; statistics are global over a sharded batch, and within
    ``jax.shard_map`` those of the device's own images. The running variance averages the biased variances of the
    batches.

    Where there are neither statistics nor a scale, as after :func:`shuffle_jax.deploy.folding.fold`, evaluation adds
    the bias; without a bias it returns the input.

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

        Raises:
            ValueError: it is folded and called to train, or its statistics are missing.
        """
        if self._is_folded():
            if train:
                raise ValueError(f"{self._called} is folded and cannot train: train first, then fold")
            x = x.astype(self.dtype or x.dtype)
            if not self.has_variable("params", "bias"):
                return x
            return x + self.get_variable("params", "bias").astype(x.dtype).reshape(1, 1, 1, -1)
        scale, bias, mean, var = self._variables(x.shape[-1])
        x = x.astype(self.dtype or x.dtype)
        wide = at_least_float32(x).dtype  # float64 images are computed in float64
        scale, bias, old_mean, old_var = (a.astype(wide) for a in (scale, bias, mean.value, var.value))
        if not train:
            return normalize(x, old_mean, old_var, scale, bias, EPSILON)
        y, batch_mean, batch_var = normalize_by_batch(x, scale, bias, old_mean, EPSILON)
        if not self.is_initializing():
            values = x.size // x.shape[-1]
            weight = values / max(values - 1, 1) if self.unbiased else 1.0
            mean.value = (MOMENTUM * old_mean + (1 - MOMENTUM) * batch_mean).astype(mean.value.dtype)
            var.value = (MOMENTUM * old_var + (1 - MOMENTUM) * (weight * batch_var)).astype(var.value.dtype)
        return y

    def affine(self, channels: int) -> Affine:
        """What it does to an image of so many channels with the running statistics, or without them if it is folded."""
        if self._is_folded():
            has_bias = self.has_variable("params", "bias")
            one, zero = jnp.ones(channels, jnp.float32), jnp.zeros(channels, jnp.float32)
            return Affine(one, self.get_variable("params", "bias") if has_bias else zero)
        scale, bias, mean, var = self._variables(channels)
        factor = scale * lax.rsqrt(var.value + EPSILON)
        return Affine(factor, bias - mean.value * factor)

    def _is_folded(self) -> bool:
        if self.is_initializing() or self.has_variable("batch_stats", "mean"):
            return False
        if self.has_variable("params", "scale"):
            raise ValueError(f'{self._called} has a scale but no statistics: pass the collection "batch_stats" too')
        return True

    @property
    def _called(self) -> str:
        return f"the batch norm {'/'.join(self.path)}".rstrip()

    @nn.compact
    def _variables(self, channels: int) -> tuple[Array, Array, nn.Variable, nn.Variable]:
        scale = self.param("scale", nn.initializers.ones_init(), (channels,), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros_init(), (channels,), jnp.float32)
        mean = self.variable("batch_stats", "mean", jnp.zeros, (channels,), jnp.float32)
        var = self.variable("batch_stats", "var", jnp.ones, (channels,), jnp.float32)
        return scale, bias, mean, var


def absorbed(params: PyTree, statistics: PyTree) -> tuple[Float[np.ndarray, " c"], Float[np.ndarray, " c"]]:
    """What a batch norm does in evaluation, as ``scale x + shift`` in float64.

    Args:
        params: its "scale" and "bias".
        statistics: its running "mean" and "var".
    """
    scale, bias = (np.asarray(params[name], np.float64) for name in ("scale", "bias"))
    mean, var = (np.asarray(statistics[name], np.float64) for name in ("mean", "var"))
    factor = scale / np.sqrt(var + EPSILON)
    return factor, bias - mean * factor


def scale_outputs(variables: dict[str, PyTree], scale: Float[np.ndarray, " o"]) -> dict[str, PyTree]:
    """The variables with which a linear layer gives ``scale`` times its outputs: kernels and biases scaled.

    A layer whose outputs a batch norm behind it may scale has a method of this name and kind, and
    :func:`shuffle_jax.deploy.folding.fold` calls it. This one serves layers whose own parameters ``kernel``,
    ``kernels``, ``bias`` and ``biases`` all have the output channels last.

    Args:
        variables: the layer's own collections.
        scale: of each output channel, in float64.

    Returns:
        New collections; what is scaled is a float64 NumPy array.
    """
    linear = ("kernel", "kernels", "bias", "biases")
    params = {
        name: np.asarray(leaf, np.float64) * scale if name in linear else leaf
        for name, leaf in variables["params"].items()
    }
    return {**variables, "params": params}
