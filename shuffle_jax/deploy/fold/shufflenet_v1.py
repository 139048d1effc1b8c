"""Folding ShuffleNet: the shuffle between two grouped convolutions becomes an exchange of whole blocks.

The first grouped convolution can make the channels of each of its groups in any order. Ordered by the group that reads
them, the permutation that is left moves one block from each group to each group: g^2 blocks instead of c channels.
After an ungrouped first convolution all channels are free, and nothing is moved.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from shuffle_jax.deploy.fold.layers import (
    Block,
    Folded,
    absorb,
    apply_affine,
    apply_stem,
    blocks,
    check_pointwise,
    collect,
    index_vector,
)
from shuffle_jax.models import ShuffleNetV1, shufflenet_v1
from shuffle_jax.nn import ChannelShuffle
from shuffle_jax.ops import convolution
from shuffle_jax.ops.pooling import halve
from shuffle_jax.typing import Array, Float, Images, Int, PyTree


class Exchange(NamedTuple):
    """A permutation between two grouped convolutions, as an exchange of blocks.

    Attributes:
        made: the order in which the first makes its channels, ``new[..., t] = old[..., made[t]]``.
        becomes: the place in the unfolded network, after the permutation, of each channel as it is made.
        blocks: what the second reads.
        read: the place there of each channel it reads; a reordering within each of its groups.
    """

    made: Int[np.ndarray, "c"]
    becomes: Int[np.ndarray, "c"]
    blocks: list[Block]
    read: Int[np.ndarray, "c"]


def fold_shufflenet_v1(network: ShuffleNetV1, variables: dict[str, PyTree]) -> Folded:
    """See :func:`shuffle_jax.deploy.fold.fold`."""
    check_pointwise(network.pointwise)
    mixer = network.mixer or partial(ChannelShuffle, groups=network.groups)
    params, statistics = variables["params"], variables["batch_stats"]
    folded: dict[str, PyTree] = {
        "stem": absorb(params["stem"]["conv"], params["stem"]["norm"], statistics["stem"]["norm"]).finished(),
        "head": params["head"],
    }
    exchanges: dict[str, tuple[int, list[Block]]] = {}  # groups of the first convolution, and what the second reads
    for stage, units in enumerate(shufflenet_v1.UNITS, start=2):
        middle = int(shufflenet_v1.CHANNELS[network.groups] * network.width) * 2 ** (stage - 2) // 4
        for i in range(units):
            name = f"stage{stage}_{i}"
            groups = 1 if name == "stage2_0" else network.groups
            permutation = index_vector(mixer(), variables, name, middle)
            exchange = exchange_blocks(permutation, groups, network.groups)
            folded[name] = _unit(params[name], statistics[name], exchange, network.groups)
            exchanges[name] = groups, exchange.blocks
    return Folded(
        partial(_apply, stem=network.stem, exchanges=exchanges, groups=network.groups, dtype=network.dtype), folded
    )


def exchange_blocks(permutation: Int[np.ndarray, "c"], makers: int, readers: int) -> Exchange:
    """Splits a permutation into orders within groups, which kernels absorb, and a move of blocks between them.

    Args:
        permutation: the index vector between the convolutions.
        makers: groups of the first; its channels can be reordered within each.
        readers: groups of the second.
    """
    channels = np.arange(len(permutation))
    becomes = np.argsort(permutation)
    maker, reader = channels // (len(channels) // makers), channels // (len(channels) // readers)
    made = np.lexsort((becomes, reader[becomes], maker))
    # Within each of its groups a reader takes first what comes first in memory: blocks as long as they can be.
    place = np.argsort(made)[permutation]
    read = np.lexsort((place, reader))
    return Exchange(made, becomes[made], blocks(np.zeros_like(channels), place[read]), read)


def _unit(params: PyTree, statistics: PyTree, exchange: Exchange, groups: int) -> PyTree:
    names = (("pointwise1", "norm1"), ("depthwise", "norm2"), ("pointwise2", "norm3"))
    first, depthwise, second = (absorb(params[name], params[norm], statistics[norm]) for name, norm in names)
    # The depthwise convolution follows the mixer; here it runs before the exchange, on the channels as they are made.
    return {
        "pointwise1": first.outputs(exchange.made).finished(),
        "depthwise": {"kernel": depthwise.outputs(exchange.becomes).finished()["kernel"]},
        "pointwise2": second.after(depthwise.bias, groups).inputs(exchange.read, groups).finished(),
    }


def _apply(
    params: PyTree,
    images: Images,
    stem: str,
    exchanges: dict[str, tuple[int, list[Block]]],
    groups: int,
    dtype: jnp.dtype | None,
) -> Float[Array, "n classes"]:
    x = apply_stem(images, params["stem"], stem, dtype)
    for name, (first_groups, wanted) in exchanges.items():
        unit, stride = params[name], 2 if name.endswith("_0") else 1
        y = nn.relu(apply_affine(partial(convolution.pointwise, groups=first_groups), x, unit["pointwise1"], dtype))
        y = convolution.depthwise(y, unit["depthwise"]["kernel"].astype(y.dtype), stride)
        y = collect([y], wanted)
        y = apply_affine(partial(convolution.pointwise, groups=groups), y, unit["pointwise2"], dtype)
        x = nn.relu(x + y if stride == 1 else jnp.concatenate([halve(x), y], axis=-1))
    x = x.mean((1, 2), dtype=jnp.float32)
    head = params["head"]
    return x @ head["kernel"] + (head["bias"].reshape(1, -1) if "bias" in head else 0.0)
