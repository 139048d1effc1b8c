"""Why permutations that depend on the image do or do not arise: what the gradient of a head is made of, measured."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from shuffle_jax.data import Batch, load, normalize
from shuffle_jax.nn.collections import FACTORS, PENALTIES
from shuffle_jax.sharding import data_mesh
from shuffle_jax.train.config import TrainConfig
from shuffle_jax.train.optimizer import learning_rate, make_optimizer
from shuffle_jax.train.state import TrainState, init_state
from shuffle_jax.train.step import make_train_step
from shuffle_jax.typing import Array, Float, PyTree

HEAD = "generator"
READ = ("norm", "hidden", "logits")
"""The layers of a head whose inputs are read."""

Layers = dict[str, float]
"""By the path of a head."""


@dataclass(frozen=True)
class Probe:
    """What one batch says about the heads at one time of the training; by the path of each head where it differs.

    Attributes:
        pooled: the share of the batch mean in the squared norm of the pooled vector.
        read: the same of what the hidden layer reads, behind the norm if there is one.
        hidden: the same of the hidden layer's outputs.
        coherence: the norm of the mean gradient of the logits over the mean norm of each image's.
        factor: the mean factor A_ij off the start's diagonal, by which a softmax multiplies a logit's gradient.
        margin: the smallest lead of the start's permutation in any row of any image: of a logit over the largest other.
        norm: of the whole gradient of the task.
        heads: the norm of what of it the heads receive.
        kernels: the gradient of the last kernel of each head, to be compared between batches.
    """

    pooled: Layers
    read: Layers
    hidden: Layers
    coherence: Layers
    factor: Layers
    margin: Layers
    norm: float
    heads: float
    kernels: dict[str, Float[np.ndarray, "r s"]]


class Seen(NamedTuple):
    """What the layers of the heads read and make, by the path of the head."""

    inputs: dict[str, dict[str, Any]]
    logits: dict[str, Any]


def share_of_mean(rows: Float[np.ndarray, "n c"]) -> float:
    """The share of the mean row in the mean squared norm of the rows: 1 if all are equal, 1/n or so if independent.

    >>> share_of_mean(np.array([[1.0, 0.0], [0.0, 1.0]]))
    0.5
    """
    return float(np.square(rows.mean(0)).sum() / max(np.square(rows).sum(-1).mean(), 1e-30))


def coherence(rows: Float[np.ndarray, "n c"]) -> float:
    """The norm of the mean row over the mean norm: 1 if all are equal, about 1/sqrt(n) if they are independent.

    >>> round(coherence(np.array([[1.0, 0.0], [0.0, 1.0]])), 3)
    0.707
    """
    return float(np.linalg.norm(rows.mean(0)) / max(np.linalg.norm(rows, axis=-1).mean(), 1e-30))


def cosine(a: Float[np.ndarray, "..."], b: Float[np.ndarray, "..."]) -> float:
    """Of the angle between two arrays."""
    return float((a * b).sum() / max(np.linalg.norm(a) * np.linalg.norm(b), 1e-30))


def observed(seen: Seen, moved: Mapping[str, Array]) -> Callable[..., Any]:
    """An interceptor of a network's calls that writes down what its heads read, and moves their logits a little."""

    def intercept(
        call: Callable[..., Any], args: tuple[Any, ...], keywords: dict[str, Any], context: nn.module.InterceptorContext
    ) -> Any:
        module = context.module
        if context.method_name != "__call__" or module.name not in READ or HEAD not in module.path:
            return call(*args, **keywords)
        path = "/".join(module.path[:-1])
        seen.inputs.setdefault(path, {})[module.name] = args[0].reshape(len(args[0]), -1)
        y = call(*args, **keywords)
        if module.name == "logits":
            y = y + moved[path] if path in moved else y
            seen.logits[path] = y
        return y

    return intercept


def make_probe(
    network: nn.Module, images: Float[Array, "n h w c"]
) -> Callable[[dict[str, PyTree], Array, Array], Probe]:
    """A function of a network's variables and a batch, normalised and with labels, that measures its heads."""

    def task(params: PyTree, moved: dict[str, Array], rest: dict[str, PyTree], images: Array, labels: Array) -> Any:
        seen = Seen({}, {})
        with nn.intercept_methods(observed(seen, moved)):
            logits, sown = network.apply(
                {"params": params, **rest}, images, train=True, mutable=[*rest, PENALTIES, FACTORS]
            )
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
        return loss, (seen, sown[FACTORS])

    variables = jax.eval_shape(lambda: network.init(jax.random.key(0), images))
    rest = {name: tree for name, tree in variables.items() if name not in ("params", PENALTIES, FACTORS)}
    _, (shapes, _) = jax.eval_shape(
        lambda v, r: task(v, {}, r, images, jnp.zeros(len(images), jnp.int32)), variables["params"], rest
    )
    still = {path: jnp.zeros(logits.shape) for path, logits in shapes.logits.items()}
    gradient = jax.jit(jax.grad(task, argnums=(0, 1), has_aux=True))

    def probe(variables: dict[str, PyTree], images: Array, labels: Array) -> Probe:
        rest = {name: tree for name, tree in variables.items() if name != "params"}
        found = jax.device_get(gradient(variables["params"], still, rest, images, labels))
        return _probe(*found)

    return probe


def _probe(gradients: tuple[PyTree, dict[str, np.ndarray]], about: tuple[Seen, PyTree]) -> Probe:
    (params, logits), (seen, factors) = gradients, about
    inside = {tuple(key.key for key in path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(params)}
    squares = {path: float(np.square(leaf).sum()) for path, leaf in inside.items()}
    pairs = {path: _at(factors, path) for path in seen.logits}
    return Probe(
        pooled={path: share_of_mean(one.get("norm", one["hidden"])) for path, one in seen.inputs.items()},
        read={path: share_of_mean(one["hidden"]) for path, one in seen.inputs.items()},
        hidden={path: share_of_mean(one["logits"]) for path, one in seen.inputs.items()},
        coherence={path: coherence(gradient) for path, gradient in logits.items()},
        factor={path: _off_diagonal(pair) for path, pair in pairs.items()},
        margin={path: _margin(seen.logits[path], pair) for path, pair in pairs.items()},
        norm=sum(squares.values()) ** 0.5,
        heads=sum(square for path, square in squares.items() if HEAD in path) ** 0.5,
        kernels={path: inside[(*path.split("/"), "logits", "kernel")] for path in seen.logits},
    )


def _at(tree: PyTree, path: str) -> PyTree:
    for name in path.split("/"):
        tree = tree[name]
    return tree


def _off_diagonal(pair: Mapping[str, np.ndarray]) -> float:
    """The mean entry off the diagonals of both factors."""
    entries = [a[..., ~np.eye(a.shape[-1], dtype=bool)] for a in (pair["outer"], pair["inner"])]
    return float(np.concatenate([entry.ravel() for entry in entries]).mean())


def _margin(logits: Float[np.ndarray, "n s"], pair: Mapping[str, np.ndarray]) -> float:
    p, q = pair["outer"].shape[-1], pair["inner"].shape[-1]
    per_copy = logits.reshape(len(logits), -1, p * p + q * q)
    tables = (per_copy[..., : p * p].reshape(-1, p, p), per_copy[..., p * p :].reshape(-1, q, q))
    return min(_lead(table) for table in tables if table.shape[-1] > 1)


def _lead(table: Float[np.ndarray, "m s s"]) -> float:
    """The smallest lead of the diagonal over the largest other entry of its row."""
    eye = np.eye(table.shape[-1], dtype=bool)
    return float((table[:, eye] - np.where(eye, -np.inf, table).max(-1)).min())


def train_and_probe(config: TrainConfig, probes: int) -> Iterator[tuple[Probe, Probe]]:
    """Trains a network on the digits, and looks at two batches before, at even distances, and after.

    Args:
        config: of the training; its images are those of the digits.
        probes: how often, at least 2.

    Yields:
        What the first and the second batch say, at the start of the training, in it and at its end.
    """
    from shuffle_jax.models.build import build

    data = load(config.data)
    images, labels = (jnp.asarray(part) for part in data.train.take(np.arange(len(data.train))))
    mean_std = (float(images.mean() / 255),), (float(images.std() / 255),)
    network, size = build(config.network, len(data.classes)), config.batch_size
    per_epoch = len(images) // size
    total = per_epoch * config.epochs
    optimizer = make_optimizer(config.optimizer, learning_rate(config.optimizer, total, per_epoch))
    shape = jnp.zeros((size, *images.shape[1:]))
    state = jax.jit(lambda key: init_state(key, network, shape[:1], optimizer))(jax.random.key(config.seed))
    step = make_train_step(
        network, config, data_mesh(jax.devices()[:1]), steps_per_epoch=per_epoch, classes=len(data.classes),
        mean_std=mean_std,
    )  # fmt: skip
    probe = make_probe(network, shape)
    rng = np.random.default_rng(config.seed)
    fixed = [np.random.default_rng(1).permutation(len(images))[i * size : (i + 1) * size] for i in range(2)]

    def look(state: TrainState) -> tuple[Probe, Probe]:
        first, second = (probe(state.variables(), normalize(images[i], *mean_std), labels[i]) for i in fixed)
        return first, second

    yield look(state)
    times = {round(total * (i + 1) / (probes - 1)) for i in range(probes - 1)}
    weight = jnp.ones(size)
    for number in range(1, total + 1):
        if (number - 1) % per_epoch == 0:
            order = rng.permutation(len(images))
        chosen = order[(number - 1) % per_epoch * size :][:size]
        state, _ = step(state, Batch(images[chosen], labels[chosen], weight))
        if number in times:
            yield look(state)
