"""AdaS: a learning rate for each convolution, from what its kernel gained in the last epoch.

Source: Hosseini and Plataniotis, AdaS, 2020; as CONet searches with it, ICCVW 2021, arXiv 2108.06822.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from shuffle_jax.analysis.convolutions import Convolutions, known
from shuffle_jax.analysis.knowledge import Knowledge
from shuffle_jax.sharding import replicate
from shuffle_jax.train.config import OptimizerConfig
from shuffle_jax.typing import PyTree

LEAST = 1e-20
"""Of a learning rate."""


class AdasState(NamedTuple):
    """The state of :func:`scale_by_adas`, scalars in the tree of the parameters.

    Attributes:
        rates: learning rates, over that of the schedule.
        gains: S of the convolution that each parameter follows, at the end of the last epoch; NaN before the first.
    """

    rates: PyTree
    gains: PyTree


def scale_by_adas() -> optax.GradientTransformation:
    """Multiplies each update by its rate in the state, which :func:`adapted` changes between epochs."""

    def init(params: PyTree) -> AdasState:
        def everywhere(value: float) -> PyTree:
            return jax.tree.map(lambda _: jnp.full((), value, jnp.float32), params)

        return AdasState(everywhere(1.0), everywhere(math.nan))

    def update(updates: PyTree, state: AdasState, params: PyTree | None = None) -> tuple[PyTree, AdasState]:
        return jax.tree.map(lambda u, rate: u * rate.astype(u.dtype), updates, state.rates), state

    return optax.GradientTransformation(init, update)


def adapted(
    opt_state: PyTree, params: PyTree, layers: Convolutions, config: OptimizerConfig, mesh: Mesh
) -> tuple[PyTree, dict[str, Knowledge]]:
    """The state of an optimiser after an epoch, ``R <- max(beta R + zeta (S_t - S_{t-1}), 1e-20)``.

    After the first epoch there is no S before it, and the rates stay. A rate in the state is R over the learning rate
    of the configuration, so that a schedule multiplies it; the paper's is "constant", without warm-up.

    Args:
        opt_state: with the state of :func:`scale_by_adas` somewhere in it.
        params: at the end of the epoch.
        layers: the convolutions, and the parameters that follow each.
        config: beta, zeta and the learning rate.
        mesh: the devices.

    Returns:
        The state of the next epoch, and what each convolution has learned.

    Raises:
        ValueError: a kernel is not finite.
    """
    found = known(jax.device_get(params), layers.groups)
    beta, zeta, peak = config.adas_beta, config.adas_zeta, config.learning_rate

    def gain(path: Any) -> float:
        return found[layers.followed[jax.tree_util.keystr(path, simple=True, separator="/")]].gain

    def moved(path: Any, rate: jax.Array, before: jax.Array) -> np.ndarray:
        old, change = np.float64(rate), gain(path) - np.float64(before)
        new = old if np.isnan(change) else max(beta * old + zeta * change / peak, LEAST / peak)
        return np.asarray(new, np.float32)

    def next_epoch(state: Any) -> Any:
        if not isinstance(state, AdasState):
            return state
        rates = jax.tree.map_with_path(moved, state.rates, state.gains)
        gains = jax.tree.map_with_path(lambda path, _: np.asarray(gain(path), np.float32), state.gains)
        return replicate(AdasState(rates, gains), mesh)

    return jax.tree.map(next_epoch, opt_state, is_leaf=lambda node: isinstance(node, AdasState)), found
