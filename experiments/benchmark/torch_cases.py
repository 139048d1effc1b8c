"""The benchmark's comparison with torch: the same network, weights, images and optimiser on both sides.

Needs the extra `bench`. Nothing is timed before :func:`verify` has found both networks to compute the same.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial

import flax.linen as linen
import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
from torch import nn

from experiments.benchmark.cases import CLASSES, Cases, Workload, advancing, normal, random_batch
from experiments.benchmark.torch_twin import autocast, device, exact_products, prepare, synchronize, to_torch, twin
from shuffle_jax.analysis.count import count
from shuffle_jax.models import NetworkConfig, build
from shuffle_jax.train.optimizer import OptimizerConfig, make_optimizer
from shuffle_jax.typing import Array, PyTree

OPTIMIZER = OptimizerConfig(learning_rate=0.001)
"""On both sides: SGD with Nesterov momentum 0.9, kernels decay by 1e-4."""

TOLERANCE = 1e-4
"""Largest relative difference of logits and losses that still counts as the same network."""

PASSES = 3
"""A step takes three times the multiply-adds of the logits: for these, and for the gradients by inputs and weights."""

CHECKED_IMAGES = 4
"""How many images :func:`verify` takes."""


def inference(work: Workload, config: NetworkConfig) -> Cases:
    """Logits of a batch, torch's and ours, ours also folded."""
    from shuffle_jax.deploy.fold import fold
    from shuffle_jax.deploy.route import route

    prepare()
    config = replace(config, dtype=work.dtype)
    verify(work.image_size, config)
    network, variables, images, _ = our_network(work, config)
    shape = work.image_size, work.image_size, 3
    folded = route(network, fold(network, variables, shape).variables, shape)
    models = torch_models(variables, config)

    def infer(model: nn.Module, images: torch.Tensor) -> None:
        with torch.inference_mode(), autocast(work.dtype):
            model(images)
        synchronize()

    return {
        **{name: partial(infer, model.eval(), to_torch(images)) for name, model in models.items()},
        "shuffle_jax": partial(jax.jit(network.apply), variables, images),
        "shuffle_jax, folded": partial(jax.jit(folded.apply), folded.params, images),
    }


def training(work: Workload, config: NetworkConfig) -> Cases:
    """A training step on normalised images without augmentation, torch's and ours.

    Beside them stands one product of square matrices that takes as many multiply-adds as the step: what the step would
    take at the rate of a large product.
    """
    prepare()
    config = replace(config, dtype=work.dtype)
    verify(work.image_size, config)
    network, variables, images, labels = our_network(work, config)
    step, state = our_step(network, variables)
    models = torch_models(variables, config)
    cases: Cases = {name: torch_step(work, model, images, labels) for name, model in models.items()}
    side = round(math.cbrt(PASSES * work.batch_size * count(network, images.shape[1:]).multiply_adds))
    matrix = normal(work, side, side)
    return {
        **cases,
        "shuffle_jax": advancing(step, state, images, labels),
        f"its multiply-adds in one product of {side} x {side}": partial(jax.jit(jnp.matmul), matrix, matrix),
    }


@cache
def verify(image_size: int, config: NetworkConfig) -> None:
    """Compares torch's network with ours, on images of this size.

    Compared are the logits in use in float32, and the losses of two training steps: the first checks the network in
    training, the second the gradients and the optimiser. These are in float64: in float32 a step of MobileNetV2 moves
    the loss by as much as 1e-3 of what it moves it by, and differently for each order of its sums.

    Raises:
        ArithmeticError: they differ by more than ``TOLERANCE``.
    """
    work, config = Workload(CHECKED_IMAGES, image_size), replace(config, dtype="float32")
    network, variables, images, labels = our_network(work, config)
    # Statistics of the images: those of the start, 0 and 1, would hide that they are not taken over.
    _, updated = jax.jit(partial(network.apply, train=True, mutable=["batch_stats"]))(variables, images)
    variables = {**variables, **updated}
    model = twin(variables, config)
    with exact_products(), torch.inference_mode():
        theirs = model.eval()(to_torch(images)).cpu().numpy()
        agree("logits", np.asarray(jax.jit(network.apply)(variables, images)), theirs)

    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):  # the classifier takes means in float32
        variables, images = jax.tree.map(lambda a: jnp.asarray(a, jnp.float64), (variables, images))
        step, state = our_step(network.clone(dtype=None), variables)  # the type of the images, then
        our_case, their_case = advancing(step, state, images, labels), torch_step(work, model.double(), images, labels)
        for name in ("losses of the first step", "losses of the second step"):
            agree(name, np.asarray(our_case()), their_case().cpu().numpy())


def agree(what: str, ours: np.ndarray, theirs: np.ndarray) -> None:
    """Raises ArithmeticError if two arrays differ by more than ``TOLERANCE`` of the largest value."""
    difference = np.abs(ours - theirs).max() / np.abs(ours).max()
    if not difference <= TOLERANCE:
        raise ArithmeticError(
            f"torch and shuffle_jax do not compute the same, so their times are not compared: the {what} differ by "
            f"{difference:.1e} of their largest value, above {TOLERANCE:.0e}"
        )


def our_network(work: Workload, config: NetworkConfig) -> tuple[linen.Module, dict[str, PyTree], Array, Array]:
    """Our network, its variables, normalised images and labels."""
    network = build(config, CLASSES)
    images = normal(work, work.batch_size, work.image_size, work.image_size, 3, dtype="float32")
    variables = dict(jax.jit(network.init)(jax.random.key(0), images[:1]))
    return network, variables, images, random_batch(work).labels


def our_step(network: linen.Module, variables: PyTree) -> tuple[Callable, PyTree]:
    """Our training step ``(state, images, labels) -> (state, loss)``, which takes its state over, and a first state."""
    optimizer = make_optimizer(OPTIMIZER, optax.constant_schedule(OPTIMIZER.learning_rate))

    def loss_function(params: PyTree, statistics: PyTree, images: Array, labels: Array) -> tuple[Array, PyTree]:
        variables = {"params": params, "batch_stats": statistics}
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


def torch_step(work: Workload, model: nn.Module, images: Array, labels: Array) -> Callable[[], torch.Tensor]:
    """The same training step in torch; gives the loss."""
    kernels = [weight for weight in model.parameters() if weight.ndim > 1]
    others = [weight for weight in model.parameters() if weight.ndim <= 1]
    optimizer = torch.optim.SGD(
        [{"params": kernels, "weight_decay": OPTIMIZER.weight_decay}, {"params": others, "weight_decay": 0.0}],
        lr=OPTIMIZER.learning_rate,
        momentum=OPTIMIZER.momentum,
        nesterov=True,
        fused=True,
    )
    inputs, targets = to_torch(images), torch.tensor(np.asarray(labels), dtype=torch.int64, device=device())

    def step() -> torch.Tensor:
        model.train()
        optimizer.zero_grad()
        with autocast(work.dtype):
            loss = nn.functional.cross_entropy(model(inputs), targets)
        loss.backward()
        optimizer.step()
        synchronize()
        return loss.detach()

    return step


def torch_models(variables: PyTree, config: NetworkConfig) -> dict[str, nn.Module]:
    """The twin of our network; on a GPU also compiled."""
    models: dict[str, nn.Module] = {"torch": twin(variables, config)}
    if device() == "cuda":
        models["torch.compile"] = torch.compile(twin(variables, config))
    return models
