"""Array types with named dimensions, used in every public signature.

The letters mean the same everywhere: ``n`` images, ``h`` rows, ``w`` columns, ``c`` channels, ``k`` classes.
A leading ``*batch`` stands for any number of leading axes.
"""

from __future__ import annotations

from typing import Any

from jaxtyping import Array, ArrayLike, Bool, Float, Int, Integer, Num, PRNGKeyArray, Shaped, UInt8, UInt64

__all__ = [
    "Array",
    "ArrayLike",
    "Bool",
    "Float",
    "Images",
    "Int",
    "Integer",
    "Key",
    "Matrix",
    "Num",
    "Outputs",
    "Permutation",
    "PyTree",
    "Shaped",
    "UInt8",
    "UInt64",
]

Images = Float[Array, "n h w c"]
"""A batch of feature maps or normalised images."""

Outputs = Float[Array, "n oh ow o"]
"""What a layer makes of images: perhaps other rows, columns and channels."""

Matrix = Float[Array, "*batch c c"]
"""Square matrices over channels, such as relaxed permutations."""

Permutation = Integer[Array, "*batch c"]
"""Index vectors ``p`` with ``y[..., i] = x[..., p[i]]``."""

Key = PRNGKeyArray
"""A typed JAX random key (``jax.random.key``)."""

PyTree = Any
"""A tree of arrays: parameters, variables or an optimiser state."""
