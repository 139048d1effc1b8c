"""The configuration of a training run: everything that its result depends on, and nothing else."""

from __future__ import annotations

import dataclasses
import re
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from shuffle_jax.data import AugmentConfig, DataConfig, DigitsConfig
from shuffle_jax.models import NetworkConfig
from shuffle_jax.models.config import upgraded
from shuffle_jax.run import Run
from shuffle_jax.streams import ORDER, stream_seed


@dataclass(frozen=True)
class OptimizerConfig:
    """The optimiser and its learning rate over time."""

    kind: Literal["sgd", "adamw", "adas"] = "sgd"
    """"sgd" with momentum, "adamw", or "adas": sgd with a rate for each convolution, by what it learned in an epoch."""

    learning_rate: float = 0.1
    """The peak, reached after the warm-up."""

    schedule: Literal["cosine", "linear", "step", "constant"] = "cosine"
    """From the peak "cosine" and "linear" fall to 0, "step" at boundaries; "constant" stays, as AdaS's paper has it."""

    warmup_epochs: float = 1.0
    """Epochs over which the learning rate rises linearly from 0."""

    warmup_share: float = 0.25
    """Largest share of the training that the warm-up takes, in (0, 1]; a short training has a shorter one."""

    step_boundaries: tuple[float, ...] = (0.5, 0.75)
    """Where the schedule "step" falls, as fractions of the whole training, ascending."""

    step_factor: float = 0.1
    """What the schedule "step" multiplies the learning rate by at each boundary."""

    momentum: float = 0.9
    """Of SGD."""

    adas_beta: float = 0.8
    """Share of a convolution's rate that an epoch of "adas" leaves, in [0, 1)."""

    adas_zeta: float = 1.0
    """Weight of the change of its knowledge gain, which is added to that."""

    nesterov: bool = True
    """Whether SGD looks ahead along its momentum; the code released with dynamic convolution decomposition does not."""

    clip_norm: float = 0.0
    """Largest norm of the gradient, relaxed permutations apart; 0 for no limit."""

    permutation_rate: float = 1.0
    """Learning rate of relaxed permutations over that of the other parameters."""

    constraint: Literal["one_pass", "balance"] = "one_pass"
    """What keeps relaxed permutations bistochastic after each step: one clamp-column-row pass as in the method's
    re-implementations, or as many as it takes from a positive floor."""

    weight_decay: float = 1e-4
    """On convolution and dense kernels; never on norms, biases and relaxed permutations."""

    body_rate: float = 1.0
    """Learning rate of everything but the classifier over that of the classifier, for fine-tuning."""

    freeze: tuple[str, ...] = ()
    """What does not train: regular expressions for the beginnings of paths of parameters, such as "stem" and
    "stage2_0/". Batch norms among them compute as in evaluation and keep their statistics. "(?!head)" is everything but
    the classifier."""

    def __post_init__(self) -> None:
        if not self.body_rate > 0:
            raise ValueError(
                f"body_rate must be positive, got {self.body_rate}: to train the classifier alone, freeze the rest"
            )
        for pattern in self.freeze:
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f"freeze must be regular expressions, got {pattern!r}: {error}") from error
        if not 0 <= self.adas_beta < 1:
            raise ValueError(f"adas_beta must be at least 0 and below 1, got {self.adas_beta}")
        if not 0 < self.warmup_share <= 1:
            raise ValueError(f"warmup_share must be above 0 and at most 1, got {self.warmup_share}")


@dataclass(frozen=True)
class PenaltyConfig:
    """The weight of the penalties that modules sow: a ramp from 0.

    ``weight(step) = weight * clip((step / steps - start) / (end - start), 0, 1)``

    How far the penalty moves a relaxed permutation goes with rate x weight x steps. A weight that suits a long training
    leaves the matrices of a short one near their start, and rounding them then costs everything that was learned. So a
    training of fewer than ``for_steps`` steps has the weight ``weight * (for_steps / steps)^2``, at most a hundredfold:
    once for steps to move in, and once more to arrive sooner, as the few that follow are left for the other parameters.
    """

    weight: float = 1e-2
    """The weight at the top of the ramp. Too large a weight freezes the permutations early."""

    for_steps: int = 1_100
    """Steps that the weight is meant for, those of the preset ``digits``; a training of fewer has a larger one. 0 takes
    the weight as it is."""

    start: float = 0.0
    """Where the ramp begins, as a fraction of the whole training."""

    end: float = 0.5
    """Where it reaches the top; the rest of the training fits the other parameters to settled permutations."""

    settle: int = 0
    """Epochs for which all learned permutations must be certified and the same to be hardened while the training goes
    on. A step takes less time from then on, behind a second compilation; 0 for at the end alone."""

    def __post_init__(self) -> None:
        if not 0 <= self.start < self.end:
            raise ValueError(f"start must be at least 0 and below end, got start {self.start} and end {self.end}")
        for name in ("for_steps", "settle"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be at least 0, got {getattr(self, name)}")


@dataclass(frozen=True)
class TrainConfig:
    """A training run. Two runs with equal configurations on one kind of machine are equal."""

    data: DataConfig = field(default_factory=DigitsConfig)
    """The data set."""

    network: NetworkConfig = field(default_factory=NetworkConfig)
    """The network and its mixers."""

    augment: AugmentConfig = field(default_factory=AugmentConfig)
    """What happens to the training images."""

    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    """The optimiser and its schedule."""

    penalty: PenaltyConfig = field(default_factory=PenaltyConfig)
    """The weight of the penalties over time."""

    start_from: Path | None = None
    """Folder of a run, also of one that experiments.convert wrote, whose variables and mean and deviation of the pixels
    the training starts with. With other classes the classifier is drawn anew."""

    epochs: int = 50
    """Passes over the training images."""

    batch_size: int = 64
    """Images per step, over all devices."""

    accumulate: int = 1
    """Parts a batch is computed in, to save memory; batch norms see one part at a time."""

    remat: bool = False
    """Whether the gradient keeps the inputs of the network's units alone and computes the rest again: the same result
    in about a third of a step's temporary memory, for an eighth to a fifth more time on a CPU."""

    label_smoothing: float = 0.0
    """Fraction of each target that is spread over all classes."""

    average_decay: float = 0.0
    """Decay of the moving average of the parameters, which is then what is evaluated, with batch statistics of its own;
    0 for none."""

    average_ramp: bool = True
    """Whether the decay rises to its value, as min(decay, (1 + step) / (10 + step)), so that the average forgets the
    random start; runs of earlier versions have a constant one."""

    seed: int = 0
    """Of the start, the order of the data, the augmentation and dropout."""

    separate_streams: bool = True
    """Whether these four draw from random streams of their own; in runs of earlier versions some draw from one."""

    log_every: int = 20
    """Steps between two records of the training loss."""

    evaluate_every: int = 1
    """Epochs between two evaluations and checkpoints."""

    keep: int = 2
    """Newest checkpoints kept, beside the best one."""

    recalibrate: int = 0
    """Batches from which the batch norms of the finished network are re-estimated, after hardening if there is anything
    to harden, and those of averaged weights before; 0 leaves the former as trained and takes 16 for the latter."""

    augmented_statistics: bool = True
    """Whether they are re-estimated from augmented images, as the network was trained on; runs of earlier versions took
    the plain ones."""

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "accumulate", "log_every", "evaluate_every", "keep"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.recalibrate < 0:
            raise ValueError(f"recalibrate must be at least 0 batches, got {self.recalibrate}")
        if self.batch_size % self.accumulate:
            raise ValueError(
                f"batch_size must be a multiple of accumulate, got batch_size {self.batch_size} and accumulate "
                f"{self.accumulate}"
            )
        for name in ("label_smoothing", "average_decay"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 0 and below 1, got {getattr(self, name)}")


BEFORE: dict[str, dict[str, Any]] = {
    "FolderConfig": {"choose": "order"},
    "TrainConfig": {"average_ramp": False, "separate_streams": False, "augmented_statistics": False},
    "OptimizerConfig": {"warmup_share": 1.0},
    "PenaltyConfig": {"for_steps": 0},
}
"""Of each configuration the values, as JSON has them, of fields that earlier runs did not have and whose default is
not what they did; :func:`from_json` gives them these."""


def data_seed(config: TrainConfig) -> int:
    """What chooses the order of the images and their crops: 64 bits, or the 32 of earlier versions."""
    return stream_seed(config.seed, ORDER) if config.separate_streams else min(config.seed, config.seed % 2**32)


def to_json(config: Any) -> Any:
    """A configuration as plain dictionaries, lists and strings, the type of each dataclass under "type"."""
    if dataclasses.is_dataclass(config):
        fields = {f.name: to_json(getattr(config, f.name)) for f in dataclasses.fields(config)}
        return {"type": type(config).__name__, **fields}
    if isinstance(config, tuple):
        return [to_json(item) for item in config]
    return str(config) if isinstance(config, Path) else config


def from_json(kind: Any, value: Any) -> Any:
    """The inverse of :func:`to_json`, of this or an earlier version.

    A field that it did not have takes its value in :data:`BEFORE`, else its default, which then must be what was done
    before there was the field.

    Args:
        kind: the expected type: a dataclass, a union of dataclasses, or the type of a field.
        value: what :func:`to_json` gave.

    Raises:
        ValueError: a field is unknown, as in the configuration of a later version.
    """
    options = {o.__name__: o for o in typing.get_args(kind) if dataclasses.is_dataclass(o) and isinstance(o, type)}
    if options:
        if not isinstance(value, Mapping) or value.get("type") not in options:
            raise ValueError(f"the configuration must have one of {list(options)}, got {value!r}")
        kind = options[value["type"]]
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        given = upgraded(value) if kind is NetworkConfig else value
        given = BEFORE.get(kind.__name__, {}) | {name: item for name, item in given.items() if name != "type"}
        hints = typing.get_type_hints(kind)
        needed = {f.name for f in dataclasses.fields(kind) if _has_no_default(f)}
        if odd := sorted((set(given) - set(hints)) | (needed - set(given))):
            raise ValueError(f"the configuration is of another version: {kind.__name__} differs in {odd}")
        return kind(**{name: from_json(hints[name], item) for name, item in given.items()})
    if typing.get_origin(kind) is tuple:
        return tuple(value)
    return Path(value) if Path in (kind, *typing.get_args(kind)) and value is not None else value


def differences(old: Any, new: Any, prefix: str = "") -> list[str]:
    """Where two values of :func:`to_json` differ, one line a field, such as ``"epochs: 50 -> 60"``."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        names = list(dict.fromkeys([*old, *new]))
        return [line for n in names for line in differences(old.get(n), new.get(n), f"{prefix}.{n}" if prefix else n)]
    return [] if old == new else [f"{prefix}: {old} -> {new}"]


def read_config(run: Run) -> TrainConfig:
    """The configuration that a run was started with.

    Raises:
        ValueError: there is no run, or it is of another version.
    """
    found: TrainConfig = from_json(TrainConfig, run.config())
    return found


def with_network(config: TrainConfig, network: object | None) -> TrainConfig:
    """The configuration with anybody's network in place of its own.

    Args:
        config: of a run.
        network: a linen module called as ``network(images, train)``, its class, a function from the number of classes
            to one, or the import path ``module:Name`` of these, with which a run finds it again. None leaves the
            configuration as it is.

    Raises:
        ValueError: another process could not import the network, or its options cannot be kept.
    """
    if network is None:
        return config
    return dataclasses.replace(config, network=NetworkConfig(family=network, mixer="identity"))


def _has_no_default(field: dataclasses.Field[Any]) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
