"""Hardening while the training goes on: when it happens, what it leaves, and that a stop around it changes nothing."""

from __future__ import annotations

import dataclasses
import os
import signal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.traverse_util import flatten_dict

from shuffle_jax.constraint import RELAXED
from shuffle_jax.data import AugmentConfig, DeviceBatches, DigitsConfig
from shuffle_jax.ops.permutation import to_matrix
from shuffle_jax.records import read_records
from shuffle_jax.run import Run
from shuffle_jax.sharding import data_mesh
from shuffle_jax.train import early
from shuffle_jax.train.config import OptimizerConfig, PenaltyConfig, TrainConfig, with_network
from shuffle_jax.train.experiment import prepare, read_state, restore
from shuffle_jax.train.loop import Stopped, train
from shuffle_jax.train.optimizer import learning_rate, make_optimizer
from shuffle_jax.train.start import read_start
from shuffle_jax.train.state import first_state
from shuffle_jax.train.trained import load_trained

CONFIG = with_network(
    TrainConfig(
        data=DigitsConfig(test_fraction=0.9),  # 180 images to train on
        augment=AugmentConfig(crop_padding=1),
        optimizer=OptimizerConfig(learning_rate=0.05, warmup_epochs=0.5, constraint="balance"),
        penalty=PenaltyConfig(weight=3, for_steps=0, end=0.3, settle=1),  # certified after the second epoch
        epochs=5,
        batch_size=44,
        average_decay=0.5,
        keep=5,
    ),
    "outside_networks:Small",
)
STEPS, HARD = 20, 12
"""Of the training; after which its matrices have been certified and the same for an epoch."""

LAYERS = ("stage0_mixer", "stage1_mixer")


def state_of(path, step):
    return read_state(Run(path), str(step), prepare(CONFIG).state_shapes())


def has_matrices(tree):
    paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(tree)]
    return any(getattr(key, "key", None) == RELAXED for path in paths for key in path)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    path = tmp_path_factory.mktemp("early") / "whole"
    return path, train(CONFIG, path)


def test_matrices_go_an_epoch_after_they_are_certified_and_leave_the_permutations_that_they_were(whole):
    path, _ = whole
    before, after = state_of(path, HARD - 4), state_of(path, HARD)
    assert has_matrices(before.params) and has_matrices(before.opt_state) and has_matrices(before.average)
    assert int(before.settling["epochs"]) == 0 and after.settling is None
    assert not has_matrices(after)
    fresh = make_optimizer(CONFIG.optimizer, optax.constant_schedule(0.0)).init(after.params)
    assert jax.tree.structure(after.opt_state) == jax.tree.structure(fresh)
    for layer in LAYERS:
        argmax = np.argmax(before.params[layer][RELAXED], -1)
        np.testing.assert_array_equal(after.collections["permutations"][layer]["index"], argmax)
        np.testing.assert_array_equal(Run(path).permutations()[layer], argmax)


def test_the_run_tells_of_them_to_the_end(whole):
    path, outcome = whole
    assert (outcome.certified, outcome.permutations) == (2, 2)
    assert outcome.results["relaxed"] == outcome.results["hardened"]  # nothing was left to harden
    told = [r for r in read_records(path / "metrics.jsonl") if r["kind"] == "permutation"]
    assert [(r["step"], r["certified"]) for r in told if r["layer"] == LAYERS[0]] == [
        *[(0, False), (4, False)],
        *[(step, True) for step in range(8, STEPS + 1, 4)],
    ]
    assert {r["penalty"] for r in told if r["step"] >= HARD} == {0.0}
    for step in (0, STEPS):
        with np.load(Run(path).snapshots()[step]) as matrices:
            assert set(matrices.files) == set(LAYERS)
    trained = load_trained(path)
    assert {layer: found["index"].tolist() for layer, found in trained.variables["permutations"].items()} == {
        layer: found.tolist() for layer, found in Run(path).permutations().items()
    }
    for step in (HARD - 4, HARD):
        assert restore(path, str(step))[2] == step


# Within the epoch that ends with it, where that ends, and behind it.
@pytest.mark.parametrize(
    "step", [10, pytest.param(12, marks=pytest.mark.slow), pytest.param(14, marks=pytest.mark.slow)]
)
def test_stopped_and_resumed_equals_never_stopped_bit_for_bit(whole, tmp_path, monkeypatch, step):
    original = DeviceBatches.train

    def batches(self, start=0):
        for k, batch in enumerate(original(self, start), start=start + 1):
            if k == step:
                os.kill(os.getpid(), signal.SIGTERM)
            yield batch

    path = tmp_path / "stopped"
    with monkeypatch.context() as patched:
        patched.setattr(DeviceBatches, "train", batches)
        with pytest.raises(Stopped, match=f"stopped at step {step} of {STEPS}"):
            train(CONFIG, path)
    train(CONFIG, path, resume=True)
    expected, actual = (jax.device_get(state_of(p, STEPS).replace(key=None)) for p in (whole[0], path))
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, actual, expected)


def test_a_training_that_starts_from_it_takes_its_permutations_as_matrices(whole):
    config = dataclasses.replace(CONFIG, start_from=whole[0])
    experiment = prepare(config)
    taken = experiment.taken(read_start(whole[0]), jax.device_get(_variables(experiment)))
    assert "drawn anew" not in taken.said
    for layer in LAYERS:
        permutation = Run(whole[0]).permutations()[layer]
        np.testing.assert_array_equal(taken.variables["params"][layer][RELAXED], to_matrix(permutation))


def _variables(experiment):
    state = dataclasses.replace(experiment, start=None).init()
    return {"params": state.params, **state.collections}


@pytest.mark.parametrize("stack", [(), (3,)])
def test_an_epoch_counts_where_all_are_certified_and_none_has_changed(stack):
    def state(*permutations):
        relaxed = [to_matrix(np.broadcast_to(np.asarray(p, np.int32), (*stack, 3))) for p in permutations]
        return {f"mixer{i}": {RELAXED: 0.98 * matrix + 0.02 / 3} for i, matrix in enumerate(relaxed)}

    mesh, first, other = data_mesh(jax.devices()[:1]), state([0, 1, 2], [1, 2, 0]), state([0, 1, 2], [2, 1, 0])
    loose = {**first, "mixer1": {RELAXED: jnp.full((*stack, 3, 3), 1 / 3)}}
    now = early.unsettled(first_state(jax.random.key(0), {"params": first}, optax.sgd(0.1, 0.9)))
    counted = []
    for params in (first, first, first, other, other, loose, other, other):
        now, epochs = early.looked_at(now.replace(params=params), mesh)
        counted.append(epochs)
    assert counted == [0, 1, 2, 0, 1, 0, 0, 1]
    hard = early.hardened(now)
    assert not has_matrices(hard) and hard.params == {}
    index = np.broadcast_to(np.asarray([2, 1, 0]), (*stack, 3))
    np.testing.assert_array_equal(hard.collections["permutations"]["mixer1"]["index"], index)
    again = early.with_matrices(hard.variables(), other)
    assert set(again) == {"params"}
    np.testing.assert_array_equal(again["params"]["mixer1"][RELAXED], to_matrix(index))
    assert set(flatten_dict(again["params"])) == set(flatten_dict(other))


@pytest.mark.parametrize(
    "config",
    [
        OptimizerConfig(clip_norm=1.0, weight_decay=1e-3),
        OptimizerConfig(kind="adamw", body_rate=0.1),
        OptimizerConfig(kind="adas"),
        OptimizerConfig(freeze=("stem",), momentum=0.0),
        OptimizerConfig(freeze=("stage2",)),
    ],
    ids=["sgd", "adamw", "adas", "frozen", "frozen_mixer"],
)
def test_the_optimiser_is_left_as_that_of_the_network_without_matrices(config):
    matrix = {RELAXED: jnp.eye(4)}
    params = {"stem": {"kernel": jnp.ones((3, 3, 1, 4))}, "stage2": {"mixer": matrix, "bias": jnp.zeros(4)}}
    params["head"] = {"bias": jnp.zeros(2)}
    optimizer = make_optimizer(config, learning_rate(config, 40, 4))
    state, _ = early.looked_at(
        early.unsettled(first_state(jax.random.key(0), {"params": params}, optimizer)), data_mesh(jax.devices()[:1])
    )
    hard = early.hardened(state)
    assert set(hard.params["stage2"]) == {"bias"}
    assert jax.tree.structure(hard.opt_state) == jax.tree.structure(optimizer.init(hard.params))
    with jax.numpy_dtype_promotion("standard"):  # optax's AdamW
        updates, _ = optimizer.update(jax.tree.map(jnp.ones_like, hard.params), hard.opt_state, hard.params)
    assert jax.tree.structure(updates) == jax.tree.structure(hard.params)


def test_a_network_without_matrices_and_a_run_that_does_not_ask_have_nothing_to_settle():
    plain = first_state(jax.random.key(0), {"params": {"kernel": jnp.zeros(3)}}, optax.sgd(0.1))
    assert early.unsettled(plain).settling is None
    unasked = dataclasses.replace(CONFIG, penalty=PenaltyConfig())
    assert prepare(unasked).state_shapes().settling is None
    with pytest.raises(ValueError, match="settle must be at least 0, got -1"):
        PenaltyConfig(settle=-1)
    frozen = dataclasses.replace(CONFIG, optimizer=OptimizerConfig(freeze=("stage._mixer",)))
    with pytest.raises(ValueError, match="settle must be 0 where optimizer"):
        prepare(frozen).state_shapes()
