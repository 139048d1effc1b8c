"""Folding: the batch norms of a network absorbed into the layers before them, as new variables of the same network.

Exact, up to rounding, and without knowing the network. It is traced once, with a mark at the inputs and outputs of its
layers, and what is seen there decides:

- A batch norm whose input is the output of one linear layer, used by nothing else, gives that layer its scale
  (``scale_outputs``, see :func:`shuffle_jax.nn.normalization.scale_outputs`) and keeps its shift as a bias.
- Where the output of that norm goes, and nowhere else, into a 1x1 convolution with such a norm behind it, even the bias
  moves on into the latter's: there is no padding that it would miss. A norm left with nothing returns its input.
- A layer that is called in many places (:class:`shuffle_jax.nn.shared.Use`) has another norm behind it in each: it
  stays as it is, and so do they, unless each place is to have a copy.
- A module with norms inside may absorb them by itself: in ``scale_outputs``, or by ``absorb_norms`` if it is no linear
  layer, such as the head of a dynamic shuffle.

What fits none of these stays as it is.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple

import flax.linen as nn
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from shuffle_jax.deploy.tracing import Call, Path, Variables, traced
from shuffle_jax.nn import BatchNorm, Use
from shuffle_jax.nn.collections import collections_of
from shuffle_jax.nn.normalization import absorbed
from shuffle_jax.nn.shared import OWN
from shuffle_jax.typing import PyTree


class Folded(NamedTuple):
    """What :func:`fold` returns.

    Attributes:
        variables: of the same network, for evaluation; without the scales and statistics of what is folded.
        folded: the names of the batch norms that are folded, such as ``stem/norm``.
        kept: those that are not, and why.
    """

    variables: dict[str, PyTree]
    folded: tuple[str, ...]
    kept: dict[str, str]


def fold(
    network: nn.Module, variables: dict[str, PyTree], image_shape: tuple[int, int, int], copies: bool = False
) -> Folded:
    """Folds the batch norms of any network into the layers before them.

    Args:
        network: called as ``network(images)``, which evaluates; traced and not run.
        variables: of the network.
        image_shape: (h, w, c), of any size that the network takes.
        copies: give each use of a shared layer a copy of its own, which then absorbs the norm behind it. There are as
            many kernels as uses with a norm then; without, they stay one and the norms stay too.

    Returns:
        New variables with which ``network.apply`` gives the same logits to rounding, and what became of each norm. A
        network without batch norms is returned as it is.

    >>> import jax
    >>> from shuffle_jax.models import ShuffleNetV2
    >>> network = ShuffleNetV2(classes=2, width=0.5, stem="small")
    >>> variables = jax.eval_shape(network.init, jax.random.key(0), np.ones((1, 8, 8, 3), np.float32))
    >>> folded = fold(network, jax.tree.map(lambda leaf: np.ones(leaf.shape, leaf.dtype), variables), (8, 8, 3))
    >>> len(folded.folded), folded.kept, list(folded.variables)
    (56, {}, ['params'])
    """
    variables = collections_of(variables, "fold")
    variables = _with_copies(network, variables, image_shape) if copies else variables
    norms = [path[:-1] for path in flatten_dict(variables.get("batch_stats", {})) if path[-1] == "mean"]
    if not norms:
        return Folded(variables, (), {})
    calls, before = traced(network, variables, image_shape)
    after = {layer: follower for follower, layer in before.items()}
    state, scaled = Variables(variables), dict[Path, Path]()  # the folded norm behind each layer
    for norm, layer in before.items():
        if not isinstance(calls[norm].module, BatchNorm) or isinstance(calls[layer].module, BatchNorm):
            continue
        own = state.of(norm)
        if own.get("batch_stats") and calls[norm].is_whole(own) and calls[layer].is_whole(state.of(layer)):
            scale, shift = absorbed(own["params"], own["batch_stats"])
            state.replace(layer, calls[layer].module.scale_outputs(state.of(layer), scale))
            state.replace(norm, {"params": {"bias": shift}})
            scaled[layer] = norm
    for path, call in calls.items():
        own = state.of(path)
        if path in scaled or not own.get("batch_stats") or not call.is_whole(own):
            continue
        if hasattr(call.module, "absorb_norms"):
            state.replace(path, call.module.absorb_norms(own))
        elif hasattr(call.module, "scale_outputs"):
            state.replace(path, call.module.scale_outputs(own, np.ones(())))
    for norm in scaled.values():
        layer = after.get(norm, ())
        if layer in scaled and hasattr(calls[layer].module, "constant_outputs"):
            bias, behind = (state.of(path)["params"]["bias"] for path in (norm, scaled[layer]))
            moved = calls[layer].module.constant_outputs(state.of(layer), bias)
            state.replace(norm, {})
            state.replace(scaled[layer], {"params": {"bias": behind + moved}})
    kept = [norm for norm in norms if state.of(norm).get("batch_stats")]
    names = {norm: "/".join(norm) for norm in norms}
    return Folded(
        state.finished(),
        tuple(names[norm] for norm in norms if norm not in kept),
        {names[norm]: _reason(norm, calls, before) for norm in kept},
    )


def _with_copies(
    network: nn.Module, variables: dict[str, PyTree], image_shape: tuple[int, int, int]
) -> dict[str, PyTree]:
    """The variables with a copy of a shared layer for each use with a norm behind it."""
    before_any, calls = Variables(variables), traced(network, variables, image_shape)[0]
    uses = {
        path: call.module.layer.path
        for path, call in calls.items()
        if isinstance(call.module, Use) and not before_any.of(path)  # else it has a copy
    }

    def copied(chosen: Collection[Path]) -> dict[str, PyTree]:
        state = Variables(variables)
        found = {path: state.of(uses[path]) for path in chosen}
        for path, layer in found.items():
            state.replace(path, {collection: {OWN: tree} for collection, tree in layer.items()})
        for layer in set(uses.values()) - {uses[path] for path in uses if path not in chosen}:
            state.replace(layer, {})
        return unflatten_dict(state.flat)

    calls, before = traced(network, copied(uses), image_shape)
    followed = {layer for norm, layer in before.items() if isinstance(calls[norm].module, BatchNorm)}
    return copied([path for path in uses if (*path, OWN) in followed])


def _reason(norm: Path, calls: dict[Path, Call], before: dict[Path, Path]) -> str:
    """Why a norm is kept."""
    around = [calls[norm[:i]].module for i in range(len(norm)) if norm[:i] in calls]
    if norm in before or any(hasattr(module, "absorb_norms") for module in around):
        return "it or the layer it goes into is called more than once, or for other variables each time"
    if any(hasattr(module, "scale_outputs") for module in around):
        return "the layer around it keeps it"
    return "its input is not the output of one layer that takes a scale, or is used elsewhere too"
