"""What folding any network needs: kernels with their norms, parts in a chain, mixers as index vectors, blocks."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from shuffle_jax.nn import (
    AddressShift,
    AutoShuffle,
    ChannelShift,
    ChannelShuffle,
    DynamicShuffle,
    FixedPermutation,
    GridShift,
    Identity,
    PointwiseConv,
)
from shuffle_jax.nn.collections import PERMUTATIONS
from shuffle_jax.nn.normalization import EPSILON
from shuffle_jax.ops import convolution, kronecker_forms, permutation
from shuffle_jax.ops.pooling import largest
from shuffle_jax.typing import Array, Float, Images, Int, PyTree


class Unfoldable(ValueError):
    """A network or a layer of it cannot be folded; the message says which, and what to do."""


class Folded(NamedTuple):
    """A network that is ready for use, or a part of one.

    Attributes:
        apply: ``apply(params, images) -> logits``, pure; to be jitted by the caller. A part gives its features.
        params: its float32 arrays.
    """

    apply: Callable[[PyTree, Images], Float[Array, "..."]]
    params: PyTree


def chain(parts: dict[str, Folded]) -> Folded:
    """Parts one after the other, their parameters by name."""
    applies = {name: part.apply for name, part in parts.items()}
    return Folded(functools.partial(_apply_chain, applies), {name: part.params for name, part in parts.items()})


def activated(part: Folded, activation: Callable[[Images], Images]) -> Folded:
    """A part and what acts on each value behind it."""
    return Folded(lambda params, x: activation(part.apply(params, x)), part.params)


def _apply_chain(
    applies: dict[str, Callable[[PyTree, Images], Float[Array, "..."]]], params: PyTree, x: Images
) -> Float[Array, "..."]:
    for name, apply in applies.items():
        x = apply(params[name], x)
    return x


def inside(variables: dict[str, PyTree], name: str) -> dict[str, PyTree]:
    """The variables of a submodule; of a collection in which it has none, an empty one."""
    return {collection: tree.get(name, {}) for collection, tree in variables.items()}


class Affine(NamedTuple):
    """A convolution with the batch norm behind it, ``y = x * kernel + bias``, in float64 until it is finished.

    Attributes:
        kernel: HWIO.
        bias: of the output channels.
    """

    kernel: Float[np.ndarray, "kh kw i o"]
    bias: Float[np.ndarray, "o"]

    def inputs(self, order: Int[np.ndarray, "c"], groups: int = 1) -> Affine:
        """The same map of inputs that come in another order: ``x_new[..., t] = x[..., order[t]]``.

        Of several groups, each must keep its channels.
        """
        size = len(order) // groups
        parts = zip(np.split(order % size, groups), np.split(self.kernel, groups, axis=-1), strict=True)
        return Affine(np.concatenate([rows[:, :, own] for own, rows in parts], axis=-1), self.bias)

    def outputs(self, order: Int[np.ndarray, "o"]) -> Affine:
        """The same map with its outputs in another order: ``y_new[..., t] = y[..., order[t]]``."""
        return Affine(self.kernel[..., order], self.bias[order])

    def after(self, bias: Float[np.ndarray, "c"], groups: int = 1) -> Affine:
        """A pointwise map of ``x + bias`` as one of x: exact, as there is no padding that the bias would miss."""
        parts = zip(np.split(bias, groups), np.split(self.kernel[0, 0], groups, axis=-1), strict=True)
        return Affine(self.kernel, self.bias + np.concatenate([part @ rows for part, rows in parts]))

    def finished(self) -> dict[str, Float[Array, "..."]]:
        """Kernel and bias in float32."""
        return {"kernel": jnp.asarray(self.kernel, jnp.float32), "bias": jnp.asarray(self.bias, jnp.float32)}


def absorb(layer: PyTree, norm: PyTree, statistics: PyTree) -> Affine:
    """A convolution and the batch norm behind it as one.

    Args:
        layer: "kernel" and perhaps "bias" of the convolution.
        norm: "scale" and "bias" of the norm.
        statistics: its running "mean" and "var".
    """
    kernel, own = (np.asarray(a, np.float64) for a in (layer["kernel"], layer.get("bias", 0.0)))
    scale, shift = scale_and_shift(norm, statistics)
    return Affine(kernel * scale, shift + own * scale)


def scale_and_shift(norm: PyTree, statistics: PyTree) -> tuple[Float[np.ndarray, "c"], Float[np.ndarray, "c"]]:
    """What a batch norm does in evaluation, ``scale x + shift``, in float64.

    Args:
        norm: its "scale" and "bias".
        statistics: its running "mean" and "var".
    """
    scale, shift = (np.asarray(norm[name], np.float64) for name in ("scale", "bias"))
    mean, var = (np.asarray(statistics[name], np.float64) for name in ("mean", "var"))
    factor = scale / np.sqrt(var + EPSILON)
    return factor, shift - mean * factor


def apply_affine(
    op: Callable[..., Images], x: Images, layer: dict[str, Float[Array, "..."]], dtype: jnp.dtype | None
) -> Images:
    """A finished layer in the type of the computation, ``op(x, kernel) + bias``."""
    x = x.astype(dtype or x.dtype)
    return op(x, layer["kernel"].astype(x.dtype)) + layer["bias"].astype(x.dtype).reshape(1, 1, 1, -1)


def apply_stem(
    x: Images,
    layer: dict[str, Float[Array, "..."]],
    kind: str,
    dtype: jnp.dtype | None,
    pool: bool = True,
    activation: Callable[[Images], Images] = nn.relu,
) -> Images:
    """The stem, see :class:`shuffle_jax.models.stem.Stem`."""
    small = kind == "small"
    x = apply_affine(functools.partial(convolution.convolution, stride=1 if small else 2), x, layer, dtype)
    x = activation(x)
    return largest(x) if pool and not small else x


def fold_stem(
    variables: dict[str, PyTree],
    kind: str,
    dtype: jnp.dtype | None,
    pool: bool = True,
    activation: Callable[[Images], Images] = nn.relu,
) -> Folded:
    """The stem of a network whose variables these are, as a part of a chain."""
    own = inside(variables, "stem")
    params = absorb(own["params"]["conv"], own["params"]["norm"], own["batch_stats"]["norm"]).finished()
    return Folded(lambda params, x: apply_stem(x, params, kind, dtype, pool, activation), params)


def fold_shift(shift: nn.Module, stride: int) -> Folded:
    """A shift over the image, which has nothing to be folded, with every ``stride``-th row and column kept.

    Raises:
        Unfoldable: it is no shift.
    """
    if not isinstance(shift, AddressShift | GridShift | Identity):
        raise Unfoldable(f"a {type(shift).__name__} in the place of a shift cannot be folded: use the network as it is")

    def apply(params: PyTree, x: Images) -> Images:
        y: Images = shift.apply({}, x)  # type: ignore[assignment]
        return y[:, ::stride, ::stride]

    return Folded(apply, {})


def fold_head(variables: dict[str, PyTree]) -> Folded:
    """The plain classifier "head" of a network whose variables these are, with the mean over positions before it."""

    def apply(params: PyTree, x: Images) -> Float[Array, "n classes"]:
        return x.mean((1, 2), dtype=jnp.float32) @ params["kernel"] + params["bias"].reshape(1, -1)

    return Folded(apply, variables["params"]["head"])


def index_vector(mixer: nn.Module, variables: dict[str, PyTree], unit: str, channels: int) -> Int[np.ndarray, "c"]:
    """The permutation that a mixer applies.

    Args:
        mixer: the module.
        variables: of the whole network.
        unit: the name, or the path, of the module whose "mixer" it is.
        channels: c.

    Raises:
        Unfoldable: the mixer is not a permutation, or not one yet.
    """
    own = variables.get(PERMUTATIONS, {})
    for name in (*unit.split("/"), "mixer"):
        own = own.get(name, {})
    match mixer:
        case Identity():
            return np.arange(channels)
        case ChannelShuffle(groups=groups):
            return np.asarray(permutation.channel_shuffle(channels, groups))
        case ChannelShift(groups=groups):
            return np.asarray(permutation.channel_shift(channels, groups))
        case AutoShuffle() | FixedPermutation():
            if "index" not in own:
                raise Unfoldable(f"{unit}/mixer is still a relaxed matrix: harden the variables before folding them")
            return np.asarray(own["index"])
        case DynamicShuffle(groups=groups):
            if "generator" not in own:
                raise Unfoldable(
                    f"{unit}/mixer makes its permutation from the image: freeze the variables, or do not fold"
                )
            factors = own["generator"]
            return np.asarray(kronecker_forms.index(factors["outer"], factors["inner"], groups))
    raise Unfoldable(f"{unit}/mixer is a {type(mixer).__name__}, not a permutation, and cannot be folded")


def check_pointwise(factory: Callable[..., nn.Module]) -> None:
    """Raises an Unfoldable unless the factory makes plain 1x1 convolutions."""
    kind = factory.func if isinstance(factory, functools.partial) else factory
    if kind is not PointwiseConv:
        raise Unfoldable(
            f"1x1 layers of {getattr(kind, '__name__', kind)} cannot be folded, only those of PointwiseConv"
        )


class Block(NamedTuple):
    """The channels ``start`` to ``stop`` of the array number ``source``."""

    source: int
    start: int
    stop: int


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
