"""The receptive field over channels: which channels into a unit reach which of its outputs, and after how many all do.

How soon every channel can depend on every other is a matter of groups, permutations and shortcuts, not of weights. So
each unit of a network, a submodule called ``stage{S}_{I}``, runs on data in which nothing can cancel: all weights are
positive, norms change nothing, mixers are as they are, and each image of the batch is 1 in one channel and 0 in the
others. Where the output is positive, the channel was reached. This needs no rule for any layer and is exact; the links
of units in a row are the product of boolean matrices.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from shuffle_jax.analysis.units import (
    Call,
    ImageDependent,  # noqa: F401 (who asks for reach knows it from here)
    Leaves,
    mixes,
    trace,
    weighted,
)
from shuffle_jax.naming import some
from shuffle_jax.nn.shared import gathered
from shuffle_jax.typing import Array, Bool, Images, PyTree

BATCH = 64  # Channels that are tried at a time, which bounds the memory.

Program = Callable[[PyTree, Images], Array]


class Rules(NamedTuple):
    """What counts as reaching.

    Attributes:
        shortcuts: False leaves out what goes past all weights of a unit: identities, pooled or shifted ones, and the
            half that a ShuffleNetV2 passes on.
        threshold: an entry of a relaxed permutation above it connects. With 0 all do that the layer computes with;
            :func:`shuffle_jax.deploy.hardening.harden` leaves one in each row.
        edges: False for what arrives in the middle of the image. True for what arrives anywhere: so the pointer of an
            address shift connects neighbouring channels, which it reads beyond the edge.
        size: height and width of what each unit sees, more than twice as far as it moves anything.
    """

    shortcuts: bool = True
    threshold: float = 0.0
    edges: bool = False
    size: int = 9


DEFAULT = Rules()


class Link(NamedTuple):
    """One unit, such as "stage2_0": ``connected[i, o]`` says whether channel i of its input reaches channel o out."""

    unit: str
    connected: Bool[np.ndarray, "i o"]


class Reach(NamedTuple):
    """How far the channels at a start have come.

    Attributes:
        unit: the last unit on the way.
        channels_in: channels into the first unit on the way.
        channels_out: channels out of the last.
        share: of the pairs of a channel in and a channel out that are connected; 1.0 if all are, and only then.
    """

    unit: str
    channels_in: int
    channels_out: int
    share: float


def channel_reach(
    network: nn.Module,
    variables: PyTree,
    image_shape: tuple[int, ...],
    start: str | None = None,
    rules: Rules = DEFAULT,
) -> dict[str, list[Reach]]:
    """The share of connected channels after one unit, two units, and so on to the end of the network.

    Args:
        network: as for :func:`unit_links`.
        variables: as for :func:`unit_links`.
        image_shape: of one image, (h, w, c).
        start: the first unit on the way. By default (None) the first of the network, and in each stage the first with
            as many channels out as in.
        rules: what counts as reaching.

    Returns:
        By the start, one :class:`Reach` for each unit from there on.

    Raises:
        ValueError: as :func:`unit_links`, or there is no such unit.
    """
    links = unit_links(network, variables, image_shape, rules)
    names = [link.unit for link in links]
    if start is not None and start not in names:
        raise ValueError(f"there is no unit {start!r} to start from: choose one of {some(names, 20)}")
    starts = default_starts(links) if start is None else [start]
    return {name: reach(links[names.index(name) :]) for name in starts}


def reach(links: Sequence[Link]) -> list[Reach]:
    """How far channels come through units in a row: one :class:`Reach` for each unit."""
    found: list[Reach] = []
    connected: np.ndarray | None = None
    for unit, link in links:
        if connected is None:
            connected = link
        elif connected.all():  # As in most units of a deep network; the product would be the same.
            connected = np.broadcast_to(link.any(axis=0), (len(connected), link.shape[1]))
        else:
            connected = connected.astype(np.float32) @ link.astype(np.float32) > 0
        found.append(Reach(unit, len(connected), connected.shape[1], float(connected.mean(dtype=np.float64))))
    return found


def units_to_full(reaches: Sequence[Reach]) -> int | None:
    """After how many units every channel reaches every other; None if not before they end.

    >>> units_to_full([Reach("stage1_0", 4, 4, 0.5), Reach("stage1_1", 4, 4, 1.0)])
    2
    """
    return next((units for units, found in enumerate(reaches, start=1) if found.share == 1.0), None)


def default_starts(links: Sequence[Link]) -> list[str]:
    """The first unit of all, and of each stage the first with as many channels out as in."""
    starts = {"": links[0].unit}
    for unit, connected in links:
        if connected.shape[0] == connected.shape[1]:
            starts.setdefault(unit.rpartition("_")[0], unit)
    return list(dict.fromkeys(starts.values()))


def unit_links(
    network: nn.Module, variables: PyTree, image_shape: tuple[int, ...], rules: Rules = DEFAULT, match: str = ""
) -> list[Link]:
    """Which channels into each unit of a network reach which of its outputs.

    Between units nothing may be computed. What is before the first and behind the last is not looked at.

    Args:
        network: called as ``network(images)``.
        variables: of the network. Permutations count, index vectors as well as relaxed ones; of the others shapes
            alone. What is missing is as the network initialises it, so ``{}`` will do for one that is not trained.
        image_shape: of one image, (h, w, c).
        rules: what counts as reaching.
        match: only units with this text in their name are tried, such as ``"stage3_"``.

    Returns:
        One :class:`Link` for each of these units, in the order in which they are called.

    Raises:
        ImageDependent: a ValueError; a layer in a unit makes something of the whole image.
        ValueError: there are no such units, something is computed between two, a unit makes negative numbers, or the
            edge of the image is seen in its middle.

    >>> from shuffle_jax.models import ShuffleNetV1
    >>> network = ShuffleNetV1(classes=2, groups=8, width=0.5, stem="small")  # Stage 2 mixes 6 channels of each group.
    >>> units_to_full(reach(unit_links(network, {}, (8, 8, 3), match="stage2_")[1:]))
    2
    """
    calls, leaves = trace(network, variables, image_shape)
    chosen = [call for call in calls if match in call.name]
    if not chosen:
        names = some(call.name for call in calls) or "submodules called stage1_0, stage1_1 and so on, if any"
        raise ValueError(f"{type(network).__name__} has no unit with {match!r} in its name: its units are {names}")
    links: list[Link] = []
    # Networks repeat their units: what is alike is compiled once, and tried once if it also mixes alike.
    programs: dict[Hashable, Program] = {}
    known: dict[Hashable, np.ndarray] = {}
    for call in chosen:
        own = gathered(leaves, call.places)
        mixing = call.likeness, *((path, leaf.tobytes()) for path, leaf in own.items() if mixes(path))
        if mixing not in known:
            program = programs.setdefault(call.likeness, jax.jit(call.run))
            known[mixing] = _connected(call, program, own, rules)
        links.append(Link(call.name, known[mixing]))
    return links


def _connected(call: Call, program: Program, own: Leaves, rules: Rules) -> Bool[np.ndarray, "i o"]:
    """Runs a unit on one image for each channel."""
    # What goes through a weight grows with it.
    given = [weighted(own, weight, rules.threshold) for weight in ((1.0,) if rules.shortcuts else (1.0, 2.0))]
    rows, found = min(BATCH, call.channels), []
    for first in range(0, call.channels, rows):
        channel = jax.nn.one_hot(np.arange(first, first + rows), call.channels)  # Zeros behind the last.
        images = jnp.broadcast_to(channel[:, None, None], (rows, rules.size, rules.size, call.channels))
        answers = [np.asarray(program(variables, images), np.float32) for variables in given]
        if not all((answer >= 0).all() for answer in answers):  # Also if it is no number.
            raise ValueError(f"{call.name} subtracts: what reaches an output can be told only where nothing cancels")
        arrived = answers[0] > 0 if rules.shortcuts else answers[1] > answers[0]
        height, width = (length // 2 for length in arrived.shape[1:3])
        middle = arrived[:, max(height - 1, 0) : height + 2, max(width - 1, 0) : width + 2]
        if rules.edges:
            found.append(arrived.any((1, 2)))
        elif middle.shape[1:3] == (3, 3) and (middle == middle[:, :1, :1]).all():
            found.append(middle[:, 1, 1])
        else:
            size = f"{rules.size} x {rules.size}"
            raise ValueError(f"{call.name} sees the edge in the middle of {size} pixels: give the rules a larger size")
    return np.concatenate(found)[: call.channels]
