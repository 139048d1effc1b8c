"""Dynamic convolution decomposition in torch, from its published equation, with torch's own layers.

Needs the extra `bench`.
"""

from __future__ import annotations

import jax
import numpy as np
import torch
from torch import nn

from experiments.benchmark.cases import Workload
from experiments.benchmark.convolutions import OUTPUT, SHAPES, TORCH_DCD, inputs, variables_of
from experiments.benchmark.engine import Built
from experiments.benchmark.torch_engine import made
from experiments.benchmark.torch_twin import autocast, device, prepare, synchronize, to_torch
from shuffle_jax.nn.dynamic_conv import Sizes
from shuffle_jax.typing import PyTree


class DynamicConv2d(nn.Module):
    """``y = lambda(x) (W0 * x) + P (N2(Phi(x) q) + q)``, ``q = N1(Q * x)``: a static kernel and a latent correction."""

    def __init__(self, inputs: int, features: int, size: int, stride: int, sizes: Sizes) -> None:
        super().__init__()
        pool, latent, hidden = sizes
        self.latent = latent
        self.kernel = nn.Conv2d(inputs, features, size, stride, size // 2, bias=False)
        self.q = nn.Conv2d(inputs, latent, 1, stride, bias=False)
        self.norm1 = nn.BatchNorm2d(latent)
        self.norm2 = nn.BatchNorm2d(latent)
        self.p = nn.Conv2d(latent, features, 1, bias=False)
        self.pool = nn.AdaptiveAvgPool2d(pool)
        self.squeeze = nn.Linear(inputs * pool**2, hidden, bias=False)
        self.gate = nn.Linear(hidden, hidden, bias=False)
        self.fusion = nn.Linear(hidden, latent**2, bias=False)
        self.scale = nn.Linear(hidden, features, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Maps (n, c, h, w) to (n, features, h / stride, w / stride)."""
        h = self.squeeze(self.pool(x).flatten(1))
        h = h * _hard_gate(self.gate(h))
        phi = self.fusion(h).unflatten(1, (self.latent, self.latent))
        q = self.norm1(self.q(x))
        fused = torch.bmm(phi, q.flatten(2)).view_as(q)
        gate = _hard_gate(self.scale(h))[:, :, None, None]
        return gate * self.kernel(x) + self.p(self.norm2(fused) + q)


def _hard_gate(z: torch.Tensor) -> torch.Tensor:
    return nn.functional.relu6(z + 3) / 3


def layer(work: Workload, shape: str, compiled: bool = False) -> Built:
    """The layer of ``SHAPES[shape]`` in evaluation, with the weights of ours."""
    prepare(work)
    own = SHAPES[shape]
    sizes = own.rule(own.channels, own.features, 16)
    plain = DynamicConv2d(own.channels, own.features, own.kernel_size, own.stride, sizes)
    plain.load_state_dict(weights(variables_of(own)))
    model = made(plain.to(device(work)).to(memory_format=torch.channels_last).eval(), compiled)
    images = to_torch(inputs(work, own), device(work))

    def infer() -> torch.Tensor:
        with torch.inference_mode(), autocast(work):
            y = model(images)
        synchronize(work)
        return y

    return Built({TORCH_DCD: infer}, lambda: {OUTPUT: infer().float().cpu().numpy().transpose(0, 2, 3, 1)})


def weights(variables: PyTree) -> dict[str, torch.Tensor]:
    """Ours in torch's order and under torch's names."""
    names = {"scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var", "kernel": "weight"}
    found = {}
    for collection in ("params", "batch_stats"):
        for path, leaf in jax.tree_util.tree_leaves_with_path(variables[collection]):
            *modules, name = (key.key for key in path)
            place = [modules[-1], names[name]] if modules else [name, "weight"]
            axes = {2: (1, 0), 4: (3, 2, 0, 1)}.get(leaf.ndim)
            found[".".join(place)] = torch.tensor(np.asarray(leaf).transpose(axes))
    return found | {f"norm{k}.num_batches_tracked": torch.tensor(0) for k in (1, 2)}
