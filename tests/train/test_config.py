"""Configurations survive JSON, are checked when made, and tell their differences."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from experiments.presets import digits
from shuffle_jax.data import FolderConfig
from shuffle_jax.train.config import (
    BEFORE,
    OptimizerConfig,
    PenaltyConfig,
    TrainConfig,
    differences,
    from_json,
    to_json,
    with_network,
)
from shuffle_jax.train.optimizer import penalty_weight, progress


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
    with pytest.raises(ValueError, match=r"FolderConfig differs in \['root'\]"):
        from_json(TrainConfig, {**value, "data": {"type": "FolderConfig"}})
    with pytest.raises(ValueError, match=r"must have one of \['DigitsConfig', 'FolderConfig', 'TfdsConfig'\], got"):
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
        ({"epochs": 0}, "epochs must be at least 1, got 0"),
        ({"batch_size": 10, "accumulate": 3}, "must be a multiple of accumulate, got batch_size 10 and accumulate 3"),
        ({"label_smoothing": 1.0}, "label_smoothing must be at least 0 and below 1, got 1.0"),
        ({"recalibrate": -1}, "recalibrate must be at least 0 batches, got -1"),
        ({"average_decay": -0.1}, "average_decay must be at least 0 and below 1, got -0.1"),
    ],
)
def test_wrong_numbers_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        TrainConfig(**fields)


def test_the_penalty_ramps_from_zero_and_stays():
    weight = penalty_weight(PenaltyConfig(weight=0.3, start=0.2, end=0.6, for_steps=100), steps=100)
    np.testing.assert_allclose([float(weight(s)) for s in (0, 20, 40, 60, 99)], [0, 0, 0.15, 0.3, 0.3], rtol=1e-6)
    with pytest.raises(ValueError, match=r"start must be at least 0 and below end, got start 0.5 and end 0.5"):
        PenaltyConfig(start=0.5, end=0.5)
    np.testing.assert_allclose([float(progress(8)(s)) for s in (0, 3, 7)], [1 / 8, 1 / 2, 1])


def test_a_field_that_a_version_did_not_have_takes_its_default_and_says_what_it_did():
    value = to_json(digits())
    for group, name in [("augment", "cutmix"), ("augment", "resized_crop"), ("optimizer", "nesterov")]:
        del value[group][name]
    assert from_json(TrainConfig, value) == digits()
    for name in BEFORE["TrainConfig"]:
        del value[name]
    del value["optimizer"]["warmup_share"], value["penalty"]["for_steps"], value["network"]["auto"]["unit_rows"]
    config = digits()
    expected = dataclasses.replace(
        config,
        optimizer=dataclasses.replace(config.optimizer, warmup_share=1.0),
        penalty=dataclasses.replace(config.penalty, for_steps=0),
        network=dataclasses.replace(config.network, auto=dataclasses.replace(config.network.auto, unit_rows=False)),
        **BEFORE["TrainConfig"],
    )
    assert from_json(TrainConfig, value) == expected
    folder = FolderConfig(Path("some/images"))
    before = {name: item for name, item in to_json(folder).items() if name not in ("choose", "suffixes")}
    assert from_json(FolderConfig, before) == dataclasses.replace(folder, choose="order")


def test_a_network_from_outside_is_kept_by_its_import_path_or_refused(networks):
    for network, family in [
        (networks.Small, "outside_networks:Small"),
        (networks.make_plain, "outside_networks:make_plain"),
        (networks.Plain(10, rate=0.25), "outside_networks:Plain(classes=10, rate=0.25)"),
        ("outside_networks:Plain(hidden=3)", "outside_networks:Plain(hidden=3)"),
    ]:
        config = with_network(digits(), network)
        assert (config.network.family, config.network.mixer) == (family, "identity")
        assert from_json(TrainConfig, json.loads(json.dumps(to_json(config)))) == config
    assert with_network(digits(), None) == digits()
    with pytest.raises(ValueError, match="cannot be imported again"):
        with_network(digits(), lambda classes: networks.Small(classes, None))
