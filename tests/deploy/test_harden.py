"""Hardening is valid, keeps the function where it claims to, and leaves a gather and no matrix."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from shuffle_jax.deploy.harden import diagnose_all, harden
from shuffle_jax.models import NetworkConfig, build
from shuffle_jax.nn.collections import relaxed_permutations
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
