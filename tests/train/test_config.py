"""Configurations survive JSON, are checked when made, and tell their differences."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from experiments.presets import digits
from shuffle_jax.data import FolderConfig
from shuffle_jax.train.config import PenaltyConfig, TrainConfig, differences, from_json, penalty_weight, to_json
from shuffle_jax.train.optimizer import OptimizerConfig


@pytest.mark.parametrize(
    "config",
    [
        digits(),
        TrainConfig(),
        TrainConfig(
            data=FolderConfig(root=Path("some/images"), image_size=32),
            optimizer=OptimizerConfig(step_boundaries=(0.3, 0.6, 0.9)),
        ),
    ],
)
def test_json_round_trip(config):
    assert from_json(TrainConfig, json.loads(json.dumps(to_json(config)))) == config


def test_a_configuration_of_another_version_is_refused():
    value = to_json(digits())
    with pytest.raises(ValueError, match=r"of another version: TrainConfig differs in \['colour'\]"):
        from_json(TrainConfig, {**value, "colour": 1})
    with pytest.raises(ValueError, match=r"OptimizerConfig differs in \['momentum'\]"):
        del value["optimizer"]["momentum"]
        from_json(TrainConfig, value)
    with pytest.raises(ValueError, match=r"expected one of \['DigitsConfig', 'FolderConfig', 'TfdsConfig'\]"):
        from_json(TrainConfig, {**to_json(digits()), "data": {"type": "MnistConfig"}})


def test_differences_name_each_field():
    old = digits()
    new = dataclasses.replace(old, epochs=7, optimizer=dataclasses.replace(old.optimizer, momentum=0.5))
    assert differences(to_json(old), to_json(old)) == []
    assert differences(to_json(old), to_json(new)) == [
        f"optimizer.momentum: {old.optimizer.momentum} -> 0.5",
        f"epochs: {old.epochs} -> 7",
    ]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"epochs": 0}, "epochs is 0: give 1 or more"),
        ({"batch_size": 10, "accumulate": 3}, "a batch of 10 cannot be cut into 3 equal parts"),
        ({"label_smoothing": 1.0}, "label_smoothing is 1.0: give a number from 0 to below 1"),
        ({"average_decay": -0.1}, "average_decay is -0.1"),
    ],
)
def test_wrong_numbers_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        TrainConfig(**fields)


def test_the_penalty_ramps_from_zero_and_stays():
    weight = penalty_weight(PenaltyConfig(weight=0.3, start=0.2, end=0.6), steps=100)
    np.testing.assert_allclose([float(weight(s)) for s in (0, 20, 40, 60, 99)], [0, 0, 0.15, 0.3, 0.3], rtol=1e-6)
    with pytest.raises(ValueError, match=r"ramp from 0.5 to 0.5 must ascend"):
        PenaltyConfig(start=0.5, end=0.5)
