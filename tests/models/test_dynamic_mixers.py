"""Dynamic layers inside the networks: vanilla at the start, a fixed permutation when frozen.

The networks are narrow, with three units; their images have 8 x 8 pixels.
"""

from __future__ import annotations

from functools import partial

import flax.linen as fnn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment

from shuffle_jax.analysis.count import count
from shuffle_jax.deploy.freezing import freeze
from shuffle_jax.models import ShuffleNetV2, shufflenet_v2
from shuffle_jax.nn import ChannelShuffle, DynamicShuffle, FactorGenerator, FixedPermutation, StaticDynamicShuffle
from shuffle_jax.nn.collections import DIAGNOSTICS, FACTORS, PENALTIES, PERMUTATIONS, PROGRESS
from shuffle_jax.ops import kronecker
from shuffle_jax.ops.permutation import channel_shuffle


@pytest.fixture(autouse=True)
def one_unit_a_stage(monkeypatch):
    monkeypatch.setattr(shufflenet_v2, "UNITS", (1, 1, 1))


SHAPE = (8, 8, 3)
UNITS = {"stage2_0", "stage3_0", "stage4_0"}
SOWN = (PENALTIES, DIAGNOSTICS, FACTORS, PROGRESS)
compiled = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})  # Half the compilation.


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(7).standard_normal((3, *SHAPE)).astype(np.float32)


def without(tree, name):
    """A tree of dictionaries and lists without the branches of a name."""
    if isinstance(tree, list):
        return [without(branch, name) for branch in tree]
    if not isinstance(tree, dict):
        return tree
    return {key: without(branch, name) for key, branch in tree.items() if key != name}


def started(variables):
    """Drawn variables with every head as the start "identity" leaves it: 4 on the diagonals, whatever the image."""
    variables = {name: tree for name, tree in variables.items() if name not in SOWN}

    def leaf(path, value):
        keys = [key.key for key in path]
        if keys[-3:-1] != ["generator", "logits"]:
            return value
        if keys[-1] == "kernel":
            return np.zeros_like(value)
        p, q = next(
            (p, q) for p in range(1, 99) for q in range(p, 99) if p * p + q * q == value.size and p * q in SIZES
        )
        return np.float32(np.concatenate([4 * np.eye(p).ravel(), 4 * np.eye(q).ravel()]))

    return jax.tree_util.tree_map_with_path(leaf, variables)


SIZES = {24, 48, 96}  # Channels of a group of the mixers.


@pytest.mark.slow
def test_at_the_start_a_network_is_the_vanilla_one(images, draw):
    make, groups = partial(ShuffleNetV2, classes=5, width=0.5, stem="small"), 2
    network = make(mixer=partial(DynamicShuffle, groups))
    variables = started(draw(network, SHAPE))

    def both(network, collections, variables, images):
        evaluated = network.apply(variables, images, train=False, mutable=collections)
        return evaluated, network.apply(variables, images, train=True, mutable=["batch_stats"])

    (logits, sown), trained = compiled(partial(both, network, [FACTORS]))(variables, images)
    (expected, _), vanilla = compiled(partial(both, make(), []))(without(variables, "mixer"), images)
    assert np.std(expected) > 0.01
    trained = without(list(trained), "mixer")  # the statistics of the norms in the heads
    for actual, wanted in zip(jax.tree.leaves((logits, trained)), jax.tree.leaves((expected, vanilla)), strict=True):
        np.testing.assert_allclose(actual, wanted, rtol=1e-4, atol=1e-4)

    assert set(sown[FACTORS]) == UNITS
    for unit in sown[FACTORS].values():
        outer, inner = (np.argmax(unit["mixer"]["generator"][name], -1)[:, 0] for name in ("outer", "inner"))
        index = kronecker.index(jnp.asarray(outer), jnp.asarray(inner), groups)
        shuffle = channel_shuffle(index.shape[-1], groups)
        np.testing.assert_array_equal(index, np.broadcast_to(shuffle, (3, len(shuffle))))


# Freezing.


class Tiny(fnn.Module):
    """A dynamic layer inside another, and one with factors for each group."""

    static: bool = False

    @fnn.compact
    def __call__(self, x, train=False):
        own = {"hidden": 4, "temperature": 1.0, "end_temperature": 0.1}  # with which the images below part
        generator = partial(FactorGenerator, dynamic=not self.static, **own)
        x = StaticDynamicShuffle(12, groups=2, generator=generator, name="unit")(x, train)
        return DynamicShuffle(2, per_group=True, generator=generator, name="mixer")(fnn.relu(x), train)


TINY = (2, 2, 12)


def tiny(draw, static=False):
    """A network, variables that spread the factors of different images, and such images."""
    network = Tiny(static)
    variables = draw(network, TINY)
    params = jax.tree.map(lambda leaf: 3 * leaf, variables["params"])
    images = np.random.default_rng(44).standard_normal((5, *TINY))
    return network, {**variables, "params": params}, jnp.asarray(images, jnp.float32)


@pytest.mark.slow
def test_freezing_takes_the_permutation_nearest_to_the_mean_over_all_images(draw):
    network, variables, images = tiny(draw)
    frozen = freeze(network, variables, [images[:4], images[4:]])  # Batches of different sizes count by their images.
    _, sown = compiled(partial(network.apply, mutable=[FACTORS]))(variables, images)
    assert set(frozen.factors) == {"mixer", "unit"}
    otherwise = 0
    for layer, found in frozen.factors.items():
        for name, index in found.items():
            factors = np.float64(sown[FACTORS][layer]["generator"][name])
            means = factors.mean(0), factors[:4].mean(0) + factors[4:].mean(0), factors[:4].mean(0)
            nearest, *others = ([linear_sum_assignment(-m)[1].tolist() for m in mean] for mean in means)
            assert index.dtype == np.int32
            assert index.tolist() == nearest
            otherwise += nearest not in others
    assert otherwise  # Neither the mean of the batches' means nor that of the first batch would do.
    assert frozen.factors["mixer"]["outer"].shape == (2, 2)
    assert {name: sorted(layer) for name, layer in frozen.variables["params"].items()} == {
        "unit": ["static_inner", "static_outer"]
    }
    jax.tree.map(
        np.testing.assert_array_equal,
        frozen.variables[PERMUTATIONS],
        {layer: {"generator": index} for layer, index in frozen.factors.items()},
    )


def test_learned_factors_are_their_own_mean(draw):
    network, variables, images = tiny(draw, static=True)

    def turned(path, leaf):
        """Permutations that are not the identity, with noise."""
        if path[-1].key != "static_logits":
            return leaf
        cycles = [np.roll(np.eye(size), 1, axis=0).ravel() for size in (2, 3)]
        return leaf / 10 + 4 * np.float32(np.resize(np.concatenate(cycles), leaf.shape))

    variables = jax.tree_util.tree_map_with_path(turned, variables)
    frozen = freeze(network, variables, [images])
    np.testing.assert_array_equal(*(compiled(network.apply)(given, images) for given in (frozen.variables, variables)))
    assert frozen.factors["mixer"]["inner"].tolist() == [[2, 0, 1]] * 2
    assert frozen.factors["unit"]["outer"].tolist() == [[1, 0]]


def test_a_frozen_network_is_not_frozen_again_and_one_without_dynamic_layers_stays_as_it_is(draw):
    network, variables, images = tiny(draw)
    frozen = freeze(network, variables, [images])
    again = freeze(network, frozen.variables, [images])
    assert again.variables is frozen.variables
    assert again.factors == {}


def test_freezing_needs_an_image(draw):
    network, variables, _ = tiny(draw)
    with pytest.raises(ValueError, match="needs at least one batch of images"):
        freeze(network, variables, [])


@pytest.mark.slow
def test_a_frozen_network_is_that_of_fixed_permutations(images, draw):
    make, groups = partial(ShuffleNetV2, classes=5, width=0.5, stem="small"), 2
    network = make(mixer=partial(DynamicShuffle, groups, evaluation="soft"))
    variables = {name: tree for name, tree in draw(network, SHAPE).items() if name not in SOWN}
    frozen = freeze(network, variables, [images])
    indices = {
        layer: kronecker.index(jnp.asarray(found["outer"][0]), jnp.asarray(found["inner"][0]), groups)
        for layer, found in frozen.factors.items()
    }
    assert set(indices) == {f"{unit}/mixer" for unit in UNITS}
    assert all((index != channel_shuffle(len(index), groups)).any() for index in indices.values())
    fixed = {
        "params": without(variables["params"], "mixer"),
        "batch_stats": variables["batch_stats"],
        PERMUTATIONS: {layer.removesuffix("/mixer"): {"mixer": {"index": index}} for layer, index in indices.items()},
    }
    expected = compiled(make(mixer=FixedPermutation).apply)(fixed, images)
    assert np.std(expected) > 0.01
    np.testing.assert_allclose(compiled(network.apply)(frozen.variables, images), expected, rtol=1e-4, atol=1e-4)
    # Nothing is left of the heads, nor of the soft contractions.
    assert count(network, SHAPE, frozen.variables) == count(make(mixer=ChannelShuffle), SHAPE)
