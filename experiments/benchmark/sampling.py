"""Networks that sample by what the image chooses beside the same with strides: an inference and a training step."""

from __future__ import annotations

from dataclasses import replace

from experiments.benchmark import cases
from experiments.benchmark.cases import Cases, Workload
from shuffle_jax.models import NetworkConfig

STRIDE = "strides"
OPTIONS: dict[str, dict[str, object]] = {
    STRIDE: {"sampling": "stride"},
    "polyphase": {"sampling": "aps"},
    "polyphase, blur 3": {"sampling": "aps", "aps": {"blur": 3}},
}
NETWORKS = {
    "shufflenet": NetworkConfig(family="shufflenet_v2", mixer="shuffle"),
    "mobilenet": NetworkConfig(family="mobilenet_v2", mixer="identity"),
    "resnet": NetworkConfig(family="resnet", mixer="identity", depth=18, width=0.25),
}


def steps(work: Workload, config: NetworkConfig, training: bool) -> Cases:
    """A network with strides and with each sampling."""
    configs = {label: replace(config, **options) for label, options in OPTIONS.items()}  # type: ignore[arg-type]
    return cases.steps(work, configs, training)
