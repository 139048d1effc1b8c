"""Rematerialisation of a network: of each of its parts the gradient keeps the input alone."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import flax.linen as nn
import jax
from flax.core import lift
from flax.linen.transforms import lift_transform

from shuffle_jax.ops.remat import recomputed
from shuffle_jax.typing import Array, PyTree


def rematerialized() -> AbstractContextManager[None]:
    """A context for ``network.apply``: of each child of the network a gradient keeps the input and variables alone.

    Children are what the network itself calls: stem, units, classifier. All within them is computed again, by
    :func:`~shuffle_jax.ops.remat.recomputed`. Values, statistics, penalties, random streams and gradients are those
    without it. Initialisation is left as it is.

    >>> import jax.numpy as jnp
    >>> network, x = nn.Sequential([nn.Dense(2), jnp.sin, nn.Dense(1)]), jnp.ones((1, 3))
    >>> variables = network.init(jax.random.key(0), x)
    >>> def slope(variables):
    ...     return jax.grad(lambda variables: network.apply(variables, x).sum())(variables)
    >>> with rematerialized():
    ...     again = slope(variables)
    >>> jax.tree.all(jax.tree.map(lambda a, b: (a == b).all().item(), again, slope(variables)))
    True
    """
    within = False

    def intercept(call: Callable[..., Any], args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
        nonlocal within
        module = context.module
        if within or context.method_name != "__call__" or len(module.path) != 1 or module.is_initializing():
            return call(*args, **kwargs)
        within = True
        try:
            return lift_transform(_lifted, lambda module, *args: module(*args, **kwargs))(module, *args)
        finally:
            within = False

    return nn.intercept_methods(intercept)


def _lifted(function: Callable[..., Any]) -> Callable[..., Any]:
    """The transform of a function of a scope, with all its collections and random streams."""

    def inner(scope_of: Any, repack: Any, variables: PyTree, streams: PyTree, *args: Any) -> Any:
        leaves, tree = jax.tree.flatten(args)
        at = [i for i, leaf in enumerate(leaves) if isinstance(leaf, jax.Array)]

        def called(arrays: list[Array], variables: PyTree, streams: PyTree) -> Any:
            given = dict(enumerate(leaves)) | dict(zip(at, arrays, strict=True))
            scope = scope_of(variables, streams)
            return function(scope, *jax.tree.unflatten(tree, given.values())), repack(scope)

        return recomputed(called)([leaves[i] for i in at], variables, streams)

    return lift.pack(inner, (True,), (True,), (True,), name="remat")
