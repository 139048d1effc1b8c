"""Routing: the shuffles of a ShuffleNet absorbed by the orders in which its kernels make and read channels.

Exact: a permutation of channels commutes with all that acts on each channel alone (ReLU, depthwise convolution, norm)
and reorders the rows or columns of the 1x1 kernels around it. What is left to be moved are contiguous blocks of
channels: no index vector and no gather remains.

In ShuffleNet the mixer stands between two grouped convolutions. The first can make the channels of each of its groups
in any order; ordered by the group that reads them, one block goes from each group to each group: g^2 blocks instead of
c channels. After an ungrouped first convolution all channels are free, and nothing is moved.

In ShuffleNetV2 half of a unit's channels pass through untouched. Followed through the permutations of a whole stage,
each channel is made by one unit and read by one later unit (or by what follows the stage). A unit's kernel makes its
channels in the order of their readers; a reader takes one block from each unit before it. Channels that wait are not
moved at all: half of the copying of the network as it trains.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from shuffle_jax.deploy.tracing import Call, Path, Variables, traced
from shuffle_jax.models import ShuffleNetV1, ShuffleNetV2
from shuffle_jax.nn import DepthwiseConv, PointwiseConv
from shuffle_jax.typing import Array, Float, Images, Int, PyTree


class Routed(NamedTuple):
    """What :func:`route` returns.

    Attributes:
        apply: ``apply(params, images) -> logits``, pure; to be jitted by the caller.
        params: variables of the network, with channels in other orders where it is routed.
        reason: why the mixers of a ShuffleNet stay as they are, and what to do; empty if they do not.
    """

    apply: Callable[[PyTree, Images], Float[Array, "n k"]]
    params: PyTree
    reason: str = ""


class Block(NamedTuple):
    """The channels ``start`` to ``stop`` of the array number ``source``."""

    source: int
    start: int
    stop: int


def route(network: nn.Module, variables: dict[str, PyTree], image_shape: tuple[int, int, int]) -> Routed:
    """Absorbs the shuffles of a ShuffleNet into the orders of its channels.

    Args:
        network: a ShuffleNetV1 or ShuffleNetV2 that samples by strides is routed if its convolutions are plain and its
            mixers, of whatever class, apply one permutation each to all images, found by running them.
        variables: of the network; hardened or frozen if its permutations are learned, and folded
            (:func:`shuffle_jax.deploy.folding.fold`) to be rid of the batch norms too.
        image_shape: (h, w, c).

    Returns:
        A function with its parameters, equal to ``network.apply(variables, images)`` to rounding; ``network.apply``
        itself for another network, or where a layer cannot be reordered.
    """
    plain = Routed(partial(_evaluate, network), variables)
    routed: Any = {ShuffleNetV1: _route_v1, ShuffleNetV2: _route_v2}.get(type(network))
    if routed is None:
        return plain
    if network.sampling is not None:
        return plain._replace(reason="its samplings choose by all channels in their order: sample by strides")
    calls, state, mixers = traced(network, variables, image_shape)[0], Channels(variables), {}
    for path, call in list(calls.items())[1:]:  # the first is the network
        name = f"{'/'.join(path)}, a {type(call.module).__name__},"
        if (kind := LAYERS.get(path[-1])) and type(call.module) is not kind:
            return plain._replace(reason=f"{name} is no {kind.__name__}, whose channels can be reordered")
        if path[1:] == ("mixer",):
            own = state.of(path)
            if own.get("params"):
                return plain._replace(reason=f"{name} has parameters: harden or freeze the variables first")
            index = _permutation(call.module, own, call.inputs[-1])
            if index is None:
                return plain._replace(reason=f"{name} is no permutation of the channels, the same for all images")
            mixers[path[0]] = index
    return Routed(*routed(network, state, mixers, calls))


LAYERS: dict[str, type] = dict.fromkeys(("pointwise1", "pointwise2", "left_pointwise", "conv5"), PointwiseConv)
LAYERS |= dict.fromkeys(("depthwise", "left_depthwise"), DepthwiseConv)


def _evaluate(network: nn.Module, variables: PyTree, images: Images) -> Any:
    return network.apply(variables, images)


class Channels(Variables):
    """Variables of a network while the channels of its layers get other orders."""

    def outputs(self, unit: str, names: Sequence[str], order: Int[np.ndarray, "o"]) -> None:
        """Layers of a unit make, or take, their channels in another order: ``y_new[..., t] = y[..., order[t]]``."""
        for key in list(self.flat):
            if key[1:-1] in [(unit, name) for name in names]:
                self.flat[key] = np.asarray(self.flat[key])[..., order]

    def inputs(self, path: Path, order: Int[np.ndarray, "c"], groups: int = 1) -> None:
        """A 1x1 convolution reads channels in another order, ``x_new[..., t] = x[..., order[t]]``.

        Of several groups, each must keep its channels.
        """
        kernel = np.asarray(self.flat["params", *path, "kernel"])
        parts = zip(np.split(order % (len(order) // groups), groups), np.split(kernel, groups, axis=-1), strict=True)
        self.flat["params", *path, "kernel"] = np.concatenate([rows[:, :, own] for own, rows in parts], axis=-1)


def _permutation(mixer: nn.Module, variables: dict[str, PyTree], channels: int) -> Int[np.ndarray, "c"] | None:
    """The permutation that a mixer applies, found by running it on two images of which all values differ."""
    shape = (2, 2, 3, channels)
    values = np.random.default_rng(0).permutation(np.arange(np.prod(shape)) - np.prod(shape) // 2)
    x = values.reshape(shape).astype(np.float32)
    y = np.asarray(mixer.apply(variables, jnp.asarray(x)))
    if y.shape != shape:
        return None
    order = np.argsort(x[0, 0, 0])
    index = order[np.searchsorted(x[0, 0, 0], y[0, 0, 0], sorter=order).clip(0, shape[-1] - 1)]
    return index if len(set(index.tolist())) == channels and np.array_equal(y, x[..., index]) else None


class Moves(nn.Module):
    """The mixers of a routed ShuffleNet, which move blocks of channels.

    Attributes:
        blocks: of every unit.
    """

    blocks: Mapping[str, Sequence[Block]]

    @nn.compact
    def __call__(self, x: Images, train: bool = False) -> Images:
        """Maps ``(n, h, w, c)`` to ``(n, h, w, c)``."""
        return collect([x], self.blocks[self.path[0]])


def _route_v1(
    network: ShuffleNetV1, state: Channels, mixers: dict[str, Int[np.ndarray, "c"]], calls: dict[Path, Call]
) -> Routed:
    moves = {}
    for unit, index in mixers.items():
        makers = calls[unit, "pointwise1"].module.groups
        readers = calls[unit, "pointwise2"].module.groups
        made, moves[unit], read = exchange(index, makers, readers)
        state.outputs(unit, ("pointwise1", "norm1"), made)
        state.outputs(unit, ("depthwise", "norm2"), read)
        state.inputs((unit, "pointwise2"), read, readers)
        state.replace((unit, "mixer"), {})
    return Routed(partial(_evaluate, network.clone(mixer=partial(Moves, moves))), state.finished())


def exchange(
    permutation: Int[np.ndarray, "c"], makers: int, readers: int
) -> tuple[Int[np.ndarray, "c"], list[Block], Int[np.ndarray, "c"]]:
    """Splits a permutation into orders within groups, which kernels absorb, and a move of blocks between them.

    Args:
        permutation: the index vector between the convolutions.
        makers: groups of the first; its channels can be reordered within each.
        readers: groups of the second.

    Returns:
        The order in which the first makes its channels, ``new[..., t] = old[..., made[t]]``; the blocks that the second
        reads; and the place after the permutation of each channel it reads, a reordering within each of its groups.
    """
    channels = np.arange(len(permutation))
    becomes = np.argsort(permutation)
    maker, reader = channels // (len(channels) // makers), channels // (len(channels) // readers)
    made = np.lexsort((becomes, reader[becomes], maker))
    # Within each of its groups a reader takes first what comes first in memory: blocks as long as they can be.
    place = np.argsort(made)[permutation]
    read = np.lexsort((place, reader))
    return made, blocks(np.zeros_like(channels), place[read]), read


class Reader(NamedTuple):
    """Who reads channels, which, and in which order.

    Attributes:
        order: for each channel in its blocks, where the network as it trains has it among the inputs.
        blocks: where to find them; the arrays of a stage are both halves of its first unit, then one of each unit.
    """

    order: Int[np.ndarray, "i"]
    blocks: list[Block]


LEFT = (("left_depthwise", "left_norm1"), ("left_pointwise", "left_norm2"))
RIGHT = (("pointwise1", "norm1"), ("depthwise", "norm2"), ("pointwise2", "norm3"))


def _route_v2(
    network: ShuffleNetV2, state: Channels, mixers: dict[str, Int[np.ndarray, "c"]], calls: dict[Path, Call]
) -> Routed:
    stages: dict[str, list[str]] = {}
    for unit in mixers:
        stages.setdefault(unit.rpartition("_")[0], []).append(unit)
    plan: list[tuple[list[str], list[Reader]]] = []
    order = np.arange(calls[(next(iter(mixers)),)].inputs[-1])  # of the channels that the next stage finds
    for units in stages.values():
        made, readers = routes([mixers[unit] for unit in units])
        for i, unit in enumerate(units):
            if i == 0:
                state.outputs(unit, LEFT[0], order)
                state.inputs((unit, "left_pointwise"), order)
                state.outputs(unit, LEFT[1], made[0])
            state.inputs((unit, "pointwise1"), order if i == 0 else readers[i - 1].order)
            state.outputs(unit, RIGHT[2], made[i + 1])
            state.replace((unit, "mixer"), {})
        plan.append((units, readers))
        order = readers[-1].order
    state.inputs(("conv5",), order)
    return Routed(partial(_apply_v2, {path: call.module for path, call in calls.items()}, plan), state.finished())


def _apply_v2(
    modules: dict[Path, Any], plan: list[tuple[list[str], list[Reader]]], variables: PyTree, images: Images
) -> Float[Array, "n k"]:
    state = Variables(variables)

    def run(x: Images, *path: str) -> Any:
        return modules[path].apply(state.of(path), x)

    def branch(x: Images, unit: str, layers: Sequence[tuple[str, str]]) -> Images:
        for layer, norm in layers:
            x = run(run(x, unit, layer), unit, norm)
            x = x if "depthwise" in layer else nn.relu(x)
        return x

    x = run(images, "stem")
    for units, readers in plan:
        arrays = [branch(x, units[0], LEFT), branch(x, units[0], RIGHT)]
        for unit, reader in zip(units[1:], readers[:-1], strict=True):
            arrays.append(branch(collect(arrays, reader.blocks), unit, RIGHT))
        x = collect(arrays, readers[-1].blocks)
    x = nn.relu(run(run(x, "conv5"), "norm5"))
    return run(x.mean((1, 2), dtype=jnp.float32), "head")


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


def blocks(sources: Int[np.ndarray, "c"], positions: Int[np.ndarray, "c"]) -> list[Block]:
    """The fewest blocks that hold the channels ``positions`` of the arrays ``sources``, in this order.

    >>> blocks(np.array([0, 0, 1, 1]), np.array([4, 5, 0, 2]))
    [Block(source=0, start=4, stop=6), Block(source=1, start=0, stop=1), Block(source=1, start=2, stop=3)]
    """
    found: list[Block] = []
    for source, position in zip(sources.tolist(), positions.tolist(), strict=True):
        if found and (found[-1].source, found[-1].stop) == (source, position):
            found[-1] = found[-1]._replace(stop=position + 1)
        else:
            found.append(Block(source, position, position + 1))
    return found


def collect(arrays: Sequence[Images], wanted: Sequence[Block]) -> Images:
    """The blocks side by side along the channels."""
    parts = [arrays[block.source][..., block.start : block.stop] for block in wanted]
    return parts[0] if len(parts) == 1 else jnp.concatenate(parts, axis=-1)
