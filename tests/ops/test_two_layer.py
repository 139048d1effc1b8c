"""The closed-form loss equals its expectation, and its gradient is right and finite where the angle has no slope."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog

from shuffle_jax.ops import two_layer

kernel = jax.jit(two_layer.relu_kernel)
loss = jax.jit(two_layer.two_layer_loss)


def in_float64(function, *args):
    with jax.enable_x64(True):
        return jax.tree.map(np.asarray, function(*args))


def by_arccosine(u, v):
    norms = np.outer(np.linalg.norm(u, axis=-1), np.linalg.norm(v, axis=-1))
    angle = np.arccos(np.clip(u @ v.T / np.where(norms > 0, norms, 1), -1, 1))
    return norms * (np.sin(angle) + (np.pi - angle) * np.cos(angle)) / (2 * np.pi)


def network(seed, units, channels, count=1):
    """W, v, relaxed matrices and p, in float64."""
    rng = np.random.default_rng(seed)
    matrices = rng.dirichlet(np.full(channels, 0.5), (count, channels))
    permutation = rng.permutation(channels).astype(np.int32)
    return rng.standard_normal((units, channels)), rng.standard_normal(units), matrices, permutation


def by_definition(weights, outputs, matrix, permutation):
    student, teacher = weights @ matrix, weights @ np.eye(len(permutation))[permutation]
    kernels = [by_arccosine(*pair) for pair in ((student, student), (student, teacher), (teacher, teacher))]
    return sum(factor * outputs @ k @ outputs for factor, k in zip((0.5, -1, 0.5), kernels, strict=True))


@given(units=st.integers(1, 5), others=st.integers(1, 5), channels=st.integers(1, 6), seed=st.integers(0, 99))
@settings(max_examples=6)
def test_the_kernel_equals_its_formula_and_is_symmetric_and_homogeneous(units, others, channels, seed):
    rng = np.random.default_rng(seed)
    u, v = (rng.standard_normal((size, channels)) for size in (units, others))
    value, mirrored, scaled = (in_float64(kernel, *pair) for pair in ((u, v), (v, u), (3 * u, 2 * v)))
    np.testing.assert_allclose(value, by_arccosine(u, v), rtol=1e-7, atol=1e-12)  # the oracle's arccosine is the limit
    np.testing.assert_allclose(mirrored, value.T, rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose(scaled, 6 * value, rtol=1e-12, atol=1e-15)
    assert value.min() >= -1e-15


def test_parallel_opposite_orthogonal_and_zero_vectors_exactly():
    u = np.array([[3.0, 4.0], [0.0, 0.0]], np.float32)
    v = np.array([[6.0, 8.0], [-6.0, -8.0], [-4.0, 3.0], [0.0, 0.0]], np.float32)
    np.testing.assert_allclose(kernel(u, v), [[25, 0, 25 / (2 * np.pi), 0], [0, 0, 0, 0]], rtol=1e-6, atol=1e-6)


def test_the_gradient_by_finite_differences_and_at_vectors_that_are_parallel_opposite_or_zero():
    rng = np.random.default_rng(0)
    u, v, along = (rng.standard_normal((3, 4)) for _ in range(3))
    v[0], v[1] = 2 * u[0], -u[1]
    weights = rng.standard_normal((3, 3))

    @jax.jit
    def total(u, v):
        return (weights * two_layer.relu_kernel(u, v)).sum()

    gradient = jax.jit(jax.grad(total, argnums=(0, 1)))
    slopes = in_float64(gradient, u, v)
    step = 1e-5 * along
    differences = (
        in_float64(total, u + step, v) - in_float64(total, u - step, v),
        in_float64(total, u, v + step) - in_float64(total, u, v - step),
    )
    for slope, difference in zip(slopes, differences, strict=True):
        np.testing.assert_allclose((slope * along).sum(), difference / 2e-5, rtol=1e-6)
    single = jax.jit(jax.grad(lambda u, v: two_layer.relu_kernel(u, v).sum()))
    at = np.array([[1.0, 2.0]])
    # (pi - t) v / (2 pi) with t = 0 and pi, as the sine is 0; at zero, v / 4.
    np.testing.assert_allclose(in_float64(single, at, 3 * at), 3 * at / 2, rtol=1e-7)
    np.testing.assert_allclose(in_float64(single, at, -3 * at), 0 * at, atol=1e-7)
    np.testing.assert_allclose(single(0 * at.astype(np.float32), at.astype(np.float32)), at / 4, rtol=1e-6)
    assert np.array_equal(single(0 * at.astype(np.float32), 0 * at.astype(np.float32)), 0 * at)


def test_float32_stays_near_float64_at_angles_where_the_arccosine_is_worst():
    angles = np.concatenate([np.geomspace(1e-7, 1, 40), np.pi - np.geomspace(1e-7, 1, 40)])
    u = np.array([[1.0, 0.0]])
    v = np.stack([np.cos(angles), np.sin(angles)], -1)
    exact = (np.sin(angles) + (np.pi - angles) * np.cos(angles)) / (2 * np.pi)
    weights = np.linspace(-1, 1, 80, dtype=np.float32)
    slope = jax.jit(jax.grad(lambda u, v: jnp.vdot(two_layer.relu_kernel(u, v)[0], weights)))
    v = v.astype(np.float32)
    np.testing.assert_allclose(kernel(u.astype(np.float32), v)[0], exact, atol=3e-7)
    closed = (np.outer(np.sin(angles), u[0]) + (np.pi - angles)[:, None] * v) / (2 * np.pi)
    np.testing.assert_allclose(slope(u.astype(np.float32), v)[0], weights @ closed, atol=1e-5)


def test_the_loss_is_the_expected_squared_error_of_samples():
    weights, outputs, matrices, permutation = network(0, 6, 5)
    x = np.random.default_rng(1).standard_normal((100_000, 5))
    errors = [np.maximum(inputs @ weights.T, 0) @ outputs for inputs in (x @ matrices[0].T, x[:, permutation])]
    halves = np.square(errors[0] - errors[1]) / 2
    standard_error = halves.std() / np.sqrt(len(halves))
    exact = in_float64(loss, weights, outputs, matrices, permutation)
    assert standard_error < 0.01 * halves.mean()
    assert abs(exact[0] - halves.mean()) < 4 * standard_error


@pytest.mark.parametrize(("units", "channels"), [(1, 1), (4, 7)])
def test_the_loss_and_its_gradient_for_batches_eagerly_under_jit_and_vmap_and_in_half_precision(units, channels):
    weights, outputs, matrices, permutation = network(units, units, channels, 3)
    expected = [by_definition(weights, outputs, matrix, permutation) for matrix in matrices]
    np.testing.assert_allclose(
        in_float64(loss, weights, outputs, matrices, permutation), expected, rtol=1e-6, atol=1e-7
    )
    low = [array.astype(jnp.bfloat16) for array in (weights, outputs, matrices)]
    rounded = [by_definition(low[0].astype(float), low[1].astype(float), m.astype(float), permutation) for m in low[2]]
    results = [
        loss(*low, permutation),
        jax.jit(jax.vmap(two_layer.two_layer_loss, (None, None, 0, None)))(*low, permutation),
    ]
    if units == 1:  # eagerly, where every operation is compiled by itself
        results.append(two_layer.two_layer_loss(*map(jnp.asarray, low), jnp.asarray(permutation)))
    for result in results:
        assert result.dtype == jnp.float32
        np.testing.assert_allclose(result, rounded, rtol=1e-4, atol=1e-5)


def test_the_gradient_of_the_loss_by_finite_differences():
    weights, outputs, (matrix,), permutation = network(2, 4, 3)
    gradient = in_float64(jax.jit(jax.grad(two_layer.two_layer_loss, 2)), weights, outputs, matrix, permutation)
    step = 1e-5 * np.eye(9).reshape(9, 3, 3)
    differences = [
        by_definition(weights, outputs, matrix + s, permutation)
        - by_definition(weights, outputs, matrix - s, permutation)
        for s in step
    ]
    np.testing.assert_allclose(gradient.ravel(), np.array(differences) / 2e-5, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("channels", [1, 8])
def test_the_loss_and_its_slope_are_zero_at_the_teacher_and_finite_at_zero(channels):
    weights, outputs, _, permutation = (
        np.asarray(a, a.dtype if a.dtype == np.int32 else np.float32) for a in network(3, 5, channels)
    )
    value_and_slope = jax.jit(jax.value_and_grad(two_layer.two_layer_loss, 2))
    value, slope = value_and_slope(weights, outputs, np.eye(channels, dtype=np.float32)[permutation], permutation)
    assert abs(value) < 1e-5 and np.abs(slope).max() < 1e-4
    value, slope = value_and_slope(weights, outputs, np.zeros((channels, channels), np.float32), permutation)
    assert value > 0 and np.isfinite(slope).all()
    weights = np.zeros_like(weights)
    value, slope = value_and_slope(weights, outputs, np.zeros((channels, channels), np.float32), permutation)
    assert value == 0 and np.array_equal(slope, np.zeros((channels, channels)))


def test_alike_units_tell_no_permutation_from_another():
    ones, eye = np.ones(4), np.eye(4)
    for p in np.random.default_rng(0).permuted(np.tile(np.arange(4), (5, 1)), axis=1).astype(np.int32):
        assert abs(in_float64(loss, eye, ones, eye, p)) < 1e-12


@pytest.mark.parametrize(("units", "least"), [(1, 4), (2, 4), (1, 2)])
def test_one_doubly_stochastic_matrix_alone_keeps_the_weights_if_their_columns_differ(units, least):
    """The least trace of a doubly stochastic D with W D = W, by linear programming: c if D must be the identity."""
    weights = np.random.default_rng(units).standard_normal((units, 4))
    if least < 4:
        weights[:, 1] = weights[:, 2]  # two columns alike: they may be mixed at will
    eye = np.eye(4)
    sums = np.vstack([np.kron(eye, np.ones(4)), np.kron(np.ones(4), eye), np.kron(weights, eye)])
    right = np.concatenate([np.ones(8), weights.ravel()])
    found = linprog(eye.ravel(), A_eq=sums, b_eq=right)
    assert found.fun == pytest.approx(least, abs=1e-7)


def test_shapes_that_do_not_fit_are_said_in_one_line():
    weights, outputs, matrix, permutation = jnp.ones((3, 2)), jnp.ones(3), jnp.eye(2), jnp.arange(2)
    for arguments in (
        (weights[0], outputs, matrix, permutation),
        (weights[:0], outputs[:0], matrix, permutation),
        (weights, outputs[:2], matrix, permutation),
        (weights, outputs, jnp.eye(3), permutation),
        (weights, outputs, matrix, jnp.eye(2)),
    ):
        with pytest.raises(ValueError, match=r"does not fit: give \(k, c\), \(k,\), \(..., c, c\) and \(c,\)$"):
            two_layer.two_layer_loss(*arguments)
    for u, v in ((weights, jnp.ones((3, 3))), (weights[0], weights), (weights[None], weights)):
        with pytest.raises(ValueError, match=r"have no pairs: give \(..., k, c\) and \(..., m, c\)$"):
            two_layer.relu_kernel(u, v)
