"""Every mixer fits every network, and a permutation is the same network in each of its forms.

The networks are narrow, with four units; their images have 8 x 8 pixels, so that the last stage sees one.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from shuffle_jax.models import ShuffleNetV1, ShuffleNetV2
from shuffle_jax.nn import AutoShuffle, FixedPermutation, Identity
from shuffle_jax.nn.collections import PENALTIES, PERMUTATIONS, RELAXED, relaxed_permutations
from shuffle_jax.ops import permutation
from shuffle_jax.ops.penalty import l1_minus_l2

pytestmark = pytest.mark.usefixtures("few_units")

SHAPE = (8, 8, 3)
FAMILIES = {
    "v1": (partial(ShuffleNetV1, classes=5, groups=3, width=0.5, stem="small"), 3),
    "v2": (partial(ShuffleNetV2, classes=5, width=0.5, stem="small"), 2),
}
compiled = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})  # Half the compilation.
one_family = pytest.mark.parametrize("family", ["v2"], indirect=True)

UNITS = {"stage2_0", "stage2_1", "stage3_0", "stage4_0"}


@pytest.fixture(scope="module", params=FAMILIES)
def family(request):
    """A network without its mixer, and the groups of its paper's shuffle."""
    return FAMILIES[request.param]


@pytest.fixture(scope="module")
def network(family):
    """With learned mixers."""
    return family[0](mixer=AutoShuffle)


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(7).standard_normal((3, *SHAPE)).astype(np.float32)


@pytest.fixture(scope="module")
def variables(network, draw):
    return draw(network, SHAPE)


@pytest.fixture(scope="module")
def evaluate(network):
    """The learned network in evaluation; one compilation for each kind of variables and batch size."""
    return compiled(network.apply)


def channels_of(variables):
    return {path: len(matrix) for path, matrix in relaxed_permutations(variables["params"]).items()}


def with_matrices(variables, indices):
    """The variables with the matrix of each index vector in place of the relaxed one."""

    def leaf(path, value):
        if path[-1].key != RELAXED:
            return value
        return np.eye(len(value), dtype=np.float32)[indices["/".join(key.key for key in path[1:-1])]]

    return jax.tree_util.tree_map_with_path(leaf, variables)


def with_indices(variables, indices):
    """The variables as after hardening: index vectors, no matrices."""
    units = {
        name: {key: leaf for key, leaf in unit.items() if key != "mixer"} for name, unit in variables["params"].items()
    }
    permutations = {path.partition("/")[0]: {"mixer": {"index": index}} for path, index in indices.items()}
    return {**variables, "params": units, PERMUTATIONS: permutations}


@pytest.fixture(scope="module")
def indices(variables):
    rng = np.random.default_rng(1)
    return {path: rng.permutation(c).astype(np.int32) for path, c in channels_of(variables).items()}


@pytest.fixture(scope="module")
def permuted(variables, indices, evaluate, images):
    """The logits with permutation matrices as parameters."""
    return evaluate(with_matrices(variables, indices), images)


def assert_same(actual, expected):
    assert np.std(expected) > 0.01
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-4)


def test_a_hardened_permutation_is_the_same_fixed_one(family, network, variables, indices, images):
    """The same program to the letter."""
    given = with_indices(variables, indices), images
    assert str(jax.make_jaxpr(network.apply)(*given)) == str(
        jax.make_jaxpr(family[0](mixer=FixedPermutation).apply)(*given)
    )


@pytest.mark.slow
def test_a_hardened_permutation_equals_its_matrix(evaluate, variables, indices, images, permuted):
    assert_same(evaluate(with_indices(variables, indices), images), permuted)


def test_other_permutations_are_another_network(evaluate, variables, indices, images, permuted):
    rolled = {path: np.roll(index, 1) for path, index in indices.items()}
    other = evaluate(with_matrices(variables, rolled), images)
    assert np.abs(np.asarray(other) - permuted).max() > 0.01


def test_a_learned_shuffle_equals_the_fixed_one_of_the_paper(family, evaluate, variables, images):
    make, groups = family
    shuffles = {path: np.asarray(permutation.channel_shuffle(c, groups)) for path, c in channels_of(variables).items()}
    expected = evaluate(with_matrices(variables, shuffles), images)
    without = {name: tree for name, tree in with_indices(variables, shuffles).items() if name != PERMUTATIONS}
    assert_same(compiled(make().apply)(without, images), expected)


def products(network, variables, images):
    return jax.jit(network.apply).lower(variables, images).as_text().count("stablehlo.dot_general")


def test_hardened_no_product_is_left_of_the_mixers(family, network, variables, indices, images):
    hard = products(network, with_indices(variables, indices), images)
    assert hard == products(family[0](mixer=Identity), with_indices(variables, indices), images)
    assert products(network, variables, images) == hard + len(UNITS)


@pytest.fixture(scope="module")
def trained(network, variables, images):
    """Gradient of the data's loss alone, and the penalties of one training step."""

    def loss(params, statistics, images):
        logits, updated = network.apply(
            {"params": params, "batch_stats": statistics}, images, train=True, mutable=["batch_stats", PENALTIES]
        )
        return -jax.nn.log_softmax(logits)[:, 0].mean(), updated

    step = compiled(jax.grad(loss, has_aux=True))
    return jax.tree.map(np.asarray, step(variables["params"], variables["batch_stats"], images))


@one_family
@pytest.mark.slow
def test_the_gradient_reaches_every_parameter(trained):
    gradient, _ = trained
    for path, leaf in jax.tree.leaves_with_path(gradient):
        assert np.isfinite(leaf).all(), path
        assert np.abs(leaf).max() > 0, path


@one_family
def test_every_mixer_sows_the_penalty_of_its_matrix(trained, variables):
    _, updated = trained
    sown = {
        "/".join(key.key for key in path[:-1]): leaf for path, leaf in jax.tree.leaves_with_path(updated[PENALTIES])
    }
    penalty = compiled(l1_minus_l2)
    expected = {path: penalty(matrix) for path, matrix in relaxed_permutations(variables["params"]).items()}
    assert set(sown) == set(expected) == {f"{unit}/mixer" for unit in UNITS}
    for path, value in expected.items():
        np.testing.assert_allclose(sown[path], value, rtol=1e-5)


@one_family
def test_products_are_in_half_precision_and_all_that_is_kept_is_not(family):
    network = family[0](mixer=AutoShuffle, dtype=jnp.dtype(jnp.bfloat16))
    images = jnp.zeros((2, *SHAPE))
    variables = jax.eval_shape(network.init, jax.random.key(0), images)
    apply = partial(network.apply, train=True, mutable=["batch_stats", PENALTIES])
    logits, updated = jax.eval_shape(apply, variables, images)
    jaxpr = jax.make_jaxpr(partial(network.apply, train=False))(draw_zeros(variables), images)
    assert logits.shape == (2, 5)
    assert logits.dtype == jnp.float32
    kinds = {leaf.dtype for leaf in jax.tree.leaves((variables["params"], variables["batch_stats"], updated))}
    assert kinds == {jnp.dtype(jnp.float32)}
    assert len(updated[PENALTIES]) == len(UNITS)
    produced = [eqn.outvars[0].aval for eqn in jaxpr.eqns if eqn.primitive.name == "dot_general"]
    assert {out.dtype for out in produced[:-1]} == {jnp.dtype(jnp.bfloat16)}
    assert (produced[-1].shape, produced[-1].dtype) == ((2, 5), jnp.float32)  # The classifier.


def draw_zeros(shapes):
    return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
