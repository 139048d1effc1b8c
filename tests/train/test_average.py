"""Averaged weights are evaluated with statistics of their own, and cost nothing where the training is short."""

from __future__ import annotations

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.presets import digits
from shuffle_jax.data import DigitsConfig
from shuffle_jax.run import Run
from shuffle_jax.train.checkpoint import Checkpoints
from shuffle_jax.train.config import TrainConfig, to_json, with_network
from shuffle_jax.train.experiment import prepare, restore
from shuffle_jax.train.optimizer import moving_average
from shuffle_jax.train.trained import forms, hardened, hardened_experiment, load_trained

DECAYS = (0.9, 0.99, 0.999, 0.9999)


@pytest.mark.slow
def test_averaging_never_ends_two_points_below_the_network_itself():
    network = dataclasses.replace(digits().network, mixer="shuffle")
    config = dataclasses.replace(digits(), network=network, epochs=12, average_decay=DECAYS[0])
    experiment = prepare(config, devices=1)
    configs = [dataclasses.replace(config, average_decay=decay) for decay in DECAYS]

    @jax.jit
    def follow(averages, params, step):
        return [moving_average(average, params, step, c) for average, c in zip(averages, configs, strict=True)]

    state, train_step = experiment.init(), experiment.train_step()
    averages = [jax.tree.map(jnp.copy, state.params) for _ in DECAYS]
    for step, batch in zip(range(experiment.steps), experiment.batches.train(), strict=False):
        state, _ = train_step(state, batch)
        averages = follow(averages, state.params, step)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), averages[0], state.average)

    itself = experiment.evaluate({"params": state.params, **state.collections})["top1"]
    assert itself > 0.85
    for decay, average in zip(DECAYS, averages, strict=True):
        averaged = experiment.evaluate(experiment.settled(state.replace(average=average)).variables())["top1"]
        assert averaged >= itself - 0.02, (decay, averaged, itself)

    # Re-estimated statistics are as good as those of the training, and a form of their own where nothing is hardened.
    asked = dataclasses.replace(experiment, config=dataclasses.replace(config, recalibrate=16))
    variables = {"params": state.params, **state.collections}
    found = dict(forms(asked, variables, hardened_experiment(asked, variables)))
    assert list(found) == ["relaxed", "recalibrated"]
    assert found["relaxed"]["top1"] == itself and found["recalibrated"]["top1"] >= itself - 0.02
    assert found["relaxed"]["loss"] != found["recalibrated"]["loss"]  # as many right may be a coincidence


def test_statistics_are_re_estimated_where_nothing_is_hardened_too(monkeypatch):
    def record(network, variables, images):
        return {**variables, "batch_stats": list(images)}

    monkeypatch.setattr("shuffle_jax.train.trained.recalibrate", record)
    variables = {"params": {"kernel": np.ones(2)}, "batch_stats": {"mean": np.ones(2), "var": np.ones(2)}}
    for batches, expected in ((0, variables["batch_stats"]), (3, [0, 1, 2])):
        config = dataclasses.replace(digits(), recalibrate=batches)
        assert hardened(config, nn.Dense(2), variables, (8, 8, 1), range).variables["batch_stats"] == expected


@pytest.mark.slow
def test_an_average_that_an_earlier_version_left_without_statistics_gets_them_where_the_images_can_be_read(
    tmp_path, networks, capsys, monkeypatch
):
    config = TrainConfig(data=DigitsConfig(test_fraction=0.9), batch_size=44, average_decay=0.5, epochs=1)
    config = with_network(config, networks.Small)
    experiment = prepare(config, devices=1)
    state = experiment.init()
    assert not state.lacks_stats
    settled = experiment.settled(state)
    for name, kept in (("earlier", state.replace(average_stats=None)), ("now", settled)):
        run = Run(tmp_path / name)
        run.start(to_json(config), experiment.dataset.classes, experiment.preprocessing)
        with Checkpoints(run.checkpoints) as checkpoints:
            checkpoints.save(kept)
    own = jax.device_get(settled.average_stats)
    raw = jax.device_get(state.collections["batch_stats"])
    assert not any(jax.tree.leaves(jax.tree.map(np.array_equal, own, raw)))
    for name in ("earlier", "now"):
        _, variables, _ = restore(tmp_path / name, devices=1)
        for found in (variables["batch_stats"], load_trained(tmp_path / name).variables["batch_stats"]):
            jax.tree.map(np.testing.assert_array_equal, jax.device_get(found), own)
    _, on_two, _ = restore(tmp_path / "earlier", devices=2)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), on_two["batch_stats"], own)
    assert capsys.readouterr().err == ""

    def unreadable(*_):
        raise FileNotFoundError("there are no images")

    monkeypatch.setattr("shuffle_jax.train.trained.load", unreadable)
    for name, expected, lines in (("now", own, 0), ("earlier", raw, 1)):
        found = load_trained(tmp_path / name).variables["batch_stats"]
        jax.tree.map(np.testing.assert_array_equal, jax.device_get(found), expected)
        told = capsys.readouterr().err.splitlines()
        assert len(told) == lines and all("those of the last step are used" in line for line in told)
