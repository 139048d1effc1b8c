"""Batch normalisation as two passes over the images forward and two backward."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from shuffle_jax.ops.mesh import varying_alike
from shuffle_jax.ops.precision import at_least_float32
from shuffle_jax.ops.reduction import sums
from shuffle_jax.ops.shape import check_batch
from shuffle_jax.typing import Array, Float, Images

Channels = Float[Array, "c"]


class Affine(NamedTuple):
    """A normalisation by given moments as one map, ``y = scale x + shift`` in every channel."""

    scale: Channels
    shift: Channels


def normalize(
    x: Images, mean: Channels, variance: Channels, scale: Channels, bias: Channels, epsilon: float = 1e-5
) -> Images:
    """Normalises by given moments: ``y = scale (x - mean) / sqrt(variance + epsilon) + bias``.

    Args:
        x: ``(n, h, w, c)``; half precision is computed in float32.
        mean: ``(c,)``.
        variance: ``(c,)``, nonnegative.
        scale: ``(c,)``.
        bias: ``(c,)``.
        epsilon: positive.

    Returns:
        Array like x.

    >>> one = jnp.ones(1)
    >>> normalize(jnp.array([[[[5.0]]]]), mean=one, variance=4 * one, scale=one, bias=one, epsilon=0.0).item()
    3.0
    """
    factor = scale * lax.rsqrt(variance + epsilon)
    wide = at_least_float32(x)
    return ((wide - _row(mean)) * _row(factor) + _row(bias)).astype(x.dtype)


def normalize_by_batch(
    x: Images, scale: Channels, bias: Channels, about: Channels, epsilon: float = 1e-5
) -> tuple[Images, Channels, Channels]:
    """Normalises by the moments of the batch itself, and returns them.

    ``mean = E[x]``, ``variance = E[(x - mean)^2]``, ``y = scale (x - mean) / sqrt(variance + epsilon) + bias`` with the
    averages over images, rows and columns; of a batch split over devices, over all of it.

    Both moments come from one reduction, and both sums of the gradient from another; autodiff takes about six. The
    moments are returned for running statistics: no gradient flows back through them. It can be differentiated in
    reverse any number of times, and not in forward mode. Within ``jax.shard_map`` a batch is what the device has.

    Args:
        x: ``(n, h, w, c)``; half precision is computed in float32.
        scale: ``(c,)``.
        bias: ``(c,)``.
        about: ``(c,)``, any guess of the mean. Sums are taken about it, so that a mean far larger than the deviation
            costs no digits; the result is the same otherwise.
        epsilon: positive.

    Returns:
        ``(y, mean, variance)``: an array like x, and two of shape ``(c,)``; the variance is the biased one.

    Raises:
        ValueError: there are no images, or none of their values.

    >>> x = jnp.array([1.0, 3.0]).reshape(2, 1, 1, 1)
    >>> y, mean, variance = normalize_by_batch(x, jnp.ones(1), jnp.zeros(1), jnp.zeros(1), 0.0)
    >>> y.ravel().tolist(), mean.item(), variance.item()
    ([-1.0, 1.0], 2.0, 1.0)

    Source: Ioffe and Szegedy, Batch Normalization, 2015.
    """
    check_batch(x)
    return _normalize_by_batch(*varying_alike(x, scale, bias, about), epsilon)


def _by_batch(x: Images, scale: Channels, bias: Channels, about: Channels, epsilon: float) -> tuple:
    mean, variance = _moments(x, about)
    return normalize(x, mean, variance, scale, bias, epsilon), mean, variance


_normalize_by_batch = jax.custom_vjp(_by_batch, nondiff_argnums=(4,))


def _forward(x: Images, scale: Channels, bias: Channels, about: Channels, epsilon: float) -> tuple:
    # Not by the function itself, through whose moments no gradient flows: a second derivative would not see how what is
    # saved depends on x.
    y, mean, variance = _by_batch(x, scale, bias, about, epsilon)
    moments = lax.stop_gradient((mean, variance))
    return (y, *moments), (x, mean, lax.rsqrt(variance + epsilon), scale)


def _backward(epsilon: float, saved: tuple, gradients: tuple) -> tuple:
    x, mean, reciprocal, scale = saved
    gradient = at_least_float32(gradients[0])
    unit = (at_least_float32(x) - _row(mean)) * _row(reciprocal)
    # dx = scale / deviation (g - E[g] - u E[g u]), with u the normalised x; the averages are the two other gradients.
    bias_gradient, scale_gradient = sums([gradient, gradient * unit])
    count = x.size // x.shape[-1]
    centred = gradient - _row(bias_gradient / count) - unit * _row(scale_gradient / count)
    x_gradient = (centred * _row(scale * reciprocal)).astype(x.dtype)
    return x_gradient, scale_gradient, bias_gradient, jnp.zeros_like(mean)


_normalize_by_batch.defvjp(_forward, _backward)


def _moments(x: Images, about: Channels) -> tuple[Channels, Channels]:
    difference = at_least_float32(x) - _row(about)
    count = x.size // x.shape[-1]
    first, second = sums([difference, jnp.square(difference)])
    first, second = first / count, second / count
    return about + first, jnp.maximum(second - jnp.square(first), 0)


def _row(vector: Channels) -> Float[Array, "1 1 1 c"]:
    return vector.reshape(1, 1, 1, -1)
