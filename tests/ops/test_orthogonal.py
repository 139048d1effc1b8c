"""Cayley's rotations are orthogonal, their squares doubly stochastic, and every permutation is among them."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.linalg import schur

from shuffle_jax.ops import orthogonal, penalty

both = jax.jit(lambda parameters: (orthogonal.cayley(parameters), orthogonal.rotation(parameters)))
rotation = jax.jit(orthogonal.rotation)
relax = jax.jit(orthogonal.orthostochastic)


def draw(seed, *shape):
    return (0.7 / np.sqrt(shape[-1]) * np.random.default_rng(seed).standard_normal(shape)).astype(np.float32)


def cayley_oracle(parameters):
    skew = (parameters - np.swapaxes(parameters, -1, -2)) / 2
    identity = np.eye(skew.shape[-1])
    return np.linalg.inv(identity - skew) @ (identity + skew)


def parameters_of(permutation):
    """The skew-symmetric matrix whose rotation is the permutation, one row of each even cycle with the sign -1."""
    signs, seen = np.ones(len(permutation)), set()
    for start in range(len(permutation)):
        cycle, at = [], start
        while at not in seen:
            seen.add(at)
            cycle.append(at)
            at = int(permutation[at])
        if cycle and len(cycle) % 2 == 0:
            signs[start] = -1
    # No eigenvalue is -1 now, so that all angles have a half between -90 and 90 degrees.
    triangle, vectors = schur(signs[:, None] * np.eye(len(permutation))[permutation], output="complex")
    quarter = np.tan(np.angle(np.diag(triangle)) / 4)
    return ((vectors * (1j * quarter)) @ vectors.conj().T).real


@pytest.mark.parametrize("size", [1, 2, 7, 16])
def test_rotations_are_orthogonal_of_determinant_1_and_equal_their_equations(size):
    parameters = draw(size, 2, 5, size, size)
    exact = cayley_oracle(parameters.astype(np.float64))
    once, twice = both(parameters)
    np.testing.assert_allclose(once, exact, atol=3e-6)
    result = np.asarray(twice, np.float64)
    np.testing.assert_allclose(result, exact @ exact, atol=3e-6)
    identity = np.broadcast_to(np.eye(size), result.shape)
    np.testing.assert_allclose(result @ np.swapaxes(result, -1, -2), identity, atol=3e-6)
    np.testing.assert_allclose(np.linalg.det(result), 1, atol=1e-5)


@given(size=st.sampled_from([1, 2, 3, 24]), seed=st.integers(0, 999))
def test_every_permutation_is_reached_at_parameters_of_norm_below_1(size, seed):
    permutation = np.random.default_rng(seed).permutation(size)
    parameters = parameters_of(permutation)
    assert np.linalg.norm(parameters, 2) < 1
    np.testing.assert_allclose(relax(parameters.astype(np.float32)), np.eye(size)[permutation], atol=1e-5)


def test_the_longest_cycle_and_a_half_turn_lie_within_norm_1():
    cycle = np.roll(np.arange(116), 1)
    parameters = parameters_of(cycle)
    np.testing.assert_allclose(np.linalg.norm(parameters, 2), np.tan(np.pi / 4 * (1 - 1 / 116)), rtol=1e-6)
    np.testing.assert_allclose(relax(parameters.astype(np.float32)), np.eye(116)[cycle], atol=1e-5)
    quarter = np.array([[0, 1], [-1, 0]], np.float32)
    np.testing.assert_allclose(rotation(quarter), -np.eye(2), atol=1e-6)  # Cayley's transform has it at infinity


@pytest.mark.parametrize("size", [1, 2, 7])
def test_squares_are_doubly_stochastic_and_temperature_sharpens(size):
    parameters = draw(size, 4, size, size)
    matrix, exact = np.asarray(relax(parameters), np.float64), cayley_oracle(parameters.astype(np.float64))
    np.testing.assert_allclose(matrix, np.square(exact @ exact), atol=1e-5)
    for axis in (-1, -2):
        np.testing.assert_allclose(matrix.sum(axis), 1, atol=1e-5)
    traced = np.asarray(relax(parameters, np.float32(1)), np.float64)
    np.testing.assert_allclose(traced, matrix, atol=1e-5)
    if size > 2:
        sharper = [float(penalty.row_entropy(relax(parameters, np.float32(t))).mean()) for t in (2.0, 1.0, 0.3, 0.01)]
        assert sharper == sorted(sharper, reverse=True) and sharper[-1] < 0.1


def test_the_recommended_start_has_no_larger_diagonal_and_zero_is_stationary():
    matrix = relax(draw(3, 16, 32, 32))
    assert 0.5 < float(np.trace(matrix, axis1=1, axis2=2).mean()) < 1.5
    assert float(penalty.normalized_l1_minus_l2(matrix).min()) > 0.7
    slope = jax.jit(jax.grad(lambda a: (draw(4, 5, 5) * orthogonal.orthostochastic(a)).sum()))
    np.testing.assert_allclose(slope(np.zeros((5, 5), np.float32)), np.zeros((5, 5)), atol=1e-7)
    assert float(np.abs(slope(draw(5, 5, 5))).max()) > 0.01


def test_the_gradient_of_cayley_in_closed_form_and_bounded():
    # dC = 2 (I - S)^-1 dS (I - S)^-1, so that <W, dC> = <2 (I - S)^-T W (I - S)^-T, dS>.
    parameters, weights = 10 * draw(6, 6, 6).astype(np.float64), draw(7, 6, 6).astype(np.float64)
    inverse = np.linalg.inv(np.eye(6) - (parameters - parameters.T) / 2).T
    in_skew = 2 * inverse @ weights @ inverse

    def slope(op):
        return np.asarray(jax.jit(jax.grad(lambda a: (weights * op(a)).sum()))(parameters))

    with jax.enable_x64(True):
        gradient, squared = slope(orthogonal.cayley), slope(orthogonal.rotation)
    np.testing.assert_allclose(gradient, (in_skew - in_skew.T) / 2, atol=1e-12)
    assert np.linalg.norm(gradient) <= 2 * np.linalg.norm(weights)
    assert np.linalg.norm(squared) <= 4 * np.linalg.norm(weights)


def test_a_penalty_and_not_scale_makes_it_hard():
    start = draw(8, 8, 6, 6)
    assert float(penalty.row_entropy(relax(10 * start)).min()) > 0.2  # no limit of large parameters

    @jax.jit
    def descend(parameters):
        slope = jax.grad(lambda a: penalty.l1_minus_l2(orthogonal.orthostochastic(a)).sum())

        def step(_, carry):
            parameters, momentum = carry
            momentum = 0.9 * momentum - 0.01 * slope(parameters)
            return parameters + momentum, momentum

        return jax.lax.fori_loop(0, 400, step, (parameters, jnp.zeros_like(parameters)))[0]

    assert float(penalty.normalized_l1_minus_l2(relax(descend(start))).max()) < 0.01


@pytest.mark.parametrize("op", [orthogonal.rotation, partial(orthogonal.orthostochastic, temperature=0.5)])
@pytest.mark.fast_cases(1)
def test_batches_eagerly_under_jit_and_vmap_and_in_half_precision(op):
    parameters = draw(9, 2, 3, 4, 4)
    expected = np.asarray(op(jnp.asarray(parameters)))
    np.testing.assert_allclose(jax.jit(jax.vmap(jax.vmap(op)))(parameters), expected, atol=1e-5)
    half = jnp.asarray(parameters, jnp.bfloat16)
    result = jax.jit(op)(half)
    assert result.dtype == expected.dtype == jnp.float32
    np.testing.assert_allclose(result, jax.jit(op)(half.astype(jnp.float32)), atol=1e-5)
    with pytest.raises(ValueError, match=r"a matrix of shape \(3, 2\) is not square"):
        op(jnp.ones((3, 2)))
