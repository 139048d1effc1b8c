"""Parameters and multiply-adds of a network, exact, from shapes alone: no array is made and nothing is run.

One multiply-add is one product of two values of which at least one depends on the image, with the addition that follows
it. So convolutions, dense layers and mixing matrices count; batch normalisation (folded into the convolution before it
when deployed), biases, ReLU, pooling, averages, and gathers (a shuffle, a permutation) count as none. All numbers are
for one image.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from shuffle_jax.constraint import parameter_name
from shuffle_jax.nn.collections import RELAXED, STATIC
from shuffle_jax.typing import Array, PyTree


class Count(NamedTuple):
    """What a network or a layer costs. Relaxed permutations, which hardening turns into gathers, stand apart.

    Attributes:
        parameters: trained numbers that remain after hardening; running statistics are none.
        training_only_parameters: numbers in relaxed permutations, and in the static factors of a mixer.
        multiply_adds: of one image, after hardening.
        training_only_multiply_adds: of one image in relaxed permutations.
    """

    parameters: int
    training_only_parameters: int
    multiply_adds: int
    training_only_multiply_adds: int


NOTHING = Count(0, 0, 0, 0)


class Layer(NamedTuple):
    """One layer of a network, or what a module does beside the layers inside it.

    Attributes:
        path: such as "stage2_0/pointwise1".
        kind: the name of its class.
        output_shape: of one image.
        cost: what it adds to the count of the network.
    """

    path: str
    kind: str
    output_shape: tuple[int, ...]
    cost: Count


Known = dict[Hashable, tuple[str, list[Layer], PyTree]]
"""What was counted before: by the likeness of a module, the path it had, its layers and the shape of its output."""


def count(
    network: nn.Module, image_shape: tuple[int, ...], variables: PyTree | None = None, known: Known | None = None
) -> Count:
    """Counts a whole network: the sum of :func:`count_layers`.

    Args:
        network: called as ``network(images)``.
        image_shape: of one image, (h, w, c).
        variables: arrays or shapes to count the network with, such as those of a hardened network; those that the
            network itself would initialise by default.
        known: a dictionary to share between calls: one that starts empty makes counting many like networks faster.

    Returns:
        The :class:`Count` for one image.

    Raises:
        ValueError: a layer has weights and no rule for its multiply-adds, or two rules.

    >>> from shuffle_jax.models import ShuffleNetV2
    >>> count(ShuffleNetV2(classes=1000), (224, 224, 3)).parameters
    2278604
    """
    return total(count_layers(network, image_shape, variables, known))


def total(layers: Iterable[Layer]) -> Count:
    """The sum of what layers cost."""
    return Count(*map(sum, zip(NOTHING, *(layer.cost for layer in layers), strict=True)))


def inside(layers: Iterable[Layer], name: str) -> Count:
    """What modules of one name, and all that is inside them, cost together.

    Args:
        layers: those of a network, as :func:`count_layers` gives them.
        name: a whole part of a path: "generator" is in "stage2_0/mixer/generator/hidden", "gen" is not.

    Returns:
        The sum, zeros where no path has this part.
    """
    return total(layer for layer in layers if name in layer.path.split("/"))


def count_layers(
    network: nn.Module, image_shape: tuple[int, ...], variables: PyTree | None = None, known: Known | None = None
) -> list[Layer]:
    """Counts every layer of a network, in the order in which they are called.

    A layer is a module that calls no other. Dense layers and convolutions have a rule for their multiply-adds. A module
    of another class that has weights, parameters of two axes or more, or that multiplies what depends on the image,
    says itself what that takes for one image, from its first input and its output, by one of two methods:

    - ``multiply_adds(x, y)`` speaks for all that is inside the module as well: it is one layer, those inside are none.
    - ``own_multiply_adds(x, y)`` speaks for what the module does beside the layers that it calls. These stay, and it
      comes after them, with the parameters of its own.

    A module that calls others and has neither method appears only for parameters of its own.

    Args:
        network: called as ``network(images)``.
        image_shape: of one image, (h, w, c).
        variables: as for :func:`count`.
        known: as for :func:`count`.

    Returns:
        One :class:`Layer` each.

    Raises:
        ValueError: a layer has weights and no rule for its multiply-adds, or two rules.
    """
    layers: list[Layer] = []
    known = {} if known is None else known  # Networks repeat their units: what is alike is traced once.

    def visit(call: Callable[..., Any], args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
        if context.method_name != "__call__":
            return call(*args, **kwargs)
        module, path, before = context.module, "/".join(context.module.path), len(layers)
        likeness = _likeness(module, args, kwargs) if variables is None else None
        if likeness in known:
            place, inside, y = known[likeness]
            layers.extend(layer._replace(path=path + layer.path.removeprefix(place)) for layer in inside)
            return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), y)
        y = call(*args, **kwargs)
        inside, rule, own = layers[before:], _rule(module), getattr(module, "own_multiply_adds", None)
        if rule and own:
            raise ValueError(
                f"the layer {path or type(module).__name__!r} has two rules for its multiply-adds: keep "
                "own_multiply_adds if the layers inside it are to be counted by themselves, else multiply_adds"
            )
        speaks = rule or own
        layer = _layer(module, path, y, inside, speaks(args[0], y) if speaks else None, inside if rule else [])
        if rule:
            del layers[before:]
        if speaks or not inside or layer.cost != NOTHING:
            layers.append(layer)
        if likeness is not None:
            known[likeness] = path, layers[before:], jax.eval_shape(lambda: y)
        return y

    def run(variables: PyTree | None, images: Array) -> PyTree:
        if variables is None:
            return network.init(jax.random.key(0), images)
        return network.apply(variables, images)

    with nn.intercept_methods(visit):
        jax.eval_shape(run, variables, jax.ShapeDtypeStruct((1, *image_shape), jnp.float32))
    return _once(layers)


def _once(layers: Iterable[Layer]) -> list[Layer]:
    """The layers, of which a second call shares the parameters of the first."""
    seen, found = set[str](), []
    for layer in layers:
        again = layer.path in seen
        seen.add(layer.path)
        cost = layer.cost._replace(parameters=0, training_only_parameters=0) if again else layer.cost
        found.append(layer._replace(cost=cost))
    return found


def _rule(module: nn.Module) -> Callable[[Any, Any], int] | None:
    """The multiply-adds of a module from its input and output, where it or this library has a rule for them."""
    if isinstance(module, nn.Dense | nn.Conv):
        kernel = module.variables["params"]["kernel"]
        return lambda x, y: math.prod(y.shape[1:-1]) * kernel.size  # Every position sees every weight.
    return getattr(module, "multiply_adds", None)


def _layer(
    module: nn.Module, path: str, y: PyTree, inside: list[Layer], multiply_adds: int | None, replaced: list[Layer]
) -> Layer:
    """The row of a module: what is its own, and the parameters of those layers inside that it replaces."""
    kind, params = type(module).__name__, module.variables.get("params", {})
    if inside:  # Modules that are no layers of their own, such as norms that were absorbed, belong to this one.
        apart = {layer.path.removeprefix(f"{path}/" if path else "").split("/")[0] for layer in inside}
        params = {name: leaf for name, leaf in params.items() if not (isinstance(leaf, Mapping) and name in apart)}
    leaves = [(parameter_name(keys), leaf) for keys, leaf in jax.tree.leaves_with_path(params)]
    total = sum(leaf.size for _, leaf in leaves)
    relaxed = sum(leaf.size for name, leaf in leaves if name in (RELAXED, STATIC))
    shape = jax.tree.leaves(y)[0].shape[1:]
    if multiply_adds is None:
        if any(leaf.ndim > 1 for _, leaf in leaves):
            raise ValueError(
                f"the layer {path or kind!r} has weights and no rule for its multiply-adds: give the class {kind} a "
                "method multiply_adds(x, y), or own_multiply_adds(x, y) for what it does beside the layers inside it"
            )
        return Layer(path, kind, shape, Count(total - relaxed, relaxed, 0, 0))
    replaced = _once(replaced)
    remaining = total - relaxed + sum(layer.cost.parameters for layer in replaced)
    relaxed += sum(layer.cost.training_only_parameters for layer in replaced)
    work = (0, multiply_adds) if relaxed else (multiply_adds, 0)
    return Layer(path, kind, shape, Count(remaining, relaxed, *work))


def _likeness(module: nn.Module, args: Any, kwargs: Any) -> Hashable | None:
    """What two modules share that do the same to inputs of the same shape; None if that cannot be told."""
    leaves, structure = jax.tree.flatten((args, kwargs))
    inputs = [(leaf.shape, leaf.dtype) if hasattr(leaf, "shape") else leaf for leaf in leaves]
    likeness = module.clone(parent=None, name=None), structure, tuple(inputs)
    try:
        hash(likeness)
    except TypeError:  # A field of the module is a list.
        return None
    return likeness
