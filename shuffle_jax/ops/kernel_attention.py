"""Convolutions with a weighted sum of K kernels, ``y = (sum_k r_k(x) W_k) * x``, the weights r made from each image.

The sum can be taken over kernels, :func:`aggregate`, for a convolution with a kernel for each image
(:mod:`shuffle_jax.ops.per_sample`), or over the K features that the kernels give, :func:`mix_features`. Both are one
function with one gradient. Which is cheaper says :func:`multiply_adds`: kernels, unless the positions are very few.

Source: Yang, Bender, Le and Ngiam, CondConv, 2019; Chen, Dai, Liu, Chen, Yuan and Liu, Dynamic Convolution: Attention
over Convolution Kernels, 2020.
"""

from __future__ import annotations

import math

import jax.numpy as jnp

from shuffle_jax.ops import convolution
from shuffle_jax.ops.convolution import Padding, Pads
from shuffle_jax.ops.permutation import check_groups
from shuffle_jax.typing import Array, Float, Images


def aggregate(weights: Float[Array, "n k"], parts: Float[Array, "k *s"]) -> Float[Array, "n *s"]:
    """The sum of the parts for each image, ``A[n] = sum_k r[n, k] W[k]``, as one product of matrices.

    Args:
        weights: r, ``(n, K)``.
        parts: W, ``(K, ...)``, kernels or biases, of the type of r.

    Returns:
        ``(n, ...)``.

    >>> aggregate(jnp.array([[0.5, 0.5], [0.0, 2.0]]), jnp.array([[2.0, 4.0], [0.0, 1.0]])).tolist()
    [[1.0, 2.5], [0.0, 2.0]]
    """
    return (weights @ parts.reshape(parts.shape[0], -1)).reshape(weights.shape[0], *parts.shape[1:])


def mix_features(
    x: Images,
    kernels: Float[Array, "k kh kw i o"],
    weights: Float[Array, "n k"],
    stride: int = 1,
    padding: Pads | Padding = "zeros",
    groups: int = 1,
) -> Float[Array, "n oh ow o"]:
    """The weighted sum of K convolutions, ``y[n] = sum_k r[n, k] (W_k * x[n])``, as one with ``K o`` channels out.

    Args:
        x: ``(n, h, w, c)``.
        kernels: W, ``(K, kh, kw, c / g, o)``, of the type of x.
        weights: r, ``(n, K)``, of the type of x.
        stride: at least 1.
        padding: ``k // 2`` "zeros" on every side, or as many values of the opposite side, "wrap"; or numbers of zeros
            ``((top, bottom), (left, right))``.
        groups: g, a divisor of c and o.

    Returns:
        ``(n, oh, ow, o)``, as :func:`shuffle_jax.ops.convolution.convolution`.

    Raises:
        ValueError: as there.

    >>> x, kernels = jnp.ones((1, 1, 1, 1)), jnp.array([3.0, 4.0]).reshape(2, 1, 1, 1, 1)
    >>> mix_features(x, kernels, jnp.array([[1.0, 10.0]])).item()
    43.0
    """
    count, *window, inputs, features = kernels.shape
    check_groups(features, groups)
    # The channels out of a group stand together: those of its K kernels one after the other.
    split = kernels.reshape(count, *window, inputs, groups, features // groups)
    wide = jnp.moveaxis(split, 0, -2).reshape(*window, inputs, count * features)
    y = convolution.convolution(x, wide, stride, padding, groups)
    y = y.reshape(*y.shape[:3], groups, count, features // groups)
    return (y * weights[:, None, None, None, :, None]).sum(-2).reshape(*y.shape[:3], features)


def multiply_adds(
    positions: int, window: tuple[int, int], channels: int, features: int, groups: int, count: int, use_bias: bool
) -> tuple[int, int]:
    """Multiply-adds of one image, beside those that make the weights: of features mixed, of kernels aggregated.

    Features: ``s K (k^2 c / g + 1) o`` for s positions of the output. Kernels: ``(K + s) k^2 c o / g``. Biases, which
    are aggregated, add ``K o`` to both.

    Args:
        positions: s.
        window: (kh, kw), ``k^2`` elements.
        channels: c.
        features: o.
        groups: g.
        count: K.
        use_bias: there are biases.

    Returns:
        One number for each form.

    >>> multiply_adds(49, (3, 3), 16, 32, 1, 4, use_bias=False)
    (909440, 244224)
    """
    size, biases = math.prod(window) * channels // groups * features, count * features * use_bias
    return positions * count * (size + features) + biases, (count + positions) * size + biases
