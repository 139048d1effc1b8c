"""ShuffleNetV2 in torch with the weights of ours, on the device and the cores that JAX uses.

Needs the extra `bench`. The network is written as a person would in torch: channels-last tensors, torch's own layers.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import jax
import numpy as np
import torch
from torch import nn

from experiments.benchmark_cases import CLASSES, Dtype
from shuffle_jax.models.shufflenet_v2 import STEM, UNITS, WIDTHS
from shuffle_jax.sharding import cores
from shuffle_jax.typing import Array, PyTree


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


class Peer(nn.Module):
    """ShuffleNetV2 with the stem for small images."""

    def __init__(self, width: float, classes: int) -> None:
        super().__init__()
        *stages, last = WIDTHS[width]
        self.stem = ConvNorm(3, STEM, 3)
        inputs = STEM
        for stage, (features, units) in enumerate(zip(stages, UNITS, strict=True), start=2):
            for i in range(units):
                self.add_module(f"stage{stage}_{i}", Unit(inputs, features, stride=2 if i == 0 else 1))
                inputs = features
        self.last = ConvNorm(inputs, last, 1)
        self.head = nn.Linear(last, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Maps images (n, 3, h, w) to logits (n, classes)."""
        for name, layer in self.named_children():
            if name != "head":
                x = layer(x) if name.startswith("stage") else layer(x).relu()
        return self.head(x.mean((2, 3)))


LAYERS = {
    # of ours: the peer's
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
}
TOP = {"conv5": "last.conv", "norm5": "last.norm", "head": "head"}
LEAVES = {"kernel": "weight", "scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}


def twin(variables: PyTree, width: float) -> Peer:
    """The peer with the weights and running statistics of ours, where JAX computes.

    Args:
        variables: of ShuffleNetV2 with the stem for small images and the fixed shuffle.
        width: of that network.

    Returns:
        A module in channels-last format.
    """
    weights = {}
    for collection in ("params", "batch_stats"):
        for path, leaf in jax.tree_util.tree_leaves_with_path(variables[collection]):
            axes = {2: (1, 0), 4: (3, 2, 0, 1)}.get(leaf.ndim)  # dense io to oi, convolutions HWIO to OIHW
            weights[torch_name(*(key.key for key in path))] = torch.tensor(np.asarray(leaf).transpose(axes))
    peer = Peer(width, CLASSES)
    peer.load_state_dict(weights)  # strict: every array of either side has its place on the other
    return peer.to(device()).to(memory_format=torch.channels_last)


def torch_name(*path: str) -> str:
    """Where the peer keeps one of our arrays: "stage3_1", "norm2", "scale" is "stage3_1.right2.norm.weight"."""
    *modules, leaf = path
    if len(modules) == 1:
        return f"{TOP[modules[0]]}.{LEAVES[leaf]}"
    unit, layer = modules
    return f"{unit}.{LAYERS[layer]}.{LEAVES[leaf]}"


def prepare() -> None:
    """Gives torch the cores that JAX has, and on a GPU the same freedom in products of float32: TF32.

    Raises:
        ValueError: JAX computes where this torch cannot.
    """
    backend = jax.default_backend()
    if backend not in ("cpu", "gpu") or (backend == "gpu" and not torch.cuda.is_available()):
        raise ValueError(f"JAX computes on the {backend} and this torch cannot: install a torch that does")
    torch.set_num_threads(cores())
    torch.backends.cudnn.benchmark = True
    torch.set_float32_matmul_precision("high")


@contextmanager
def exact_products() -> Iterator[None]:
    """Products of float32 in float32 on both sides, for a comparison; GPUs round the factors otherwise."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with jax.default_matmul_precision("highest"), torch.backends.cudnn.flags(allow_tf32=False):
            yield
    finally:
        torch.set_float32_matmul_precision(before)


def to_torch(images: Array) -> torch.Tensor:
    """Images (n, h, w, c) as (n, c, h, w) in channels-last format."""
    tensor = torch.tensor(np.asarray(images), device=device())
    return tensor.permute(0, 3, 1, 2)  # a view: the channels stay last in memory


def autocast(dtype: Dtype) -> torch.autocast:
    """Computes in bfloat16 where that is asked for."""
    return torch.autocast(device(), torch.bfloat16, enabled=dtype == "bfloat16")


def synchronize() -> None:
    """Waits for the GPU if there is one; on the CPU torch has finished when it returns."""
    if device() == "cuda":
        torch.cuda.synchronize()


def device() -> str:
    """Torch's name of the device that JAX computes on."""
    return "cuda" if jax.default_backend() == "gpu" else "cpu"
