"""One training step and one evaluation step, as pure functions under jit."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import nullcontext
from functools import partial
from typing import Protocol

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from shuffle_jax.data import AugmentConfig, Batch, augment, normalize
from shuffle_jax.nn.collections import PENALTIES, penalty_sum, with_progress
from shuffle_jax.nn.remat import rematerialized
from shuffle_jax.sharding import batch_sharding, replicated
from shuffle_jax.streams import AUGMENTATION, DROPOUT
from shuffle_jax.train.config import TrainConfig
from shuffle_jax.train.frozen import stopped, with_frozen_norms
from shuffle_jax.train.images import MeanStd
from shuffle_jax.train.optimizer import learning_rate, make_optimizer, moving_average, penalty_weight, progress
from shuffle_jax.train.state import TrainState
from shuffle_jax.typing import Array, Float, Images, Key, PyTree

Values = dict[str, Float[Array, ""]]
"""What a step reports."""


class TrainStep(Protocol):
    """A jitted training step."""

    def __call__(self, state: TrainState, batch: Batch, /) -> tuple[TrainState, Values]:
        """The state after the step, and what it reports."""

    def lower(self, state: TrainState, batch: Batch, /) -> jax.stages.Lowered:
        """The traced program for states and batches of these types, shapes and shardings."""


EvalStep = Callable[[dict[str, PyTree], Batch], Values]


def make_train_step(
    network: nn.Module,
    config: TrainConfig,
    mesh: Mesh,
    *,
    steps_per_epoch: int,
    classes: int,
    mean_std: MeanStd,
    augmentation: AugmentConfig | None = None,
) -> TrainStep:
    """The training step: ``loss = cross entropy + penalty_weight(step) * sum of penalties``.

    The batch is split over the mesh; losses, batch statistics and gradients are those of the whole batch, whatever
    the number of devices. The state is donated: use the returned one.

    Args:
        network: called as ``network(images, train)``; sows penalties.
        config: of the run: optimiser, weight of the penalties, label smoothing, parts of a batch, rematerialisation,
            moving average, what is frozen.
        mesh: the devices.
        steps_per_epoch: turns steps into epochs.
        classes: number of logits.
        mean_std: for the normalisation.
        augmentation: what to do to the images; by default what the configuration says.

    Returns:
        ``step(state, batch) -> (state, values)``; the values are float32 scalars: ``loss`` (cross entropy alone),
        ``accuracy`` (on augmented images; against the heavier class under mixup and cutmix), ``penalty`` (weighted) and
        ``gradient_norm``.

    Raises:
        ValueError: the warm-up takes the whole training.
    """
    steps = config.epochs * steps_per_epoch
    optimizer = make_optimizer(config.optimizer, learning_rate(config.optimizer, steps, steps_per_epoch))
    trained = with_frozen_norms(network, config.optimizer.freeze)
    weight_at, progress_at = penalty_weight(config.penalty, steps), progress(steps)
    augmentation = config.augment if augmentation is None else augmentation

    def loss_function(
        params: PyTree,
        collections: dict[str, PyTree],
        weight: Float[Array, ""],
        key: Key,
        images: Images,
        targets: Array,
    ) -> tuple[Float[Array, ""], tuple[dict[str, PyTree], Values]]:
        with rematerialized() if config.remat else nullcontext():
            logits, updated = trained.apply(
                {"params": stopped(params, config.optimizer.freeze), **collections},
                images,
                train=True,
                mutable=[*collections, PENALTIES],
                rngs={"dropout": key},
            )
        penalty = weight * penalty_sum({"params": params, **updated})
        smooth = optax.smooth_labels(targets, config.label_smoothing)
        loss = optax.softmax_cross_entropy(logits, smooth).mean()
        accuracy = jnp.mean(logits.argmax(-1) == targets.argmax(-1), dtype=jnp.float32)
        values = {"loss": loss, "accuracy": accuracy, "penalty": penalty}
        return loss + penalty, ({name: updated[name] for name in collections}, values)

    @partial(jax.jit, donate_argnums=0, out_shardings=replicated(mesh))
    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Values]:
        targets = jax.nn.one_hot(batch.labels, classes, dtype=jnp.float32)
        epoch = jnp.asarray(state.step, jnp.float32) / steps_per_epoch
        stream = jax.random.fold_in(state.key, AUGMENTATION) if config.separate_streams else state.key
        key = jax.random.fold_in(stream, state.step)
        images, targets = augment(key, batch.images, targets, augmentation, *mean_std, epoch)
        images, targets = jax.lax.with_sharding_constraint((images, targets), batch_sharding(mesh))
        weight = jnp.asarray(weight_at(state.step), jnp.float32)
        collections = with_progress(state.collections, jnp.asarray(progress_at(state.step), jnp.float32))
        dropout = jax.random.fold_in(jax.random.fold_in(state.key, DROPOUT), state.step)
        keys = jax.random.split(dropout, config.accumulate)

        def gradients(
            collections: dict[str, PyTree], data: tuple[Key, Images, Array]
        ) -> tuple[dict[str, PyTree], tuple[PyTree, Values]]:
            gradient, (collections, values) = jax.grad(loss_function, has_aux=True)(
                state.params, collections, weight, *data
            )
            return collections, (gradient, values)

        if config.accumulate == 1:
            collections, (gradient, values) = gradients(collections, (keys[0], images, targets))
        else:
            parts = jax.tree.map(lambda a: split_batch(a, config.accumulate), (images, targets))
            collections, stacked = jax.lax.scan(gradients, collections, (keys, *parts))
            gradient, values = jax.tree.map(lambda a: a.mean(0), stacked)

        updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        average = state.average
        if average is not None:
            average = moving_average(average, params, state.step, config)
        state = state.replace(
            step=state.step + 1, params=params, collections=collections, opt_state=opt_state, average=average
        )
        return state, values | {"gradient_norm": optax.tree.norm(gradient)}

    return step


def split_batch(array: Array, parts: int) -> Float[Array, "parts m ..."]:
    """Cuts the leading axis into interleaved parts, so that each part lies on all devices of a sharded batch."""
    return jnp.swapaxes(array.reshape(array.shape[0] // parts, parts, *array.shape[1:]), 0, 1)


def make_eval_step(network: nn.Module, mesh: Mesh, mean_std: MeanStd, top: int = 5) -> EvalStep:
    """The evaluation step: sums over one batch, to be added up and divided by ``count``.

    Args:
        network: called as ``network(images, train=False)``.
        mesh: the devices.
        mean_std: for the normalisation.
        top: k of the top-k accuracy.

    Returns:
        ``step(variables, batch) -> sums`` with ``count``, ``loss`` (cross entropy), ``top1`` and ``top5`` summed over
        the examples of weight 1.
    """

    @partial(jax.jit, out_shardings=replicated(mesh))
    def step(variables: dict[str, PyTree], batch: Batch) -> Values:
        logits: Float[Array, "n k"] = network.apply(variables, normalize(batch.images, *mean_std), train=False)  # type: ignore[assignment]
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


def evaluate(step: EvalStep, variables: dict[str, PyTree], batches: Iterable[Batch]) -> dict[str, float]:
    """Averages an evaluation step over batches.

    Args:
        step: from :func:`make_eval_step`.
        variables: of the network.
        batches: those of a whole split.

    Returns:
        ``loss``, ``top1`` and ``top5`` per example.
    """
    total: Values | None = None
    for batch in batches:
        sums = step(variables, batch)
        if jax.default_backend() == "cpu":  # queued steps of several CPU devices can dead-lock in a collective
            jax.block_until_ready(sums)
        total = sums if total is None else jax.tree.map(jnp.add, total, sums)
    if total is None:
        raise ValueError("there is nothing to evaluate: the test split is empty")
    count = float(total.pop("count"))
    return {name: float(value) / count for name, value in total.items()}
