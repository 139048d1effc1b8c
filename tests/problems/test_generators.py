"""Generated matrices are what they are called, the same for a seed, and hide a permutation that recovers."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shuffle_jax.problems.generators import erdos_renyi, gaussian, moebius_ladder, relabelled


@pytest.mark.parametrize("size", [4, 6, 8, 14])
def test_a_moebius_ladder_is_a_ring_with_its_long_diagonals(size):
    edges = {frozenset({i, (i + 1) % size}) for i in range(size)} | {
        frozenset({i, i + size // 2}) for i in range(size // 2)
    }
    a = moebius_ladder(size)
    assert {frozenset(pair) for pair in np.argwhere(a).tolist()} == edges
    assert set(a.ravel().tolist()) == {0.0, 1.0}
    assert (len(edges), a.sum(0).tolist(), a.sum(1).tolist()) == (3 * size // 2, [3] * size, [3] * size)


def test_a_moebius_ladder_of_8_has_16_automorphisms_and_a_relaxed_matching_of_loss_zero():
    instance = relabelled(moebius_ladder(8), seed=3)
    p = np.array(list(itertools.permutations(range(8))))
    matches = (instance.a == instance.b[p[:, :, None], p[:, None, :]]).all((1, 2))
    assert matches.sum() == 16
    flat = np.full((8, 8), 1 / 8)
    assert np.array_equal(instance.a @ flat, flat @ instance.b)


def test_a_random_graph_has_its_share_of_edges():
    a = erdos_renyi(200, 0.3, seed=1)
    assert np.array_equal(a, a.T)
    assert not np.diag(a).any()
    assert set(a.ravel().tolist()) == {0.0, 1.0}
    edges = 200 * 199 / 2
    assert abs(a.sum() / 2 - 0.3 * edges) < 5 * np.sqrt(edges * 0.3 * 0.7)
    assert erdos_renyi(9, 0.0).sum() == 0
    assert erdos_renyi(9, 1.0).sum() == 72


def test_a_gaussian_matrix_is_symmetric_with_moments_of_the_standard_normal():
    a = gaussian(200, seed=1)
    assert np.array_equal(a, a.T)
    drawn = a[np.triu_indices(200)]
    assert len(set(drawn.tolist())) == 20_100
    assert abs(drawn.mean()) < 5 / np.sqrt(len(drawn))
    assert abs(np.square(drawn).mean() - 1) < 5 * np.sqrt(2 / len(drawn))


@given(size=st.integers(1, 9), seed=st.integers(0, 2**32), kind=st.sampled_from([erdos_renyi, gaussian]))
@settings(max_examples=20)
def test_the_hidden_permutation_recovers_and_all_is_repeated_by_its_seed(size, seed, kind):
    a = kind(size, seed=seed)
    instance, again = relabelled(a, seed, "some"), relabelled(kind(size, seed=seed), seed, "some")
    assert instance.recovered(instance.solution)
    assert (instance.name, instance.goal, instance.best) == ("some", "matching", 0)
    assert np.array_equal(instance.b, again.b)
    assert np.array_equal(instance.solution, again.solution)


def test_seeds_differ_and_permutations_are_spread_evenly():
    assert not np.array_equal(gaussian(4, seed=0), gaussian(4, seed=1))
    assert not np.array_equal(erdos_renyi(9, seed=0), erdos_renyi(9, seed=1))
    drawn = [tuple(relabelled(np.eye(3), seed).solution.tolist()) for seed in range(600)]
    counts = [drawn.count(p) for p in itertools.permutations(range(3))]
    assert sum((count - 100) ** 2 / 100 for count in counts) < 25  # chi-squared with 5 degrees of freedom


def test_what_cannot_be_generated_is_said():
    for size in (2, 3, 7, 0, -4):
        with pytest.raises(
            ValueError, match=f"a Moebius ladder cannot have {size} nodes: give an even number, at least 4"
        ):
            moebius_ladder(size)
    for probability in (-0.1, 1.5, float("nan")):
        with pytest.raises(ValueError, match=r"an edge cannot have the probability .*: give one from 0 to 1"):
            erdos_renyi(4, probability)
    for kind in (erdos_renyi, gaussian):
        with pytest.raises(ValueError, match="a matrix cannot have the size 0: give 1 or more"):
            kind(0)
        with pytest.raises(ValueError, match="the seed is -1: give 0 or more"):
            kind(3, seed=-1)
    with pytest.raises(ValueError, match=r"mine: matrix a has the shape \(2, 3\): give \(n, n\)"):
        relabelled(np.zeros((2, 3)), name="mine")
