"""Torch's side of a comparison: the same network, weights, images and optimiser, as a person would write it.

Needs the extra `bench`. JAX draws nothing and computes nothing here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import cast

import numpy as np
import torch
from torch import nn

from experiments.benchmark.cases import Workload
from experiments.benchmark.engine import Built, Outputs
from experiments.benchmark.given import Network, given
from experiments.benchmark.jax_engine import CHECKED_IMAGES, LOSSES, OPTIMIZER
from experiments.benchmark.torch_twin import autocast, device, prepare, synchronize, to_torch, twin

TORCH, COMPILED = "torch", "torch.compile"


def inference(work: Workload, network: Network, compiled: bool = False) -> Built:
    """Logits of a batch."""
    prepare(work)
    variables, images, _ = given(work, network)
    model = made(twin(variables, network.config(), device(work)).eval(), compiled)
    inputs = to_torch(images, device(work))

    def infer() -> torch.Tensor:
        with torch.inference_mode(), autocast(work):
            logits = model(inputs)
        synchronize(work)
        return logits

    return Built({_name(compiled): infer}, lambda: {"logits": infer().float().cpu().numpy()})


def training(work: Workload, network: Network, compiled: bool = False) -> Built:
    """A training step on normalised images without augmentation."""
    prepare(work)
    variables, images, labels = given(work, network)
    model = made(twin(variables, network.config(), device(work)), compiled)
    step = train_step(work, model, to_torch(images, device(work)), labels)
    peak = torch.cuda.max_memory_allocated if work.device == "gpu" else None
    return Built({_name(compiled): step}, lambda: losses(work, network, compiled), peak)


def losses(work: Workload, network: Network, compiled: bool = False) -> Outputs:
    """As :func:`experiments.benchmark.jax_engine.losses`."""
    work = replace(work, batch_size=CHECKED_IMAGES, dtype="float32")
    variables, images, labels = given(work, network)
    model = made(twin(variables, network.config(), device(work)).double(), compiled)
    step = train_step(work, model, to_torch(images, device(work)).double(), labels)
    return {LOSSES: np.asarray([step().item(), step().item()])}


def train_step(work: Workload, model: nn.Module, inputs: torch.Tensor, labels: np.ndarray) -> Callable:
    """A training step; gives the loss."""
    kernels = [weight for weight in model.parameters() if weight.ndim > 1]
    others = [weight for weight in model.parameters() if weight.ndim <= 1]
    optimizer = torch.optim.SGD(
        [{"params": kernels, "weight_decay": OPTIMIZER.weight_decay}, {"params": others, "weight_decay": 0.0}],
        lr=OPTIMIZER.learning_rate,
        momentum=OPTIMIZER.momentum,
        nesterov=True,
        fused=True,
    )
    targets = torch.tensor(labels, dtype=torch.int64, device=device(work))

    def step() -> torch.Tensor:
        model.train()
        optimizer.zero_grad()
        with autocast(work):
            loss = nn.functional.cross_entropy(model(inputs), targets)
        loss.backward()
        optimizer.step()
        synchronize(work)
        return loss.detach()

    return step


def made(model: nn.Module, compiled: bool) -> nn.Module:
    """The model as it is, or compiled."""
    return cast(nn.Module, torch.compile(model)) if compiled else model


def _name(compiled: bool) -> str:
    return COMPILED if compiled else TORCH
