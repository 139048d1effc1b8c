"""Networks that sample by what the image chooses beside the same with strides: an inference and a training step."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import optax

from experiments.benchmark.cases import CLASSES, Cases, Workload, advancing, normal, random_batch, train_step
from shuffle_jax.models import NetworkConfig, build
from shuffle_jax.train.optimizer import OptimizerConfig, make_optimizer
from shuffle_jax.train.state import first_state

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
    optimizer = make_optimizer(OptimizerConfig(), optax.constant_schedule(1e-3))
    images = normal(work, work.batch_size, work.image_size, work.image_size, 3)
    cases: Cases = {}
    for label, options in OPTIONS.items():
        network = build(replace(config, dtype=work.dtype, **options), CLASSES)  # type: ignore[arg-type]
        variables = dict(jax.jit(network.init)(jax.random.key(0), jnp.zeros_like(images[:1])))
        if training:
            state = first_state(jax.random.key(1), variables, optimizer)
            cases[label] = advancing(train_step(network), state, random_batch(work))
        else:
            cases[label] = partial(jax.jit(network.apply), variables, images)
    return cases
