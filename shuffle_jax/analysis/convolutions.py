"""The convolutions of a network, in the order of its computation, and what their kernels have learned."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict

from shuffle_jax.analysis.knowledge import Knowledge, knowledge
from shuffle_jax.typing import PyTree

KERNEL = "kernel"
"""The parameter of a convolution, HWIO; a dense layer's has two axes."""


class Convolutions(NamedTuple):
    """The convolutions of a network.

    Attributes:
        groups: of each, by the path of its parameters, as in ``"stage1_0/conv1"``; in the order of the computation.
        followed: of each parameter of the network, by its path, the convolution that it belongs to or comes behind.
    """

    groups: dict[str, int]
    followed: dict[str, str]


def convolutions(network: nn.Module, image_shape: tuple[int, ...]) -> Convolutions:
    """Finds the convolutions of a network and what is behind each, without computing anything.

    Args:
        network: called as ``network(images, train)``.
        image_shape: (h, w, c).

    Raises:
        ValueError: there are none with a kernel of four axes.
    """
    called: dict[str, int] = {}

    def record(call: Any, args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
        own = getattr(context.module, "groups", getattr(context.module, "feature_group_count", 1))
        called.setdefault("/".join(context.module.path), own if isinstance(own, int) else 1)
        return call(*args, **kwargs)

    with nn.intercept_methods(record):
        shapes = jax.eval_shape(network.init, jax.random.key(0), jax.ShapeDtypeStruct((1, *image_shape), jnp.float32))
    leaves = {path.rpartition("/"): leaf.shape for path, leaf in flatten_dict(shapes["params"], sep="/").items()}
    kernels = {path: shape for (path, _, name), shape in leaves.items() if name == KERNEL and len(shape) == 4}
    # Of a depthwise convolution the channels are rows of one matrix.
    groups = {path: 1 if kernels[path][2] == 1 else own for path, own in called.items() if path in kernels}
    if not groups:
        raise ValueError(f"{type(network).__name__} has no convolution with a kernel whose rank could be taken")
    current, behind = next(iter(groups)), {}
    for path in called:
        behind[path] = current = path if path in groups else current
    return Convolutions(groups, {"".join(leaf): behind.get(leaf[0], current) for leaf in leaves})


def known(params: PyTree, groups: Mapping[str, int]) -> dict[str, Knowledge]:
    """What each convolution has learned.

    Args:
        params: of the network.
        groups: of its convolutions, by path.

    Raises:
        ValueError: a kernel is not finite.
    """
    leaves, found = flatten_dict(params, sep="/"), {}
    for path, own in groups.items():
        kernel = np.asarray(leaves[f"{path}/{KERNEL}"], np.float64)
        if not np.isfinite(kernel).all():
            raise ValueError(f"the kernel of {path} is not finite")
        found[path] = knowledge(kernel, own)
    return found
