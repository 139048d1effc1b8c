"""The networks that the presets start from, with the stem for small images."""

from __future__ import annotations

from dataclasses import replace

from shuffle_jax.models import NetworkConfig

AUTO = NetworkConfig(family="shufflenet_v2", stem="small", mixer="auto", auto_candidates=4)
"""ShuffleNetV2 1.0x with learned shuffles."""

AUTO_V1 = replace(AUTO, family="shufflenet_v1", groups=3)
"""ShuffleNetV1 1.0x of three groups, likewise."""

DYNAMIC = replace(AUTO, mixer="dynamic")
"""ShuffleNetV2 1.0x with a permutation for each image."""

STATIC_DYNAMIC = replace(AUTO, mixer="shuffle", pointwise="static_dynamic")
"""ShuffleNetV2 1.0x with the fixed shuffle and static-dynamic 1x1 layers."""

MOBILENET = NetworkConfig(family="mobilenet_v2", width=1.0, stem="small", mixer="identity")
"""MobileNetV2 1.0x, static."""

RESNET = NetworkConfig(family="resnet", depth=18, width=1.0, stem="small", mixer="identity")
"""ResNet-18, static."""

ADDRESSNET = NetworkConfig(family="addressnet", depth=32, stem="small", mixer="shift")
"""AddressNet-32."""

SHIFT_RESNET = NetworkConfig(family="shift_resnet", depth=20, stem="small", mixer="identity")
"""ShiftResNet-20, expansion 3."""
