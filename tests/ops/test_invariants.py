"""Assertions pass what holds, catch what does not, eagerly and under jit."""

from __future__ import annotations

import logging

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from shuffle_jax.ops import invariants, relaxation

UNIFORM = np.full((3, 3), 1 / 3, np.float32)
ROTATION = np.array([[0.6, 0.8, 0], [-0.8, 0.6, 0], [0, 0, 1]], np.float32)
CYCLE = np.eye(3, dtype=np.float32)[[2, 0, 1]]
ONE_COLUMN = np.array([[1, 0, 0]] * 3, np.float32)
NEGATIVE = np.array([[1.5, -0.5, 0], [-0.5, 1.5, 0], [0, 0, 1]], np.float32)


@pytest.fixture(scope="module", autouse=True)
def every_assertion_is_inspected():
    yield
    chex.block_until_chexify_assertions_complete()
    # At exit chex warns of uninspected assertions if anything was ever chexified, inspected or not.
    logging.getLogger("absl").addFilter(lambda record: "chexify assertion statuses" not in record.getMessage())


CASES = {  # every pair holds one good and one bad array of one shape: one compilation
    "a repeated index": (invariants.assert_permutation, [[2, 0, 1], [0, 1, 2]], [[2, 0, 1], [0, 1, 1]]),
    "an index out of range": (invariants.assert_permutation, [[2, 0, 1], [0, 1, 2]], [[2, 0, 1], [3, 1, 2]]),
    "row sums": (invariants.assert_doubly_stochastic, [UNIFORM, CYCLE], [UNIFORM, ONE_COLUMN.T]),
    "column sums": (invariants.assert_doubly_stochastic, [UNIFORM, CYCLE], [UNIFORM, ONE_COLUMN]),
    "negative entries": (invariants.assert_doubly_stochastic, [UNIFORM, CYCLE], [CYCLE, NEGATIVE]),
    "NaN": (invariants.assert_doubly_stochastic, [UNIFORM, CYCLE], [CYCLE, np.nan * CYCLE]),
    "scale": (invariants.assert_orthogonal, [ROTATION, CYCLE], [ROTATION, 1.1 * CYCLE]),
    "NaN, orthogonal": (invariants.assert_orthogonal, [ROTATION, CYCLE], [ROTATION, np.nan * CYCLE]),
    "infinity": (invariants.assert_orthogonal, [ROTATION, CYCLE], [ROTATION, np.full((3, 3), np.inf)]),
}
CHECKS = (invariants.assert_permutation, invariants.assert_doubly_stochastic, invariants.assert_orthogonal)


def arrays(*examples):
    kind = np.int32 if np.asarray(examples[0]).dtype.kind == "i" else np.float32
    return [jnp.asarray(np.asarray(example), kind) for example in examples]


@pytest.mark.parametrize("name", CASES)
def test_eagerly(name):
    check, *examples = CASES[name]
    good, bad = arrays(*examples)
    check(good)
    with pytest.raises(AssertionError):
        check(bad)


def doubled(check):
    @chex.chexify
    @jax.jit
    def double(array):
        check(array)
        return array + array

    return double


CHEXIFIED = {check: doubled(check) for check in CHECKS}


@pytest.mark.parametrize("name", CASES)
def test_under_jit_with_chexify(name):
    check, *examples = CASES[name]
    good, bad = arrays(*examples)
    double = CHEXIFIED[check]
    np.testing.assert_array_equal(double(good), 2 * np.asarray(good))
    double.wait_checks()
    double(bad)
    with pytest.raises(AssertionError):
        double.wait_checks()


def test_messages_say_which_law_is_broken():
    for matrix, law in [
        (ONE_COLUMN, "a column sum is not 1"),
        (ONE_COLUMN.T, "a row sum is not 1"),
        (NEGATIVE, "an entry is negative or NaN"),
    ]:
        with pytest.raises(AssertionError, match=f"not doubly stochastic: {law} \\(atol 0.0001\\)"):
            invariants.assert_doubly_stochastic(jnp.asarray(matrix))
    with pytest.raises(AssertionError, match=r"not orthogonal: M M\^T differs from I by more than 0.0001"):
        invariants.assert_orthogonal(jnp.asarray(ONE_COLUMN))
    with pytest.raises(AssertionError, match="some index is missing or occurs twice"):
        invariants.assert_permutation(jnp.array([0, 0, 1]))
    with pytest.raises(AssertionError, match="integer index vector, this array is float32"):
        invariants.assert_permutation(jnp.array([0.0, 1.0]))
    for check in (invariants.assert_orthogonal, invariants.assert_doubly_stochastic):
        for shape in [(2, 3), (3,)]:
            with pytest.raises(AssertionError, match=rf"square matrices .* got the shape \({shape[0]},"):
                check(jnp.asarray(np.ones(shape, np.float32)))


def with_entry(value):
    """Rows and columns that sum to 1, with one pair of entries of the given value."""
    block = np.eye(3)
    block[:2, :2] = [[1 - value, value], [value, 1 - value]]
    return block


@pytest.mark.parametrize(
    ("check", "deviating"),
    [
        (invariants.assert_doubly_stochastic, lambda e: with_entry(-e)),
        (invariants.assert_doubly_stochastic, lambda e: np.full((3, 3), 1 / 3) + [[e], [0], [0]] * np.eye(3)[0]),
        (invariants.assert_doubly_stochastic, lambda e: np.full((3, 3), 1 / 3) - [[e], [0], [0]] * np.eye(3)[0]),
        (invariants.assert_doubly_stochastic, lambda e: UNIFORM + np.outer([-e, e / 2, e / 2], [1 / 3] * 3)),
        (invariants.assert_doubly_stochastic, lambda e: UNIFORM + np.outer([1 / 3] * 3, [-e, e / 2, e / 2])),
        (invariants.assert_orthogonal, lambda e: np.eye(3) * np.sqrt(1 + e)),
        (invariants.assert_orthogonal, lambda e: np.eye(3) * np.sqrt(1 - e)),
    ],
    ids=["entry", "sum above", "sum below", "row alone", "column alone", "norm above", "norm below"],
)
@pytest.mark.parametrize("atol", [1e-4, 1e-2])
def test_the_tolerance_is_a_bound_on_the_deviation(check, deviating, atol):
    check(jnp.asarray(deviating(0.9 * atol), jnp.float32), atol=atol)
    with pytest.raises(AssertionError):
        check(jnp.asarray(deviating(1.1 * atol), jnp.float32), atol=atol)


def test_relaxations_can_be_checked_where_they_are_used():
    @chex.chexify
    @jax.jit
    def relax(logits, temperature):
        matrix = relaxation.sinkhorn(logits, temperature, iterations=5)
        invariants.assert_doubly_stochastic(matrix, atol=1e-3)
        return matrix

    logits = jnp.asarray(np.random.default_rng(0).standard_normal((4, 4)), jnp.float32)
    relax(logits, 10.0)
    relax.wait_checks()
    relax(logits, 0.01)  # too cold for five iterations
    with pytest.raises(AssertionError, match="column sum"):
        relax.wait_checks()
