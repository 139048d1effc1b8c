"""The learned shuffle: its matrix, its penalty, and what is left of it after hardening."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from shuffle_jax.nn import AutoShuffle
from shuffle_jax.nn.collections import PENALTIES, PERMUTATIONS, RELAXED, relaxed_permutations
from shuffle_jax.ops import permutation
from shuffle_jax.ops.penalty import l1_minus_l2

C = 6
rng = np.random.default_rng(0)
X = jnp.asarray(rng.standard_normal((2, 3, 2, C)), jnp.float32)
M = jnp.asarray(rng.uniform(0, 1, (C, C)), jnp.float32)
P = jnp.asarray([2, 0, 5, 1, 4, 3], jnp.int32)


def test_multiplies_every_position_by_one_matrix_of_unit_rows_or_by_the_matrix_itself():
    y = AutoShuffle().apply({"params": {RELAXED: M}}, X)
    plain = AutoShuffle(unit_rows=False).apply({"params": {RELAXED: M}}, X)
    rows = np.stack([row / np.sqrt((row**2).sum()) for row in np.asarray(M, np.float64)])
    np.testing.assert_allclose(y, np.einsum("ij,nhwj->nhwi", rows, X), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(plain, np.einsum("ij,nhwj->nhwi", M, X), rtol=1e-5, atol=1e-6)


def test_starts_near_the_doubly_stochastic_matrices_and_never_at_the_same_one():
    first, second = (AutoShuffle().init(jax.random.key(k), X)["params"] for k in (0, 1))
    assert list(first) == [RELAXED]
    matrix = first[RELAXED]
    assert matrix.shape == (C, C)
    assert matrix.dtype == jnp.float32
    assert float(matrix.min()) >= 0
    np.testing.assert_allclose(matrix.sum(0), 1, atol=1e-4)
    np.testing.assert_allclose(matrix.sum(1), 1, atol=1e-6)
    assert float(jnp.abs(matrix - second[RELAXED]).max()) > 0.01
    assert float(jnp.abs(matrix - 1 / C).max()) > 0.01  # At J / c the penalty's gradient breaks no tie.


@pytest.mark.parametrize(("groups", "noise"), [(2, 0.25), (3, 1.0)])
def test_the_start_can_be_blended_with_the_fixed_shuffle(groups, noise):
    key = jax.random.key(3)
    blended = AutoShuffle(start="shuffle", noise=noise, groups=groups).init(key, X)["params"][RELAXED]
    uniform = AutoShuffle().init(key, X)["params"][RELAXED]
    fixed = permutation.to_matrix(permutation.channel_shuffle(C, groups))
    np.testing.assert_allclose(blended, (1 - noise) * fixed + noise * uniform, rtol=1e-6)


@pytest.mark.parametrize("noise", [0.0, -0.1, 1.5])
def test_noise_outside_its_range_is_refused(noise):
    with pytest.raises(ValueError, match=rf"noise must be above 0 .* and at most 1, got {noise}"):
        jax.eval_shape(AutoShuffle(start="shuffle", noise=noise).init, jax.random.key(0), X)


def test_sows_the_penalty_of_its_matrix_once_and_only_when_asked():
    variables = {"params": {RELAXED: M}}
    _, updated = AutoShuffle().apply(variables, X, train=True, mutable=[PENALTIES])
    assert jax.tree.structure(updated) == jax.tree.structure({PENALTIES: {"l1_minus_l2": 0.0}})
    np.testing.assert_allclose(updated[PENALTIES]["l1_minus_l2"], l1_minus_l2(M), rtol=1e-6)
    # An old value, such as the one of initialisation, is replaced and not added to.
    _, again = AutoShuffle().apply({**variables, **updated}, X, mutable=[PENALTIES])
    np.testing.assert_array_equal(again[PENALTIES]["l1_minus_l2"], updated[PENALTIES]["l1_minus_l2"])
    assert isinstance(AutoShuffle().apply(variables, X, train=True), jax.Array)


def test_the_penalty_carries_its_gradient_to_the_matrix():
    def sown(matrix):
        _, updated = AutoShuffle().apply({"params": {RELAXED: matrix}}, X, mutable=[PENALTIES])
        return updated[PENALTIES]["l1_minus_l2"]

    np.testing.assert_allclose(jax.grad(sown)(M), jax.grad(l1_minus_l2)(M), rtol=1e-6)


def hardened(x):
    return AutoShuffle().apply({PERMUTATIONS: {"index": P}}, x)


def relaxed(x):
    return AutoShuffle().apply({"params": {RELAXED: permutation.to_matrix(P)}}, x)


def test_an_index_vector_takes_the_place_of_the_matrix_forward_and_backward():
    y, pull_back = jax.vjp(hardened, X)
    expected, pull_back_matrix = jax.vjp(relaxed, X)
    np.testing.assert_array_equal(y, expected)
    np.testing.assert_array_equal(y, X[..., P])
    np.testing.assert_array_equal(pull_back(y * y)[0], pull_back_matrix(y * y)[0])


def test_hardened_it_is_a_gather_without_a_product_or_a_penalty():
    assert "dot_general" in str(jax.make_jaxpr(relaxed)(X))
    text = str(jax.make_jaxpr(hardened)(X))
    assert "gather" in text
    assert "dot_general" not in text
    _, updated = AutoShuffle().apply({PERMUTATIONS: {"index": P}}, X, train=True, mutable=[PENALTIES])
    assert jax.tree.leaves(updated) == []


def test_multiply_adds_vanish_with_the_matrix():
    relaxed = AutoShuffle().bind({"params": {RELAXED: M}})
    hard = AutoShuffle().bind({PERMUTATIONS: {"index": P}})
    assert relaxed.multiply_adds(X, X) == 3 * 2 * C * C
    assert hard.multiply_adds(X, X) == 0


def test_half_precision_mixes_in_it_and_keeps_matrix_and_penalty_in_float32():
    half = X.astype(jnp.bfloat16)
    variables = AutoShuffle().init(jax.random.key(0), half)
    assert variables["params"][RELAXED].dtype == jnp.float32
    y, updated = AutoShuffle().apply(variables, half, mutable=[PENALTIES])
    assert y.dtype == jnp.bfloat16
    assert updated[PENALTIES]["l1_minus_l2"].dtype == jnp.float32
    np.testing.assert_array_equal(
        updated[PENALTIES]["l1_minus_l2"], l1_minus_l2(variables["params"][RELAXED]), strict=True
    )


def test_relaxed_permutations_are_found_by_the_path_of_their_layer():
    kernel = jnp.zeros((C, C))
    params = {"stem": {"kernel": kernel}, "unit": {"mixer": {RELAXED: M}, "norm": {"scale": kernel}}, RELAXED: 2 * M}
    found = relaxed_permutations(params)
    assert sorted(found) == ["", "unit/mixer"]
    assert found["unit/mixer"] is M
    assert relaxed_permutations({"stem": {"kernel": kernel}}) == {}
    stacked = relaxed_permutations({"layers": {RELAXED: jax.ShapeDtypeStruct((2, C, C), M.dtype)}})
    assert {name: leaf.shape for name, leaf in stacked.items()} == {"layers[0]": (C, C), "layers[1]": (C, C)}
