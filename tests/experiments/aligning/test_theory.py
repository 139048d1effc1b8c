"""What is measured of heads: against their definitions, and the chain rule."""

from __future__ import annotations

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.aligning import explained
from experiments.aligning.theory import Probe, coherence, cosine, make_probe, share_of_mean
from shuffle_jax.nn import Dense, DynamicShuffle, FactorGenerator


class TwoShuffles(nn.Module):
    """Two heads, the second behind channels that differ more."""

    @nn.compact
    def __call__(self, x, train=False):
        for number in range(2):
            x = nn.relu(x + jnp.arange(4.0)[None, None, None])
            x = partial(DynamicShuffle, 1)(name=f"stage2_{number}")(x, train)
        return Dense(3, name="classifier")(x.mean((1, 2)), train)


def test_a_mean_has_all_of_equal_rows_and_a_share_of_independent_ones():
    rows = np.random.default_rng(0).standard_normal((400, 50))
    assert share_of_mean(rows) == pytest.approx(1 / 400, rel=0.3) and coherence(rows) == pytest.approx(0.05, rel=0.2)
    assert share_of_mean(rows[:1]) == pytest.approx(1) and coherence(2 * rows[[0, 0]]) == pytest.approx(1)
    assert cosine(rows[0], 3 * rows[0]) == pytest.approx(1) and abs(cosine(rows[0], rows[1])) < 0.5
    assert share_of_mean(np.zeros((2, 3))) == coherence(np.zeros((2, 3))) == 0


def test_rows_of_the_table_say_of_both_recipes_what_their_probes_hold():
    one = {"stage2_0/mixer": 0.5, "stage3_0/mixer": 0.25}
    kernels = {path: np.ones((2, 2)) for path in one}
    first = Probe(one, one, one, one, one, {**one, "stage3_0/mixer": -1.0}, 4.0, 0.5, kernels)
    second = Probe(one, one, one, one, one, one, 0.5, 0.5, {path: -kernel for path, kernel in kernels.items()})
    table = explained.rows({"hard": [(first, second), (second, second)], "dynamic": [(second, first)] * 2})
    assert all(len(line) == len(explained.COLUMNS) for line in table)
    found = {line[:2]: line[2:] for line in table}
    assert found["smallest lead of the start's permutation", "ever"] == ("-1.00", "0.25")
    assert found["share of the batch mean of its hidden layer, by stage", "end"] == ("0.50, 0.25",) * 2
    assert found["factor of the limit of 1", "start"] == ("0.250", "1.000")
    assert found["cosine of W2's gradient, two batches", "start"] == ("-1 to -1", "-1 to -1")
    assert found["cosine of W2's gradient, two batches", "end"] == ("1 to 1", "-1 to -1")


@pytest.mark.slow
def test_gradients_of_each_image_make_up_those_of_the_kernels_and_the_start_leads_by_its_logit():
    network = TwoShuffles()
    rng = np.random.default_rng(0)
    images, labels = jnp.asarray(rng.standard_normal((8, 2, 2, 4)), jnp.float32), jnp.asarray(rng.integers(0, 3, 8))
    variables = jax.jit(network.init)(jax.random.key(0), images)
    state = {name: variables[name] for name in ("params", "batch_stats", "progress")}
    found = make_probe(network, images)(state, images, labels)
    assert list(found.margin) == [f"stage2_{i}/generator" for i in range(2)]
    assert all(lead == pytest.approx(FactorGenerator.start_logit) for lead in found.margin.values())
    assert all(share < 1e-6 for share in found.read.values()) and all(share > 0.3 for share in found.pooled.values())
    assert all(0 < value <= 1 for value in found.coherence.values())

    def loss(params):
        logits, _ = network.apply({**state, "params": params}, images, train=True, mutable=["batch_stats", "progress"])
        return -jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], -1).mean()

    gradient = jax.jit(jax.grad(loss))(state["params"])
    whole = float(jnp.sqrt(sum(jnp.square(leaf).sum() for leaf in jax.tree.leaves(gradient))))
    assert found.norm == pytest.approx(whole, rel=1e-4) and 0 < found.heads < found.norm
    for path, kernel in found.kernels.items():
        name = path.split("/")[0]
        np.testing.assert_allclose(kernel, gradient[name]["generator"]["logits"]["kernel"], rtol=1e-4, atol=1e-6)
