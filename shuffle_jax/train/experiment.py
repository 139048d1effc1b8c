"""From a configuration to the parts that training and evaluation are made of."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from shuffle_jax.analysis.convolutions import Convolutions, convolutions
from shuffle_jax.analysis.probe import Probe
from shuffle_jax.data import Batches, DataConfig, Dataset, Measured, Preprocessing, load, measured_on
from shuffle_jax.data.inventory import Inventory, inventory
from shuffle_jax.data.pipelines import InputConfig, make_batches
from shuffle_jax.deploy.freezing import dynamic_layers
from shuffle_jax.deploy.recalibration import Recalibration
from shuffle_jax.distributed import same
from shuffle_jax.models import NetworkConfig, build
from shuffle_jax.run import Run
from shuffle_jax.sharding import data_mesh, first_devices, replicate, replicated
from shuffle_jax.train.checkpoint import Checkpoints, check_name
from shuffle_jax.train.config import TrainConfig, data_seed, read_config, with_network
from shuffle_jax.train.early import unsettled
from shuffle_jax.train.frozen import with_frozen_norms
from shuffle_jax.train.images import statistics_batches, training_images
from shuffle_jax.train.optimizer import make_optimizer
from shuffle_jax.train.size import check_size
from shuffle_jax.train.start import Start, Taken, read_start, take
from shuffle_jax.train.state import TrainState, first_state, init_state
from shuffle_jax.train.step import EvalStep, MeanStd, TrainStep, evaluate, make_eval_step, make_train_step
from shuffle_jax.typing import PyTree


@dataclass(frozen=True)
class Experiment:
    """The parts of one run, each made from the configuration alone; use :func:`prepare`.

    Attributes:
        config: what was asked for.
        dataset: the images and class names.
        mesh: the devices.
        batches: training and test batches on the devices.
        network: from images to logits.
        kept: the preprocessing that a run keeps; None for that of the training images.
        start: what a run that is new starts from, if not from random variables.
    """

    config: TrainConfig
    dataset: Dataset
    mesh: Mesh
    batches: Batches
    network: nn.Module
    kept: Preprocessing | None = None
    start: Start | None = None

    @property
    def steps(self) -> int:
        """Optimiser steps of the whole training."""
        return self.config.epochs * self.batches.steps_per_epoch

    @cached_property
    def pictures(self) -> Inventory:
        """Which pictures the data set has."""
        return inventory(self.dataset)

    @cached_property
    def preprocessing(self) -> Preprocessing:
        """What a picture goes through before the network sees it."""
        if self.kept is not None:
            return self.kept
        height, _, channels = self.dataset.image_shape
        mean, std = tuple(self.dataset.mean.tolist()), tuple(self.dataset.std.tolist())
        return Preprocessing(height, channels, mean, std, crop=getattr(self.config.data, "crop", 1.0))

    @property
    def mean_std(self) -> MeanStd:
        """Mean and standard deviation per channel, in units of [0, 1]."""
        return self.preprocessing.mean, self.preprocessing.std

    def init(self) -> TrainState:
        """The state before the first step, on all devices."""
        drawn = jax.jit(self._init, out_shardings=replicated(self.mesh))()
        if self.start is None:
            return drawn
        variables = self.taken(self.start, jax.device_get({"params": drawn.params, **drawn.collections})).variables

        def state(variables: dict[str, PyTree]) -> TrainState:
            found = first_state(drawn.key, variables, _optimizer(self.config), self.config.average_decay > 0)
            return found.replace(settling=drawn.settling)

        return jax.jit(state, out_shardings=replicated(self.mesh))(replicate(variables, self.mesh))

    def taken(self, start: Start, fresh: dict[str, PyTree] | None = None) -> Taken:
        """What a run leaves for this network, see :func:`shuffle_jax.train.start.take`; by default for its shapes."""
        if fresh is None:
            shapes = self.state_shapes()
            fresh = {"params": shapes.params, **shapes.collections}
        return take(start, fresh, len(self.dataset.classes))

    def state_shapes(self) -> TrainState:
        """Types, shapes and shardings of the state, without computing one."""
        return self._shapes

    @cached_property
    def _shapes(self) -> TrainState:
        return state_shapes(self.config, self.network, self.dataset.image_shape, self.mesh)

    def _init(self) -> TrainState:
        return _init(self.config, self.network, self.dataset.image_shape)

    def train_step(self) -> TrainStep:
        """The jitted training step."""
        _ = self.convolutions  # a network without any is refused before anything is written
        return make_train_step(
            self.network,
            self.config,
            self.mesh,
            steps_per_epoch=self.batches.steps_per_epoch,
            classes=len(self.dataset.classes),
            mean_std=self.mean_std,
            augmentation=self.batches.augment,
        )

    @cached_property
    def eval_step(self) -> EvalStep:
        """The jitted evaluation step."""
        return make_eval_step(self.network, self.mesh, self.mean_std)

    def evaluate(self, variables: dict[str, PyTree]) -> dict[str, float]:
        """``loss``, ``top1`` and ``top5`` on the test split, of variables that every process has for itself."""
        on_devices = replicate(jax.device_get(variables), self.mesh)
        return evaluate(self.eval_step, on_devices, self.batches.test())

    def settled(self, state: TrainState) -> TrainState:
        """The state as it may be looked at: the batch statistics of its moving average, if it has one, estimated anew.

        Those that the steps leave are of the parameters themselves, with which the average ends at chance. They come
        from the same few batches every time, so that they are a function of the average alone.
        """
        if state.average is None or "batch_stats" not in state.collections:
            return state
        config = self.config
        images = training_images(
            config, self.dataset, self.preprocessing, statistics_batches(config), self.mesh, config.augmented_statistics
        )
        found = self._recalibration(state.variables(), images)["batch_stats"]
        return state.replace(average_stats=replicate(found, self.mesh))

    @cached_property
    def _recalibration(self) -> Recalibration:
        network = with_frozen_norms(self.network, self.config.optimizer.freeze)
        return Recalibration(network, replicated(self.mesh))

    @cached_property
    def convolutions(self) -> Convolutions | None:
        """What the optimiser "adas" looks at; None with another."""
        adas = self.config.optimizer.kind == "adas"
        return convolutions(self.network, self.dataset.image_shape) if adas else None

    @cached_property
    def probe(self) -> Probe | None:
        """Looks at the dynamic layers on a sample of the test images; None for a network without any."""
        shapes = self.state_shapes().variables()
        if not dynamic_layers(self.network, shapes, self.dataset.image_shape):
            return None
        return Probe(self.network, self.dataset.test, *self.mean_std)


def prepare(
    config: TrainConfig,
    devices: int | None = None,
    input: InputConfig | None = None,
    network: object | None = None,
    run: Run | None = None,
    changed: bool = False,
    split: Measured | None = None,
    dataset: Dataset | None = None,
) -> Experiment:
    """Loads the data, makes its batches and builds the network.

    Args:
        config: the run.
        devices: how many of the local devices of each process to use; all by default.
        input: how the images reach the devices; by default as their size says.
        network: in place of the configured one, see :func:`with_network`.
        run: a run that was started already: its class names and its preprocessing are kept.
        changed: whether pictures that are not those of the run are good enough; one line says so.
        split: of the data, to measure on; by default as the data says, see :func:`shuffle_jax.data.measured_on`.
        dataset: that of the configuration, where it is loaded already.

    Returns:
        The parts of the run.

    Raises:
        ValueError: the data cannot be read, or a number does not fit another; the message says which.
        DataChanged: the pictures are not those of the run.
    """
    config = with_network(config, network)
    available = jax.local_device_count()
    if devices is not None and not 1 <= devices <= available:
        raise ValueError(f"devices must be from 1 to {available}, the devices of this machine, got {devices}")
    mesh = data_mesh(first_devices(devices))
    dataset = load(config.data, None if run is None else run.classes()) if dataset is None else dataset
    pictures = inventory(dataset)
    same("the data", (dataset.name, dataset.classes, pictures.to_json(), dataset.image_shape))
    if run is not None:
        run.check_data(pictures, changed)
    dataset = measured_on(dataset, config.data, split)
    if config.batch_size // config.accumulate % mesh.size:
        raise ValueError(
            f"batch_size must be a multiple of {config.accumulate * mesh.size}, for {config.accumulate} parts on each "
            f"of {mesh.size} devices, got {config.batch_size}: change it, or lower --devices"
        )
    batches = make_batches(dataset, config.batch_size, mesh, data_seed(config), input or InputConfig(), config.augment)
    built = build_network(config.network, dataset.image_shape, len(dataset.classes))
    if run is None:
        check_size(built, dataset.image_shape)
    kept = run.preprocessing() if run is not None and run.keeps_preprocessing() else None
    start = read_start(config.start_from) if config.start_from is not None and run is None else None
    experiment = Experiment(config, batches.dataset, mesh, batches, built, kept, start)
    if start is not None and start.preprocessing.channels == dataset.image_shape[-1]:
        # The weights know pixels of that mean and deviation.
        known = replace(experiment.preprocessing, mean=start.preprocessing.mean, std=start.preprocessing.std)
        experiment = replace(experiment, kept=known)
    return experiment


def restore(
    path: Path,
    checkpoint: str = "last",
    devices: int | None = None,
    data: DataConfig | None = None,
    changed: bool = False,
    split: Measured | None = None,
) -> tuple[Experiment, dict[str, PyTree], int]:
    """The parts of a finished run, the variables of one of its checkpoints, and the step of that checkpoint.

    Args:
        path: folder of the run.
        checkpoint: "last", "best" or a step.
        devices: how many local devices to use; all by default.
        data: where the pictures are now, if not where the run says.
        changed: see :func:`prepare`.
        split: see :func:`prepare`.

    Raises:
        ValueError: there is no run in the folder, or the checkpoint's name is not one of these.
        FileNotFoundError: there is no such checkpoint.
    """
    run = Run(path)
    check_name(checkpoint)
    config = read_config(run)
    experiment = prepare(replace(config, data=data or config.data), devices, run=run, changed=changed, split=split)
    state = read_state(run, checkpoint, experiment.state_shapes())
    if state.lacks_stats:
        state = experiment.settled(state)
    return experiment, state.variables(), int(state.step)


def read_state(run: Run, checkpoint: str, like: TrainState) -> TrainState:
    """A state of a run, which is left as it is; see :meth:`Checkpoints.restore`."""
    check_name(checkpoint)
    with Checkpoints(run.checkpoints, read_only=True) as checkpoints:
        return checkpoints.restore(like, checkpoint)


def build_network(config: NetworkConfig, image_shape: tuple[int, int, int], classes: int) -> nn.Module:
    """The network of a configuration; one from outside is traced, to be refused in one line if it does not fit.

    Raises:
        ValueError: the configuration asks for something that there is not, or the network is called otherwise than as
            ``network(images, train)``, or gives other logits than one for each class.
    """
    network = build(config, classes)
    if ":" in config.family:
        images = jnp.zeros((1, *image_shape), jnp.float32)
        try:
            logits, _ = jax.eval_shape(lambda: network.init_with_output(jax.random.key(0), images, train=False))
        except TypeError as error:
            raise ValueError(f"{config.family} must be a linen module network(images, train=False): {error}") from error
        if getattr(logits, "shape", None) != (1, classes):
            found = getattr(logits, "shape", type(logits).__name__)
            raise ValueError(f"{config.family} must give logits of shape (n, {classes}), a class each, got {found}")
    return network


def state_shapes(config: TrainConfig, network: nn.Module, image_shape: tuple[int, int, int], mesh: Mesh) -> TrainState:
    """Types, shapes and shardings of the state of a run, from its configuration alone."""
    shapes, everywhere = jax.eval_shape(lambda: _init(config, network, image_shape)), replicated(mesh)
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=everywhere), shapes)


def _init(config: TrainConfig, network: nn.Module, image_shape: tuple[int, int, int]) -> TrainState:
    key, images = jax.random.key(config.seed), jnp.zeros((1, *image_shape), jnp.float32)
    state = init_state(key, network, images, _optimizer(config), config.average_decay > 0, config.separate_streams)
    return unsettled(state, config.optimizer.freeze) if config.penalty.settle else state


def _optimizer(config: TrainConfig) -> optax.GradientTransformation:
    return make_optimizer(config.optimizer, optax.constant_schedule(0.0))  # all schedules keep the same state
