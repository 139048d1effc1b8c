"""Laws of index vectors: they act as their matrices do."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shuffle_jax.ops import mixing, permutation


def permutations(length):
    return st.permutations(range(length)).map(lambda p: jnp.array(p, jnp.int32))


pairs = st.integers(1, 8).flatmap(lambda n: st.tuples(permutations(n), permutations(n)))


@given(pairs)
def test_index_vectors_form_the_group_of_their_matrices(pair):
    p, q = pair
    matrix = permutation.to_matrix
    np.testing.assert_array_equal(matrix(permutation.compose(p, q)), matrix(q) @ matrix(p))
    np.testing.assert_array_equal(matrix(permutation.invert(p)), matrix(p).T)
    np.testing.assert_array_equal(permutation.compose(p, permutation.invert(p)), permutation.identity(len(p)))


@given(st.tuples(st.integers(1, 4), st.integers(1, 4)).flatmap(lambda s: st.tuples(*map(permutations, s))))
def test_kron_is_the_kronecker_product_of_the_matrices(pair):
    outer, inner = pair
    expected = np.kron(permutation.to_matrix(outer), permutation.to_matrix(inner))
    np.testing.assert_array_equal(permutation.to_matrix(permutation.kron(outer, inner)), expected)


@given(pairs)
def test_the_convention_is_gather(pair):
    p, _ = pair
    x = np.arange(10.0, 10.0 + len(p), dtype=np.float32)
    expected = [x[i] for i in p.tolist()]
    np.testing.assert_array_equal(mixing.permute(jnp.array(x), p), expected)
    np.testing.assert_array_equal(permutation.to_matrix(p) @ x, expected)


@pytest.mark.parametrize(("channels", "groups"), [(6, 2), (6, 3), (12, 4), (5, 1), (5, 5), (116, 2)])
def test_channel_shuffle_is_reshape_and_transpose_and_inverts_with_the_cofactor(channels, groups):
    p = permutation.channel_shuffle(channels, groups)
    assert p.tolist() == [(i % groups) * (channels // groups) + i // groups for i in range(channels)]
    other = permutation.channel_shuffle(channels, channels // groups)
    np.testing.assert_array_equal(permutation.compose(p, other), permutation.identity(channels))


def test_groups_must_divide_the_channels():
    with pytest.raises(ValueError, match=r"10 channels cannot be split into 4 groups: choose one of \[1, 2, 5, 10\]"):
        permutation.channel_shuffle(10, 4)
    with pytest.raises(ValueError, match="into 0 groups"):
        permutation.channel_shuffle(10, 0)


@given(st.lists(st.integers(-1, 4), min_size=1, max_size=5))
def test_is_permutation_accepts_permutations_alone(values):
    expected = sorted(values) == list(range(len(values)))
    assert bool(permutation.is_permutation(jnp.array(values, jnp.int32))) == expected


def test_batched_operations_equal_one_by_one():
    keys = jax.random.split(jax.random.key(0), 3)
    p = jax.vmap(lambda k: permutation.random(k, 7))(keys)
    q = p[::-1]
    assert permutation.is_permutation(p).tolist() == [True] * 3
    assert len({tuple(row.tolist()) for row in p}) == 3
    for batched, single in [
        (permutation.invert(p), [permutation.invert(a) for a in p]),
        (permutation.compose(p, q), [permutation.compose(a, b) for a, b in zip(p, q, strict=True)]),
        (permutation.kron(p, q), [permutation.kron(a, b) for a, b in zip(p, q, strict=True)]),
        (permutation.to_matrix(p), [permutation.to_matrix(a) for a in p]),
    ]:
        np.testing.assert_array_equal(batched, jnp.stack(single))
