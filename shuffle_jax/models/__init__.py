"""Networks: one file, one family; :func:`build` makes any of them from a configuration."""

from shuffle_jax.models.build import NetworkConfig, build
from shuffle_jax.models.shufflenet_v1 import ShuffleNetV1
from shuffle_jax.models.shufflenet_v2 import ShuffleNetV2

__all__ = ["NetworkConfig", "ShuffleNetV1", "ShuffleNetV2", "build"]
