"""Dynamic convolution decomposition: a static kernel, scaled and corrected in a small latent space for each image.

``W(x) = Lambda(x) W0 + P Phi(x) Q^T``, with a diagonal ``Lambda``, and ``Phi`` of L x L coefficients where a kernel has
c x o: what depends on the image is small. The layer, :class:`shuffle_jax.nn.dynamic_conv.DynamicConv`, normalises
within the correction, ``y = Lambda (x * W0) + P (N2(Phi q) + q)`` with ``q = N1(x * Q)``. In evaluation both
normalisations are affine, and the same function is a convolution with a kernel and a bias for each image:
:func:`synthesise`.

Latent channels come in B blocks of ``l = L / B`` that do not see each other (one by default), and in E copies, one for
each factor over the elements of the kernel (one by default, the element in the middle).

Source: Li, Chen, Dai, Liu, Chen, Yu, Lu, Liu, Yuan and Vasconcelos, Revisiting Dynamic Convolution via Matrix
Decomposition, 2021.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jax import lax

from shuffle_jax.ops import convolution
from shuffle_jax.ops.convolution import Padding, Pads
from shuffle_jax.ops.normalization import Affine
from shuffle_jax.ops.slicing import thinned
from shuffle_jax.typing import Array, Float, Images, Outputs

Phi = Float[Array, "n e b l l"]
"""Coefficients of each image: ``phi[n, e, b, i, j]`` carries latent channel j of copy e to i, within block b."""


def hard_gate(z: Float[Array, "..."]) -> Float[Array, "..."]:
    """``relu6(z + 3) / 3``, elementwise: 1 at 0, between 0 and 2.

    >>> hard_gate(jnp.array([-4.0, 0.0, 1.5, 9.0])).tolist()
    [0.0, 1.0, 1.5, 2.0]
    """
    return jax.nn.relu6(z + 3) / 3


def adaptive_mean(x: Float[Array, "n *s c"], size: int) -> Float[Array, "n f"]:
    """Means over ``size`` bins along every axis of positions, the channels outermost.

    Bin i of m positions has those from ``floor(i m / size)`` up to ``ceil((i + 1) m / size)``: the bins overlap where
    size does not divide m, and repeat positions where it is larger.

    Args:
        x: ``(n, ..., c)`` with any number of axes of positions, none of them empty.
        size: bins along each, at least 1.

    Returns:
        ``(n, c size^d)`` for d axes of positions, ``[:, k size^d + i size + j]`` being bin (i, j) of channel k.

    >>> adaptive_mean(jnp.arange(3.0).reshape(1, 3, 1), 2).tolist()
    [[0.5, 1.5]]
    """
    axes, positions = x.ndim - 2, x.shape[1:-1]
    if not any(m % size for m in positions):  # Bins side by side: one reduction.
        for axis, m in enumerate(positions):  # An axis at a time, see mesh.py.
            x = x.reshape(*x.shape[: 2 * axis + 1], size, m // size, *x.shape[2 * axis + 2 :])
        x = x.mean(tuple(range(2, 2 * axes + 1, 2)))
    else:
        for axis, m in enumerate(positions, 1):
            bounds = [(i * m // size, -(-(i + 1) * m // size)) for i in range(size)]
            x = jnp.stack([lax.slice_in_dim(x, *bin, axis=axis).mean(axis) for bin in bounds], axis)
    return jnp.moveaxis(x, -1, 1).reshape(x.shape[0], x.shape[-1] * size**axes)


def fuse(q: Float[Array, "n *s f"], phi: Phi) -> Float[Array, "n *s m"]:
    """Mixes the latent channels of each image: ``y[n, ..., b, i] = sum_ej phi[n, e, b, i, j] q[n, ..., e, b, j]``.

    Args:
        q: ``(n, ..., E B l)``.
        phi: ``(n, E, B, l, l)``, of the type of q.

    Returns:
        ``(n, ..., B l)``.

    >>> fuse(jnp.array([[1.0, 2.0]]), jnp.array([[0.0, 3.0], [1.0, 0.0]]).reshape(1, 1, 1, 2, 2)).tolist()
    [[6.0, 1.0]]
    """
    n, copies, blocks, size, _ = phi.shape
    positions = math.prod(q.shape[1:-1])
    rows = q.reshape(n, positions, q.shape[-1])
    if blocks == 1:  # One product of matrices for each image.
        y = rows @ phi[:, :, 0].transpose(0, 1, 3, 2).reshape(n, copies * size, size)
    else:
        latents = rows.reshape(n, positions, copies, blocks, size)
        y = jnp.einsum("npebj,nebij->npbi", latents, phi).reshape(n, positions, blocks * size)
    return y.reshape(*q.shape[:-1], blocks * size)


def latents(
    x: Images,
    q: Float[Array, "*ones row m"],
    window: tuple[int, int],
    stride: int,
    padding: Pads | Padding,
    blocks: int = 1,
    elements: Float[Array, "kh kw e"] | None = None,
) -> Float[Array, "n oh ow f"]:
    """The latent features that Q sees, ``x * (R_e Q)`` for each e, or Q of the pixel in the middle of the window.

    Args:
        x: ``(n, h, w, c)``.
        q: ``(1, 1, c / B, B l)``: from each block of channels to its latent channels.
        window: (kh, kw).
        stride: of the window.
        padding: that the window sees, as of :func:`shuffle_jax.ops.convolution.convolution`.
        blocks: B.
        elements: R, ``(kh, kw, E)``; None for the element in the middle, the later one of an even number.

    Returns:
        ``(n, oh, ow, E B l)``, as large as the convolution with that window.
    """
    if elements is None:
        return convolution.pointwise(_at_center(x, window, stride, padding), q, blocks)
    z, copies = convolution.pointwise(x, q, blocks), elements.shape[-1]
    kernels = jnp.broadcast_to(elements[:, :, None], (*window, z.shape[-1], copies))
    return jnp.concatenate(
        [convolution.depthwise(z, kernels[:, :, None, :, e], stride, padding) for e in range(copies)], axis=-1
    )


def _at_center(x: Images, window: tuple[int, int], stride: int, padding: Pads | Padding) -> Outputs:
    x, padding = convolution.around(x, window, padding)
    edges = [(before - k // 2, after - (k - 1 - k // 2), 0) for k, (before, after) in zip(window, padding, strict=True)]
    if any(edge != (0, 0, 0) for edge in edges):
        x = lax.pad(x, jnp.zeros((), x.dtype), ((0, 0, 0), *edges, (0, 0, 0)))
    return thinned(x, stride)


def synthesise(
    kernel: Float[Array, "kh kw i o"],
    gate: Float[Array, "n o"],
    phi: Phi,
    q: Float[Array, "*ones row m"],
    p: Float[Array, "1 1 l o"],
    first: Affine,
    second: Affine,
    elements: Float[Array, "kh kw e"] | None = None,
    bias: Float[Array, " o"] | None = None,
) -> Float[Array, "n r o"]:
    """The kernel and bias of each image that do what the layer does in evaluation, for :func:`per_sample.affine`.

    ``W(x) = W0 diag(lambda) + sum_e R_e (Q diag(g1_e)) (diag(g2) Phi_e + I)^T P`` in the orientation of HWIO, with
    ``R_e`` the e-th factor over the elements of the kernel; bias ``lambda bias + sum_e P^T ((diag(g2) Phi_e + I) b1_e)
    + P^T b2``.

    Args:
        kernel: W0, ``(kh, kw, c / g, o)`` in g groups.
        gate: lambda.
        phi: ``(n, E, B, l, l)``; B a multiple of g.
        q: ``(1, 1, c / B, B l)``: from each block of channels to its latent channels.
        p: ``(1, 1, l, o)``: from each block of latent channels to ``o / B`` channels out.
        first: N1, over E B l channels.
        second: N2, over B l channels.
        elements: R; None for the one in the middle.
        bias: of the static kernel.

    Returns:
        ``(n, kh kw c / g + 1, o)``: the kernel, and its bias in the last row.
    """
    n, copies, blocks, size, _ = phi.shape
    kh, kw, inputs, features = kernel.shape
    window, block_inputs = (kh, kw), q.shape[2]
    groups = blocks * block_inputs // inputs
    scale, shift = (a.reshape(1, copies, blocks, size) for a in first)
    # The shift of N1 is that of one more channel in, which is 1 everywhere: what it becomes is the bias.
    down = jnp.concatenate([q.reshape(block_inputs, 1, blocks, size) * scale, shift])
    fusion = phi * second.scale.reshape(1, 1, blocks, size, 1) + jnp.eye(size, dtype=phi.dtype).reshape(
        1, 1, 1, size, size
    )
    up, late = p.reshape(size, blocks, features // blocks), second.shift.reshape(blocks, size)
    residual = jax.vmap(_through_latent, in_axes=(2, 2, 1, 0), out_axes=3)(down, fusion, up, late)
    if window == (1, 1) and copies == 1 and elements is None and blocks == groups:
        rows = residual.reshape(n, inputs + 1, features)
    else:
        rows = _in_window(_in_groups(residual[:, :, :-1], groups), window, elements)
        rows = jnp.concatenate([rows, residual[:, :, -1].sum(1).reshape(n, 1, features)], axis=1)
    own = jnp.zeros(features, kernel.dtype) if bias is None else bias
    static = jnp.concatenate([kernel.reshape(-1, features), own[None]])
    return static[None] * gate[:, None] + rows


def _through_latent(
    down: Float[Array, "c e l"], fusion: Float[Array, "n e l l"], up: Float[Array, "l o"], late: Float[Array, " l"]
) -> Float[Array, "n e c o"]:
    """``sum_ij down[c, e, j] fusion[n, e, i, j] up[i, o]``, of the last c and one e plus ``sum_i late[i] up[i, o]``."""

    def at_end(row: Float[Array, " k"]) -> Float[Array, "1 e c k"]:
        return jnp.pad(row.reshape(1, 1, 1, -1), ((0, 0), (0, down.shape[1] - 1), (down.shape[0] - 1, 0), (0, 0)))

    # Through the smaller side first: that of the latent space which has fewer channels.
    if down.shape[0] - 1 <= up.shape[-1]:
        return (jnp.einsum("cej,neij->neci", down, fusion) + at_end(late)) @ up
    return jnp.einsum("cej,nejo->neco", down, fusion.swapaxes(-1, -2) @ up) + at_end(late @ up)


def _in_groups(residual: Float[Array, "n e c b o"], groups: int) -> Float[Array, "n e i f"]:
    """Kernels of B blocks as kernels of g groups, with zeros where a group's blocks do not see each other."""
    n, copies, inputs, blocks, features = residual.shape
    per = blocks // groups
    parts = residual.reshape(n, copies, inputs, groups, per, features)
    if per > 1:
        parts = jnp.einsum("necgpo,pr->nercgpo", parts, jnp.eye(per, dtype=residual.dtype))
    parts = parts.reshape(n, copies, per * inputs, *parts.shape[-3:])  # in two steps, see mesh.py
    return parts.reshape(n, copies, per * inputs, blocks * features)


def _in_window(
    residual: Float[Array, "n e i f"], window: tuple[int, int], elements: Float[Array, "kh kw e"] | None
) -> Float[Array, "n r f"]:
    """What a residual adds to each element of the kernel."""
    n, _, inputs, features = residual.shape
    if elements is not None:
        return jnp.einsum("abe,neif->nabif", elements, residual).reshape(n, math.prod(window) * inputs, features)
    before = window[0] // 2 * window[1] + window[1] // 2
    after = math.prod(window) - 1 - before
    return jnp.pad(residual[:, 0], ((0, 0), (before * inputs, after * inputs), (0, 0)))


def multiply_adds(
    positions: tuple[int, int],
    window: tuple[int, int],
    channels: int,
    features: int,
    groups: int,
    latent: tuple[int, int, int],
) -> tuple[int, int]:
    """Multiply-adds of one image in evaluation, beside those of the head: of features added, of kernels synthesised.

    Features: ``s (k^2 c o / g + c L / B + L^2 / B + L o / B + o)`` for s positions of the output. Kernels:
    ``s k^2 c o / g`` and what :func:`synthesise` takes, ``k^2 c o / g + L^2 / B + min(c, o) L^2 / B^2 + c o L / B^2``;
    biases count as none. With E factors over the elements of the kernel, Q is applied at the positions of the input and
    ``s k^2 E L`` comes on top; of kernels what Phi takes part in E times, and ``k^2 E c o / B``.

    Args:
        positions: of the input and of the output.
        window: (kh, kw).
        channels: c.
        features: o.
        groups: g.
        latent: E (0 for the element in the middle), B and L.

    Returns:
        One number for each form.
    """
    elements, blocks, size = latent
    copies, area, out = max(elements, 1), window[0] * window[1], positions[1]
    static = out * area * channels * features // groups
    into = positions[0 if elements else 1] * channels * size // blocks
    across = copies * size**2 // blocks
    in_features = static + into + out * (area * elements * size + across + size * features // blocks + features)
    scaled = area * channels * features // groups
    smaller = min(channels, features) // blocks * across
    residual = copies * channels * features * size // blocks**2
    spread = area * elements * channels * features // blocks
    return in_features, static + scaled + across + smaller + residual + spread
