"""ShuffleNetV2, MobileNetV2 and ResNet in torch, written as a person would: torch's own layers, no trick.

Needs the extra `bench`.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import nn

from shuffle_jax.models import NetworkConfig, mobilenet_v2, resnet, shufflenet_v2
from shuffle_jax.models.stem import StemKind


class ConvNorm(nn.Sequential):
    """A convolution without bias and its batch norm."""

    def __init__(self, inputs: int, features: int, size: int, stride: int = 1, groups: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, features, size, stride, size // 2, groups=groups, bias=False)
        self.norm = nn.BatchNorm2d(features)


class Unit(nn.Module):
    """One unit of ShuffleNetV2."""

    def __init__(self, inputs: int, features: int, stride: int) -> None:
        super().__init__()
        half, self.stride = features // 2, stride
        if stride == 2:
            self.left1 = ConvNorm(inputs, inputs, 3, stride, groups=inputs)
            self.left2 = ConvNorm(inputs, half, 1)
        self.right1 = ConvNorm(inputs if stride == 2 else half, half, 1)
        self.right2 = ConvNorm(half, half, 3, stride, groups=half)
        self.right3 = ConvNorm(half, half, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Maps (n, c, h, w) to (n, features, h / stride, w / stride)."""
        left, right = x.chunk(2, dim=1) if self.stride == 1 else (x, x)
        if self.stride == 2:
            left = self.left2(self.left1(left)).relu()
        right = self.right3(self.right2(self.right1(right).relu())).relu()
        return torch.channel_shuffle(torch.cat([left, right], dim=1), 2)


class ShuffleNetV2(nn.Module):
    """ShuffleNetV2 with the fixed shuffle."""

    PLACES: ClassVar = {
        # of ours: here
        "conv": "conv",
        "norm": "norm",
        "left_depthwise": "left1.conv",
        "left_norm1": "left1.norm",
        "left_pointwise": "left2.conv",
        "left_norm2": "left2.norm",
        "pointwise1": "right1.conv",
        "norm1": "right1.norm",
        "depthwise": "right2.conv",
        "norm2": "right2.norm",
        "pointwise2": "right3.conv",
        "norm3": "right3.norm",
        "conv5": "last.conv",
        "norm5": "last.norm",
    }

    def __init__(self, width: float, stem: StemKind, classes: int) -> None:
        super().__init__()
        *stages, last = shufflenet_v2.WIDTHS[width]
        self.stem = ConvNorm(3, shufflenet_v2.STEM, 3, stride=1 if stem == "small" else 2)
        self.pool = nn.Identity() if stem == "small" else nn.MaxPool2d(3, stride=2, padding=1)
        inputs = shufflenet_v2.STEM
        for stage, (features, units) in enumerate(zip(stages, shufflenet_v2.UNITS, strict=True), start=2):
            for i in range(units):
                self.add_module(f"stage{stage}_{i}", Unit(inputs, features, stride=2 if i == 0 else 1))
                inputs = features
        self.last = ConvNorm(inputs, last, 1)
        self.head = nn.Linear(last, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Maps images (n, 3, h, w) to logits (n, classes)."""
        x = self.pool(self.stem(x).relu())
        for name, unit in self.named_children():
            if name.startswith("stage"):
                x = unit(x)
        return self.head(self.last(x).relu().mean((2, 3)))


class InvertedResidual(nn.Module):
    """One unit of MobileNetV2."""

    def __init__(self, inputs: int, features: int, expansion: int, stride: int) -> None:
        super().__init__()
        inner = expansion * inputs
        self.expand = ConvNorm(inputs, inner, 1) if expansion != 1 else None
        self.depthwise = ConvNorm(inner, inner, 3, stride, groups=inner)
        self.project = ConvNorm(inner, features, 1)
        self.adds = stride == 1 and inputs == features
        self.relu6 = nn.ReLU6(inplace=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Maps (n, c, h, w) to (n, features, h / stride, w / stride)."""
        y = x if self.expand is None else self.relu6(self.expand(x))
        y = self.project(self.relu6(self.depthwise(y)))
        return x + y if self.adds else y


class MobileNetV2(nn.Module):
    """MobileNetV2 without dropout."""

    PLACES: ClassVar = {
        # of ours: here
        "conv": "conv",
        "norm": "norm",
        "expand": "expand.conv",
        "norm1": "expand.norm",
        "depthwise": "depthwise.conv",
        "norm2": "depthwise.norm",
        "project": "project.conv",
        "norm3": "project.norm",
        "last": "last.conv",
        "last_norm": "last.norm",
    }

    def __init__(self, width: float, stem: StemKind, classes: int) -> None:
        super().__init__()
        inputs = mobilenet_v2.scale(mobilenet_v2.STEM, width)
        self.stem = ConvNorm(3, inputs, 3, stride=1 if stem == "small" else 2)
        for stage, (expansion, channels, units, stride) in enumerate(mobilenet_v2.TABLE, start=1):
            features = mobilenet_v2.scale(channels, width)
            for i in range(units):
                keeps_size = i > 0 or (stem == "small" and stage == 2)
                unit = InvertedResidual(inputs, features, expansion, 1 if keeps_size else stride)
                self.add_module(f"stage{stage}_{i}", unit)
                inputs = features
        self.last = ConvNorm(inputs, mobilenet_v2.LAST, 1)
        self.head = nn.Linear(mobilenet_v2.LAST, classes)
        self.relu6 = nn.ReLU6(inplace=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Maps images (n, 3, h, w) to logits (n, classes)."""
        x = self.relu6(self.stem(x))
        for name, unit in self.named_children():
            if name.startswith("stage"):
                x = unit(x)
        return self.head(self.relu6(self.last(x)).mean((2, 3)))


class BasicUnit(nn.Module):
    """One unit of ResNet with two 3x3 convolutions."""

    def __init__(self, inputs: int, features: int, stride: int) -> None:
        super().__init__()
        self.first = ConvNorm(inputs, features, 3, stride)
        self.second = ConvNorm(features, features, 3)
        self.shortcut = ConvNorm(inputs, features, 1, stride) if stride > 1 or inputs != features else nn.Identity()
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Maps (n, c, h, w) to (n, features, h / stride, w / stride)."""
        return self.relu(self.shortcut(x) + self.second(self.relu(self.first(x))))


class ResNet(nn.Module):
    """ResNet of basic units, with the stem for small images."""

    PLACES: ClassVar = {
        # of ours: here
        "conv": "conv",
        "norm": "norm",
        "conv1": "first.conv",
        "norm1": "first.norm",
        "conv2": "second.conv",
        "norm2": "second.norm",
        "downsample": "shortcut.conv",
        "downsample_norm": "shortcut.norm",
    }

    def __init__(self, depth: int, width: float, classes: int) -> None:
        super().__init__()
        features = int(resnet.STEM * width)
        self.stem = ConvNorm(3, features, 3)
        inputs = features
        for stage, units in enumerate(resnet.UNITS[depth], start=1):
            for i in range(units):
                unit = BasicUnit(inputs, features, stride=2 if i == 0 and stage > 1 else 1)
                self.add_module(f"stage{stage}_{i}", unit)
                inputs = features
            features *= 2
        self.head = nn.Linear(inputs, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Maps images (n, 3, h, w) to logits (n, classes)."""
        x = self.stem(x).relu()
        for name, unit in self.named_children():
            if name.startswith("stage"):
                x = unit(x)
        return self.head(x.mean((2, 3)))


TorchNetwork = ShuffleNetV2 | MobileNetV2 | ResNet


def torch_network(config: NetworkConfig, classes: int) -> TorchNetwork:
    """The network of a configuration in torch.

    Args:
        config: of ShuffleNetV2 with the fixed shuffle, MobileNetV2, or a ResNet of basic units for small images, with
            plain layers and without dropout.
        classes: number of logits.

    Raises:
        ValueError: it asks for another network.
    """
    match config:
        case NetworkConfig(family="shufflenet_v2", mixer="shuffle", pointwise="plain", head="plain", dropout=0):
            return ShuffleNetV2(config.width, config.stem, classes)
        case NetworkConfig(
            family="mobilenet_v2",
            groups=None | 1,
            mixer="identity",
            pointwise="plain",
            spatial="depthwise",
            head="plain",
            dropout=0,
        ):
            return MobileNetV2(config.width, config.stem, classes)
        case NetworkConfig(
            family="resnet",
            depth=10 | 18 | 34 as depth,
            groups=None | 1,
            mixer="identity",
            pointwise="plain",
            sampling="stride",
            stem="small",
            head="plain",
            dropout=0,
        ):
            return ResNet(depth, config.width, classes)
    raise ValueError(
        f"{config.family} with {config.mixer} and {config.pointwise} layers is not written in torch here: choose "
        f"shufflenet_v2 with its shuffle, mobilenet_v2, or resnet of depth 10, 18 or 34 with the small stem, with "
        f"plain layers"
    )
