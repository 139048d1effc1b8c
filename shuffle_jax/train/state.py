"""Everything a training run needs to go on, in one tree of arrays."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from flax import struct

from shuffle_jax.nn.collections import PERMUTATIONS, PROGRESS
from shuffle_jax.typing import Array, Images, Int, Key, PyTree


class TrainState(struct.PyTreeNode):
    """The state between two steps.

    Attributes:
        step: optimiser steps done, int32.
        params: the parameters.
        statistics: running mean and variance of the batch norms.
        permutations: fixed index vectors; not trained.
        opt_state: of the optimiser.
        average: exponential moving average of ``params``; None if it is off.
        key: the random key of the run; step k draws from ``fold_in(key, k)``.
        progress: how much of the training is done, once for each layer that asks; see
            :data:`shuffle_jax.nn.collections.PROGRESS`.
    """

    step: Int[Array, ""]
    params: PyTree
    statistics: PyTree
    permutations: PyTree
    opt_state: PyTree
    average: PyTree | None
    key: Key
    progress: PyTree = struct.field(default_factory=dict)

    def variables(self) -> dict[str, PyTree]:
        """The network's variables for evaluation: of the moving average where there is one."""
        params = self.params if self.average is None else self.average
        return network_variables(params, self.statistics, self.permutations, self.progress)


def network_variables(params: PyTree, statistics: PyTree, permutations: PyTree, progress: PyTree) -> dict[str, PyTree]:
    """The collections as a network's ``apply`` takes them; an empty one is left out."""
    collections = {"params": params, "batch_stats": statistics, PERMUTATIONS: permutations, PROGRESS: progress}
    return {name: tree for name, tree in collections.items() if tree}


def init_state(
    key: Key,
    network: nn.Module,
    images: Images,
    optimizer: optax.GradientTransformation,
    average: bool = False,
) -> TrainState:
    """The state before the first step.

    Args:
        key: random key of the whole run.
        network: called as ``network(images, train)``.
        images: any float images of the right shape; only the shape counts.
        optimizer: its state is made for the parameters.
        average: whether to keep a moving average of the parameters.

    Returns:
        A state with step 0.
    """
    init_key, run_key = jax.random.split(key)
    variables = network.init(init_key, images, train=False)
    params = variables["params"]
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        statistics=variables.get("batch_stats", {}),
        permutations=variables.get(PERMUTATIONS, {}),
        opt_state=optimizer.init(params),
        # A copy: the step donates its input, and one buffer cannot be given away twice.
        average=jax.tree.map(jnp.copy, params) if average else None,
        key=run_key,
        progress=jax.tree.map(jnp.zeros_like, variables.get(PROGRESS, {})),
    )
