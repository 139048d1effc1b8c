"""What the benchmark measures of Kronecker products and of the layers made of them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from experiments.benchmark.cases import Cases, Workload, normal, squared_gradient
from shuffle_jax.analysis.count import count
from shuffle_jax.deploy.folding import fold
from shuffle_jax.nn import PointwiseConv, StaticDynamicShuffle
from shuffle_jax.ops import kronecker, mixing
from shuffle_jax.typing import Array, PyTree

CHANNELS = (116, 232, 464)
"""Of stages 2 to 4 of ShuffleNetV2 1.0x; the images of each have half the height and width of those before."""

GROUPS = 2


def kronecker_mixing(work: Workload, channels: int, backward: bool) -> Cases:
    """Kronecker mixing of the channels of a stage in two groups, soft and hard, against dense products."""
    images, side = work.batch_size, _side(work, channels)
    x = normal(work, images, side, side, channels)
    p, q = kronecker.group_factors(channels, GROUPS)
    rng = np.random.default_rng(0)
    # Near permutations, as after training; the soft forms take as long whatever is in them.
    factors = [_near_permutations(rng, images, size) for size in (p, q)]
    static = [factor[:1] for factor in factors]
    matrix = normal(work, channels, channels)
    per_image = normal(work, images, channels, channels)

    def dense_per_image(x: Array, matrices: Array) -> Array:
        rows = x.reshape(images, -1, channels)
        return jnp.einsum("nsc,ndc->nsd", rows, matrices).reshape(x.shape)

    forms: dict[str, tuple[Callable[..., Array], list[Array]]] = {
        "dense product": (mixing.mix, [matrix]),
        "dense product, a matrix for each image": (dense_per_image, [per_image]),
        "fixed shuffle": (partial(mixing.shuffle, groups=GROUPS), []),
        "Kronecker, soft": (partial(kronecker.mix, groups=GROUPS), factors),
        "Kronecker, soft, one for all images": (partial(kronecker.mix, groups=GROUPS), static),
        "Kronecker, hard": (partial(kronecker.straight_through, groups=GROUPS), factors),
    }
    return {
        name: partial(jax.jit(squared_gradient(form) if backward else form), x, *operands)
        for name, (form, operands) in forms.items()
    }


def static_dynamic(work: Workload, channels: int, backward: bool) -> Cases:
    """A 1x1 layer on half the channels of a stage: the convolution, and static-dynamic shuffles in its place.

    Evaluated with the norms of their heads folded. The name of each says its parameters and the multiply-adds of one
    image.
    """
    half, side = channels // 2, _side(work, channels)
    x = normal(work, work.batch_size, side, side, half)
    layers: dict[str, nn.Module] = {
        "1x1 convolution": PointwiseConv(half),
        "static-dynamic": StaticDynamicShuffle(half),
        "static-dynamic, 2 groups": StaticDynamicShuffle(half, blocks=2),
        "grouped 1x1, dynamic shuffle": StaticDynamicShuffle(half, blocks=2, static="grouped"),
    }
    cases: Cases = {}
    for name, layer in layers.items():
        cost = count(layer, (side, side, half))
        label = f"{name} ({cost.parameters:,} parameters, {cost.multiply_adds:,} multiply-adds)"
        variables = jax.jit(layer.init)(jax.random.key(0), x)  # at the end of a training: binarized
        if backward:
            cases[label] = partial(jax.jit(_gradient(layer, variables)), x)
        else:
            cases[label] = partial(
                jax.jit(partial(layer.apply, fold(layer, variables, (side, side, half)).variables)), x
            )
    return cases


def _gradient(layer: nn.Module, variables: dict[str, PyTree]) -> Callable[[Array], object]:
    rest = {name: tree for name, tree in variables.items() if name != "params"}

    def loss(params: PyTree, x: Array) -> tuple[Array, PyTree]:
        y, updated = layer.apply({**rest, "params": params}, x, train=True, mutable=["batch_stats"])
        return jnp.square(y).sum(), updated

    return partial(jax.grad(loss, argnums=(0, 1), has_aux=True), variables["params"])


def _side(work: Workload, channels: int) -> int:
    """Height and width of the images of the stage with so many channels."""
    return max(1, work.image_size // 2 * CHANNELS[0] // channels)


def _near_permutations(rng: np.random.Generator, images: int, size: int) -> Array:
    indices = np.stack([rng.permutation(size) for _ in range(images)])
    return jnp.asarray(0.9 * np.eye(size)[indices] + 0.1 / size, jnp.float32)
