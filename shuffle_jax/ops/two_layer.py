"""The expected loss of a two-layer network whose inputs were permuted, in closed form: no data, no noise."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

from shuffle_jax.ops.mesh import each_device
from shuffle_jax.ops.penalty import safe_norm
from shuffle_jax.ops.permutation import invert
from shuffle_jax.ops.precision import at_least_float32
from shuffle_jax.typing import Array, Float, Int, Matrix


def relu_kernel(u: Float[Array, "*batch k c"], v: Float[Array, "*batch m c"]) -> Float[Array, "*batch k m"]:
    """How two rectified linear functions of a standard normal vector correlate, for all pairs of two sets.

    ``K(u, v) = E[relu(u.x) relu(v.x)] = |u| |v| / (2 pi) (sin t + (pi - t) cos t)``, t the angle between u and v

    So ``K(u, u) = |u|^2 / 2`` and ``K(u, -u) = 0``. The gradient is ``(|v| sin t u / |u| + (pi - t) v) / (2 pi)``,
    computed in this form and finite everywhere: also for parallel and opposite vectors, where the arccosine has none,
    and at zero vectors, where it is ``v / 4``, the middle of what it is around them. Second derivatives are
    right but at zero vectors, where there is none. Cost O(k m c), in float32 at least.

    Args:
        u: ``(..., k, c)`` real vectors.
        v: ``(..., m, c)`` real vectors with the same leading axes.

    Returns:
        ``(..., k, m)`` nonnegative values.

    Raises:
        ValueError: the leading axes or the lengths of the vectors differ, or the arrays have fewer than two axes.

    >>> relu_kernel(jnp.eye(2), jnp.array([[2.0, 0.0], [-1.0, 0.0]])).round(4).tolist()
    [[1.0, 0.0], [0.3183, 0.1592]]

    Source: the arc-cosine kernel of degree 1 of Cho and Saul, 2009.
    """
    if u.ndim < 2 or v.ndim < 2 or u.shape[:-2] != v.shape[:-2] or u.shape[-1] != v.shape[-1]:
        raise ValueError(
            f"vectors of the shapes {u.shape} and {v.shape} have no pairs: give (..., k, c) and (..., m, c)"
        )
    u, v = at_least_float32(u), at_least_float32(v)
    products = jnp.matmul(u, jnp.swapaxes(v, -1, -2), precision="highest")
    return _kernel(safe_norm(u, -1)[..., :, None], safe_norm(v, -1)[..., None, :], products)


def two_layer_loss(
    weights: Float[Array, "k c"], outputs: Float[Array, " k"], matrix: Matrix, permutation: Int[Array, " c"]
) -> Float[Array, "*batch"]:
    """How well a relaxed permutation stands for the one before a two-layer network, over standard normal inputs.

    The teacher is ``f(P x) = sum_k v_k relu(w_k . P x)``, the student the same network behind M in place of P::

        L = 1/2 E (f(M x) - f(P x))^2 = 1/2 [v^T K(a, a) v - 2 v^T K(a, b) v + v^T K(b, b) v],   a = W M,  b = W P

    L is 0 at M = P. Where no two of the w are parallel and no v_k is zero, it is 0 only where the vectors ``v_k a_k``
    are the ``v_k b_k`` in some order, as ``W M = W P`` makes them. Of doubly stochastic matrices P alone does that, for
    any number of units, as long as the columns of W differ: those of ``W M`` are means of those of W, an outermost
    column is no mean of others, and without it the next one is outermost. Another order of the units would need row
    sums of W, which M keeps, in the ratios of the outputs. So with Gaussian W and v the relaxed loss is 0 at P alone,
    but it is not convex. With W = I and equal v_k every permutation has loss 0, and there is nothing to find.

    Args:
        weights: W, ``(k, c)``.
        outputs: v, ``(k,)``.
        matrix: M, ``(..., c, c)``.
        permutation: p of the teacher, ``(c,)``, with ``P[i, p[i]] = 1``; not checked.

    Returns:
        ``(...)`` values, at least 0 up to rounding; in float32 at least.

    Raises:
        ValueError: the shapes do not fit.

    >>> weights, outputs, p = jnp.array([[1.0, 2.0]]), jnp.array([1.0]), jnp.array([1, 0])
    >>> matrices = jnp.array([[[0.0, 1.0], [1.0, 0.0]], [[1.0, 0.0], [0.0, 1.0]]])  # P and another one
    >>> two_layer_loss(weights, outputs, matrices, p).round(4).tolist()
    [0.0, 0.4322]

    Source: the example of a two-layer network is of Lyu, Zhang, Qi and Xin, AutoShuffleNet, 2020; the closed form
    follows from the kernel of Cho and Saul, 2009.
    """
    units, channels = weights.shape if weights.ndim == 2 else (0, 0)
    fits = outputs.shape == (units,) and permutation.shape == (channels,)
    if not units or not fits or matrix.shape[-2:] != (channels, channels):
        shapes = ", ".join(str(array.shape) for array in (weights, outputs, matrix, permutation))
        raise ValueError(f"a network of the shapes {shapes} does not fit: give (k, c), (k,), (..., c, c) and (c,)")
    weights, outputs, matrix = (at_least_float32(array) for array in (weights, outputs, matrix))
    given = weights, outputs, weights[:, invert(permutation)]
    return each_device(_loss, (matrix,), given) if matrix.ndim > 2 else _loss(matrix, *given)


def _loss(
    matrix: Matrix, weights: Float[Array, "k c"], outputs: Float[Array, " k"], teacher: Float[Array, "k c"]
) -> Float[Array, "*batch"]:
    wide = jnp.broadcast_to(weights, (*matrix.shape[:-2], *weights.shape))
    student = jnp.matmul(wide, matrix, precision="highest")
    across = relu_kernel(student, jnp.broadcast_to(teacher, student.shape))
    own = jnp.broadcast_to(relu_kernel(teacher, teacher), across.shape)
    # Near M = P the three kernels are alike: their difference is taken first, for rounding errors to stay small.
    difference = (relu_kernel(student, student) - across) + (own - across)
    return (difference * jnp.broadcast_to(jnp.outer(outputs, outputs), difference.shape)).sum((-2, -1)) / 2


@jax.custom_jvp
def _kernel(
    u_norm: Float[Array, "*batch k 1"], v_norm: Float[Array, "*batch 1 m"], product: Float[Array, "*batch k m"]
) -> Float[Array, "*batch k m"]:
    """``(|u| |v| sin t + (pi - t) u.v) / (2 pi)``: an error in t is multiplied by ``t sin t``, and does no harm."""
    sine, angle = _sine_and_angle(u_norm, v_norm, product)
    return (u_norm * v_norm * sine + (math.pi - angle) * product) / (2 * math.pi)


@_kernel.defjvp
def _(primals, tangents):  # type: ignore[no-untyped-def]
    """With |u|, |v| and u.v as the variables: ``|v| sin t``, ``|u| sin t`` and ``pi - t``, over 2 pi."""
    u_norm, v_norm, product = primals
    u_change, v_change, product_change = tangents
    sine, angle = _sine_and_angle(u_norm, v_norm, product)
    change = sine * (v_norm * u_change + u_norm * v_change) + (math.pi - angle) * product_change
    return _kernel(u_norm, v_norm, product), change / (2 * math.pi)


def _sine_and_angle(
    u_norm: Float[Array, "*batch k 1"], v_norm: Float[Array, "*batch 1 m"], product: Float[Array, "*batch k m"]
) -> tuple[Float[Array, "*batch k m"], Float[Array, "*batch k m"]]:
    """Of the angle between two vectors; a zero vector is at right angles to all."""
    norms = u_norm * v_norm
    cosine = jnp.clip(product / jnp.where(norms > 0, norms, 1), -1, 1)
    square = (1 - cosine) * (1 + cosine)
    # Of parallel vectors the slope of the sine is infinite. Second derivatives hold it only in products with what is 0.
    sine = jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1)), 0)
    return sine, jnp.arctan2(sine, cosine)
