"""Laws of index vectors: they act as their matrices do. Proved for all small permutations, sampled for larger ones."""

from __future__ import annotations

import itertools
import math
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from shuffle_jax.ops import mixing, permutation

compose = jax.jit(permutation.compose)
invert = jax.jit(permutation.invert)
kron = jax.jit(permutation.kron)
to_matrix = jax.jit(permutation.to_matrix)
random = jax.jit(jax.vmap(permutation.random, in_axes=(0, None)), static_argnums=1)


def every(size):
    """All permutations of a small size, 24 of a larger one: ``(count, size)``."""
    if math.factorial(size) <= 24:
        return np.array(list(itertools.permutations(range(size))), np.int32)
    rng = np.random.default_rng(size)
    return np.array([rng.permutation(size) for _ in range(24)], np.int32)


def every_pair(first, second):
    """``(count, size)`` of both, every one of the first with every one of the second."""
    a, b = every(first), every(second)
    return np.repeat(a, len(b), axis=0), np.tile(b, (len(a), 1))


def matrix_of(p):
    matrix = np.zeros((*p.shape, p.shape[-1]), np.float32)
    np.put_along_axis(matrix, np.asarray(p)[..., None], 1, axis=-1)
    return matrix


SIZES = [1, 2, 3, 4, 8]


@pytest.mark.parametrize("size", SIZES)
def test_index_vectors_form_the_group_of_their_matrices(size):
    p, q = every_pair(size, size)
    np.testing.assert_array_equal(to_matrix(p), matrix_of(p))
    product, inverse = compose(p, q), invert(p)
    np.testing.assert_array_equal(matrix_of(product), matrix_of(q) @ matrix_of(p))
    np.testing.assert_array_equal(matrix_of(inverse), np.swapaxes(matrix_of(p), -1, -2))
    neutral = np.broadcast_to(permutation.identity(size), p.shape)
    np.testing.assert_array_equal(compose(p, inverse), neutral)
    np.testing.assert_array_equal(compose(inverse, p), neutral)
    np.testing.assert_array_equal(neutral[0], np.arange(size))
    assert {a.dtype for a in (product, inverse, permutation.identity(size))} == {np.dtype(np.int32)}


@pytest.mark.parametrize(("outer", "inner"), [(1, 1), (1, 4), (4, 1), (2, 3), (3, 2), (4, 3)])
def test_kron_is_the_kronecker_product_of_the_matrices(outer, inner):
    p, q = every_pair(outer, inner)
    product = kron(p, q)
    assert product.dtype == np.int32
    expected = [np.kron(a, b) for a, b in zip(matrix_of(p), matrix_of(q), strict=True)]
    np.testing.assert_array_equal(matrix_of(product), expected)


@pytest.mark.parametrize("size", SIZES)
def test_the_convention_is_gather(size):
    p = every(size)
    x = np.arange(10.0, 10.0 + size, dtype=np.float32)
    expected = [[x[i] for i in row] for row in p.tolist()]
    np.testing.assert_array_equal(jax.jit(jax.vmap(mixing.permute, in_axes=(None, 0)))(x, p), expected)
    np.testing.assert_array_equal(np.asarray(to_matrix(p)) @ x, expected)


@pytest.mark.parametrize(("channels", "groups"), [(6, 2), (6, 3), (12, 4), (5, 1), (5, 5), (116, 2)])
def test_channel_shuffle_is_reshape_and_transpose_and_inverts_with_the_cofactor(channels, groups):
    p = permutation.channel_shuffle(channels, groups)
    assert p.dtype == jnp.int32
    assert p.tolist() == [(i % groups) * (channels // groups) + i // groups for i in range(channels)]
    other = permutation.channel_shuffle(channels, channels // groups)
    np.testing.assert_array_equal(np.asarray(p)[np.asarray(other)], np.arange(channels))


@pytest.mark.parametrize(("channels", "groups"), [(2, 1), (8, 2), (12, 3), (24, 4), (232, 2)])
def test_channel_shift_is_half_a_group_and_comes_back_after_twice_as_many_as_groups(channels, groups):
    p = permutation.channel_shift(channels, groups)
    assert p.dtype == jnp.int32
    assert p.tolist() == [*range(channels // (2 * groups), channels), *range(channels // (2 * groups))]
    together, returns = np.arange(channels), []
    for _ in range(2 * groups):
        together = np.asarray(compose(together, p))
        returns.append(together.tolist() == list(range(channels)))
    assert returns == [False] * (2 * groups - 1) + [True]


@pytest.mark.parametrize("groups", [2, 3, 4])
def test_each_channel_shift_reaches_one_more_group_and_a_shuffle_all(groups):
    channels = 2 * groups**2
    convolution = np.kron(np.eye(groups), np.ones((channels // groups, channels // groups)))
    shift, shuffle = (
        matrix_of(np.asarray(p(channels, groups))) for p in (permutation.channel_shift, permutation.channel_shuffle)
    )

    def reached(seen):
        return {int(row.reshape(groups, -1).any(1).sum()) for row in seen}

    seen = convolution
    for shifts in range(1, groups + 1):
        seen = convolution @ shift @ seen
        assert reached(seen) == {min(shifts + 1, groups)}
    assert reached(convolution @ shuffle @ convolution) == {groups}


def test_half_a_group_must_be_a_number_of_channels():
    message = r"12 channels cannot be shifted by half of one of {} groups: choose one of \[1, 2, 3, 6\]"
    for groups in (4, 12, 0, -1):
        with pytest.raises(ValueError, match=message.format(groups)):
            permutation.channel_shift(12, groups)
    with pytest.raises(ValueError, match=r"9 channels .* half of one of 3 groups: give an even number of channels"):
        permutation.channel_shift(9, 3)


def test_groups_must_divide_the_channels():
    with pytest.raises(ValueError, match=r"10 channels cannot be split into 4 groups: choose one of \[1, 2, 5, 10\]"):
        permutation.channel_shuffle(10, 4)
    for groups in (0, -2, 20):
        with pytest.raises(ValueError, match=f"into {groups} groups"):
            permutation.channel_shuffle(10, groups)


@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_is_permutation_accepts_permutations_alone(size):
    values = np.array(list(itertools.product(range(-1, size + 1), repeat=size)), np.int32)
    expected = [sorted(row) == list(range(size)) for row in values.tolist()]
    np.testing.assert_array_equal(jax.jit(permutation.is_permutation)(values), expected)


def test_any_integer_type_is_understood():
    p, q = every_pair(3, 3)
    for kind in (np.int8, np.uint8):
        a, b = p.astype(kind), q.astype(kind)
        assert np.all(jax.jit(permutation.is_permutation)(a))
        for op in (compose, kron):
            np.testing.assert_array_equal(op(a, b), op(p, q))
        assert compose(a, b).dtype == kron(a, b).dtype == invert(a).dtype == jnp.int32


def test_index_vectors_are_int32_in_64_bit_mode_too():
    with jax.enable_x64(True):
        p = permutation.identity(4)
        results = [
            p,
            permutation.channel_shuffle(4, 2),
            permutation.channel_shift(4, 2),
            *jax.eval_shape(lambda key: (permutation.random(key, 4), permutation.invert(p)), jax.random.key(0)),
            *jax.eval_shape(lambda p: (permutation.compose(p, p), permutation.kron(p, p)), np.arange(4)),
        ]
    assert [result.dtype for result in results] == [jnp.int32] * 7


def test_random_permutations_are_uniform():
    drawn = random(jax.random.split(jax.random.key(0), 1200), 3)
    assert drawn.dtype == jnp.int32
    counts = Counter(map(tuple, drawn.tolist()))
    assert set(counts) == set(itertools.permutations(range(3)))
    chi_square = sum((n - 200) ** 2 / 200 for n in counts.values())
    assert chi_square < 20.5  # exceeded by one key in a thousand, were the key drawn as well


def test_the_key_alone_decides_a_random_permutation():
    keys = jax.random.split(jax.random.key(1), 3)
    drawn = [permutation.random(key, 7).tolist() for key in keys]
    assert len(set(map(tuple, drawn))) == 3
    np.testing.assert_array_equal(random(keys, 7), drawn)


def test_matrices_take_the_type_that_is_asked_for():
    assert permutation.to_matrix(jnp.array([1, 0, 2])).dtype == jnp.float32
    assert permutation.to_matrix(jnp.array([1, 0, 2]), jnp.bfloat16).dtype == jnp.bfloat16


def test_batched_operations_equal_one_by_one_and_eager():
    p = every(7)[:3]
    q = p[::-1]
    for op, args in [
        (permutation.invert, (p,)),
        (permutation.to_matrix, (p,)),
        (permutation.is_permutation, (p,)),
        (permutation.compose, (p, q)),
        (permutation.kron, (p, q)),
    ]:
        batched = jax.jit(op)(*args)
        np.testing.assert_array_equal(batched, jax.jit(jax.vmap(op))(*args))
        np.testing.assert_array_equal(batched[1], op(*(jnp.asarray(a[1]) for a in args)))


def test_count_distinct_equals_unique():
    rng, count_distinct = np.random.default_rng(0), jax.jit(permutation.count_distinct)
    for count, size, values in [(0, 3, 2), (1, 3, 2), (2, 1, 2), (40, 3, 2), (30, 4, 50), (30, 1, 50)]:
        index = rng.integers(0, values, (count, size)).astype(np.int32)
        counted = count_distinct(index)
        assert counted.dtype == jnp.int32
        assert int(counted) == len(np.unique(index, axis=0))
    assert int(count_distinct(np.repeat(every(3), 4, axis=0))) == 6
    assert int(permutation.count_distinct(jnp.asarray(index))) == int(counted)
