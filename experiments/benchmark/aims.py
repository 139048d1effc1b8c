"""The aims that the tables stand beside, for the CPU in float32: medians over the rounds, at most."""

from __future__ import annotations

from experiments.benchmark.cases import DYNAMIC, FIXED, RELAXED, Workload
from experiments.benchmark.convolutions import DECOMPOSED, DY, SHAPES, STATIC, TORCH_DCD
from experiments.benchmark.jax_engine import EXPORTED, OURS
from experiments.benchmark.showing import Goal

BATCH_SIZE, DYNAMIC_BATCH_SIZE = 64, 32
"""Of the tables with aims, and of those of dynamic convolutions. At 224 pixels training takes a quarter."""

Goals = dict[str, tuple[Goal, ...]]

TRAINING = {
    # network and pixels: of torch's time
    "shufflenet-32": 0.80,
    "mobilenet-32": 0.90,
    "shufflenet-224": 0.75,
    "mobilenet-224": 0.90,
    "resnet-32": 1.00,
}

OF_NETWORKS: dict[str, Goals] = {
    **{f"torch-{name}": {OURS: (Goal(limit),)} for name, limit in TRAINING.items()},
    **{
        f"torch-inference-{network}-{size}{suffix}": {EXPORTED: (Goal(1.00, "ONNX Runtime"),)}
        for network in ("shufflenet", "mobilenet")
        for size in (32, 224)
        for suffix in ("", "-1")
    },
    "torch-memory-shufflenet": {f"{OURS}, freed memory kept": (Goal(1.10),)},
    "torch-memory-mobilenet": {f"{OURS}, freed memory kept": (Goal(1.10),)},
    "training": {RELAXED: (Goal(1.25),), DYNAMIC: (Goal(1.15),)},
    "inference": {f"{DYNAMIC}, folded": (Goal(1.05, f"{FIXED}, folded"),)},
    "inference-1": {f"{DYNAMIC}, folded": (Goal(1.15, f"{FIXED}, folded"),)},
}

_folded, _static = f"{DECOMPOSED}, folded", f"{STATIC}, folded"
_never_slower = Goal(1.00, f"{DY}, folded")

OF_DYNAMIC_CONVOLUTIONS: dict[str, Goals] = {
    "mobilenet-inference": {_folded: (Goal(1.20, _static), _never_slower)},
    "mobilenet-inference-1": {_folded: (Goal(1.60, _static), _never_slower)},
    "mobilenet-training": {DECOMPOSED: (Goal(1.30),)},
    **{f"dynamic-{name}{suffix}": {DECOMPOSED: (Goal(0.50, TORCH_DCD),)} for name in SHAPES for suffix in ("", "-1")},
}


def goals(name: str, work: Workload) -> Goals:
    """Those of a table; none where the workload is another one than that of the aim."""
    own = OF_NETWORKS.get(name, {})
    if name in OF_DYNAMIC_CONVOLUTIONS:
        own = OF_DYNAMIC_CONVOLUTIONS[name]
    usual = work == Workload(batch_size(name))
    return own if usual else {}


def batch_size(name: str) -> int:
    """Of a table's aim."""
    return DYNAMIC_BATCH_SIZE if name in OF_DYNAMIC_CONVOLUTIONS else BATCH_SIZE


def aimed() -> list[str]:
    """The names of all tables that have an aim."""
    return [*OF_NETWORKS, *OF_DYNAMIC_CONVOLUTIONS]
