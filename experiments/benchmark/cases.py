"""What the benchmark measures: every way to do one thing, as functions without arguments."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from shuffle_jax.data import Batch
from shuffle_jax.deploy.folding import fold
from shuffle_jax.deploy.hardening import harden
from shuffle_jax.deploy.routing import Routed, route
from shuffle_jax.models import NetworkConfig, build
from shuffle_jax.models.config import MixerKind, PointwiseKind
from shuffle_jax.ops import convolution, mixing, permutation, relaxation, rolling_pointwise
from shuffle_jax.sharding import data_mesh
from shuffle_jax.train.config import TrainConfig
from shuffle_jax.train.optimizer import OptimizerConfig, make_optimizer
from shuffle_jax.train.state import first_state, init_state
from shuffle_jax.train.step import make_train_step
from shuffle_jax.typing import Array, Images, PyTree

Case = Callable[[], object]
Cases = dict[str, Case]
Dtype = Literal["float32", "bfloat16"]

CLASSES = 10
FIXED, NONE, RELAXED, HARDENED = "fixed shuffle", "no shuffle", "learned, relaxed", "learned, hardened"
DYNAMIC, STATIC_DYNAMIC = "dynamic shuffle", "fixed shuffle, static-dynamic 1x1"


@dataclass(frozen=True)
class Workload:
    """On what to measure."""

    batch_size: int = 64
    """Images of a step or an inference."""

    image_size: int = 32
    """Height and width of the images."""

    width: float = 1.0
    """Of ShuffleNetV2."""

    dtype: Dtype = "float32"
    """Type of the computation."""

    device: str = "cpu"
    """What JAX computes on, by its name, for engines that do not ask JAX."""


def moving_channels(work: Workload, backward: bool) -> Cases:
    """Ways to permute the channels of stage 2, against a plain copy of the same bytes."""
    x = normal(work, work.batch_size, work.image_size // 2, work.image_size // 2, 116)
    p = permutation.channel_shuffle(116, 2)
    matrix = relaxation.random_bistochastic(jax.random.key(0), 116)
    forms: dict[str, Callable[[Array], Array]] = {
        "copy": lambda x: x + 1,  # XLA may not hand the input through, and uses all cores
        "shuffle (reshape)": lambda x: mixing.shuffle(x, 2),
        "permute (gather)": lambda x: mixing.permute(x, p),
        "jnp.take": lambda x: jnp.take(x, p, axis=-1),
        "mix (matrix)": lambda x: mixing.mix(x, matrix),
    }
    return {name: partial(jax.jit(squared_gradient(form) if backward else form), x) for name, form in forms.items()}


def depthwise(work: Workload) -> Cases:
    """The platform's depthwise convolution against XLA's native one."""
    x = normal(work, work.batch_size, work.image_size // 2, work.image_size // 2, 116)
    kernel = normal(work, 3, 3, 1, 116)
    forms: dict[str, Callable[..., Array]] = {
        "native": partial(native, groups=116, padding="SAME"),
        "ops.depthwise": convolution.depthwise,
    }
    return {name: partial(jax.jit(squared_gradient(form)), x, kernel) for name, form in forms.items()}


def grouped_pointwise(work: Workload) -> Cases:
    """The platform's grouped 1x1 convolution against XLA's native one, and the rolling one of as many weights."""
    x = normal(work, work.batch_size, work.image_size // 2, work.image_size // 2, 240)
    kernel = normal(work, 1, 1, 80, 60)
    forms: dict[str, Callable[..., Array]] = {
        "native": partial(native, groups=3, padding="VALID"),
        "ops.pointwise": partial(convolution.pointwise, groups=3),
        "ops.rolling_pointwise": partial(rolling_pointwise.rolling_pointwise, groups=3),
    }
    return {name: partial(jax.jit(squared_gradient(form)), x, kernel) for name, form in forms.items()}


def inference(work: Workload) -> Cases:
    """The network with the fixed shuffle, with none, relaxed, hardened, folded, and read back from an exported file."""
    images = normal(work, work.batch_size, work.image_size, work.image_size, 3, dtype="float32")
    cases: Cases = {}
    for label, (network, variables) in networks(work).items():
        cases[label] = partial(jax.jit(network.apply), variables, images)
        if label in (FIXED, HARDENED, DYNAMIC):
            shape = work.image_size, work.image_size, 3
            folded = route(network, fold(network, variables, shape).variables, shape)
            cases[f"{label}, folded"] = partial(jax.jit(folded.apply), folded.params, images)
            if label == HARDENED:
                cases[f"{label}, folded, exported"] = partial(through_a_file(folded, images), images)
    return cases


def through_a_file(folded: Routed, images: Images) -> Callable[[Images], Array]:
    """A network as it comes back from an exported file."""
    from shuffle_jax.deploy.exported import load
    from shuffle_jax.deploy.exporting import export

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "network.jax"
        height, width, channels = images.shape[1:]
        classes = [str(k) for k in range(CLASSES)]
        export(
            folded.apply,
            folded.params,
            path,
            classes=classes,
            preprocessing={},
            image_shape=(height, width, channels),
            about={},
        )
        return load(path).logits


def training(work: Workload) -> Cases:
    """One optimiser step with each mixer; that of the hardened network is fine-tuning."""
    optimizer = make_optimizer(OptimizerConfig(), optax.constant_schedule(1e-3))
    batch = random_batch(work)
    cases: Cases = {}
    for label, (network, variables) in networks(work).items():
        state = first_state(jax.random.key(1), variables, optimizer)
        # A copy: steps donate their state, and networks share arrays.
        cases[label] = advancing(train_step(network), jax.tree.map(jnp.copy, state), batch)
    return cases


def steps(work: Workload, configs: Mapping[str, NetworkConfig], training: bool) -> Cases:
    """A training step of each network, or an inference."""
    optimizer = make_optimizer(OptimizerConfig(), optax.constant_schedule(1e-3))
    images = normal(work, work.batch_size, work.image_size, work.image_size, 3)
    found: Cases = {}
    for label, config in configs.items():
        network = build(replace(config, dtype=work.dtype), CLASSES)
        variables = dict(jax.jit(network.init)(jax.random.key(0), jnp.zeros_like(images[:1])))
        if training:
            state = first_state(jax.random.key(1), variables, optimizer)
            found[label] = advancing(train_step(network), state, random_batch(work))
        else:
            found[label] = partial(jax.jit(network.apply), variables, images)
    return found


def networks(work: Workload) -> dict[str, tuple[nn.Module, dict[str, PyTree]]]:
    """ShuffleNetV2 and its variables with each mixer, and with static-dynamic 1x1 layers."""
    images = jnp.zeros((1, work.image_size, work.image_size, 3))
    found: dict[str, tuple[nn.Module, dict[str, PyTree]]] = {}
    kinds: dict[str, tuple[MixerKind, PointwiseKind]] = {
        FIXED: ("shuffle", "plain"),
        RELAXED: ("auto", "plain"),
        NONE: ("identity", "plain"),
        DYNAMIC: ("dynamic", "plain"),
        STATIC_DYNAMIC: ("shuffle", "static_dynamic"),
    }
    for label, (mixer, pointwise) in kinds.items():
        network = shufflenet(work, mixer, pointwise)
        variables = dict(jax.jit(network.init)(jax.random.key(0), images))
        found[label] = network, variables
        if label == RELAXED:
            found[HARDENED] = network, harden(variables).variables
    return found


def shufflenet(work: Workload, mixer: MixerKind, pointwise: PointwiseKind = "plain") -> nn.Module:
    """ShuffleNetV2 with the stem for small images."""
    return build(NetworkConfig(width=work.width, mixer=mixer, pointwise=pointwise, dtype=work.dtype), CLASSES)


def lower_training(work: Workload, mixer: MixerKind) -> jax.stages.Lowered:
    """The training step of a network, traced and not yet compiled; nothing is run."""
    network = shufflenet(work, mixer)
    optimizer = make_optimizer(OptimizerConfig(), optax.constant_schedule(1e-3))
    images = jnp.zeros((1, work.image_size, work.image_size, 3))
    start = partial(init_state, network=network, images=images, optimizer=optimizer)
    return train_step(network).lower(jax.eval_shape(start, jax.random.key(0)), random_batch(work))  # type: ignore[attr-defined]


def train_step(network: nn.Module) -> Callable:
    """The library's training step on one device, without augmentation and warm-up."""
    config = TrainConfig(optimizer=OptimizerConfig(warmup_epochs=0.0))
    mesh, mean_std = data_mesh(jax.devices()[:1]), ((0.5,) * 3, (0.25,) * 3)
    return make_train_step(network, config, mesh, steps_per_epoch=1000, classes=CLASSES, mean_std=mean_std)


def advancing(step: Callable, state: PyTree, *inputs: object) -> Case:
    """A case that takes one step after another from a state which each step donates to the next; gives what it says.

    Waiting for what the step says, its loss, would not wait for its update: the case waits for both.
    """
    now = [state]

    def advance() -> object:
        now[0], result = jax.block_until_ready(step(now[0], *inputs))
        return result

    return advance


def random_batch(work: Workload) -> Batch:
    """8-bit images and labels, the same at each call."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (work.batch_size, work.image_size, work.image_size, 3), np.uint8)
    labels = rng.integers(0, CLASSES, work.batch_size, np.int32)
    return Batch(jnp.asarray(pixels), jnp.asarray(labels), jnp.ones(work.batch_size))


def native(x: Images, kernel: Array, groups: int, padding: str) -> Array:
    """XLA's own convolution."""
    layout = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(
        x, kernel, (1, 1), padding, dimension_numbers=layout, feature_group_count=groups
    )


def squared_gradient(form: Callable[..., Array]) -> Callable[..., object]:
    """The gradient of the sum of squares of an operation's output by all its arguments."""

    def gradient(*arguments: Array) -> object:
        return jax.grad(lambda *a: jnp.square(form(*a)).sum(), argnums=tuple(range(len(arguments))))(*arguments)

    return gradient


def normal(work: Workload, *shape: int, dtype: Dtype | None = None) -> Array:
    """Normally distributed numbers, the same at each call, by default in the type of the computation."""
    return jnp.asarray(np.random.default_rng(0).standard_normal(shape), jnp.dtype(dtype or work.dtype))
