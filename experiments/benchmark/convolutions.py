"""What the benchmark measures of convolutions that depend on the image."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.benchmark.cases import CLASSES, Cases, Workload, advancing, normal, random_batch, train_step
from experiments.benchmark.engine import Built
from experiments.benchmark.given import drawn
from shuffle_jax.deploy.folding import fold
from shuffle_jax.models import NetworkConfig, build
from shuffle_jax.models.config import HeadKind, PointwiseKind
from shuffle_jax.models.decomposition import basic_sizes
from shuffle_jax.nn import CondConv, Conv, DYConv, DynamicConv
from shuffle_jax.nn.dynamic_conv import Form, Rule, default_sizes
from shuffle_jax.train.optimizer import OptimizerConfig, make_optimizer
from shuffle_jax.train.state import first_state
from shuffle_jax.typing import Array, PyTree

STATIC, DECOMPOSED, COND, DY = "static", "DCD", "CondConv", "DY-Conv"
TORCH_DCD = "torch, DCD"
KINDS: dict[str, tuple[PointwiseKind, HeadKind]] = {
    STATIC: ("plain", "plain"),
    DECOMPOSED: ("dcd", "dcd"),
    COND: ("condconv", "plain"),
    DY: ("dyconv", "plain"),
}


OUTPUT = "output of the decomposed layer"


class Shape(NamedTuple):
    """A layer of a network: its channels, window and the height and width of its input at 32 x 32 pixels."""

    channels: int
    features: int
    kernel_size: int
    stride: int
    side: int
    rule: Rule = default_sizes


SHAPES = {
    "expand-24": Shape(24, 144, 1, 1, 16),
    "project-24": Shape(144, 24, 1, 1, 16),
    "expand-96": Shape(96, 576, 1, 1, 4),
    "project-96": Shape(576, 96, 1, 1, 4),
    "basic-64": Shape(64, 64, 3, 1, 32, basic_sizes),
    "basic-256": Shape(256, 256, 3, 1, 8, basic_sizes),
}
"""Layers of MobileNetV2 1.0x and ResNet-18, early and late."""

NETWORKS = {
    "mobilenet": NetworkConfig(family="mobilenet_v2", width=0.5, mixer="identity"),
    "resnet": NetworkConfig(family="resnet", depth=18, mixer="identity"),
}


def layer(work: Workload, name: str) -> Built:
    """A layer in evaluation: static, each form of the decomposition, and sums of kernels in the form they choose."""
    shape = SHAPES[name]
    x = jnp.asarray(inputs(work, shape), work.dtype)
    window = shape.features, shape.kernel_size, shape.stride
    layers: dict[str, nn.Module] = {
        STATIC: Conv(*window),
        DECOMPOSED: _decomposed(shape),
        f"{DECOMPOSED}, features": _decomposed(shape, "features"),
        f"{DECOMPOSED}, kernels": _decomposed(shape, "kernels"),
        COND: CondConv(*window),
        DY: DYConv(*window),
    }
    image = shape.side, shape.side, shape.channels
    cases: Cases = {label: partial(_inference(module, drawn(module, image)), x) for label, module in layers.items()}
    return Built(cases, lambda: {OUTPUT: np.asarray(cases[DECOMPOSED](), np.float32)})


def inputs(work: Workload, shape: Shape) -> np.ndarray:
    """What every engine gives its layer."""
    numbers = np.random.default_rng(0).standard_normal((work.batch_size, shape.side, shape.side, shape.channels))
    return numbers.astype(np.float32)


def variables_of(shape: Shape) -> dict[str, PyTree]:
    """Of the decomposed layer, in every engine."""
    return drawn(_decomposed(shape), (shape.side, shape.side, shape.channels))


def _decomposed(shape: Shape, form: Form = "auto") -> DynamicConv:
    return DynamicConv(shape.features, shape.kernel_size, shape.stride, rule=shape.rule, form=form)


def inference(work: Workload, config: NetworkConfig) -> Cases:
    """A network in evaluation with each kind of convolution, and with its batch norms folded."""
    images = normal(work, work.batch_size, work.image_size, work.image_size, 3)
    cases: Cases = {}
    for label, (network, variables) in _made(work, config):
        cases[label] = partial(_inference(network, variables), images)
        folded = fold(network, variables, (work.image_size, work.image_size, 3)).variables
        cases[f"{label}, folded"] = partial(_inference(network, folded), images)
    return cases


def training(work: Workload, config: NetworkConfig) -> Cases:
    """A step of training with each kind of convolution."""
    optimizer = make_optimizer(OptimizerConfig(), optax.constant_schedule(1e-3))
    batch = random_batch(work)
    cases: Cases = {}
    for label, (network, variables) in _made(work, config):
        state = first_state(jax.random.key(1), variables, optimizer)
        cases[label] = advancing(train_step(network), state, batch)
    return cases


def memory(work: Workload, config: NetworkConfig) -> dict[str, list[float]]:
    """Bytes that the compiled program of evaluation needs beside its weights, for one image and for a batch.

    Raises:
        ArithmeticError: the backend does not say.
    """
    found: dict[str, list[float]] = {}
    for label, (network, variables) in _made(work, config):
        for images in (1, work.batch_size):
            shape = jax.ShapeDtypeStruct((images, work.image_size, work.image_size, 3), jnp.dtype(work.dtype))
            compiled = jax.jit(network.apply).lower(variables, shape).compile()
            analysis = compiled.memory_analysis()
            if analysis is None:
                raise ArithmeticError("this backend does not say how much memory a program needs")
            found.setdefault(label, []).append(analysis.temp_size_in_bytes)
    return found


def _made(work: Workload, config: NetworkConfig) -> list[tuple[str, tuple[nn.Module, dict[str, PyTree]]]]:
    images = jnp.zeros((1, work.image_size, work.image_size, 3))
    made = []
    for label, (pointwise, head) in KINDS.items():
        network = build(replace(config, pointwise=pointwise, head=head, dtype=work.dtype), CLASSES)
        made.append((label, (network, dict(jax.jit(network.init)(jax.random.key(0), images)))))
    return made


def _inference(network: nn.Module, variables: dict[str, PyTree]) -> partial[Array]:
    return partial(jax.jit(network.apply), variables)
