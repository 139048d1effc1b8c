"""Frank-Wolfe stays doubly stochastic, never rises, and ends where scipy's FAQ ends."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import quadratic_assignment

from shuffle_jax.ops import quadratic_assignment as qap
from shuffle_jax.ops.frank_wolfe import frank_wolfe
from shuffle_jax.ops.invariants import assert_doubly_stochastic
from shuffle_jax.ops.relaxation import random_bistochastic
from shuffle_jax.ops.rounding import assignment

descend = jax.jit(frank_wolfe, static_argnames="iterations")
assign = jax.jit(assignment)
objective = jax.jit(qap.assignment_objective)


@partial(jax.jit, static_argnums=(1, 2))
def start(key, size, count):
    return jax.vmap(lambda key: random_bistochastic(key, size, passes=100))(jax.random.split(key, count))


def problem(seed, size, count):
    a, b = np.random.default_rng(seed).integers(0, 20, (2, size, size)).astype(np.float32)
    return (a, b), start(jax.random.key(seed), size, count)


def test_every_step_stays_doubly_stochastic_and_does_not_rise():
    pair, starts = problem(0, 8, 5)
    values = [objective(starts, pair)]
    for iterations in (1, 2, 8):
        matrix = descend(starts, pair, iterations)
        assert_doubly_stochastic(matrix)
        values.append(objective(matrix, pair))
    assert np.all(np.diff(values, axis=0) <= 1e-3 * np.abs(values[0]))
    assert np.all(values[-1] < values[0])
    np.testing.assert_array_equal(descend(starts, pair, 0), starts)


def test_one_step_is_the_best_point_towards_the_vertex_of_the_linear_assignment():
    pair, starts = problem(1, 8, 5)
    vertex = np.eye(8, dtype=np.float32)[np.asarray(assign(-qap.assignment_slope(starts, pair)))]
    shares = np.linspace(0, 1, 1001, dtype=np.float32)[:, None, None, None]
    line = np.asarray(starts)[None] + shares * (vertex - np.asarray(starts))[None]
    least = np.asarray(objective(line, pair)).min(0)
    found = objective(descend(starts, pair, 1), pair)
    np.testing.assert_allclose(found, least, rtol=1e-4)


@pytest.mark.slow
def test_ends_as_low_as_scipys():
    pair, starts = problem(2, 12, 8)
    ours = np.asarray(qap.value(assign(descend(starts, pair, 30)), pair))
    a, b = (matrix.astype(float) for matrix in pair)
    rng = np.random.default_rng(0)  # not used, and named so that scipy does not warn
    options = [{"P0": np.asarray(start, float), "tol": 1e-9, "rng": rng} for start in starts]
    theirs = [quadratic_assignment(a, b, options=one).fun for one in options]
    # The same algorithm: rounding may lead a descent elsewhere, not most of them.
    assert np.mean(np.isclose(ours, theirs)) >= 0.5
    assert ours.min() <= min(theirs) * 1.05


def test_matching_is_assignment_with_the_sign_turned():
    rng = np.random.default_rng(3)
    a = rng.standard_normal((12, 12)).astype(np.float32)
    p = rng.permutation(12)
    b = np.zeros_like(a)
    b[np.ix_(p, p)] = a
    centre = np.full((8, 12, 12), 1 / 12, np.float32)  # eight times the same: what the test above compiled
    np.testing.assert_array_equal(assign(descend(centre, (-a, b), 30)), [p] * 8)


def test_a_problem_filled_up_is_the_same_problem():
    pair, starts = problem(6, 5, 3)
    larger = tuple(np.pad(matrix, (0, 3)) for matrix in pair)
    for sign in (1, -1):  # costs above and below those of what fills up
        signed, filled = (sign * pair[0], pair[1]), (sign * larger[0], larger[1])
        more = np.stack([np.block([[start, np.zeros((5, 3))], [np.zeros((3, 5)), np.eye(3)]]) for start in starts])
        found = descend(more.astype(np.float32), filled, 8, jnp.int32(5))
        np.testing.assert_array_equal(found[:, 5:, 5:], np.broadcast_to(np.eye(3), (3, 3, 3)))
        np.testing.assert_allclose(found[:, :5, :5], descend(starts, signed, 8), atol=1e-5)


@pytest.mark.parametrize("size", [1, 2])
def test_the_smallest_problems_and_nothing_to_gain(size):
    pair, starts = problem(4, size, 3)
    ends = assign(descend(starts, pair, 3))
    assert sorted(ends[0].tolist()) == list(range(size))
    zero = np.zeros((size, size), np.float32)
    flat = descend(starts, (zero, zero), 3)
    assert bool(jnp.isfinite(flat).all())


@pytest.mark.slow
def test_half_precision_batches_and_what_is_refused():
    pair, starts = problem(5, 5, 4)
    half = jax.eval_shape(lambda starts: frank_wolfe(starts, pair, 3), starts.astype(jnp.bfloat16).reshape(2, 2, 5, 5))
    assert half.shape == (2, 2, 5, 5)
    assert half.dtype == jnp.float32
    one_by_one = np.stack([descend(one, pair, 3) for one in starts])
    np.testing.assert_allclose(descend(starts, pair, 3), one_by_one, atol=1e-6)
    with pytest.raises(ValueError, match="iterations is -1: give 0 or more"):
        frank_wolfe(starts, pair, -1)
    with pytest.raises(ValueError, match=r"A has the shape \(5, 5\): give a \(4, 4\) matrix"):
        frank_wolfe(jnp.eye(4), pair)
