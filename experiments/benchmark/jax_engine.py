"""Our side of a comparison with other engines."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.benchmark.cases import CLASSES, Cases, Workload, advancing, normal, through_a_file
from experiments.benchmark.engine import Built, Outputs
from experiments.benchmark.given import Network, given
from shuffle_jax.analysis.count import count
from shuffle_jax.models import build
from shuffle_jax.nn.remat import rematerialized
from shuffle_jax.train.optimizer import OptimizerConfig, make_optimizer
from shuffle_jax.typing import Array, PyTree

OURS, REMAT, EXPORTED = "shuffle_jax", "shuffle_jax, remat", "shuffle_jax, folded and exported"

OPTIMIZER = OptimizerConfig(learning_rate=0.001)
"""In every engine: SGD with Nesterov momentum 0.9, kernels decay by 1e-4."""

PASSES = 3
"""A step takes three times the multiply-adds of the logits: for these, and for the gradients by inputs and weights."""

CHECKED_IMAGES = 4
"""Of the training steps that are compared in float64."""

LOSSES = "losses of two steps in float64"


def inference(work: Workload, network: Network) -> Built:
    """Logits of a batch, by what a user runs: the network folded, exported and loaded again."""
    from shuffle_jax.deploy.folding import fold
    from shuffle_jax.deploy.routing import route

    variables, pixels, _ = given(work, network)
    model, images = build(network.config(work.dtype), CLASSES), jnp.asarray(pixels)
    shape = work.image_size, work.image_size, 3
    case = partial(through_a_file(route(model, fold(model, variables, shape).variables, shape), images), images)
    return Built({EXPORTED: case}, lambda: {"logits": np.asarray(case(), np.float32)})


def training(work: Workload, network: Network) -> Built:
    """A training step on normalised images without augmentation.

    Beside it stands one product of square matrices that takes as many multiply-adds as the step: what the step would
    take at the rate of a large product.
    """
    model = build(network.config(work.dtype), CLASSES)
    variables, images, labels = given(work, network)
    step, state = train_step(model, jax.tree.map(jnp.asarray, variables))
    side = round(math.cbrt(PASSES * work.batch_size * count(model, images.shape[1:]).multiply_adds))
    matrix = normal(work, side, side)
    cases: Cases = {
        OURS: advancing(step, state, jnp.asarray(images), jnp.asarray(labels, jnp.int32)),
        f"its multiply-adds in one product of {side} x {side}": partial(jax.jit(jnp.matmul), matrix, matrix),
    }
    return Built(cases, partial(losses, work, network), device_peak())


def remat(work: Workload, network: Network) -> Built:
    """The same training step, of which the gradient keeps the inputs of units alone."""
    variables, images, labels = given(work, network)
    step, state = train_step(build(network.config(work.dtype), CLASSES), jax.tree.map(jnp.asarray, variables), True)
    case = advancing(step, state, jnp.asarray(images), jnp.asarray(labels, jnp.int32))
    return Built({REMAT: case}, partial(losses, work, network, True), device_peak())


def losses(work: Workload, network: Network, again: bool = False) -> Outputs:
    """The losses of two training steps: the first checks the network, the second the gradients and the optimiser.

    In float64: in float32 a step of MobileNetV2 moves the loss by as much as 1e-3 of what it moves it by, and
    differently for each order of its sums.
    """
    drawn, pixels, labels = given(replace(work, batch_size=CHECKED_IMAGES), network)
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):  # the classifier takes means in float32
        variables, images = jax.tree.map(lambda a: jnp.asarray(a, jnp.float64), (drawn, pixels))
        model = build(network.config(), CLASSES).clone(dtype=None)  # computes in the type of the images, then
        step, state = train_step(model, variables, again)
        case = advancing(step, state, images, jnp.asarray(labels, jnp.int32))
        return {LOSSES: np.asarray([case(), case()])}


def train_step(network: nn.Module, variables: PyTree, again: bool = False) -> tuple[Callable, PyTree]:
    """A training step ``(state, images, labels) -> (state, loss)``, which takes its state over, and a first state."""
    optimizer = make_optimizer(OPTIMIZER, optax.constant_schedule(OPTIMIZER.learning_rate))

    def loss_function(params: PyTree, statistics: PyTree, images: Array, labels: Array) -> tuple[Array, PyTree]:
        variables = {"params": params, "batch_stats": statistics}
        with rematerialized() if again else nullcontext():
            logits, updated = network.apply(variables, images, train=True, mutable=["batch_stats"])
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean(), updated["batch_stats"]

    @partial(jax.jit, donate_argnums=0)
    def step(state: tuple[PyTree, PyTree, PyTree], images: Array, labels: Array) -> tuple[PyTree, Array]:
        params, statistics, opt_state = state
        gradient = jax.value_and_grad(loss_function, has_aux=True)
        (loss, statistics), gradients = gradient(params, statistics, images, labels)
        updates, opt_state = optimizer.update(gradients, opt_state, params)
        return (optax.apply_updates(params, updates), statistics, opt_state), loss

    params, statistics = jax.tree.map(jnp.copy, (variables["params"], variables["batch_stats"]))
    return step, (params, statistics, optimizer.init(params))


def device_peak() -> Callable[[], int] | None:
    """What asks a GPU how much was in use at most; None where JAX computes in the memory of the process."""
    if jax.default_backend() == "cpu":
        return None
    return lambda: (jax.devices()[0].memory_stats() or {})["peak_bytes_in_use"]
