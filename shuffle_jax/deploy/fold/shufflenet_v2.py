"""Folding ShuffleNetV2: nobody copies what nobody reads, and no permutation is left.

Half of a unit's channels pass through untouched. Followed through the permutations of a whole stage, each channel is
made by one unit and read by one later unit (or by what follows the stage). A unit's kernel makes its channels in the
order of their readers; a reader takes one block from each unit before it. Channels that wait are not moved at all: half
of the copying of the unfolded network, whatever the permutations, and exactly the same sums.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from shuffle_jax.deploy.fold.layers import (
    Affine,
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
from shuffle_jax.models import ShuffleNetV2, shufflenet_v2
from shuffle_jax.ops import convolution
from shuffle_jax.typing import Array, Float, Images, Int, PyTree


class Reader(NamedTuple):
    """Who reads channels, which, and in which order.

    Attributes:
        order: for each channel in its blocks, where the unfolded network has it among the inputs.
        blocks: where to find them; the arrays of a stage are both halves of its first unit, then one of each unit.
    """

    order: Int[np.ndarray, "i"]
    blocks: list[Block]


def fold_shufflenet_v2(network: ShuffleNetV2, variables: dict[str, PyTree]) -> Folded:
    """See :func:`shuffle_jax.deploy.fold.fold`."""
    check_pointwise(network.pointwise)
    params, statistics = variables["params"], variables["batch_stats"]
    folded: dict[str, PyTree] = {
        "stem": absorb(params["stem"]["conv"], params["stem"]["norm"], statistics["stem"]["norm"]).finished(),
        "head": params["head"],
    }
    stages: list[list[Reader]] = []
    order = None  # of the channels that the next stage finds
    widths = shufflenet_v2.WIDTHS[network.width][:3]
    for stage, (channels, units) in enumerate(zip(widths, shufflenet_v2.UNITS, strict=True), start=2):
        names = [f"stage{stage}_{i}" for i in range(units)]
        mixers = [index_vector(network.mixer(), variables, name, channels) for name in names]
        made, readers = routes(mixers)
        for i, name in enumerate(names):
            inputs = order if i == 0 else readers[i - 1].order
            outputs = made[:2] if i == 0 else [made[i + 1]]
            folded[name] = _unit(params[name], statistics[name], inputs, outputs)
        stages.append(readers)
        order = readers[-1].order
    assert order is not None
    folded["conv5"] = absorb(params["conv5"], params["norm5"], statistics["norm5"]).inputs(order).finished()
    return Folded(partial(_apply, stem=network.stem, stages=stages, dtype=network.dtype), folded)


def routes(mixers: list[Int[np.ndarray, "c"]]) -> tuple[list[Int[np.ndarray, "half"]], list[Reader]]:
    """Follows every channel of a stage from the unit that makes it to the one that reads it.

    Args:
        mixers: the index vector that ends each unit of the stage.

    Returns:
        The order in which each array is made, ``new[..., t] = old[..., order[t]]``; and the readers: the second unit,
        the third, ..., and last what follows the stage.
    """
    half = len(mixers[0]) // 2
    source = np.repeat([0, 1], half)[mixers[0]]
    position = np.tile(np.arange(half), 2)[mixers[0]]
    read: list[tuple[np.ndarray, np.ndarray]] = []
    for number, mixer in enumerate(mixers[1:], start=2):
        read.append((source[half:], position[half:]))  # the right half is transformed, the left one waits
        source = np.concatenate([source[:half], np.full(half, number)])[mixer]
        position = np.concatenate([position[:half], np.arange(half)])[mixer]
    read.append((source, position))

    reader_of = np.zeros((len(mixers) + 1, half), int)
    for reader, (sources, positions) in enumerate(read):
        reader_of[sources, positions] = reader
    made = [np.argsort(row, kind="stable") for row in reader_of]
    place = np.stack([np.argsort(order) for order in made])  # where each channel went
    readers = []
    for sources, positions in read:
        places = place[sources, positions]
        order = np.lexsort((places, sources))
        readers.append(Reader(order, blocks(sources[order], places[order])))
    return made, readers


def _unit(
    params: PyTree, statistics: PyTree, inputs: Int[np.ndarray, "i"] | None, outputs: list[Int[np.ndarray, "o"]]
) -> PyTree:
    """The kernels of a unit whose inputs come in another order and whose outputs are wanted in another."""

    def layer(name: str, norm: str) -> Affine:
        return absorb(params[name], params[norm], statistics[norm])

    first, depthwise, second = layer("pointwise1", "norm1"), layer("depthwise", "norm2"), layer("pointwise2", "norm3")
    folded = {
        "pointwise1": first.inputs(inputs) if inputs is not None else first,
        "depthwise": depthwise,
        "pointwise2": second.after(depthwise.bias).outputs(outputs[-1]),
    }
    if len(outputs) == 2:
        depthwise, pointwise = layer("left_depthwise", "left_norm1"), layer("left_pointwise", "left_norm2")
        pointwise = pointwise.after(depthwise.bias).outputs(outputs[0])
        if inputs is not None:
            depthwise, pointwise = depthwise.outputs(inputs), pointwise.inputs(inputs)
        folded |= {"left_depthwise": depthwise, "left_pointwise": pointwise}
    return {
        name: {"kernel": part.finished()["kernel"]} if "depthwise" in name else part.finished()
        for name, part in folded.items()
    }


def _apply(
    params: PyTree, images: Images, stem: str, stages: list[list[Reader]], dtype: jnp.dtype | None
) -> Float[Array, "n classes"]:
    x = apply_stem(images, params["stem"], stem, dtype)
    for stage, readers in enumerate(stages, start=2):
        unit = params[f"stage{stage}_0"]
        arrays = [_branch(unit, "left_depthwise", "left_pointwise", x, 2, dtype), _right(unit, x, 2, dtype)]
        for i, reader in enumerate(readers[:-1], start=1):
            arrays.append(_right(params[f"stage{stage}_{i}"], collect(arrays, reader.blocks), 1, dtype))
        x = collect(arrays, readers[-1].blocks)
    x = nn.relu(apply_affine(convolution.pointwise, x, params["conv5"], dtype))
    x = x.mean((1, 2), dtype=jnp.float32)
    return x @ params["head"]["kernel"] + params["head"]["bias"].reshape(1, -1)


def _right(unit: PyTree, x: Images, stride: int, dtype: jnp.dtype | None) -> Images:
    x = nn.relu(apply_affine(convolution.pointwise, x, unit["pointwise1"], dtype))
    return _branch(unit, "depthwise", "pointwise2", x, stride, dtype)


def _branch(unit: PyTree, depthwise: str, pointwise: str, x: Images, stride: int, dtype: jnp.dtype | None) -> Images:
    x = convolution.depthwise(x, unit[depthwise]["kernel"].astype(x.dtype), stride)
    return nn.relu(apply_affine(convolution.pointwise, x, unit[pointwise], dtype))
