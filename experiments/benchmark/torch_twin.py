"""A network in torch with the weights of ours, in channels-last format, on the kind of device and the cores of JAX.

Needs the extra `bench`.
"""

from __future__ import annotations

import jax
import numpy as np
import torch

from experiments.benchmark.cases import CLASSES, Workload
from experiments.benchmark.torch_networks import TorchNetwork, torch_network
from shuffle_jax.models import NetworkConfig
from shuffle_jax.sharding import cores
from shuffle_jax.typing import PyTree

LEAVES = {"kernel": "weight", "scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}


def twin(variables: PyTree, config: NetworkConfig, device: str) -> TorchNetwork:
    """The network in torch with the weights and running statistics of ours.

    Args:
        variables: of our network.
        config: of that network, one of those that :func:`experiments.benchmark.torch_networks.torch_network` has.
        device: torch's name of it.

    Returns:
        A module in channels-last format.
    """
    network = torch_network(config, CLASSES)
    weights = {}
    for collection in ("params", "batch_stats"):
        for path, leaf in jax.tree_util.tree_leaves_with_path(variables[collection]):
            axes = {2: (1, 0), 4: (3, 2, 0, 1)}.get(leaf.ndim)  # dense io to oi, convolutions HWIO to OIHW
            name = torch_name(network.PLACES, *(key.key for key in path))
            weights[name] = torch.tensor(np.asarray(leaf).transpose(axes))
    network.load_state_dict(weights)  # strict: every array of either side has its place on the other
    return network.to(device).to(memory_format=torch.channels_last)


def torch_name(places: dict[str, str], *path: str) -> str:
    """Where torch keeps one of our arrays: "stage3_1", "norm2", "scale" is "stage3_1.right2.norm.weight"."""
    *modules, layer, leaf = path
    return ".".join([*modules, places.get(layer, layer), LEAVES[leaf]])


def prepare(work: Workload) -> None:
    """Gives torch the cores that JAX has, and on a GPU the same freedom in products of float32: TF32.

    Raises:
        ValueError: JAX computes where this torch cannot.
    """
    if work.device not in ("cpu", "gpu") or (work.device == "gpu" and not torch.cuda.is_available()):
        raise ValueError(f"JAX computes on the {work.device} and this torch cannot: install a torch that does")
    torch.set_num_threads(cores())
    torch.backends.cudnn.benchmark = True
    torch.set_float32_matmul_precision("high")


def to_torch(images: np.ndarray, device: str) -> torch.Tensor:
    """Images (n, h, w, c) as (n, c, h, w) in channels-last format."""
    return torch.tensor(images, device=device).permute(0, 3, 1, 2)  # a view: the channels stay last in memory


def autocast(work: Workload) -> torch.autocast:
    """Computes in bfloat16 where that is asked for."""
    return torch.autocast(device(work), torch.bfloat16, enabled=work.dtype == "bfloat16")


def synchronize(work: Workload) -> None:
    """Waits for the GPU if there is one; on the CPU torch has finished when it returns."""
    if work.device == "gpu":
        torch.cuda.synchronize()


def device(work: Workload) -> str:
    """Torch's name of the kind of device that JAX computes on."""
    return "cuda" if work.device == "gpu" else "cpu"
