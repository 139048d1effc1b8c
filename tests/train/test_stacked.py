"""Layers stacked by nn.scan are those of the network unrolled: to train, harden and freeze."""

from __future__ import annotations

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from shuffle_jax.data import AugmentConfig, Batch
from shuffle_jax.deploy.freezing import dynamic_layers, freeze
from shuffle_jax.deploy.hardening import harden
from shuffle_jax.deploy.recalibration import recalibrate
from shuffle_jax.models.classifier import classify
from shuffle_jax.nn import (
    AutoShuffle,
    BatchNorm,
    Dense,
    DynamicShuffle,
    FactorGenerator,
    FixedPermutation,
    PointwiseConv,
)
from shuffle_jax.nn.collections import COLLECTIONS, PERMUTATIONS, PROGRESS
from shuffle_jax.sharding import data_mesh
from shuffle_jax.train.config import OptimizerConfig, PenaltyConfig, TrainConfig
from shuffle_jax.train.optimizer import make_optimizer
from shuffle_jax.train.state import first_state
from shuffle_jax.train.step import make_train_step

generator = partial(FactorGenerator, start="random")
LAYERS, CLASSES, CHANNELS = 3, 4, 12


class Block(nn.Module):
    train: bool

    @nn.compact
    def __call__(self, x, _=None):
        y = nn.relu(BatchNorm(name="norm")(PointwiseConv(CHANNELS, name="conv")(x, self.train), self.train))
        y = FixedPermutation(name="fixed")(AutoShuffle(name="auto")(y, self.train))
        shuffle = DynamicShuffle(generator=generator, binarize_from=0.5, evaluation="soft", name="dynamic")
        return x + shuffle(y, self.train), None


class Network(nn.Module):
    stacked: bool

    @nn.compact
    def __call__(self, x, train=False):
        x = PointwiseConv(CHANNELS, name="stem")(x)
        if self.stacked:
            axes, keys = dict.fromkeys(COLLECTIONS, 0), {"params": True}
            x, _ = nn.scan(Block, variable_axes=axes, split_rngs=keys, length=LAYERS)(train, name="layers")(x, None)
        else:
            for i in range(LAYERS):
                x, _ = Block(train, name=f"layers_{i}")(x)
        return classify(x, CLASSES, Dense, 0.0, train)


def unrolled(variables):
    """The variables of the stacked network for the one unrolled."""

    def one(tree):
        own = [jax.tree.map(lambda leaf, i=i: leaf[i], tree.get("layers", {})) for i in range(LAYERS)]
        return {name: branch for name, branch in tree.items() if name != "layers"} | {
            f"layers_{i}": layer for i, layer in enumerate(own) if layer
        }

    return {name: one(tree) for name, tree in variables.items()}


def assert_equal(stacked, found, atol=1e-5):
    expected = unrolled(stacked)
    assert jax.tree.structure(expected) == jax.tree.structure(dict(found))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=atol), expected, dict(found))


def renamed(by_layer):
    """``layers/auto[1]`` for ``layers_1/auto``."""
    return {f"layers/{name[9:]}[{name[7]}]": value for name, value in by_layer.items()}


@pytest.mark.slow
def test_stacked_layers_train_harden_and_freeze_as_those_of_the_network_unrolled():
    rng = np.random.default_rng(0)
    images = rng.standard_normal((8, 4, 4, 1)).astype(np.float32)
    start = jax.jit(Network(stacked=True).init)(jax.random.key(0), images)
    assert len({tuple(index.tolist()) for index in start[PERMUTATIONS]["layers"]["fixed"]["index"]}) == LAYERS
    start["params"]["layers"]["norm"]["scale"] = jnp.asarray(rng.uniform(0.5, 1.5, (LAYERS, CHANNELS)), jnp.float32)

    optimizer = OptimizerConfig(
        learning_rate=0.1, schedule="step", step_boundaries=(), warmup_epochs=0, weight_decay=0.1
    )
    config = TrainConfig(
        optimizer=optimizer,
        penalty=PenaltyConfig(0.1, start=0, end=0.1),
        augment=AugmentConfig(),
        epochs=10,
        batch_size=8,
    )
    pixels, labels = rng.integers(0, 256, images.shape, np.uint8), np.arange(8, dtype=np.int32) % CLASSES
    batch = Batch(pixels, labels, np.ones(8, np.float32))
    trained, values = {}, {}
    for stacked in (True, False):
        network, chain = Network(stacked), make_optimizer(optimizer, optax.constant_schedule(0.1))
        state = first_state(jax.random.key(1), jax.tree.map(jnp.copy, start if stacked else unrolled(start)), chain)
        step = make_train_step(
            network,
            config,
            data_mesh(jax.devices()[:1]),
            steps_per_epoch=1,
            classes=CLASSES,
            mean_std=((0.5,), (0.25,)),
        )
        for _ in range(2):  # the penalties weigh something from the second on
            state, values[stacked] = step(state, batch)
        trained[stacked] = state.variables()
    assert values[True]["penalty"] > 0
    for name, value in values[True].items():
        np.testing.assert_allclose(value, values[False][name], rtol=1e-4)
    assert_equal(trained[True], trained[False])
    np.testing.assert_allclose(trained[True][PROGRESS]["layers"]["dynamic"]["share"], np.full(LAYERS, 0.2), rtol=1e-6)

    results = {}
    for stacked in (True, False):
        network = Network(stacked)
        hard = harden(trained[stacked])
        frozen = freeze(network, hard.variables, [images[:5], images[5:]])
        layers = dynamic_layers(network, hard.variables, images.shape[1:])
        final = recalibrate(network, frozen.variables, [images])
        results[stacked] = hard, frozen, layers, final, jax.jit(network.apply)(final, images)
    (hard, frozen, layers, final, logits), (hard1, frozen1, layers1, final1, logits1) = results[True], results[False]
    assert list(hard.permutations) == list(hard.diagnoses) == [f"layers/auto[{i}]" for i in range(LAYERS)]
    jax.tree.map(np.testing.assert_array_equal, hard.permutations, renamed(hard1.permutations))
    assert {k: bool(d.certified) for k, d in hard.diagnoses.items()} == {
        k: bool(d.certified) for k, d in renamed(hard1.diagnoses).items()
    }
    jax.tree.map(np.testing.assert_array_equal, frozen.factors, renamed(frozen1.factors))
    assert len({str(pair) for pair in frozen.factors.values()}) > 1  # nothing is averaged over layers
    assert list(layers) == list(frozen.factors) and set(layers) == set(renamed(dict.fromkeys(layers1)))
    assert_equal(final, final1, atol=1e-4)
    np.testing.assert_allclose(logits, logits1, rtol=1e-4, atol=1e-4)
