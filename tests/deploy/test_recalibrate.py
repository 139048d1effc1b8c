"""Batch statistics estimated anew are those of all batches together, whatever norm keeps them, and however."""

from __future__ import annotations

from typing import Any

import flax.linen as fnn
import jax
import numpy as np
import pytest

from shuffle_jax import nn
from shuffle_jax.deploy.recalibration import Recalibration, recalibrate

CHANNELS = 3
BATCHES = [
    np.random.default_rng(seed).normal(seed, 1 + seed, (4, 2, 2, CHANNELS)).astype(np.float32) for seed in range(3)
]


class Norms(fnn.Module):
    """Norms of three kinds, one in a head, noise of any name, one that is kept in evaluation, and what is no norm."""

    noise: str | None = None

    @fnn.compact
    def __call__(self, x, train=False):
        x = nn.BatchNorm(name="ours")(x, train)
        x = fnn.BatchNorm(momentum=0.997, use_running_average=not train, name="slow")(2 * x + 1)
        x = fnn.BatchNorm(momentum=0.0, use_running_average=not train, name="last")(3 * x - 5)
        x = fnn.BatchNorm(use_running_average=True, name="kept")(x)
        nn.FactorGenerator((1, 1), name="head")(x, train)
        if self.noise and train:
            x = x + jax.random.normal(self.make_rng(self.noise), x.shape)
        counted = self.variable("batch_stats", "counted", lambda: np.float32(7))
        return nn.BatchNorm(name="behind")(x, train) * counted.value


def variables_of(network: fnn.Module, seed: int = 0) -> dict[str, Any]:
    """Statistics of anything: only those of the norm that is kept count."""
    rng = np.random.default_rng(seed)
    shapes = jax.eval_shape(network.init, jax.random.key(0), BATCHES[0])
    return jax.tree.map(lambda s: rng.uniform(0.5, 2, s.shape).astype(np.float32), dict(shapes))


def oracle(variables):
    """The statistics in float64."""
    params, own = jax.tree.map(np.float64, (variables["params"], variables["batch_stats"]))
    found = {name: [] for name in ("ours", "slow", "last", "head", "behind")}

    def normalized(x, name, mean, var):
        return (x - mean) / np.sqrt(var + 1e-5) * params[name]["scale"] + params[name]["bias"]

    def by_batch(x, name):
        mean, var = x.mean((0, 1, 2)), x.var((0, 1, 2))
        found[name].append((mean, var))
        return normalized(x, name, mean, var)

    for batch in BATCHES:
        x = by_batch(batch.astype(np.float64), "ours")
        x = by_batch(2 * x + 1, "slow")
        x = by_batch(3 * x - 5, "last")
        x = normalized(x, "kept", **own["kept"])
        by_batch(x, "behind")
        pooled = x.mean((1, 2))
        found["head"].append((pooled.mean(0), pooled.var(0)))
    pairs = {name: tuple(np.array(part) for part in zip(*each, strict=True)) for name, each in found.items()}
    whole = {name: {"mean": m.mean(0), "var": v.mean(0) + m.var(0)} for name, (m, v) in pairs.items()}
    return whole | {"head": {"norm": whole["head"]}}


def test_the_statistics_are_those_of_all_batches_whatever_the_momentum_of_each_norm():
    network = Norms()
    variables = variables_of(network)
    again = Recalibration(network)
    found = again(variables, BATCHES)["batch_stats"]
    expected = {**variables["batch_stats"], **oracle(variables)}
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), found, expected)
    union = np.concatenate(BATCHES)
    np.testing.assert_allclose(found["ours"]["var"], union.var((0, 1, 2), dtype=np.float64), rtol=1e-5)
    # They are a function of the parameters and the images, not of what the statistics were.
    others = {**variables, "batch_stats": variables_of(network, 1)["batch_stats"] | {"kept": found["kept"]}}
    others["batch_stats"]["counted"] = found["counted"]
    jax.tree.map(np.testing.assert_array_equal, again(others, BATCHES)["batch_stats"], found)


def test_random_numbers_of_any_name_are_the_same_every_time():
    network = Norms("noise")
    variables = variables_of(network)
    again = Recalibration(network)
    first, second = (again(variables, BATCHES[:1]) for _ in range(2))
    jax.tree.map(np.testing.assert_array_equal, first, second)


def test_it_needs_images_and_does_nothing_without_norms():
    variables = variables_of(Norms())
    with pytest.raises(ValueError, match="at least one batch"):
        recalibrate(Norms(), variables, [])
    for without in ({"params": variables["params"]}, {"params": {}, "batch_stats": {"sigma": np.ones(2)}}):
        assert recalibrate(fnn.Dense(2), without, BATCHES) is without
