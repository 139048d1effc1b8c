"""The mathematics of channel mixing: pure functions, arrays in, arrays out."""

from shuffle_jax.ops import convolution, invariants, kronecker, mixing, penalty, permutation, relaxation, rounding

__all__ = ["convolution", "invariants", "kronecker", "mixing", "penalty", "permutation", "relaxation", "rounding"]
