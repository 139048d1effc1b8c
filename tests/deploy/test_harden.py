"""Hardening is valid, keeps the function where it claims to, and leaves a gather and no matrix."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from flax.core import FrozenDict
from flax.traverse_util import flatten_dict
from scipy.optimize import linear_sum_assignment

from shuffle_jax.deploy.folding import fold
from shuffle_jax.deploy.freezing import dynamic_layers
from shuffle_jax.deploy.hardening import diagnose_all, harden
from shuffle_jax.models import NetworkConfig, build
from shuffle_jax.nn import AutoShuffle, PointwiseConv
from shuffle_jax.nn.collections import RELAXED, relaxed_permutations
from shuffle_jax.ops import permutation
from shuffle_jax.ops.penalty import normalized_l1_minus_l2
from shuffle_jax.ops.relaxation import clamp_normalize

NETWORK = build(NetworkConfig(width=0.5, mixer="auto"), classes=4)
IMAGES = jnp.asarray(np.random.default_rng(0).standard_normal((2, 8, 8, 1)), jnp.float32)


@pytest.fixture(scope="module")
def variables(few_units, draw):
    """Of a network whose matrices are near permutations, each its own, and whose statistics are not trivial."""
    found, place, rng = draw(NETWORK, IMAGES.shape[1:]), iter(range(100)), np.random.default_rng(1)

    def sharpen(path, leaf):
        if path[-1].key != "relaxed_permutation":
            return leaf
        p = permutation.random(jax.random.key(next(place)), len(leaf))
        noise = rng.uniform(0, 2 / len(leaf), leaf.shape).astype(np.float32)
        return clamp_normalize(permutation.to_matrix(p) + 0.2 * noise, passes=20)

    return {**found, "params": jax.tree.map_with_path(sharpen, found["params"])}


@pytest.fixture(scope="module")
def apply(compiled):
    return compiled(NETWORK.apply)


def with_matrices(params, change):
    """The parameters with every relaxed permutation changed by a function of layer and matrix."""

    def one(path, leaf):
        names = [key.key for key in path]
        return change("/".join(names[:-1]), leaf) if names[-1] == "relaxed_permutation" else leaf

    return jax.tree.map_with_path(one, params)


def test_every_matrix_becomes_the_permutation_it_is_near(variables):
    hard = harden(variables)
    matrices = relaxed_permutations(variables["params"])
    assert list(hard.permutations) == list(matrices) and len(matrices) == 4
    for layer, index in hard.permutations.items():
        assert index.dtype == np.int32
        np.testing.assert_array_equal(index, jnp.argmax(matrices[layer], axis=-1))
        assert bool(hard.diagnoses[layer].certified) and bool(hard.diagnoses[layer].argmax_valid)
    assert not relaxed_permutations(hard.variables["params"])
    assert relaxed_permutations(variables["params"])  # the input is not touched


def test_the_hardened_network_equals_the_one_with_permutation_matrices(variables, apply):
    hard = harden(variables)
    exact = with_matrices(variables["params"], lambda layer, _: permutation.to_matrix(hard.permutations[layer]))
    expected = apply({**variables, "params": exact}, IMAGES)
    np.testing.assert_allclose(apply(hard.variables, IMAGES), expected, rtol=1e-4, atol=1e-4)
    assert float(jnp.abs(apply(variables, IMAGES) - expected).max()) > 1e-3  # hardening did change something


def test_the_hardened_network_does_no_more_work_than_the_fixed_shuffle(variables):
    def products(network, variables):
        text = jax.jit(network.apply).lower(variables, IMAGES).as_text()
        return text.count("stablehlo.dot_general"), text.count('"stablehlo.gather"(')

    hard = harden(variables).variables
    fixed = {"params": hard["params"], "batch_stats": hard["batch_stats"]}
    dots, _ = products(build(NetworkConfig(width=0.5, mixer="shuffle"), classes=4), fixed)
    assert products(NETWORK, hard) == (dots, 4)
    assert products(NETWORK, variables) == (dots + 4, 0)


def test_invalid_matrices_are_still_hardened_to_permutations(variables):
    shared = with_matrices(variables["params"], lambda _, m: jnp.zeros_like(m).at[:, 0].set(1.0))
    hard = harden({**variables, "params": shared})
    for layer, index in hard.permutations.items():
        assert sorted(index.tolist()) == list(range(len(index)))
        assert not bool(hard.diagnoses[layer].certified) and not bool(hard.diagnoses[layer].argmax_valid)


def test_diagnoses_are_those_of_the_ops(variables):
    found = diagnose_all(variables["params"])
    for layer, matrix in relaxed_permutations(variables["params"]).items():
        np.testing.assert_allclose(found[layer].penalty, normalized_l1_minus_l2(matrix), rtol=1e-4, atol=1e-6)
        sums = np.concatenate([matrix.sum(0), matrix.sum(1)])
        np.testing.assert_allclose(found[layer].residual, np.abs(sums - 1).max(), atol=1e-5)


def test_a_network_without_relaxed_permutations_is_returned_as_it_is():
    network = build(NetworkConfig(width=0.5, mixer="random"), classes=4)
    shapes = jax.eval_shape(lambda: network.init(jax.random.key(0), IMAGES))
    variables = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
    hard = harden(variables)
    assert hard.permutations == {} and hard.diagnoses == {}
    assert jax.tree.structure(hard.variables) == jax.tree.structure(dict(variables))


MIXED = np.random.default_rng(3).standard_normal((2, 1, 1, 6)).astype(np.float32)


def bridged(network, variables):
    model = nnx.bridge.ToNNX(network, rngs=nnx.Rngs(0)).lazy_init(MIXED)
    for path, leaf in flatten_dict(variables["params"]).items():
        target = model
        for key in path:
            target = target[key] if isinstance(target, dict) else getattr(target, key)
        target.set_value(leaf)
    return model


HOLDERS = {  # Of the variables of a linen module, and of the parameters alone.
    "init": (lambda network, variables: variables, lambda variables: variables["params"]),
    "frozen": (lambda network, variables: FrozenDict(variables), lambda variables: variables["params"]),
    "nnx": (bridged, lambda model: nnx.state(model, nnx.Param)),
    "nnx state": (lambda network, variables: nnx.state(bridged(network, variables)), nnx.to_pure_dict),
}


@pytest.mark.parametrize("holder", HOLDERS)
@pytest.mark.parametrize("inside", [False, True], ids=["a mixer by itself", "inside"])
@pytest.mark.fast_cases(4)
def test_variables_are_hardened_whatever_holds_them(holder, inside, draw):
    network = nn.Sequential([AutoShuffle(), PointwiseConv(3)]) if inside else AutoShuffle()
    variables = draw(network, MIXED.shape[1:])
    everything, parameters = HOLDERS[holder]
    held = everything(network, variables)
    layer = "layers_0" if inside else ""
    ((name, matrix),) = relaxed_permutations(variables).items()
    index = linear_sum_assignment(-matrix)[1]
    hard = harden(held)
    assert name == layer and [*hard.permutations] == [*hard.diagnoses] == [*diagnose_all(held)] == [layer]
    np.testing.assert_array_equal(hard.permutations[layer], index)
    np.testing.assert_array_equal(relaxed_permutations(parameters(held))[layer], matrix)
    exact = {"params": jax.tree.map(lambda leaf: np.eye(6)[index] if leaf is matrix else leaf, variables["params"])}
    exact = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), exact)
    np.testing.assert_allclose(network.apply(hard.variables, MIXED), network.apply(exact, MIXED), rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_stacked_matrices_are_hardened_one_by_one():
    matrices = np.random.default_rng(0).random((2, 3, 5, 5)).astype(np.float32)
    hard = harden({"params": {"layers": {"mixer": {RELAXED: matrices}}}})
    stacked = hard.variables["permutations"]["layers"]["mixer"]["index"]
    assert stacked.shape == (2, 3, 5) and stacked.dtype == np.int32
    for place in np.ndindex(2, 3):
        name = f"layers/mixer[{place[0]},{place[1]}]"
        np.testing.assert_array_equal(stacked[place], linear_sum_assignment(-matrices[place])[1])
        np.testing.assert_array_equal(hard.permutations[name], stacked[place])
        np.testing.assert_allclose(hard.diagnoses[name].penalty, normalized_l1_minus_l2(matrices[place]), rtol=1e-5)


@pytest.mark.parametrize(
    "ask", [harden, *(lambda v, f=f: f(NETWORK, v, IMAGES.shape[1:]) for f in (dynamic_layers, fold))]
)
@pytest.mark.parametrize(
    ("given", "told"), [({"stem": {"kernel": IMAGES}}, "a dictionary of stem"), ([IMAGES], "list"), (None, "NoneType")]
)
def test_what_is_no_variables_by_collection_is_refused(ask, given, told):
    with pytest.raises(ValueError, match=rf'takes all variables .* as init gives them, {{"params": ...}}; got {told}$'):
        ask(given)
