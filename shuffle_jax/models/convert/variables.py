"""From arrays by torch's names to the variables of a network or a layer: all of them, checked, or none."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from shuffle_jax.models.convert.arrays import Arrays, in_float32
from shuffle_jax.models.convert.names import joined, plain
from shuffle_jax.models.convert.tables import CLASSIFIER, MOBILENET, RESNET, Factors, Modules, Source, modules, parts
from shuffle_jax.naming import MOST, some
from shuffle_jax.nn.dynamic_conv import DynamicConv, DynamicDense
from shuffle_jax.typing import PyTree

CONVOLUTION = (2, 3, 1, 0)
"""From (o, i, h, w) to (h, w, i, o); grouped and depthwise kernels have fewer i in both."""

LINEAR = (1, 0)
"""From (o, i) to (i, o)."""

VECTOR = (0,)

LEAVES = {"kernel": "weight", "scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}
"""Names of arrays there by those here."""


class Row(NamedTuple):
    """Where one array comes from.

    Attributes:
        path: here, such as "params/stem/conv/kernel".
        name: there, such as "conv1.0.weight".
        axes: the order here of the axes there; axes of length 1 that are missing there come before them.
    """

    path: str
    name: str
    axes: tuple[int, ...]


def convert_network(network: nn.Module, arrays: Arrays, source: Source = "torchvision") -> dict[str, PyTree]:
    """The variables of a network from a state-dict.

    Args:
        network: a ShuffleNetV2 with its fixed shuffle, a MobileNetV2, ResNet or CoResNet, for images of 3 channels.
            With the source "dcd", :class:`shuffle_jax.nn.dynamic_conv.DynamicConv` and ``DynamicDense`` may stand
            where the authors have them, or only some of them.
        arrays: by name, as :func:`load_arrays` reads them.
        source: whose names.

    Returns:
        What ``network.apply`` takes.

    Raises:
        ValueError: the source has no such network, or an array is missing, extra or misshapen; the first are named.
    """
    shapes = jax.eval_shape(
        partial(network.init, train=False), jax.random.key(0), jnp.zeros((1, 32, 32, 3), jnp.float32)
    )
    shapes = {name: tree for name, tree in shapes.items() if name != "penalties"}
    arrays = joined(plain(arrays)) if source == "coconv" else plain(arrays)
    dynamic = {path.removesuffix("/q") for path in flatten_dict(shapes["params"], sep="/") if path.endswith("/q")}
    return convert(arrays, rows(modules(source, network, dynamic, arrays), shapes), shapes)


def dynamic_conv(arrays: Arrays, prefix: str = "") -> dict[str, PyTree]:
    """The variables of one dynamic convolution of the authors', of any of their kinds.

    Args:
        arrays: by name; those outside of the prefix do not count.
        prefix: the name of their module, such as "layer1.0.conv2"; empty for arrays of the module alone.

    Returns:
        What :class:`shuffle_jax.nn.dynamic_conv.DynamicConv` of these sizes takes.

    Raises:
        ValueError: an array is missing, extra or misshapen; the first are named.
    """
    block = _Block(arrays, prefix)
    channels, latent, hidden = block.size("channels"), block.size("latent"), block.size("hidden")
    pool = max(1, math.isqrt(block.size("seen") // channels))
    layer = DynamicConv(block.size("features"), block.window, pool=pool, latent=latent, hidden=hidden)
    return block.convert(layer, jnp.zeros((1, 1, 1, channels), jnp.float32))


def dynamic_dense(arrays: Arrays, prefix: str = "") -> dict[str, PyTree]:
    """The variables of the authors' classifier.

    Args:
        arrays: by name; those outside of the prefix do not count.
        prefix: the name of their module, such as "classifier.0"; empty for arrays of the module alone.

    Returns:
        What :class:`shuffle_jax.nn.dynamic_conv.DynamicDense` of these sizes takes.

    Raises:
        ValueError: an array is missing, extra or misshapen; the first are named.
    """
    block = _Block(arrays, prefix, CLASSIFIER)
    layer = DynamicDense(block.size("features"), block.size("latent"), block.size("hidden"))
    return block.convert(layer, jnp.zeros((1, block.size("channels")), jnp.float32), "layer")


def rows(table: Modules, shapes: PyTree) -> Iterator[Row]:
    """One row for each array of a network that a table of modules knows.

    Args:
        table: pairs of a path here and a name there.
        shapes: of all variables, by collection.
    """
    names = dict(table)
    for path, shape in flatten_dict(shapes, sep="/").items():
        inside = path.partition("/")[2]
        owner, _, leaf = inside.rpartition("/")
        if inside in names:  # a module there, an array here
            owner, leaf = inside, "kernel"
        if owner in names and leaf in LEAVES:
            name = names[owner]
            axes = CONVOLUTION if shape.ndim == 4 else LINEAR if shape.ndim == 2 else VECTOR
            if axes == CONVOLUTION and name.rpartition(".")[2] in CLASSIFIER:
                axes = LINEAR
            yield Row(path, f"{name}.{LEAVES[leaf]}", axes)


def convert(arrays: Arrays, table: Iterable[Row], shapes: PyTree) -> dict[str, PyTree]:
    """Variables from arrays, all or none.

    Args:
        arrays: by name; counters and what training programs put around a network
            (:func:`~shuffle_jax.models.convert.names.plain`) do not count.
        table: where each variable comes from.
        shapes: of all variables, by collection, as ``jax.eval_shape(network.init, ...)`` gives them.

    Returns:
        The variables, float32, by collection.

    Raises:
        ValueError: a variable is not in the table, or an array is missing, extra, misshapen or not of finite floats;
            the first are named.
    """
    arrays, table, wanted = plain(arrays), sorted(table, key=lambda row: row.name), flatten_dict(shapes, sep="/")
    unknown = sorted(set(wanted) - {row.path for row in table}, key=lambda path: (not path.startswith("params/"), path))
    if unknown:
        raise ValueError(
            f"the network has {len(unknown)} arrays that the source does not know ({some(unknown)}): choose one "
            "with the layers of the source"
        )
    problems = {
        "missing": [f"{row.name} {_shape_there(row, wanted)}" for row in table if row.name not in arrays],
        "extra": [f"{name} {arrays[name].shape}" for name in sorted(set(arrays) - {row.name for row in table})],
        "of the wrong shape": [
            f"{row.name} {arrays[row.name].shape}, not {shape}"
            for row in table
            if row.name in arrays and arrays[row.name].shape != (shape := _shape_there(row, wanted))
        ],
        "of no finite floats": [row.name for row in table if row.name in arrays and not _finite(arrays[row.name])],
    }
    problems = {kind: found for kind, found in problems.items() if found}
    if problems:
        told = "; ".join(f"{kind}: {some(found, MOST // len(problems))}" for kind, found in problems.items())
        raise ValueError(f"nothing is loaded, choose the network or layer that the arrays are of ({told})")

    def variable(row: Row) -> jax.Array:
        return jnp.asarray(in_float32(arrays[row.name]).transpose(row.axes).reshape(wanted[row.path].shape))

    variables: dict[str, PyTree] = unflatten_dict({row.path: variable(row) for row in table}, sep="/")
    return variables


def _shape_there(row: Row, shapes: Mapping[str, jax.ShapeDtypeStruct]) -> tuple[int, ...]:
    """The shape of a variable in torch's layout."""
    shape = shapes[row.path].shape
    shape = shape[len(shape) - len(row.axes) :]
    return tuple(shape[row.axes.index(axis)] for axis in range(len(shape)))


def _finite(array: np.ndarray) -> bool:
    return jnp.issubdtype(array.dtype, jnp.floating) and bool(np.isfinite(in_float32(array)).all())


class _Block:
    """The arrays of one dynamic layer."""

    def __init__(self, arrays: Arrays, prefix: str, factors: Factors | None = None) -> None:
        inside = f"{prefix}." if prefix else ""
        self.arrays = {name: array for name, array in plain(arrays).items() if name.startswith(inside)}
        self._prefix, self._inside = prefix, inside
        self._factors = factors or max((MOBILENET, RESNET), key=self._present)

    def _present(self, factors: Factors) -> int:
        return sum(f"{self._inside}{name}.weight" in self.arrays for name in factors)

    def _shape(self, name: str) -> tuple[int, ...]:
        array = self.arrays.get(f"{self._inside}{name}.weight")
        return () if array is None else array.shape

    @property
    def window(self) -> tuple[int, int]:
        """Kernel size."""
        shape = self._shape(self._factors.kernel)
        return (shape[2], shape[3]) if len(shape) == 4 else (1, 1)

    def size(self, what: str) -> int:
        """A size as most arrays have it; 1 if all are missing, which convert then says."""
        kernel, q, p = self._factors
        where = {
            "features": ((kernel, 0), (p, 0), ("fc_scale", 0)),
            "channels": ((kernel, 1), (q, 1)),
            "latent": ((q, 0), (p, 1), ("bn1", 0), ("bn2", 0)),
            "hidden": (("fc.0", 0), ("fc.1.fc.0", 0), ("fc_phi", 1), ("fc_scale", 1)),
            "seen": (("fc.0", 1),),
        }
        sizes = [self._shape(name)[axis] for name, axis in where[what] if len(self._shape(name)) > axis]
        return max(1, statistics.mode(sizes)) if sizes else 1

    def convert(self, layer: nn.Module, x: jax.Array, name: str = "") -> dict[str, PyTree]:
        shapes = jax.eval_shape(layer.init, jax.random.key(0), x)
        return convert(self.arrays, rows(parts(name, self._prefix, self._factors), shapes), shapes)
