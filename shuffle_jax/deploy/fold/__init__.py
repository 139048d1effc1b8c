"""Folding: everything that is constant at inference absorbed into the kernels beside it.

Exact, up to rounding:

- A batch norm after a convolution scales the kernel's output channels and adds a bias; where a pointwise convolution
  follows a depthwise one directly, even the bias moves on into the pointwise one.
- A convolution whose kernel depends on the image is linear in a few static arrays, which the norm behind it scales; so
  do norms within it. A bias is left of each.
- A permutation of channels commutes with everything that acts on each channel alone (ReLU, depthwise convolution,
  pooling) and reorders the rows or columns of the kernels around it. What the structure of a network leaves to be moved
  are contiguous blocks of channels: no index vector and no gather remains.
"""

from __future__ import annotations

import flax.linen as nn

from shuffle_jax.deploy.fold.addressnet import fold_addressnet
from shuffle_jax.deploy.fold.layers import Folded, Unfoldable
from shuffle_jax.deploy.fold.mobilenet_v2 import fold_mobilenet_v2
from shuffle_jax.deploy.fold.resnet import fold_resnet
from shuffle_jax.deploy.fold.shift_resnet import fold_shift_resnet
from shuffle_jax.deploy.fold.shufflenet_v1 import fold_shufflenet_v1
from shuffle_jax.deploy.fold.shufflenet_v2 import fold_shufflenet_v2
from shuffle_jax.models import AddressNet, MobileNetV2, ResNet, ShiftResNet, ShuffleNetV1, ShuffleNetV2
from shuffle_jax.typing import PyTree

__all__ = ["Folded", "Unfoldable", "fold"]


def fold(network: nn.Module, variables: dict[str, PyTree]) -> Folded:
    """Folds batch norms and permutations of a network into its kernels.

    Args:
        network: a ShuffleNetV1 or ShuffleNetV2 with mixers that are permutations (ChannelShuffle, FixedPermutation,
            ChannelShift, Identity, AutoShuffle after :func:`shuffle_jax.deploy.harden.harden`, or DynamicShuffle after
            :func:`shuffle_jax.deploy.freeze.freeze`) and plain 1x1 convolutions; an AddressNet with the same; a
            ShiftResNet; or a MobileNetV2 or ResNet with convolutions PointwiseConv, Conv, DynamicConv, CondConv and
            DYConv, and a classifier Dense or DynamicDense.
        variables: of the network; hardened ones if its permutations are learned.

    Returns:
        A pure function with its parameters, equal to ``network.apply(variables, images)`` to rounding.

    Raises:
        Unfoldable: a ValueError; the network is of another kind, or a layer of it cannot be folded.

    >>> import jax, jax.numpy as jnp
    >>> network = ShuffleNetV2(classes=2, width=0.5, stem="small")
    >>> images = jnp.ones((1, 8, 8, 3))
    >>> apply, params = fold(network, network.init(jax.random.key(0), images))
    >>> apply(params, images).shape
    (1, 2)
    """
    match network:
        case ShuffleNetV1():
            return fold_shufflenet_v1(network, variables)
        case ShuffleNetV2():
            return fold_shufflenet_v2(network, variables)
        case MobileNetV2():
            return fold_mobilenet_v2(network, variables)
        case ResNet():
            return fold_resnet(network, variables)
        case AddressNet():
            return fold_addressnet(network, variables)
        case ShiftResNet():
            return fold_shift_resnet(network, variables)
    raise Unfoldable(
        f"a {type(network).__name__} cannot be folded, only ShuffleNets, MobileNetV2, ResNet, AddressNet and "
        "ShiftResNet: use it as it is"
    )
