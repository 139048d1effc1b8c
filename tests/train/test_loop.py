"""The loop as a whole: stopped and resumed equals never stopped, bit for bit; what goes wrong is said and survived."""

from __future__ import annotations

import dataclasses
import os
import signal

import jax
import numpy as np
import pytest

from shuffle_jax.analysis.records import read_records
from shuffle_jax.data import AugmentConfig, DigitsConfig, ResidentBatches
from shuffle_jax.train import experiment
from shuffle_jax.train.checkpoint import Checkpoints
from shuffle_jax.train.config import PenaltyConfig, TrainConfig
from shuffle_jax.train.interrupt import Stopped
from shuffle_jax.train.loop import train
from shuffle_jax.train.meter import NonFiniteLoss
from shuffle_jax.train.optimizer import OptimizerConfig

CONFIG = TrainConfig(
    data=DigitsConfig(test_fraction=0.9),  # 180 images to train on
    augment=AugmentConfig(crop_padding=1, cutout=2),
    optimizer=OptimizerConfig(learning_rate=0.05, warmup_epochs=0.5),
    penalty=PenaltyConfig(weight=1e-2),
    epochs=3,
    batch_size=44,
    average_decay=0.5,
    log_every=3,
    recalibrate=2,
)
STEPS = 12


def final_state(path, step=STEPS):
    shapes = experiment.prepare(CONFIG).state_shapes()
    with Checkpoints(path / "checkpoints", read_only=True) as checkpoints:
        state = checkpoints.restore(shapes, step)
    return jax.device_get(state.replace(key=jax.random.key_data(state.key)))


def numbers(path):
    """The records without what depends on the clock."""
    records = read_records(path / "metrics.jsonl")
    return [{k: v for k, v in r.items() if k != "images_per_second"} for r in records]


def signal_at(monkeypatch, step, number=signal.SIGTERM):
    """Sends this process a signal while it waits for the batch of a step."""
    original = ResidentBatches.train

    def batches(self, start=0):
        for k, batch in enumerate(original(self, start), start=start + 1):
            if k == step:
                os.kill(os.getpid(), number)
            yield batch

    monkeypatch.setattr(ResidentBatches, "train", batches)


@pytest.fixture(scope="module", autouse=True)
def small(small_network):
    """Every network built here is the small one."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(experiment, "build", lambda config, classes: small_network(classes))
        yield


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
    assert result[0]["top1"] == outcome.relaxed["top1"] and result[1]["top1"] == outcome.hardened["top1"]


@pytest.mark.parametrize("step", [6, 8])  # within an epoch, and where one ends
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
    with pytest.raises(ValueError, match="continue it with --resume, or name another --run"):
        train(CONFIG, path)
    with pytest.raises(ValueError, match="epochs: 3 -> 9"):
        train(dataclasses.replace(CONFIG, epochs=9), path, resume=True)
    assert (path / "metrics.jsonl").read_bytes() == before


def test_numbers_that_do_not_fit_the_devices_are_refused(tmp_path):
    with pytest.raises(ValueError, match="3 devices were asked for, this machine has 2"):
        train(CONFIG, tmp_path / "a", devices=3)
    with pytest.raises(ValueError, match="a batch of 45 in 1 parts cannot be split over 2 devices"):
        train(dataclasses.replace(CONFIG, batch_size=45), tmp_path / "b")
    assert not (tmp_path / "a").exists() and not (tmp_path / "b").exists()
