"""The running statistics of batch norms, estimated anew: of averaged weights, of a hardened network."""

from __future__ import annotations

from collections.abc import Iterable

import flax.linen as nn
import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import Sharding

from shuffle_jax.nn.collections import PENALTIES, collections_of
from shuffle_jax.typing import Images, PyTree

Statistics = dict[tuple[str, ...], np.ndarray]


class Recalibration:
    """Estimates the running statistics of all batch norms anew, for any variables of one network.

    With the mean ``m_b`` and variance ``v_b`` of batch b, all of one size, the statistics become those of the union:
    ``mean_b m_b`` and ``mean_b v_b + var_b m_b``. Both come from the network's own update in training,
    ``s <- d s + (1 - d) batch``, whose momentum d it measures, of each norm. What training leaves as it is, such as a
    norm that is kept in evaluation, stays; so does what is no pair of "mean" and "var".

    Args:
        network: called as ``network(images, train=True)``. If it draws random numbers, they are the same every time.
        sharding: of the statistics that the compiled update returns, over several devices.
    """

    def __init__(self, network: nn.Module, sharding: Sharding | None = None) -> None:
        def update(variables: dict[str, PyTree], images: Images) -> PyTree:
            # Flax falls back to the stream "params" for any that is missing.
            rngs = {name: jax.random.key(0) for name in ("params", "dropout")}
            kept = [name for name in variables if name != "params"]  # a module may write into its own
            _, updated = network.apply(variables, images, train=True, mutable=[*kept, PENALTIES], rngs=rngs)
            return updated["batch_stats"]

        self._update = jax.jit(update, out_shardings=sharding)

    @np.errstate(all="ignore")  # where a training has failed: the steps say so
    def __call__(self, variables: dict[str, PyTree], images: Iterable[Images]) -> dict[str, PyTree]:
        """Variables with new "batch_stats", in NumPy; the others are kept, as are all of a network without batch norms.

        Args:
            variables: of the network, hardened or not.
            images: normalised batches ``(n, h, w, c)``, at least one.

        Raises:
            ValueError: there are no images.
        """
        own = _flat(variables.get("batch_stats", {}))
        norms = {path[:-1] for path in own if path[-1] == "mean" and (*path[:-1], "var") in own}
        if not norms:
            return variables
        batches = iter(images)
        first = next(batches, None)
        if first is None:
            raise ValueError("recalibrate needs at least one batch of images to estimate the statistics from")

        def updated(statistics: Statistics, batch: Images) -> Statistics:
            return _flat(self._update({**variables, "batch_stats": unflatten_dict(statistics)}, batch))

        after = updated(own, first)
        norms -= {n for n in norms if all(np.array_equal(own[*n, leaf], after[*n, leaf]) for leaf in ("mean", "var"))}
        zeros = own | {(*n, leaf): np.zeros_like(own[*n, leaf]) for n in norms for leaf in ("mean", "var")}
        found = updated(zeros, first)
        # The running variance does not matter to the batch: what more of it there is afterwards is the momentum's.
        more = {(*n, "var"): found[*n, "var"] + 1 for n in norms}
        raised = updated(zeros | more, first)
        every = [found, *(updated(zeros, batch) for batch in batches)]
        new = dict(own)
        for norm in norms:
            momentum = np.round(np.float64(raised[*norm, "var"] - found[*norm, "var"]) / more[*norm, "var"], 6)
            means, variances = (
                np.stack([np.asarray(s[*norm, leaf], np.float64) for s in every]) / (1 - momentum)
                for leaf in ("mean", "var")
            )
            new[*norm, "mean"] = means.mean(0).astype(own[*norm, "mean"].dtype)
            new[*norm, "var"] = (variances.mean(0) + means.var(0)).astype(own[*norm, "var"].dtype)
        return {**variables, "batch_stats": unflatten_dict(new)}


def recalibrate(network: nn.Module, variables: dict[str, PyTree], images: Iterable[Images]) -> dict[str, PyTree]:
    """Estimates the running statistics of all batch norms anew from batches of images, see :class:`Recalibration`.

    Args:
        network: called as ``network(images, train=True)``.
        variables: of the network, hardened or not.
        images: normalised batches ``(n, h, w, c)``, at least one.

    Returns:
        Variables with new "batch_stats"; the others are kept, as are those of a network without batch norms.

    Raises:
        ValueError: there are no images.
    """
    return Recalibration(network)(collections_of(variables, "recalibrate"), images)


def _flat(statistics: PyTree) -> Statistics:
    """The leaves by path, on the host."""
    return flatten_dict(jax.tree.map(np.asarray, jax.device_get(statistics)))
