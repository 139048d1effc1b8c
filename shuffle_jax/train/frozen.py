"""Fine-tuning: which parameters are frozen and which are the body, and batch norms that stay with them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax

from shuffle_jax.naming import some
from shuffle_jax.nn.normalization import BatchNorm
from shuffle_jax.typing import PyTree

HEAD = "head"
"""The submodule of a network that is its classifier."""


def frozen(params: PyTree, patterns: Sequence[str]) -> PyTree:
    """Which leaves do not train: those whose path, such as "stage2_0/right/kernel", begins with one of the patterns.

    Args:
        params: parameters.
        patterns: regular expressions.

    Raises:
        ValueError: a pattern begins no path, or nothing is left to train.
    """
    paths = [_path(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    for pattern in patterns:
        if not any(re.match(pattern, path) for path in paths):
            first = dict.fromkeys(path.partition("/")[0] for path in paths)
            raise ValueError(
                f"optimizer.freeze must match the beginnings of paths of parameters, got {pattern!r}, which matches "
                f"none: they begin with {some(first)}"
            )
    if paths and all(_matches(path, patterns) for path in paths):
        raise ValueError(
            f"optimizer.freeze must leave something to train, got {list(patterns)}, which match everything"
        )
    return jax.tree.map_with_path(lambda path, _: _matches(_path(path), patterns), params)


def stopped(params: PyTree, patterns: Sequence[str]) -> PyTree:
    """The parameters, of which the frozen ones have no gradient."""
    if not patterns:
        return params
    return jax.tree.map(
        lambda leaf, off: jax.lax.stop_gradient(leaf) if off else leaf, params, frozen(params, patterns)
    )


def body(params: PyTree) -> PyTree:
    """Which leaves are not of the classifier.

    Raises:
        ValueError: no submodule is named "head".
    """
    if HEAD not in params:
        raise ValueError(
            f'optimizer.body_rate must be 1 for a network whose classifier is not a submodule named "{HEAD}", this one '
            f"has {some(params)}"
        )
    return {name: jax.tree.map(lambda _, off=name == HEAD: not off, tree) for name, tree in params.items()}


def with_frozen_norms(network: Any, patterns: Sequence[str]) -> Any:
    """The network, with frozen batch norms that compute in training what they do in evaluation.

    So they keep their statistics. Frozen are those whose running mean has a path that begins with one of the patterns.

    Args:
        network: called as ``network(images, train)``.
        patterns: see :func:`frozen`.

    Returns:
        What has the ``apply`` of such a network.
    """
    return _Network(network, patterns) if patterns else network


class _Network:
    def __init__(self, network: nn.Module, patterns: Sequence[str]) -> None:
        self._network, self._patterns = network, patterns

    def apply(self, variables: Mapping[str, PyTree], *args: Any, **options: Any) -> Any:
        with nn.intercept_methods(self._intercept):
            return self._network.apply(variables, *args, **options)

    def _intercept(self, call: Any, args: Any, options: Any, context: Any) -> Any:
        module = context.module
        is_norm = context.method_name == "__call__" and isinstance(module, BatchNorm | nn.BatchNorm)
        if not (is_norm and _matches("/".join((*module.path, "mean")), self._patterns)):
            return call(*args, **options)
        if isinstance(module, BatchNorm):
            return call(args[0], train=False)
        object.__setattr__(module, "use_running_average", None)  # flax's takes it in one place alone
        return call(args[0], **{**options, "use_running_average": True})


def _matches(path: str, patterns: Sequence[str]) -> bool:
    return any(re.match(pattern, path) for pattern in patterns)


def _path(path: Any) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")
