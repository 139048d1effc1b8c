"""The configuration of a training run: everything that its result depends on, and nothing else."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import optax

from shuffle_jax.data import AugmentConfig, DataConfig, DigitsConfig
from shuffle_jax.models import NetworkConfig
from shuffle_jax.train.optimizer import OptimizerConfig, in_float


@dataclass(frozen=True)
class PenaltyConfig:
    """The weight of the penalties that modules sow: a ramp from 0.

    ``weight(step) = weight * clip((step / steps - start) / (end - start), 0, 1)``
    """

    weight: float = 1e-2
    """The weight at the top of the ramp. Too large a weight freezes the permutations early."""

    start: float = 0.0
    """Where the ramp begins, as a share of the whole training."""

    end: float = 0.5
    """Where it reaches the top; the rest of the training fits the other parameters to settled permutations."""

    def __post_init__(self) -> None:
        if not 0 <= self.start < self.end:
            raise ValueError(f"the penalty's ramp from {self.start} to {self.end} must ascend from 0 or later")


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

    epochs: int = 50
    """Passes over the training images."""

    batch_size: int = 64
    """Images per step, over all devices."""

    accumulate: int = 1
    """Parts a batch is computed in, to save memory; batch norms see one part at a time."""

    label_smoothing: float = 0.0
    """Share of each target spread over all classes."""

    average_decay: float = 0.0
    """Decay of the moving average of the parameters, which is then what is evaluated; 0 for none."""

    seed: int = 0
    """Of the start, the order of the data and the augmentation."""

    log_every: int = 20
    """Steps between two records of the training loss."""

    evaluate_every: int = 1
    """Epochs between two evaluations and checkpoints."""

    keep: int = 2
    """Newest checkpoints kept, beside the best one."""

    recalibrate: int = 0
    """Batches from which batch norms are re-estimated after hardening; 0 leaves them as trained."""

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "accumulate", "log_every", "evaluate_every", "keep"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}: give 1 or more")
        if self.batch_size % self.accumulate:
            raise ValueError(
                f"a batch of {self.batch_size} cannot be cut into {self.accumulate} equal parts: "
                "let accumulate divide batch_size"
            )
        for name in ("label_smoothing", "average_decay"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}: give a number from 0 to below 1")


def penalty_weight(config: PenaltyConfig, steps: int) -> optax.Schedule:
    """The weight of the penalties at each step of a training of ``steps`` steps."""
    first, last = round(config.start * steps), round(config.end * steps)
    return in_float(optax.linear_schedule(0.0, config.weight, max(last - first, 1), transition_begin=first))


def to_json(config: Any) -> Any:
    """A configuration as plain dictionaries, lists and strings, the type of each dataclass under "type"."""
    if dataclasses.is_dataclass(config):
        fields = {f.name: to_json(getattr(config, f.name)) for f in dataclasses.fields(config)}
        return {"type": type(config).__name__, **fields}
    if isinstance(config, tuple):
        return [to_json(item) for item in config]
    return str(config) if isinstance(config, Path) else config


def from_json(kind: Any, value: Any) -> Any:
    """The inverse of :func:`to_json`.

    Args:
        kind: the expected type: a dataclass, a union of dataclasses, or the type of a field.
        value: what :func:`to_json` gave.

    Raises:
        ValueError: a field is unknown or missing, as in the configuration of another version.
    """
    options = {o.__name__: o for o in typing.get_args(kind) if dataclasses.is_dataclass(o) and isinstance(o, type)}
    if options:
        if not isinstance(value, Mapping) or value.get("type") not in options:
            raise ValueError(f"expected one of {list(options)} in the configuration, found {value!r}")
        kind = options[value["type"]]
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        hints = typing.get_type_hints(kind)
        given = {name: item for name, item in value.items() if name != "type"}
        if set(given) != set(hints):
            odd = sorted(set(given) ^ set(hints))
            raise ValueError(f"the configuration is of another version: {kind.__name__} differs in {odd}")
        return kind(**{name: from_json(hints[name], item) for name, item in given.items()})
    if typing.get_origin(kind) is tuple:
        return tuple(value)
    return Path(value) if kind is Path else value


def differences(old: Any, new: Any, prefix: str = "") -> list[str]:
    """Where two values of :func:`to_json` differ, one line a field, such as ``"epochs: 50 -> 60"``."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        names = list(dict.fromkeys([*old, *new]))
        return [line for n in names for line in differences(old.get(n), new.get(n), f"{prefix}.{n}" if prefix else n)]
    return [] if old == new else [f"{prefix}: {old} -> {new}"]
