"""The linear assignment is SciPy's optimum, whatever the entries, and a permutation even where there is none."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment

from shuffle_jax.ops import linear_assignment

minimize = jax.jit(linear_assignment.minimize)
at_once = jax.jit(linear_assignment._at_once)
in_turn = jax.jit(linear_assignment._in_turn)


def optima(costs):
    """The least sums by SciPy, in float64."""
    return np.array([one[linear_sum_assignment(one)].sum() for one in costs.astype(np.float64)])


def sums(costs, permutations):
    return np.take_along_axis(costs.astype(np.float64), np.asarray(permutations)[..., None], -1).sum((-1, -2))


def assert_permutations(p, size):
    assert p.dtype == jnp.int32
    np.testing.assert_array_equal(np.sort(p, axis=-1), np.broadcast_to(np.arange(size), p.shape))


def instances(size):
    """One matrix of each kind that an algorithm may stumble over."""
    rng = np.random.default_rng(size)
    i, j = np.indices((size, size))
    matching = np.eye(size)[rng.permutation(size)]
    normal, uniform = rng.standard_normal((size, size)), rng.random((size, size))
    steep = -np.log(1e-6 + (matching + 0.3 * uniform) ** 8)  # near a permutation, in logarithms
    kinds = [
        *(normal, uniform, -uniform, 1e6 + normal, uniform - matching, steep, np.round(normal), matching, -matching),
        *(np.zeros((size, size)), np.ones((size, size)), -7 * np.ones((size, size)), rng.integers(0, 3, (size, size))),
        *(
            normal[:1].repeat(size, 0),
            normal[:, :1].repeat(size, 1),
            normal[i // 2, j // 2],
            normal[:1] + normal[:, :1],
        ),
        *((i + 1) * (j + 1), -(i + 1) * (j + 1), np.abs(i - j), np.minimum(i, j), np.where(i > j, 1, 0), uniform**20),
        *(1e-30 * normal, 1e30 * normal, 3.4e38 * matching - 1.7e38, 3e38 * (2 * uniform - 1), 1e-38 * normal),
        *(np.where(uniform < 0.5, 1e30 * normal, 1e-30 * normal), np.exp(20 * normal), 0 * normal),
    ]
    return np.stack(kinds).astype(np.float32)


@pytest.mark.parametrize("size", [1, 2, 3, 7, 24, 116])
def test_the_sum_is_scipys_but_for_rounding(size):
    costs = instances(size)
    p = minimize(costs)
    assert_permutations(p, size)
    scale = np.abs(costs).max((-1, -2)).astype(np.float64)
    subnormal = np.finfo(np.float32).tiny  # below it XLA may read zeros
    bound = size * (np.finfo(np.float32).eps * scale + subnormal)
    assert np.all(sums(costs, p) - optima(costs) <= bound)


@pytest.mark.parametrize("size", [2, 40])
def test_integers_to_the_limit_and_their_multiples_by_a_power_of_two_are_exact(size):
    rng = np.random.default_rng(size)
    limits = np.array([1, 2, 10, 1000, 2**20, 2**22])[:, None, None]
    costs = np.concatenate(
        [
            rng.integers(-limits, limits + 1, (6, size, size)),
            rng.integers(0, limits + 1, (6, size, size)),
            limits * rng.choice([-1, 1], (6, size, size)),
        ]
    )
    np.testing.assert_array_equal(sums(costs, minimize(costs.astype(np.float32))), optima(costs))
    np.testing.assert_array_equal(sums(costs, minimize((costs * 2.0**-60).astype(np.float32))), optima(costs))


def test_the_optimum_is_that_of_all_permutations():
    every = np.array(list(itertools.permutations(range(5))))
    costs = np.random.default_rng(0).integers(-3, 4, (300, 5, 5))
    least = np.stack([costs[:, range(5), p].sum(-1) for p in every]).min(0)
    np.testing.assert_array_equal(sums(costs, minimize(costs.astype(np.float32))), least)


@given(st.integers(0, 2**32 - 1), st.sampled_from([2, 6]), st.sampled_from(["float32", "bfloat16"]))
def test_any_matrix_in_every_type(seed, size, dtype):
    rng = np.random.default_rng(seed)
    levels, exponents = rng.integers(1, 50), rng.integers(-20, 20, (8, 1, 1))
    costs = (rng.integers(-levels, levels + 1, (8, size, size)) * 2.0**exponents).astype(jnp.dtype(dtype))
    p = minimize(costs)
    assert_permutations(p, size)
    np.testing.assert_array_equal(sums(costs, p), optima(costs))


def test_float64_is_computed_in_float64():
    rng = np.random.default_rng(0)
    costs = 1 + 1e-12 * rng.integers(0, 1000, (5, 9, 9))  # all equal in float32
    with jax.enable_x64(True):
        p = minimize(costs)
    assert_permutations(p, 9)
    np.testing.assert_allclose(sums(costs - 1, p), optima(costs - 1), rtol=0, atol=1e-14)
    assert np.all(sums(costs - 1, minimize(costs)) > optima(costs - 1) + 1e-11)


def test_argmin_of_every_row_is_returned_where_it_is_a_permutation_ties_and_signs_of_zero_included():
    rng = np.random.default_rng(0)
    costs = rng.choice(np.array([-0.0, 0.0, 1.0, 2.0], np.float32), (400, 3, 3))
    best = costs.argmin(-1)
    valid = np.all(np.sort(best, axis=-1) == np.arange(3), axis=-1)
    assert valid.sum() > 20
    np.testing.assert_array_equal(np.asarray(minimize(costs))[valid], best[valid])


def test_every_matrix_of_a_batch_is_solved_as_if_alone_in_both_forms_and_under_transformations():
    costs = instances(13)[:24]
    alone = np.concatenate([in_turn(costs[k : k + 1]) for k in range(24)])
    np.testing.assert_array_equal(at_once(costs), alone)
    nested = jax.jit(jax.vmap(jax.vmap(linear_assignment.minimize), in_axes=-1))
    for result in (
        minimize(costs.reshape(4, 2, 3, 13, 13)),
        nested(np.moveaxis(costs.reshape(4, 6, 13, 13), 0, -1)),
        linear_assignment.minimize(jnp.asarray(costs)),
    ):
        np.testing.assert_array_equal(np.reshape(result, (24, 13)), alone)


def test_an_empty_batch():
    assert minimize(np.zeros((0, 3, 3), np.float32)).shape == (0, 3)


def test_no_gradient_passes():
    costs = instances(7)[:3]

    @jax.jit
    @jax.vmap
    @jax.grad
    def gradient(cost):
        return jnp.take_along_axis(cost, linear_assignment.minimize(cost)[:, None], axis=-1).sum()

    np.testing.assert_array_equal(gradient(costs), np.eye(7)[np.asarray(minimize(costs))])


def test_what_is_not_finite_is_an_error_where_it_can_be_seen():
    cost = np.zeros((2, 3, 3), np.float32)
    cost[1, 2, 0] = np.nan
    with pytest.raises(ValueError, match=r"entry at \(1, 2, 0\) is NaN: give finite numbers"):
        linear_assignment.minimize(cost)
    with pytest.raises(ValueError, match=r"entry at \(0, 1\) is infinite"):
        linear_assignment.minimize(jnp.array([[1.0, -jnp.inf], [0.0, jnp.inf]]))


def test_what_is_not_finite_counts_as_the_largest_entry_where_it_cannot_be_seen():
    rng = np.random.default_rng(0)
    costs = rng.standard_normal((40, 6, 6)).astype(np.float32)
    costs[:20, 0] = np.inf
    broken = np.where(rng.random(costs.shape) < 0.4, rng.choice([np.nan, np.inf, -np.inf], costs.shape), costs)
    broken[:3] = np.array([np.nan, np.inf, -np.inf])[:, None, None]
    good = np.isfinite(broken)
    largest = np.where(good, broken, -np.inf).max((-1, -2), keepdims=True)
    repaired = np.where(good, broken, np.where(np.isfinite(largest), largest, 0)).astype(np.float32)
    p = minimize(broken.astype(np.float32))
    assert_permutations(p, 6)
    np.testing.assert_array_equal(p, minimize(repaired))


@pytest.mark.parametrize(
    ("cost", "message"),
    [
        (np.zeros((2, 3), np.float32), r"shape \(2, 3\) is not square"),
        (np.zeros(3, np.float32), r"shape \(3,\) is not square"),
        (np.zeros((0, 0), np.float32), r"shape \(0, 0\) is not square"),
        (np.zeros((2, 2), np.int32), "int32 is not of a floating-point type: convert it"),
    ],
)
def test_what_cannot_be_assigned_is_said_under_jit_too(cost, message):
    for solve in (linear_assignment.minimize, minimize):
        with pytest.raises(ValueError, match=message):
            solve(cost)


def test_only_on_cpu_is_a_batch_solved_in_turn():
    traced = minimize.trace(np.zeros((3, 5, 5), np.float32))
    one_of_them = "tensor<1x5x5xf32>"
    for platform, expected in (("cpu", True), ("cuda", False), ("tpu", False)):
        assert (one_of_them in traced.lower(lowering_platforms=(platform,)).as_text()) == expected
