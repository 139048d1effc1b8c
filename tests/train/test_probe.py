"""Dynamic layers in a run: what is told of them, how they change over the training, and the verdict at its end."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
from functools import partial

import flax.linen as fnn
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from flax import struct

from experiments import evaluate
from shuffle_jax.analysis.records import read_records
from shuffle_jax.data import DigitsConfig, ResidentBatches, normalize
from shuffle_jax.models.build import mixer_factory
from shuffle_jax.models.config import DynamicConfig, NetworkConfig
from shuffle_jax.nn import PointwiseConv
from shuffle_jax.nn.collections import FACTORS, PROGRESS
from shuffle_jax.sharding import data_mesh, replicated
from shuffle_jax.train import experiment
from shuffle_jax.train.checkpoint import Checkpoints
from shuffle_jax.train.config import TrainConfig
from shuffle_jax.train.experiment import prepare
from shuffle_jax.train.interrupt import Stopped
from shuffle_jax.train.loop import train
from shuffle_jax.train.optimizer import OptimizerConfig
from shuffle_jax.train.probe import Probe
from shuffle_jax.train.state import TrainState

CONFIG = TrainConfig(
    data=DigitsConfig(test_fraction=0.9),  # 180 images to train on
    network=NetworkConfig(
        mixer="dynamic",
        dynamic=DynamicConfig(start="random", temperature=2.0, end_temperature=0.5, binarize_from=0.5),
    ),
    optimizer=OptimizerConfig(learning_rate=0.1, warmup_epochs=0.5),
    epochs=3,
    batch_size=44,
    log_every=4,
)
STEPS = 12
LAYERS = ("first/mixer", "second/mixer")


class Unit(fnn.Module):
    """A 1x1 convolution and a mixer."""

    mixer: object

    @fnn.compact
    def __call__(self, x, train=False):
        return self.mixer(name="mixer")(fnn.relu(PointwiseConv(12)(x)), train=train)


class Tiny(fnn.Module):
    """Two units."""

    classes: int
    mixer: object

    @fnn.compact
    def __call__(self, x, train=False):
        x = Unit(self.mixer, name="second")(Unit(self.mixer, name="first")(x, train), train)
        return fnn.Dense(self.classes)(x.mean((1, 2)))


@pytest.fixture(scope="module", autouse=True)
def small():
    """Every network built here is a tiny one with the mixer asked for."""
    with pytest.MonkeyPatch.context() as patched:
        for module in (experiment, evaluate):
            patched.setattr(module, "build", lambda config, classes: Tiny(classes, mixer_factory(config, 2)))
        yield


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    path = tmp_path_factory.mktemp("probe") / "whole"
    return path, train(CONFIG, path)


def state_of(path, step):
    with Checkpoints(path / "checkpoints", read_only=True) as checkpoints:
        return checkpoints.restore(prepare(CONFIG).state_shapes(), step)


def told(path):
    """The records without what depends on the clock."""
    records = read_records(path / "metrics.jsonl")
    return [{k: v for k, v in r.items() if k != "images_per_second"} for r in records]


def arrays_of(path):
    with np.load(path) as file:
        return dict(file)


@pytest.mark.parametrize("mixer", ["dynamic", "factors"])
def test_the_probe_tells_of_an_even_sample_what_the_network_itself_does(mixer):
    parts = prepare(dataclasses.replace(CONFIG, network=dataclasses.replace(CONFIG.network, mixer=mixer)))
    shapes = parts.state_shapes().params
    rng = np.random.default_rng(0)
    variables = {"params": jax.tree.map(lambda leaf: np.float32(rng.standard_normal(leaf.shape)), shapes)}
    test = parts.dataset.test
    chosen = np.round(np.arange(512) * (len(test) - 1) / 511).astype(int)
    assert len(np.unique(chosen)) == 512 < len(test)
    images = normalize(jnp.asarray(test.images[chosen]), *parts.pixels)
    _, sown = jax.jit(partial(parts.network.apply, mutable=[FACTORS]))(variables, images)

    probe = Probe(parts)
    numbers, arrays = probe.numbers(variables), probe.permutations(variables)
    names = {f"{layer}/{name}" for layer in LAYERS for name in ("outer", "inner", "outer_mean", "inner_mean")}
    assert set(arrays) == {"labels", *names}
    np.testing.assert_array_equal(arrays["labels"], test.labels[chosen])
    assert tuple(numbers) == LAYERS
    for layer in LAYERS:
        unit, _, name = layer.partition("/")
        pair = {key: np.float64(leaf) for key, leaf in sown[FACTORS][unit][name]["generator"].items()}
        regulariser, indices = 0.0, []
        for key, factors in pair.items():
            found, mean = arrays[f"{layer}/{key}"], arrays[f"{layer}/{key}_mean"]
            every = np.broadcast_to(factors, (512, *factors.shape[1:]))
            assert found.dtype == np.int16
            np.testing.assert_array_equal(found, every.argmax(-1))
            np.testing.assert_allclose(mean, every.mean(0), rtol=1e-4, atol=1e-6)
            product = factors @ np.swapaxes(factors, -1, -2) - np.eye(factors.shape[-1])
            regulariser += np.square(product).sum((-2, -1)).mean() / factors.shape[-1]
            indices.append(found.reshape(512, -1))
        rows = np.concatenate(indices, axis=1)
        assert numbers[layer]["distinct"] == np.float32(len(np.unique(rows, axis=0)) / 512)
        np.testing.assert_allclose(numbers[layer]["regulariser"], regulariser, rtol=1e-4)
        valid = np.all([(np.sort(index) == np.arange(index.shape[1])).all(1) for index in indices], axis=0)
        np.testing.assert_allclose(numbers[layer]["invalid"], np.mean(~valid), atol=1e-6)


def test_a_run_tells_of_its_dynamic_layers_and_keeps_their_permutations(whole):
    path, outcome = whole
    dynamic = [record for record in told(path) if record["kind"] == "dynamic"]
    assert [(r["step"], r["layer"]) for r in dynamic] == [(s, layer) for s in (0, 4, 8, 12) for layer in LAYERS]
    assert sorted(p.name for p in (path / "dynamic").iterdir()) == [f"{step:08d}.npz" for step in (0, 3, 12)]
    assert list(outcome.others) == ["soft", "repaired", "frozen"]
    networks = {r["network"]: r["top1"] for r in told(path) if r["kind"] == "result"}
    assert networks == {"relaxed": outcome.relaxed["top1"]} | {k: r["top1"] for k, r in outcome.others.items()}
    # What is recorded is what the probe sees at that step, the temperature included.
    numbers = Probe(prepare(CONFIG)).numbers(state_of(path, STEPS).variables())
    for record in dynamic[-2:]:
        for name, value in numbers[record["layer"]].items():
            np.testing.assert_allclose(record[name], value, rtol=1e-5, atol=1e-6)


def test_progress_is_the_share_of_the_steps_done_and_ends_at_one(whole):
    for step in (8, STEPS):
        leaves = jax.tree.leaves(state_of(whole[0], step).progress)
        assert len(leaves) == 2 * len(LAYERS)  # of the temperature, and of the binarization
        assert {float(leaf) for leaf in leaves} == {float(np.float32(step / STEPS))}
    assert {float(leaf) for leaf in jax.tree.leaves(prepare(CONFIG).init().progress)} == {0.0}


def test_the_temperature_of_a_run_is_what_its_progress_says(whole):
    parts, variables = prepare(CONFIG), state_of(whole[0], STEPS).variables()
    images = normalize(jnp.asarray(parts.dataset.test.images[:3]), *parts.pixels)

    @jax.jit
    def factor(variables):
        return parts.network.apply(variables, images, mutable=[FACTORS])[1][FACTORS]["first"]["mixer"]["generator"]

    cold = factor(variables)["inner"]
    warm = factor(variables | {PROGRESS: jax.tree.map(jnp.zeros_like, variables[PROGRESS])})["inner"]
    power = np.float64(warm) ** (2.0 / 0.5)  # from the temperature of the start to that of the end
    np.testing.assert_allclose(cold, power / power.sum(-1, keepdims=True), rtol=1e-4, atol=1e-6)


def test_stopped_before_factors_are_binarized_and_resumed_equals_never_stopped_bit_for_bit(
    whole, tmp_path, monkeypatch
):
    original = ResidentBatches.train

    def batches(self, start=0):
        for k, batch in enumerate(original(self, start), start=start + 1):
            if k == 5:
                os.kill(os.getpid(), signal.SIGTERM)
            yield batch

    path = tmp_path / "stopped"
    with monkeypatch.context() as patched:
        patched.setattr(ResidentBatches, "train", batches)
        with pytest.raises(Stopped, match="stopped at step 5 of 12"):
            train(CONFIG, path)
    train(CONFIG, path, resume=True)

    expected, actual = (state_of(p, STEPS) for p in (whole[0], path))
    expected, actual = (jax.device_get(s.replace(key=jax.random.key_data(s.key))) for s in (expected, actual))
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, actual, expected)
    # A mean over a logging interval forgets what came before the stop; every other number is the same.
    assert [r for r in told(path) if r["step"] != 8] == [r for r in told(whole[0]) if r["step"] != 8]
    for file in (whole[0] / "dynamic").iterdir():
        jax.tree.map(np.testing.assert_array_equal, arrays_of(path / "dynamic" / file.name), arrays_of(file))


class OldState(struct.PyTreeNode):
    """The state before there was ``progress``."""

    step: object
    params: object
    statistics: object
    permutations: object
    opt_state: object
    average: object
    key: object


def test_a_state_from_before_there_was_progress_is_restored(tmp_path):
    old = OldState(
        jnp.int32(7),
        {"kernel": jnp.arange(5.0)},
        {"mean": jnp.ones(3)},
        {},
        (jnp.zeros(3), ()),
        None,
        jax.random.key(3),
    )
    old = jax.device_put(old, replicated(data_mesh()))
    like = TrainState(**{field.name: getattr(old, field.name) for field in dataclasses.fields(old)})
    with Checkpoints(tmp_path) as checkpoints:
        # Not by their own save: only the fields that an earlier version had, as it wrote them.
        checkpoints._manager.save(7, args=ocp.args.StandardSave(old))
        checkpoints.wait()
    with Checkpoints(tmp_path, read_only=True) as checkpoints:
        found = checkpoints.restore(like)
    assert jax.tree.structure(found) == jax.tree.structure(like)
    assert found.progress == {}
    assert int(found.step) == 7
    np.testing.assert_array_equal(found.params["kernel"], np.arange(5.0))
    np.testing.assert_array_equal(jax.random.key_data(found.key), jax.random.key_data(old.key))


def test_evaluate_compares_the_forms_of_dynamic_layers_and_gives_its_verdict(whole, tmp_path, capsys):
    path, outcome = whole
    capsys.readouterr()
    evaluate.run([str(path), "--layers", "--json", str(tmp_path / "numbers.json")])
    printed = capsys.readouterr().out
    found = json.loads((tmp_path / "numbers.json").read_text())
    networks = found["networks"]
    frozen = "frozen to the mean permutation"
    assert list(networks) == ["hard", "soft", "repaired", frozen, "fixed shuffle, same weights"]
    for name, result in {
        "hard": outcome.relaxed,
        "soft": outcome.others["soft"],
        frozen: outcome.others["frozen"],
    }.items():
        assert networks[name]["top1"] == result["top1"]
        assert networks[name]["loss"] == pytest.approx(result["loss"], rel=1e-4)
    assert sorted(found["dynamic"]) == sorted(LAYERS)
    assert found["permutations"] == {}
    for part in (*networks, *LAYERS, "1618 test images", " in effect: frozen to one permutation for all images it "):
        assert part in printed


PROBED = {"a": {"distinct": 0.5}, "b": {"distinct": 0.3}}


def test_the_verdict_is_static_if_freezing_loses_no_more_than_the_standard_error():
    error = np.sqrt(0.9 * 0.1 / 10_000)  # 0.3 points
    static = evaluate.verdict(0.9, 0.9 - 0.9 * error, PROBED, 10_000)
    assert static.startswith("static in effect: frozen to one permutation for all images it loses 0.27 points of top-1")
    assert "within the standard error of 0.30" in static
    assert "40.0% as many different permutations" in static
    dynamic = evaluate.verdict(0.9, 0.9 - 1.1 * error, PROBED, 10_000)
    assert dynamic.startswith("dynamic in effect: frozen to one permutation for all images it loses 0.33 points")
    assert "standard error 0.30" in dynamic
    assert evaluate.verdict(1.0, 1.0, PROBED, 10).startswith("static in effect")  # No error is known, and no loss.
