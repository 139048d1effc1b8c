"""One training step and one evaluation step, as pure functions under jit."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from shuffle_jax.data import AugmentConfig, Batch, augment, normalize
from shuffle_jax.nn.collections import PENALTIES
from shuffle_jax.sharding import batch_sharding, replicated
from shuffle_jax.train.state import TrainState, network_variables
from shuffle_jax.typing import Array, Float, Images, Key, PyTree

Metrics = dict[str, Float[Array, ""]]
Pixels = tuple[tuple[float, ...], tuple[float, ...]]
"""Mean and standard deviation of the training pixels per channel, in units of [0, 1]."""

DROPOUT = 2**32 - 1
"""Folded into the key of a run it gives the stream of dropout. Steps, which give those of augmentation, stay below."""


def make_train_step(
    network: nn.Module,
    optimizer: optax.GradientTransformation,
    penalty_weight: optax.Schedule,
    mesh: Mesh,
    *,
    classes: int,
    pixels: Pixels,
    augmentation: AugmentConfig,
    label_smoothing: float = 0.0,
    accumulate: int = 1,
    average_decay: float = 0.0,
    progress: optax.Schedule = lambda step: 1.0,
    steps_per_epoch: int | None = None,
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
    """The training step: ``loss = cross entropy + penalty_weight(step) * sum of penalties``.

    The batch is split over the mesh; losses, batch statistics and gradients are those of the whole batch, whatever
    the number of devices. The state is donated: use the returned one.

    Args:
        network: called as ``network(images, train)``; sows penalties.
        optimizer: turns gradients into updates.
        penalty_weight: weight of the penalties at each step.
        mesh: the devices.
        classes: number of logits.
        pixels: mean and deviation for the normalisation.
        augmentation: what to do to the images.
        label_smoothing: share of each target spread evenly over all classes, in [0, 1).
        accumulate: parts into which a batch is cut; their gradients are averaged before one update. Batch statistics
            are those of a part.
        average_decay: of the moving average of the parameters, where the state has one.
        progress: the share of the training that is done after each step, for layers that change over the training.
        steps_per_epoch: turns steps into epochs, for augmentation that changes over them.

    Returns:
        ``step(state, batch) -> (state, metrics)``; metrics are float32 scalars: ``loss`` (cross entropy alone),
        ``accuracy`` (on augmented images; against the heavier class under mixup and cutmix), ``penalty`` (weighted) and
        ``gradient_norm``.

    Raises:
        ValueError: mixup rises over epochs, and there are no ``steps_per_epoch``; when the step is traced.
    """

    def loss_function(
        params: PyTree,
        statistics: PyTree,
        permutations: PyTree,
        progress: PyTree,
        weight: Float[Array, ""],
        key: Key,
        images: Images,
        targets: Array,
    ) -> tuple[Float[Array, ""], tuple[PyTree, Metrics]]:
        variables = network_variables(params, statistics, permutations, progress)
        collections, streams = ["batch_stats", PENALTIES], {"dropout": key}
        logits, updated = network.apply(variables, images, train=True, mutable=collections, rngs=streams)
        penalty = weight * sum(jax.tree.leaves(updated.get(PENALTIES, {})), start=jnp.zeros(()))
        smooth = optax.smooth_labels(targets, label_smoothing)
        loss = optax.softmax_cross_entropy(logits, smooth).mean()
        accuracy = jnp.mean(logits.argmax(-1) == targets.argmax(-1), dtype=jnp.float32)
        metrics = {"loss": loss, "accuracy": accuracy, "penalty": penalty}
        return loss + penalty, (updated.get("batch_stats", {}), metrics)

    @partial(jax.jit, donate_argnums=0, out_shardings=replicated(mesh))
    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        targets = jax.nn.one_hot(batch.labels, classes)
        epoch = None if steps_per_epoch is None else jnp.asarray(state.step, jnp.float32) / steps_per_epoch
        images, targets = augment(
            jax.random.fold_in(state.key, state.step), batch.images, targets, augmentation, *pixels, epoch
        )
        images, targets = jax.lax.with_sharding_constraint((images, targets), batch_sharding(mesh))
        weight = jnp.asarray(penalty_weight(state.step), jnp.float32)
        share = jax.tree.map(lambda _: jnp.asarray(progress(state.step), jnp.float32), state.progress)
        keys = jax.random.split(jax.random.fold_in(jax.random.fold_in(state.key, DROPOUT), state.step), accumulate)

        def part(statistics: PyTree, data: tuple[Key, Images, Array]) -> tuple[PyTree, tuple[PyTree, Metrics]]:
            gradient, (statistics, metrics) = jax.grad(loss_function, has_aux=True)(
                state.params, statistics, state.permutations, share, weight, *data
            )
            return statistics, (gradient, metrics)

        if accumulate == 1:
            statistics, (gradient, metrics) = part(state.statistics, (keys[0], images, targets))
        else:
            parts = jax.tree.map(lambda a: split_batch(a, accumulate), (images, targets))
            statistics, stacked = jax.lax.scan(part, state.statistics, (keys, *parts))
            gradient, metrics = jax.tree.map(lambda a: a.mean(0), stacked)

        updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        average = state.average
        if average is not None:
            average = optax.incremental_update(params, average, 1 - average_decay)
        state = state.replace(
            step=state.step + 1,
            params=params,
            statistics=statistics,
            opt_state=opt_state,
            average=average,
            progress=share,
        )
        return state, metrics | {"gradient_norm": optax.tree.norm(gradient)}

    return step


def split_batch(array: Array, parts: int) -> Float[Array, "parts m ..."]:
    """Cuts the leading axis into interleaved parts, so that each part lies on all devices of a sharded batch."""
    return jnp.swapaxes(array.reshape(array.shape[0] // parts, parts, *array.shape[1:]), 0, 1)


def make_eval_step(
    network: nn.Module, mesh: Mesh, *, pixels: Pixels, top: int = 5
) -> Callable[[dict[str, PyTree], Batch], Metrics]:
    """The evaluation step: sums over one batch, to be added up and divided by ``count``.

    Args:
        network: called as ``network(images, train=False)``.
        mesh: the devices.
        pixels: mean and deviation for the normalisation.
        top: k of the top-k accuracy.

    Returns:
        ``step(variables, batch) -> sums`` with ``count``, ``loss`` (cross entropy), ``top1`` and ``top5`` summed over
        the examples of weight 1.
    """

    @partial(jax.jit, out_shardings=replicated(mesh))
    def step(variables: dict[str, PyTree], batch: Batch) -> Metrics:
        logits: Float[Array, "n k"] = network.apply(variables, normalize(batch.images, *pixels), train=False)  # type: ignore[assignment]
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, batch.labels)
        own = jnp.take_along_axis(logits, batch.labels[:, None], axis=-1)
        # The rank of the own class, ties counted against it; NaN counts as wrong.
        rank = jnp.sum(~(logits < own), axis=-1) - 1
        return {
            "count": batch.weight.sum(),
            "loss": (batch.weight * loss).sum(),
            "top1": batch.weight.sum(where=rank < 1),
            f"top{top}": batch.weight.sum(where=rank < top),
        }

    return step


def evaluate(
    step: Callable[[dict[str, PyTree], Batch], Metrics], variables: dict[str, PyTree], batches: Iterable[Batch]
) -> dict[str, float]:
    """Averages an evaluation step over batches.

    Args:
        step: from :func:`make_eval_step`.
        variables: of the network.
        batches: those of a whole split.

    Returns:
        ``loss``, ``top1`` and ``top5`` per example.
    """
    total: Metrics | None = None
    for batch in batches:
        sums = step(variables, batch)
        if jax.default_backend() == "cpu":  # queued steps of several CPU devices can dead-lock in a collective
            jax.block_until_ready(sums)
        total = sums if total is None else jax.tree.map(jnp.add, total, sums)
    if total is None:
        raise ValueError("there is nothing to evaluate: the test split is empty")
    count = float(total.pop("count"))
    return {name: float(value) / count for name, value in total.items()}
