"""Networks: one file, one family; :func:`build` makes any of them from a configuration."""

from shuffle_jax.models.addressnet import AddressNet
from shuffle_jax.models.anchored import AnchoredNet
from shuffle_jax.models.build import build
from shuffle_jax.models.config import NetworkConfig
from shuffle_jax.models.coresnet import CoResNet
from shuffle_jax.models.mobilenet_v2 import MobileNetV2
from shuffle_jax.models.resnet import ResNet
from shuffle_jax.models.shift_resnet import ShiftResNet
from shuffle_jax.models.shufflenet_v1 import ShuffleNetV1
from shuffle_jax.models.shufflenet_v2 import ShuffleNetV2

__all__ = [
    "AddressNet",
    "AnchoredNet",
    "CoResNet",
    "MobileNetV2",
    "NetworkConfig",
    "ResNet",
    "ShiftResNet",
    "ShuffleNetV1",
    "ShuffleNetV2",
    "build",
]
