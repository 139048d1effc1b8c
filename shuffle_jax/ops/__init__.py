"""The mathematics of channel mixing: pure functions, arrays in, arrays out."""

from shuffle_jax.ops import (
    convolution,
    dynamic_conv,
    invariants,
    kernel_attention,
    kronecker,
    mixing,
    penalty,
    per_sample,
    permutation,
    pooling,
    relaxation,
    rounding,
    shift,
    shifted_pointwise,
)

__all__ = [
    "convolution",
    "dynamic_conv",
    "invariants",
    "kernel_attention",
    "kronecker",
    "mixing",
    "penalty",
    "per_sample",
    "permutation",
    "pooling",
    "relaxation",
    "rounding",
    "shift",
    "shifted_pointwise",
]
