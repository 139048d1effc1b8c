"""Assertions of what must hold: permutation, doubly stochastic, orthogonal.

Each is a chex value assertion. Eagerly it raises an AssertionError at once. Inside ``jit`` decorate the outermost
function with ``chex.chexify`` (above ``jax.jit``), which reports failures when the results are awaited::

    @chex.chexify
    @jax.jit
    def step(logits):
        matrix = sinkhorn(logits)
        assert_doubly_stochastic(matrix)
        return matrix

    step(logits)
    step.wait_checks()

Under ``vmap`` chex cannot check: assert on the batched array outside of it (leading axes are allowed everywhere).
"""

from __future__ import annotations

import jax.numpy as jnp

from shuffle_jax.ops.permutation import is_permutation
from shuffle_jax.typing import Array, Bool, Matrix, Permutation


def assert_permutation(index: Permutation) -> None:
    """Asserts that every value 0 .. c-1 occurs exactly once along the last axis.

    Args:
        index: ``(..., c)`` integers.

    Raises:
        AssertionError: it does not, or the type is not an integer.

    >>> assert_permutation(jnp.array([2, 0, 1]))
    """
    if not jnp.issubdtype(index.dtype, jnp.integer):
        raise AssertionError(f"a permutation is an integer index vector, this array is {index.dtype}")
    _assert_true(is_permutation(index), "not a permutation: some index is missing or occurs twice")


def assert_doubly_stochastic(matrix: Matrix, atol: float = 1e-4) -> None:
    """Asserts ``M >= 0`` and that all rows and columns sum to 1.

    Args:
        matrix: ``(..., c, c)``.
        atol: largest deviation of a sum from 1, and of an entry below 0.

    Raises:
        AssertionError: it does not hold, or an entry is not finite.

    >>> assert_doubly_stochastic(jnp.full((3, 3), 1 / 3))
    """
    _assert_square(matrix)
    _assert_true(matrix >= -atol, f"not doubly stochastic: an entry is negative or NaN (atol {atol:g})")
    _assert_true(jnp.abs(matrix.sum(-1) - 1) <= atol, f"not doubly stochastic: a row sum is not 1 (atol {atol:g})")
    _assert_true(jnp.abs(matrix.sum(-2) - 1) <= atol, f"not doubly stochastic: a column sum is not 1 (atol {atol:g})")


def assert_orthogonal(matrix: Matrix, atol: float = 1e-4) -> None:
    """Asserts ``M M^T = I``.

    A nonnegative orthogonal matrix with rows that sum to 1 is a permutation.

    Args:
        matrix: ``(..., c, c)``.
        atol: largest entry of ``|M M^T - I|``.

    Raises:
        AssertionError: it does not hold, or an entry is not finite.

    >>> assert_orthogonal(jnp.array([[0.0, 1.0], [-1.0, 0.0]]))
    """
    _assert_square(matrix)
    product = jnp.matmul(matrix, jnp.swapaxes(matrix, -1, -2), precision="highest")  # in TF32 off by twice the atol
    error = product - jnp.broadcast_to(jnp.eye(matrix.shape[-1], dtype=matrix.dtype), product.shape)
    _assert_true(jnp.abs(error) <= atol, f"not orthogonal: M M^T differs from I by more than {atol:g}")


def _assert_square(matrix: Matrix) -> None:
    if matrix.ndim < 2 or matrix.shape[-1] != matrix.shape[-2]:
        raise AssertionError(f"expected square matrices (..., c, c), got the shape {matrix.shape}")


def _assert_true(condition: Bool[Array, "..."], message: str) -> None:
    import chex  # Slow to import, and needed by nobody who asserts nothing.

    chex.assert_trees_all_equal(jnp.all(condition), jnp.array(True), custom_message=message)
