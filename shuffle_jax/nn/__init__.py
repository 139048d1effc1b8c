"""Thin Flax modules over :mod:`shuffle_jax.ops`: they declare parameters and call the mathematics."""

from shuffle_jax.nn.auto_shuffle import AutoShuffle
from shuffle_jax.nn.contextual import ContextualConv, ContextualDepthwise
from shuffle_jax.nn.convolution import Conv, DepthwiseConv, PointwiseConv
from shuffle_jax.nn.dense import Dense
from shuffle_jax.nn.dynamic_conv import DynamicConv, DynamicDense
from shuffle_jax.nn.dynamic_shuffle import (
    DynamicShuffle,
    HardDynamicShuffle,
    HardStaticDynamicShuffle,
    StaticDynamicShuffle,
)
from shuffle_jax.nn.factors import FactorGenerator, HardFactorGenerator
from shuffle_jax.nn.kernel_attention import CondConv, DYConv
from shuffle_jax.nn.normalization import BatchNorm
from shuffle_jax.nn.permutation import ChannelShuffle, FixedPermutation, Identity
from shuffle_jax.nn.polyphase import PolyphaseSampling
from shuffle_jax.nn.rolling_pointwise import RollingPointwise
from shuffle_jax.nn.shared import Use
from shuffle_jax.nn.shift import AddressShift, ChannelRotation, ChannelShift, GridShift, ShiftedPointwise
from shuffle_jax.nn.squeeze_excitation import SqueezeExcitation

__all__ = [
    "AddressShift",
    "AutoShuffle",
    "BatchNorm",
    "ChannelRotation",
    "ChannelShift",
    "ChannelShuffle",
    "CondConv",
    "ContextualConv",
    "ContextualDepthwise",
    "Conv",
    "DYConv",
    "Dense",
    "DepthwiseConv",
    "DynamicConv",
    "DynamicDense",
    "DynamicShuffle",
    "FactorGenerator",
    "FixedPermutation",
    "GridShift",
    "HardDynamicShuffle",
    "HardFactorGenerator",
    "HardStaticDynamicShuffle",
    "Identity",
    "PointwiseConv",
    "PolyphaseSampling",
    "RollingPointwise",
    "ShiftedPointwise",
    "SqueezeExcitation",
    "StaticDynamicShuffle",
    "Use",
]
