"""In which type sums and exponentials are computed."""

from __future__ import annotations

import jax.numpy as jnp

from shuffle_jax.typing import Array, Float


def at_least_float32(array: Float[Array, "..."]) -> Float[Array, "..."]:
    """Half precision as float32; float32 and float64 as they are.

    >>> at_least_float32(jnp.ones(2, jnp.bfloat16)).dtype
    dtype('float32')
    """
    return array.astype(jnp.float32) if jnp.finfo(array.dtype).bits < 32 else array
