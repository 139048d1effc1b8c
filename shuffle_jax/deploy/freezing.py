"""Freezing dynamic layers: one pair of permutations for all images in place of the head that makes one for each.

What a frozen network loses says how much its dynamic layers do for each image: nothing, if they are static in effect.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from shuffle_jax.nn.collections import FACTORS, PERMUTATIONS, collections_of, one_by_one
from shuffle_jax.nn.factors import FactorGenerator, Factors
from shuffle_jax.ops.rounding import assignment
from shuffle_jax.typing import Images, PyTree


class Frozen(NamedTuple):
    """What :func:`freeze` returns.

    Attributes:
        variables: of the same network, without heads; index vectors stand in "permutations".
        factors: int32 index vectors ``outer`` (k, p) and ``inner`` (k, q) by layer.
    """

    variables: dict[str, PyTree]
    factors: dict[str, dict[str, np.ndarray]]


def freeze(network: nn.Module, variables: dict[str, PyTree], images: Iterable[Images]) -> Frozen:
    """Replaces the factors that every dynamic layer makes by the permutations nearest to their mean over images.

    For each factor it is ``argmax_p sum_i mean(A)[i, p[i]]``, a linear assignment: valid whatever the mean. Factors
    that are learned and not made from the image are their own mean; freezing them is hardening. Of a layer that is
    called in many places the last one counts.

    Args:
        network: called as ``network(images, train=False)``.
        variables: of the network.
        images: normalised batches ``(n, h, w, c)``, at least one.

    Returns:
        New variables and the permutations. A network without dynamic layers is returned as it is.

    Raises:
        ValueError: there are no images, these are no variables by collection, or stacked layers keep their factors in.
    """
    variables = collections_of(variables, "freeze")

    @jax.jit
    def mean_factors(variables: dict[str, PyTree], images: Images) -> PyTree:
        factors = _factors(network, variables, images)
        return jax.tree.map(lambda factor: factor.mean(-4), factors)  # over images, not stacked layers

    total: PyTree = None
    count = 0
    for batch in images:
        size, count = len(batch), count + len(batch)
        found = jax.tree.map(lambda mean, size=size: size * mean, mean_factors(variables, batch))
        total = found if total is None else jax.tree.map(jnp.add, total, found)
    if not count:
        raise ValueError("freeze needs at least one batch of images to average the factors over")

    rounded = jax.device_get(jax.tree.map(_assignment, total))
    indices = flatten_dict(rounded)  # (*module, "outer") and (*module, "inner")
    if not indices:
        return Frozen(variables, {})
    modules = {path[:-1] for path in indices}

    def without_heads(tree: PyTree) -> PyTree:
        leaves = flatten_dict(tree).items()
        return unflatten_dict({path: leaf for path, leaf in leaves if not any(path[: len(m)] == m for m in modules)})

    kept: dict[str, PyTree] = {
        name: without_heads(variables[name]) for name in ("params", "batch_stats") if name in variables
    }
    permutations = flatten_dict(variables.get(PERMUTATIONS, {})) | jax.tree.map(jnp.asarray, indices)
    frozen: dict[str, PyTree] = {**variables, **kept, PERMUTATIONS: unflatten_dict(permutations)}
    factors: dict[str, dict[str, np.ndarray]] = {}
    for (*module, name), index in indices.items():
        for layer, own in one_by_one({tuple(module[:-1]): index}, 2).items():
            factors.setdefault(layer, {})[name] = own
    return Frozen(frozen, factors)


def dynamic_layers(
    network: nn.Module, variables: dict[str, PyTree], image_shape: tuple[int, int, int]
) -> tuple[str, ...]:
    """The layers that make their factors from the image or learn them, which :func:`freeze` would replace.

    Args:
        network: called as ``network(images, train=False)``; traced and not run.
        variables: of the network, or their shapes.
        image_shape: (h, w, c).

    Returns:
        Their names, such as ``("stage2_0/mixer", ...)``: none for a network without such layers, or frozen.
    """
    variables = collections_of(variables, "dynamic_layers")

    def sown(variables: dict[str, PyTree]) -> PyTree:
        images = jnp.zeros((1, *image_shape), jnp.float32)
        variables = {name: tree for name, tree in variables.items() if name != FACTORS}
        return _factors(network, variables, images)

    found = flatten_dict(jax.eval_shape(sown, variables))
    layers = [one_by_one({path[:-2]: np.empty(leaf.shape[:-4])}, 0) for path, leaf in found.items()]
    return tuple(dict.fromkeys(name for names in layers for name in names))


def _factors(network: nn.Module, variables: dict[str, PyTree], images: Images) -> PyTree:
    """What the dynamic layers of a network sow into "factors"."""
    made: list[tuple[str, ...]] = []

    def note(call: Callable[..., Any], arguments: tuple, keywords: dict[str, Any], context: Any) -> Any:
        result = call(*arguments, **keywords)
        if isinstance(context.module, FactorGenerator) and isinstance(result, Factors) and not result.frozen:
            made.append(context.module.path)
        return result

    with nn.intercept_methods(note):
        _, sown = network.apply(variables, images, train=False, mutable=[FACTORS])
    found = sown.get(FACTORS, {})
    sowing = {path[:-1] for path in flatten_dict(found)}
    for path in made:
        if path not in sowing:
            raise ValueError(
                f"the factors of {'/'.join(path)} do not come out of the transformation that it is in: give nn.scan or "
                f'nn.vmap an axis for "{FACTORS}" among its variable_axes'
            )
    return found


_assignment = jax.jit(assignment)  # compiled once for each shape
