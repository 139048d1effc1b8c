"""Numbers as integers in the same order, of which XLA on CPU finds the least about three times as fast."""

from __future__ import annotations

import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike

from shuffle_jax.typing import Array, Float, Int


def to_integers(numbers: Float[Array, "*s"]) -> Int[Array, "*s"]:
    """Integers that compare as the numbers do, of as many bits.

    Args:
        numbers: without NaN; -0 comes before 0.

    Returns:
        Integers of the same shape, less than :func:`last`.

    >>> to_integers(jnp.array([-1.5, 0.0, 1e-45, 1.0])).tolist()
    [-1069547521, 0, 1, 1065353216]
    """
    return _flip(lax.bitcast_convert_type(numbers, _integer_type(numbers.dtype)))


def to_numbers(integers: Int[Array, "*s"], dtype: DTypeLike) -> Float[Array, "*s"]:
    """The numbers, of the type given, of which :func:`to_integers` made the integers.

    >>> to_numbers(to_integers(jnp.array([-1.5, 2.0])), jnp.float32).tolist()
    [-1.5, 2.0]
    """
    return lax.bitcast_convert_type(_flip(integers), jnp.dtype(dtype))


def last(dtype: DTypeLike) -> int:
    """An integer behind those of all numbers of the type.

    >>> last(jnp.float32)
    2147483647
    """
    return int(jnp.iinfo(_integer_type(dtype)).max)


def _integer_type(dtype: DTypeLike) -> jnp.dtype:
    return jnp.dtype(f"int{jnp.finfo(dtype).bits}")


def _flip(bits: Int[Array, "*s"]) -> Int[Array, "*s"]:
    """All bits of negative ones but the sign, for the larger of two negative numbers has the smaller bits."""
    return jnp.where(bits < 0, bits ^ jnp.iinfo(bits.dtype).max, bits)
