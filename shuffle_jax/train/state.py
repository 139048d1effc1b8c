"""Everything a training run needs to go on, in one tree of arrays."""

from __future__ import annotations

from collections.abc import Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from flax import struct

from shuffle_jax.nn.collections import PROGRESS, SOWN
from shuffle_jax.streams import PARAMETERS
from shuffle_jax.typing import Array, Images, Int, Key, PyTree


class TrainState(struct.PyTreeNode):
    """The state between two steps.

    Attributes:
        step: optimiser steps done, int32.
        params: the parameters.
        collections: the other variables of the network by the name of their collection, none of them empty: running
            statistics of batch norms, fixed permutations, the progress of the training, and what a module from outside
            keeps.
        opt_state: of the optimiser.
        average: exponential moving average of ``params``; None if it is off.
        key: the random key of the run, from which each purpose has its own, see :mod:`shuffle_jax.streams`.
        average_stats: the batch statistics of the average, re-estimated whenever it is looked at; None without an
            average or batch norms, and in a state of an earlier version, which had none.
        settling: index vectors of the relaxed matrices after the last epoch, and for how many epochs they have been the
            same, see :mod:`shuffle_jax.train.early`; None where matrices are hardened at the end alone, or are already.
    """

    step: Int[Array, ""]
    params: PyTree
    collections: dict[str, PyTree]
    opt_state: PyTree
    average: PyTree | None
    key: Key
    average_stats: PyTree | None = None
    settling: dict[str, PyTree] | None = None

    def variables(self) -> dict[str, PyTree]:
        """The network's variables for evaluation: of the moving average where there is one."""
        if self.average is None:
            return {"params": self.params, **self.collections}
        own = {} if self.average_stats is None else {"batch_stats": self.average_stats}
        return {"params": self.average, **self.collections, **own}

    @property
    def lacks_stats(self) -> bool:
        """Whether there is an average without batch statistics of its own, and the network has batch norms."""
        return self.average is not None and self.average_stats is None and "batch_stats" in self.collections


def init_state(
    key: Key,
    network: nn.Module,
    images: Images,
    optimizer: optax.GradientTransformation,
    average: bool = False,
    separate_streams: bool = True,
) -> TrainState:
    """The state before the first step.

    Args:
        key: random key of the whole run.
        network: called as ``network(images, train)``.
        images: any float images of the right shape; only the shape counts.
        optimizer: its state is made for the parameters.
        average: whether to keep a moving average of the parameters.
        separate_streams: as in the configuration.

    Returns:
        A state with step 0.
    """
    start_key, key = (jax.random.fold_in(key, PARAMETERS), key) if separate_streams else jax.random.split(key)
    return first_state(key, network.init(start_key, images, train=False), optimizer, average)


def first_state(
    key: Key, variables: Mapping[str, PyTree], optimizer: optax.GradientTransformation, average: bool = False
) -> TrainState:
    """The state before the first step, of a network whose variables are there already; see :func:`init_state`."""
    params = variables.get("params", {})
    collections = {name: tree for name, tree in variables.items() if name not in ("params", *SOWN) and _is_kept(tree)}
    if PROGRESS in collections:
        collections[PROGRESS] = jax.tree.map(jnp.zeros_like, collections[PROGRESS])
    # Copies: the step donates its input, and one buffer cannot be given away twice.
    averaged = {"params": params, **collections} if average else {}
    averaged = jax.tree.map(jnp.copy, {name: averaged[name] for name in ("params", "batch_stats") if name in averaged})
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        collections=collections,
        opt_state=optimizer.init(params),
        average=averaged.get("params"),
        key=key,
        average_stats=averaged.get("batch_stats"),
    )


def _is_kept(collection: PyTree) -> bool:
    """Whether a collection is state: it holds arrays, and none that was sown, which stand in tuples that would grow."""
    paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(collection)]
    return bool(paths) and not any(isinstance(key, jax.tree_util.SequenceKey) for path in paths for key in path)
