"""The mixers that are not learned."""

from __future__ import annotations

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from shuffle_jax.nn import ChannelShuffle, FixedPermutation, Identity
from shuffle_jax.nn.collections import PERMUTATIONS
from shuffle_jax.ops import permutation

X = jnp.asarray(np.random.default_rng(0).standard_normal((2, 3, 1, 12)), jnp.float32)


class Stack(nn.Module):
    """Mixers under names, with other layers that draw random numbers between them."""

    names: tuple[str, ...]
    seed: int = 0
    others: int = 0

    @nn.compact
    def __call__(self, x):
        for name in self.names:
            for _ in range(self.others):
                x = nn.Dense(12)(x)
            x = FixedPermutation(seed=self.seed, name=name)(x)
        return x


def drawn(stack, key=0):
    variables = stack.init(jax.random.key(key), X)
    return {name: tuple(leaf["index"].tolist()) for name, leaf in variables[PERMUTATIONS].items()}


def test_identity_returns_its_input_and_declares_nothing():
    y, variables = Identity().init_with_output(jax.random.key(0), X)
    np.testing.assert_array_equal(y, X)
    assert jax.tree.leaves(variables) == []


@pytest.mark.parametrize("groups", [1, 2, 3, 4, 6, 12])
def test_channel_shuffle_equals_its_index_vector(groups):
    y, variables = ChannelShuffle(groups).init_with_output(jax.random.key(0), X)
    np.testing.assert_array_equal(y, X[..., permutation.channel_shuffle(12, groups)])
    assert jax.tree.leaves(variables) == []


def test_channel_shuffle_names_groups_that_do_not_divide():
    with pytest.raises(ValueError, match=r"12 channels cannot be split into 5 groups: choose one of \[1, 2, 3, 4, 6"):
        ChannelShuffle(5).apply({}, X)


@pytest.mark.parametrize("kind", [list, tuple])
def test_a_given_permutation_is_applied_and_kept(kind):
    p = kind([3, 0, 2, 1, 11, 10, 9, 8, 7, 6, 5, 4])
    y, variables = FixedPermutation(p).init_with_output(jax.random.key(0), X)
    np.testing.assert_array_equal(y, np.asarray(X)[..., list(p)])
    assert list(variables) == [PERMUTATIONS]
    index = variables[PERMUTATIONS]["index"]
    assert index.dtype == jnp.int32
    assert index.tolist() == list(p)


def test_the_kept_permutation_counts_and_not_the_one_that_a_seed_would_draw():
    p = np.random.default_rng(1).permutation(12).astype(np.int32)
    y = FixedPermutation(seed=5).apply({PERMUTATIONS: {"index": p}}, X)
    np.testing.assert_array_equal(y, np.asarray(X)[..., p])


def test_gradient_is_the_inverse_permutation():
    p = tuple(np.random.default_rng(2).permutation(12).tolist())
    variables = {PERMUTATIONS: {"index": jnp.asarray(p, jnp.int32)}}
    _, pull_back = jax.vjp(partial(FixedPermutation(p).apply, variables), X)
    expected = np.empty_like(X)
    expected[..., list(p)] = X
    np.testing.assert_array_equal(pull_back(X)[0], expected)


def test_every_place_and_seed_has_its_own_random_permutation():
    first, second = drawn(Stack(("a", "b", "c"))), drawn(Stack(("a", "b", "c"), seed=1))
    everything = [*first.values(), *second.values()]
    assert all(sorted(p) == list(range(12)) for p in everything)
    assert len(set(everything)) == 6


def test_a_random_permutation_depends_on_seed_and_place_alone():
    expected = drawn(Stack(("a", "b")))
    assert drawn(Stack(("a", "b")), key=1) == expected
    assert drawn(Stack(("b", "c", "a"), others=2), key=2).items() >= expected.items()


def test_stacked_layers_have_a_permutation_each():
    class Layer(FixedPermutation):
        def __call__(self, x, _=None):
            return super().__call__(x), None

    axes = {"variable_axes": {PERMUTATIONS: 0}, "split_rngs": {"params": True}}
    stack = nn.vmap(Layer, axis_size=3, in_axes=None, **axes)  # of nn.scan in tests/train/test_stacked.py
    index = jax.jit(stack(seed=1).init)(jax.random.key(0), X)[PERMUTATIONS]["index"]
    assert len({tuple(p.tolist()) for p in index}) == 3
    np.testing.assert_array_equal(np.sort(index), np.tile(np.arange(12), (3, 1)))


@pytest.mark.parametrize(
    ("given", "entries"), [((0, 1, 2), 3), ((0, *range(11)), 12), (tuple(range(1, 13)), 12), (tuple(range(13)), 13)]
)
def test_a_vector_that_is_no_permutation_of_the_channels_is_refused(given, entries):
    message = rf"permutation given for 12 channels has {entries} entries or repeats some: give each of 0 \.\. 11 once"
    with pytest.raises(ValueError, match=message):
        FixedPermutation(given).init(jax.random.key(0), X)


@pytest.mark.parametrize("mixer", [Identity(), ChannelShuffle(3), FixedPermutation()])
def test_half_precision_and_training_pass_through(mixer):
    half = X.astype(jnp.bfloat16)
    y, variables = mixer.init_with_output(jax.random.key(0), half)
    assert y.dtype == jnp.bfloat16
    np.testing.assert_array_equal(mixer.apply(variables, half, train=True), y)
