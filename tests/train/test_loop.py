"""The loop as a whole: stopped and resumed equals never stopped, bit for bit; what goes wrong is said and survived."""

from __future__ import annotations

import dataclasses
import os
import signal

import flax
import jax
import numpy as np
import pytest

from shuffle_jax.data import AugmentConfig, DeviceBatches, DigitsConfig
from shuffle_jax.records import read_records
from shuffle_jax.run import Run
from shuffle_jax.train.checkpoint import Checkpoints
from shuffle_jax.train.config import OptimizerConfig, PenaltyConfig, TrainConfig, with_network
from shuffle_jax.train.experiment import prepare, read_state, restore
from shuffle_jax.train.loop import Stopped, train
from shuffle_jax.train.metrics import NonFiniteLoss
from shuffle_jax.train.opening import Compiling
from shuffle_jax.train.trained import hardened_experiment, load_trained

CONFIG = with_network(
    TrainConfig(
        data=DigitsConfig(test_fraction=0.9),  # 180 images to train on
        augment=AugmentConfig(crop_padding=1, cutout=2),
        optimizer=OptimizerConfig(learning_rate=0.05, warmup_epochs=0.5),
        penalty=PenaltyConfig(weight=1e-2),
        epochs=3,
        batch_size=44,
        average_decay=0.5,
        log_every=3,
        recalibrate=2,
    ),
    "outside_networks:Small",
)
PLAIN = dataclasses.replace(CONFIG, epochs=2, average_decay=0.0, recalibrate=0)
STEPS = 12


def final_state(path, step=STEPS):
    state = read_state(Run(path), str(step), prepare(CONFIG).state_shapes())
    return jax.device_get(state.replace(key=jax.random.key_data(state.key)))


def numbers(path):
    """The records without what depends on the clock."""
    records = read_records(path / "metrics.jsonl")
    return [{k: v for k, v in r.items() if k not in ("images_per_second", "seconds")} for r in records]


def signal_at(monkeypatch, step, number=signal.SIGTERM):
    """Sends this process a signal while it waits for the batch of a step."""
    original = DeviceBatches.train

    def batches(self, start=0):
        for k, batch in enumerate(original(self, start), start=start + 1):
            if k == step:
                os.kill(os.getpid(), number)
            yield batch

    monkeypatch.setattr(DeviceBatches, "train", batches)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    path = tmp_path_factory.mktemp("loop") / "whole"
    return path, train(CONFIG, path)


def test_a_run_leaves_what_it_promises(whole):
    path, outcome = whole
    names = {str(p.relative_to(path)) for p in path.rglob("*") if p.is_file()}
    figures = {f"figures/{name}.png" for name in ("learning_curves", "penalty", "matrices", "permutations")}
    assert names >= {"config.json", "metrics.jsonl", "permutations.npz", *figures}
    assert names >= {f"snapshots/{step:08d}.npz" for step in (0, 3, 12)}
    assert any(name.startswith("tensorboard/events") for name in names)
    kinds = [(r["kind"], r["step"]) for r in numbers(path) if r["kind"] != "permutation"]
    assert kinds == [
        *[("train", 3), ("train", 4), ("test", 4), ("train", 6), ("train", 8), ("test", 8), ("train", 9)],
        *[("train", 12), ("test", 12), ("result", 12), ("result", 12)],
    ]
    assert sum(r["kind"] == "permutation" for r in numbers(path)) == 4 * 2
    with np.load(path / "permutations.npz") as arrays:
        assert len(arrays.files) == outcome.permutations == 2
        for name in arrays.files:
            assert sorted(arrays[name].tolist()) == list(range(len(arrays[name])))
    result = [r for r in numbers(path) if r["kind"] == "result"]
    assert [r["network"] for r in result] == ["relaxed", "hardened"]
    assert {r["network"]: r["top1"] for r in result} == {k: v["top1"] for k, v in outcome.results.items()}


@pytest.mark.parametrize("devices", [1, 2])
def test_the_step_is_compiled_once_while_its_state_is_made_or_read(tmp_path, devices):
    experiment = prepare(PLAIN, devices)
    step, shapes, batch = experiment.train_step(), experiment.state_shapes(), next(experiment.batches.train())
    compiling, compiled = Compiling(), []
    compiling.begin(step, shapes, batch)
    state = experiment.init()
    with Checkpoints(tmp_path, 1) as checkpoints:
        checkpoints.save(state)
        checkpoints.wait()
        restored = checkpoints.restore(shapes, 0)
    compiling.wait()

    def listen(event, seconds, **_):
        compiled.extend([event] * event.endswith("backend_compile_duration"))

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        first = jax.block_until_ready(step(state, batch))
        again = jax.block_until_ready(step(restored, batch))
        assert not compiled
        jax.jit(lambda x: x + len(compiled))(1.0)
        assert compiled
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    assert float(first[1]["loss"]) == float(again[1]["loss"])
    assert compiling.done().startswith("compiled in ")


def test_what_cannot_be_compiled_ahead_is_left_to_the_step():
    experiment = prepare(PLAIN)
    step, batch, state = experiment.train_step(), next(experiment.batches.train()), experiment.init()
    compiling = Compiling()
    compiling.begin(step, state.replace(params={}), batch)
    compiling.wait()
    compiling.done()
    with pytest.raises(flax.errors.ScopeCollectionNotFound):
        step(state.replace(params={}), batch)
    assert np.isfinite(float(step(state, batch)[1]["loss"]))


@pytest.mark.parametrize("checkpoint", ["last", "8"])
@pytest.mark.slow
def test_a_run_is_hardened_alike_for_all_who_use_it(whole, checkpoint):
    """Index vectors, and statistics estimated anew for them, of the run, its evaluation, predictions and exports."""
    path, _ = whole
    trained = load_trained(path, checkpoint)
    kept = trained.variables["permutations"]
    if checkpoint == "last":
        found = Run(path).permutations()
        assert {layer: leaf["index"].tolist() for layer, leaf in kept.items()} == {
            k: v.tolist() for k, v in found.items()
        }
    experiment, variables, step = restore(path, checkpoint)
    assert step == trained.step == (STEPS if checkpoint == "last" else 8)
    hard = hardened_experiment(experiment, variables)
    jax.tree.map(np.testing.assert_array_equal, hard.variables, trained.variables)
    unchanged = jax.tree.map(np.array_equal, variables["batch_stats"], hard.variables["batch_stats"])
    assert not any(jax.tree.leaves(unchanged))


@pytest.mark.parametrize("step", [6, pytest.param(8, marks=pytest.mark.slow)])  # within an epoch; where one ends
def test_stopped_and_resumed_equals_never_stopped_bit_for_bit(whole, tmp_path, monkeypatch, capsys, step):
    path = tmp_path / "stopped"
    with monkeypatch.context() as patched:
        signal_at(patched, step)
        with pytest.raises(Stopped, match=f"stopped at step {step} of 12 and saved in") as stopped:
            train(CONFIG, path)
    assert stopped.value.signal == signal.SIGTERM
    assert not (path / "permutations.npz").exists()
    train(CONFIG, path, resume=True)

    expected, actual = final_state(whole[0]), final_state(path)
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(a, b)
    # A mean over a logging interval forgets what came before the stop; every other number is the same.
    interval = {6: 6, 8: 8}[step]
    assert [r for r in numbers(path) if r["step"] != interval] == [
        r for r in numbers(whole[0]) if r["step"] != interval
    ]


@pytest.mark.slow
def test_resuming_from_an_older_checkpoint_rewrites_what_came_after(whole, tmp_path):
    import shutil

    path = tmp_path / "older"
    shutil.copytree(whole[0], path)
    shutil.rmtree(path / "checkpoints" / "12")
    train(CONFIG, path, resume=True)
    assert numbers(path) == numbers(whole[0])
    assert len(list((path / "snapshots").iterdir())) == 3


def test_the_handlers_of_signals_are_given_back(whole):
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_a_loss_that_is_not_finite_stops_the_run_names_the_step_and_keeps_the_checkpoint(tmp_path):
    path = tmp_path / "broken"
    config = dataclasses.replace(CONFIG, epochs=2, optimizer=OptimizerConfig(learning_rate=1e30, warmup_epochs=1.2))
    with pytest.raises(NonFiniteLoss, match=r"is (nan|inf) at step \d+; .* in .*; try a lower --optimizer") as failure:
        train(config, path)
    step = int(str(failure.value).split("at step ")[1].split(";")[0])
    with Checkpoints(path / "checkpoints", read_only=True) as checkpoints:
        kept = checkpoints.steps()
    assert all(s < step for s in kept)
    assert all(r["step"] < step for r in numbers(path))


def test_a_run_is_not_overwritten_and_not_resumed_as_another(whole):
    path, _ = whole
    before = (path / "metrics.jsonl").read_bytes()
    with pytest.raises(ValueError, match=r"another --run, or continue it with: python -m experiments\.train --resume "):
        train(CONFIG, path)
    with pytest.raises(ValueError, match=r"--epochs 9: in a training of so many epochs the (learning rate|progress)"):
        train(dataclasses.replace(CONFIG, epochs=9), path, resume=True)
    assert (path / "metrics.jsonl").read_bytes() == before


def test_numbers_that_do_not_fit_the_devices_are_refused(tmp_path):
    with pytest.raises(ValueError, match="devices must be from 1 to 2, the devices of this machine, got 3"):
        train(CONFIG, tmp_path / "a", devices=3)
    with pytest.raises(
        ValueError, match="batch_size must be a multiple of 2, for 1 parts on each of 2 devices, got 45"
    ):
        train(dataclasses.replace(CONFIG, batch_size=45), tmp_path / "b")
    assert not (tmp_path / "a").exists() and not (tmp_path / "b").exists()


@pytest.mark.slow
def test_a_network_without_batch_norms_and_with_collections_of_its_own_trains_resumes_and_is_found_again(
    tmp_path, networks, monkeypatch
):
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    outcome = train(PLAIN, whole, network=networks.make_plain)
    assert list(outcome.results) == ["relaxed"] and outcome.permutations == 0
    with monkeypatch.context() as patched:
        signal_at(patched, 3)
        with pytest.raises(Stopped):
            train(PLAIN, stopped, network=networks.make_plain)
    train(PLAIN, stopped, network="outside_networks:make_plain", resume=True)
    (experiment, ours, _), (_, theirs, _) = restore(whole), restore(stopped)
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)
    assert int(ours["memory"]["seen"]) == experiment.steps == 8
    assert experiment.evaluate(ours) == outcome.results["relaxed"]
    assert load_trained(whole).logits(np.zeros((2, 8, 8, 1), np.float32)).shape == (2, 10)
    with pytest.raises(ValueError, match=r"network\.family: outside_networks:make_plain -> outside_networks:Plain"):
        train(PLAIN, whole, network=networks.Plain, resume=True)


def test_networks_that_cannot_be_trained_are_refused_in_one_line_before_anything_is_written(tmp_path, networks):
    for network, message in [
        (
            networks.Deterministic,
            r"outside_networks:Deterministic must be a linen module network\(images, train=False\)",
        ),
        (networks.Maps, r"Maps must give logits of shape \(n, 10\), a class each, got \(1, 8, 8, 10\)"),
        (networks.Plain(3), "has 3 classes, but 10 are needed"),
        (lambda classes: networks.Plain(classes, 3), "cannot be imported again"),
    ]:
        with pytest.raises(ValueError, match=message) as error:
            train(PLAIN, tmp_path / "run", network=network)
        assert "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()
