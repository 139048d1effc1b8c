"""The receptive field in three dimensions: over rows, columns and channels, of a network that need not be trained.

``S(o)`` is the set of cells (row, column, channel) of the input on which channel o of an output depends, far from every
edge and by structure alone: weights are positive and nothing cancels. Over all o

    box = rows x columns x reach,    exact = mean size of S(o),    fill = exact / box

where rows and columns are the extent of the union of all S(o), and reach is the mean number of channels in one. The
metric is this project's own: of the paper that named a "3D receptive field" (Wang, Feng, Peng and Ding, 3DRF, 2020) no
formula was at hand.

Like :mod:`shuffle_jax.analysis.channel_reach` this needs no rule for any layer: units run on images that are 1 in one
cell and 0 elsewhere, and where the output is positive, the cell is seen. Sets of units in a row are added. Channels
with equal sets are one class, of which most networks have a few. Means over the whole image, and so heads, are left
out; a layer that makes something of the image counts as what it is where the image says nothing.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from shuffle_jax.analysis.cells import Cells, Seen, start, through
from shuffle_jax.analysis.count import Count, Layer, count_layers, total
from shuffle_jax.analysis.units import Call, Leaves, mixes, trace, weighted
from shuffle_jax.naming import some
from shuffle_jax.nn import PolyphaseSampling
from shuffle_jax.nn.shared import gathered
from shuffle_jax.typing import Array, Bool, Images, PyTree

UNIT = re.compile(r"stem|stage\d+_\d+")
IMAGE = "image"
"""The start that is the input of the network."""

BATCHES = (8, 64)  # Images that are tried at a time: one of these, which bounds programs and memory.
SIZES = (9, 18, 36, 72)  # Rows and columns of what a unit gives, until nothing comes near an edge.

Inside = dict[str, tuple[Array, Array]]  # Where what a layer sees and gives is positive.
Program = Callable[[PyTree, Images], tuple[Array, Inside]]


class Field(NamedTuple):
    """How far what is behind a unit, or a layer, sees.

    Attributes:
        name: of the unit or layer.
        channels: of its output.
        rows: of the input, those that are seen by some channel, with all between.
        columns: the same of columns.
        reach: channels of the input that a channel sees, on average.
        exact: cells of the input that a channel sees, on average.
        gain: the box behind it over the box before it.
        cost: its parameters, also those that it shares with others, and multiply-adds.
    """

    name: str
    channels: int
    rows: int
    columns: int
    reach: float
    exact: float
    gain: float
    cost: Count

    @property
    def box(self) -> float:
        """Rows times columns times reach."""
        return self.rows * self.columns * self.reach

    @property
    def fill(self) -> float:
        """The share of the box that is seen."""
        return self.exact / self.box


def receptive_field(
    network: nn.Module, variables: PyTree, image_shape: tuple[int, ...], begin: str = IMAGE, match: str = ""
) -> list[Field]:
    """What is seen behind each unit of a network.

    The stem, a submodule of this name, is the first unit. Between units nothing may be computed, and what is behind the
    last is not looked at.

    Args:
        network: called as ``network(images)``.
        variables: of the network. Permutations count, index vectors as well as relaxed ones by their entries above 0;
            of the others shapes alone. What is missing is as the network initialises it: ``{}`` will do.
        image_shape: of one image, (h, w, c). It matters for the cost alone.
        begin: what is seen is the input of this unit; by default that of the network.
        match: units with this text in their name are the last, by default all.

    Returns:
        One :class:`Field` for each unit from there on.

    Raises:
        ValueError: there is no such unit, something is computed between two, a unit makes negative numbers, or what it
            sees has no end.

    >>> from shuffle_jax.models import ResNet
    >>> last = receptive_field(ResNet(classes=2, depth=10, width=1 / 16), {}, (224, 224, 3))[-1]
    >>> last.rows, last.columns, last.reach, last.fill
    (195, 195, 3.0, 1.0)
    """
    calls, leaves = _units(network, variables, image_shape, begin)
    probe, cells, fields = _Probe(leaves), start(calls[0].channels), list[Field]()
    for call in calls:
        behind = through(cells, probe.seen(call, cells))
        fields.append(_field(call.name, behind, cells, total(_counted(call))))
        cells = behind
    return [field for field in fields if match in field.name]


def layer_fields(
    network: nn.Module, variables: PyTree, image_shape: tuple[int, ...], begin: str = IMAGE
) -> list[tuple[Layer, Field]]:
    """What is seen behind each layer, whose gain is over what is seen before this layer, and behind each unit.

    A branch multiplies what is seen where it begins: only where there is none is the gain of a unit the product of
    those of its layers.

    Args:
        network: as for :func:`receptive_field`.
        variables: as there.
        image_shape: as there.
        begin: as there.

    Returns:
        Each layer that has multiply-adds or a gain by its place in the network, in the order in which they are called,
        and behind those of a unit the unit itself.

    Raises:
        ValueError: as :func:`receptive_field`.
    """
    calls, leaves = _units(network, variables, image_shape, begin)
    probe, cells, found = _Probe(leaves), start(calls[0].channels), list[tuple[Layer, Field]]()
    for call in calls:
        inside = probe.layers(call, cells)
        for layer in _counted(call):
            if sights := inside.get(layer.path):
                before, behind = (through(cells, seen) for seen in sights.pop(0))
                name = f"{call.name}/{layer.path}" if layer.path else call.name
                field = _field(name, behind, before, layer.cost)
                if field.gain != 1 or layer.cost.multiply_adds or layer.cost.training_only_multiply_adds:
                    found.append((layer._replace(path=name), field))
        behind = through(cells, probe.seen(call, cells))
        if list(inside) != [""]:  # It is no layer itself.
            unit = Layer(call.name, type(call.module).__name__, (), total(_counted(call)))
            found.append((unit, _field(call.name, behind, cells, unit.cost)))
        cells = behind
    return found


def _units(
    network: nn.Module, variables: PyTree, image_shape: tuple[int, ...], begin: str
) -> tuple[list[Call], Leaves]:
    """The units from one on, and the variables of all."""
    calls, leaves = trace(network, variables, image_shape, UNIT, dynamic=True)
    names = [call.name for call in calls]
    if not calls:
        raise ValueError(
            f"{type(network).__name__} has no units: its submodules may be called stem, stage1_0, stage1_1 and so on"
        )
    if begin != IMAGE and begin not in names:
        raise ValueError(f"there is no unit {begin!r} to start from: choose one of {some([IMAGE, *names], 20)}")
    return calls[0 if begin == IMAGE else names.index(begin) :], leaves


def _counted(call: Call) -> list[Layer]:
    return count_layers(call.module, call.shape)


def _field(name: str, behind: Cells, before: Cells, cost: Count) -> Field:
    sizes = len(behind.of), behind.rows, behind.columns, behind.reach, behind.exact
    return Field(name, *sizes, behind.box / before.box, cost)


class _Probe:
    """Runs units on single cells. Networks repeat their units: each program and each answer is had once."""

    def __init__(self, leaves: Leaves) -> None:
        self.leaves = leaves
        self.programs: dict[Hashable, Program] = {}
        self.known: dict[Hashable, Seen] = {}

    def seen(self, call: Call, cells: Cells) -> Seen:
        """What a unit sees of the classes of its input."""
        own = gathered(self.leaves, call.places)
        mixing = tuple((path, np.asarray(leaf).tobytes()) for path, leaf in own.items() if mixes(path))
        likeness = call.likeness, mixing, cells.of.tobytes()
        if likeness not in self.known:
            self.known[likeness] = self._tried(call, cells, layers=False)[0]
        return self.known[likeness]

    def layers(self, call: Call, cells: Cells) -> dict[str, list[tuple[Seen, Seen]]]:
        """By its path in a unit, what is seen before and behind each call of a layer."""
        return self._tried(call, cells, layers=True)[1]

    def _tried(self, call: Call, cells: Cells, layers: bool) -> tuple[Seen, dict[str, list[tuple[Seen, Seen]]]]:
        variables = weighted(gathered(self.leaves, call.places), 1.0, 0.0)
        whole = jax.ShapeDtypeStruct((1, SIZES[-1], SIZES[-1], call.channels), jnp.float32)
        stride = round(SIZES[-1] / jax.eval_shape(call.run, variables, whole).shape[1])
        program = self.programs.setdefault((call.likeness, layers), jax.jit(partial(_run, call, layers)))
        members = cells.of == np.arange(len(cells.sets))[:, None]
        for size in SIZES:
            y, inside = _on_each_cell(call.name, partial(program, variables), members, size * stride, stride)
            if not y[:, [0, -1]].any() and not y[:, :, [0, -1]].any():  # Far from every edge.
                break
        else:
            raise ValueError(f"what {call.name} sees has no end within {size * stride} x {size * stride} pixels")
        grid = len(members), stride, size * stride
        found: dict[str, list[tuple[Seen, Seen]]] = {}
        for name, (before, behind) in sorted(inside.items()):
            if before.any() and behind.any():
                found.setdefault(name.partition("/")[2], []).append((_placed(before, *grid), _placed(behind, *grid)))
        return _placed(y, *grid), found


def _run(call: Call, layers: bool, variables: PyTree, images: Images) -> tuple[Array, Inside]:
    """What a unit gives, and where what each layer sees and gives is positive, by its number and path."""
    inside: Inside = {}

    def visit(method: Any, args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
        if context.method_name != "__call__":
            return method(*args, **kwargs)
        if isinstance(context.module, PolyphaseSampling) and not kwargs and args[1:] in ((), (None,)):
            args = args[0], jnp.zeros(len(args[0]), jnp.int32)
        y = method(*args, **kwargs)
        if layers and all(getattr(one, "ndim", 0) == 4 for one in (args[0], y)):
            inside[f"{len(inside):06d}/{'/'.join(context.module.path)}"] = args[0] > 0, y > 0
        return y

    with nn.intercept_methods(visit):
        return call.run(variables, images), inside


def _on_each_cell(
    name: str,
    program: Callable[[Images], tuple[Array, Inside]],
    members: Bool[np.ndarray, "k c"],
    size: int,
    stride: int,
) -> tuple[Bool[np.ndarray, "m h w o"], dict[str, tuple[np.ndarray, np.ndarray]]]:
    """Runs a unit on one image for each class of channels and each place in its stride."""
    images = len(members) * stride**2
    batch, middle = BATCHES[images > BATCHES[0]], size // 2 // stride * stride
    outputs, insides = list[np.ndarray](), dict[str, tuple[list[np.ndarray], list[np.ndarray]]]()
    for first in range(0, images, batch):
        count = min(batch, images - first)
        k, y, x = np.unravel_index(np.arange(first, first + count), (len(members), stride, stride))
        cells = np.zeros((batch, size, size, members.shape[1]), np.float32)
        cells[np.arange(count), middle + y, middle + x] = members[k]
        output, inside = jax.device_get(program(jnp.asarray(cells)))
        if not (output >= 0).all():  # Also if it is no number.
            raise ValueError(f"{name} subtracts: what an output sees can be told only where nothing cancels")
        outputs.append(output[:count] > 0)
        for layer, sides in inside.items():
            for found, side in zip(insides.setdefault(layer, ([], [])), sides, strict=True):
                found.append(side[:count])
    return np.concatenate(outputs), {
        layer: (np.concatenate(before), np.concatenate(behind)) for layer, (before, behind) in insides.items()
    }


def _placed(positive: Bool[np.ndarray, "m h w o"], classes: int, stride: int, size: int) -> Seen:
    """From where the answers to single cells are positive, what they see relative to where they are."""
    height, width, channels = positive.shape[1:]
    own = round(size / height)
    places = positive.reshape(classes, stride, stride, height, width, channels)[:, :own, :own]
    connected = places.transpose(3, 1, 4, 2, 0, 5)[::-1, :, ::-1].reshape(height * own, width * own, classes, channels)
    rows, columns = (np.flatnonzero(connected.any((axis, 2, 3))) for axis in (1, 0))
    if not len(rows):
        return Seen(connected[:1, :1], own)
    return Seen(connected[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1], own)
