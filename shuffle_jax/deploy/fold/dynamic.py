"""Folding the convolutions and classifiers of MobileNetV2 and ResNet, whether or not they depend on the image.

A batch norm behind a layer, ``g y + t``, goes into all that is linear in it:

- A sum of kernels, ``sum_k r_k(x) (W_k * x + b_k)``: g into every kernel and its bias; t is a bias.
- A decomposition, ``lambda (W0 * x + b) + P (N2(Phi q) + q)``: g into W0, b and P; t is a bias.

The norms inside a decomposition go too. ``N1(x * Q)`` is Q with a bias. The scale of ``N2(z) = g2 z + t2`` goes into
the rows of Phi, that is into the head that makes it, and its shift through P: ``P (g2 Phi + I) q + P t2 + t``.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from shuffle_jax.deploy.fold.layers import Affine, Folded, Unfoldable, absorb, apply_affine, inside, scale_and_shift
from shuffle_jax.nn import CondConv, Conv, Dense, DepthwiseConv, DYConv, DynamicConv, DynamicDense, PointwiseConv
from shuffle_jax.nn.collections import PROGRESS
from shuffle_jax.nn.dynamic_conv import Coefficients
from shuffle_jax.ops import convolution, dynamic_conv, normalization, per_sample
from shuffle_jax.ops.barrier import computed_once
from shuffle_jax.ops.convolution import Pads
from shuffle_jax.ops.precision import at_least_float32
from shuffle_jax.typing import Array, Float, Images, PyTree


def fold_convolution(layer: nn.Module, variables: dict[str, PyTree], name: str, norm: str) -> Folded:
    """A convolution and the batch norm behind it as one layer.

    Args:
        layer: what makes the convolution, unbound.
        variables: of the module in which both are.
        name: of the convolution there.
        norm: of the norm there.

    Raises:
        Unfoldable: the convolution is of a kind that cannot be folded.
    """
    own, behind = inside(variables, name), inside(variables, norm)
    params, moments = own["params"], (behind["params"], behind["batch_stats"])
    match layer:
        case PointwiseConv():
            op = partial(convolution.pointwise, groups=layer.groups)
        case Conv():
            op = partial(convolution.convolution, stride=layer.stride)
        case DepthwiseConv():
            op = partial(convolution.depthwise, stride=layer.stride)
        case CondConv() | DYConv():
            return _kernel_attention(layer, own, *scale_and_shift(*moments))
        case DynamicConv():
            return _decomposition(layer, own, *scale_and_shift(*moments))
        case _:
            raise Unfoldable(
                f"convolutions of {type(layer).__name__} cannot be folded, only those of PointwiseConv, Conv, "
                "DynamicConv, CondConv and DYConv: use the network as it is"
            )
    dtype = layer.dtype
    return Folded(lambda params, x: apply_affine(op, x, params, dtype), absorb(params, *moments).finished())


def fold_classifier(head: nn.Module, variables: dict[str, PyTree]) -> Folded:
    """A classifier with the mean over positions before it.

    Args:
        head: what makes it, unbound.
        variables: of it.

    Raises:
        Unfoldable: it is of a kind that cannot be folded.
    """
    match head:
        case Dense():
            return Folded(lambda params, x: _called(head, {"params": params}, _mean(x)), variables["params"])
        case DynamicDense():
            # At one position a kernel for each image always takes more than two features.
            layer = DynamicConv(head.features, latent=head.latent, use_bias=True, form="features")
            none = np.ones(head.features), np.zeros(head.features)
            apply, params = _decomposition(layer, inside(variables, "layer"), *none)
            return Folded(lambda params, x: apply(params, _mean(x)[:, None, None])[:, 0, 0], params)
    raise Unfoldable(
        f"a classifier of {type(head).__name__} cannot be folded, only those of Dense and DynamicDense: use the "
        "network as it is"
    )


def _called(module: nn.Module, variables: dict[str, PyTree], x: Float[Array, "..."]) -> Any:
    return module.apply(variables, x)


def _mean(x: Images) -> Float[Array, "n c"]:
    return x.mean((1, 2), dtype=jnp.float32)


def _kernel_attention(
    layer: CondConv | DYConv,
    variables: dict[str, PyTree],
    scale: Float[np.ndarray, "o"],
    shift: Float[np.ndarray, "o"],
) -> Folded:
    params = dict(variables["params"])
    for name in {"kernels", "biases"} & set(params):
        params[name] = _narrow(np.asarray(params[name], np.float64) * scale)
    progress = {PROGRESS: variables[PROGRESS]} if PROGRESS in variables else {}  # which a temperature may follow

    def apply(params: PyTree, x: Images) -> Images:
        y = _called(layer, {"params": params["sum"], **progress}, x)
        return y + params["bias"].astype(y.dtype).reshape(1, 1, 1, -1)

    return Folded(apply, {"sum": params, "bias": _narrow(shift)})


def _decomposition(
    layer: DynamicConv,
    variables: dict[str, PyTree],
    scale: Float[np.ndarray, "o"],
    shift: Float[np.ndarray, "o"],
) -> Folded:
    params: PyTree = jax.tree.map(lambda a: np.asarray(a, np.float64), variables["params"])
    norms = (scale_and_shift(params[name], variables["batch_stats"][name]) for name in ("norm1", "norm2"))
    (scale1, shift1), (scale2, shift2) = norms
    latent, size = params["q"].shape[-1], params["p"].shape[2]
    copies, blocks = len(scale1) // latent, latent // size

    fusion = params["generator"]["fusion"]["kernel"]
    rows = np.broadcast_to(scale2.reshape(blocks, size, 1), (copies, blocks, size, size)).reshape(-1)
    folded = {
        "static": {name: params[name] * scale for name in ("kernel", "bias") if name in params},
        "generator": {**params["generator"], "fusion": {"kernel": fusion * rows}},
        "q": Affine(params["q"] * (scale1 if copies == 1 else 1), shift1)._asdict(),
        "p": Affine(params["p"] * scale, shift).after(shift2, blocks)._asdict(),
    }
    if "r" in params:
        folded["r"] = params["r"]
    if copies > 1:  # They share Q, and each has a scale of its own.
        folded["q"]["scale"] = scale1
    return Folded(partial(_apply_decomposition, layer), jax.tree.map(_narrow, folded))


def _narrow(a: Float[np.ndarray, "..."]) -> Float[Array, "..."]:
    return jnp.asarray(a, jnp.float32)


def _apply_decomposition(layer: DynamicConv, params: PyTree, x: Images) -> Images:
    """In the form that the unfolded layer takes."""
    q, p, generator = params["q"], params["p"], params["generator"]
    latent, (size, features) = q["kernel"].shape[-1], p["kernel"].shape[2:]
    copies, blocks = len(q["bias"]) // latent, latent // size
    inputs, hidden = generator["squeeze"]["kernel"].shape

    x = computed_once(x)
    head = Coefficients(hidden, features, (copies, blocks, size, size), layer.head_init)
    seen = dynamic_conv.adaptive_mean(at_least_float32(x), math.isqrt(inputs // x.shape[-1]))
    gate, phi = _called(head, {"params": generator}, seen)
    x = x.astype(layer.dtype or x.dtype)
    window = params["static"]["kernel"].shape[:2]
    pads = convolution.resolve_padding(x.shape[1:3], window, layer.padding)  # type: ignore[arg-type]
    form = _synthesised if _synthesises(layer, x) else _added
    return form(layer, params, x, gate, phi, pads)


def _synthesises(layer: DynamicConv, x: Images) -> bool:
    """Whether it makes a kernel for each image: then it takes other multiply-adds than in features."""
    return layer.own_multiply_adds(x, x) != layer.clone(form="features").own_multiply_adds(x, x)


def _synthesised(
    layer: DynamicConv, params: PyTree, x: Images, gate: Float[Array, "n o"], phi: dynamic_conv.Phi, pads: Pads
) -> Images:
    static, q, p = (params[name] for name in ("static", "q", "p"))
    latent = q["kernel"].shape[-1]
    first = normalization.Affine(q.get("scale", jnp.ones_like(q["bias"])), q["bias"])
    second = normalization.Affine(jnp.ones(latent), jnp.zeros(latent))
    window = static["kernel"].shape[:2]
    rows = dynamic_conv.synthesise(
        static["kernel"], gate, phi, q["kernel"], p["kernel"], first, second, params.get("r"), static.get("bias")
    )
    rows = rows + jnp.pad(p["bias"].reshape(1, 1, -1), ((0, 0), (rows.shape[1] - 1, 0), (0, 0)))
    return per_sample.affine(x, rows.astype(x.dtype), window, layer.stride, pads, layer.groups)


def _added(
    layer: DynamicConv, params: PyTree, x: Images, gate: Float[Array, "n o"], phi: dynamic_conv.Phi, pads: Pads
) -> Images:
    parts = (params["static"], params["q"], params["p"], params.get("r"), gate)
    static, q, p, elements, gate = jax.tree.map(lambda a: a.astype(x.dtype), parts)
    window, blocks, size = static["kernel"].shape[:2], *phi.shape[2:4]
    fusion = (phi + jnp.eye(size).reshape(1, 1, 1, size, size)).astype(x.dtype)

    y = convolution.convolution(x, static["kernel"], layer.stride, pads, layer.groups)
    if "bias" in static:
        y = y + _row(static["bias"])
    latents = dynamic_conv.latents(x, q["kernel"], window, layer.stride, pads, blocks, elements)
    if "scale" in q:
        latents = latents * _row(q["scale"])
    fused = dynamic_conv.fuse(latents + _row(q["bias"]), fusion)
    return y * gate[:, None, None] + convolution.pointwise(fused, p["kernel"], blocks) + _row(p["bias"])


def _row(vector: Float[Array, "c"]) -> Float[Array, "1 1 1 c"]:
    return vector.reshape(1, 1, 1, -1)
