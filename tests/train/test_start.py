"""Fine-tuning: what is frozen stays to the bit, the body learns slowly, and weights are taken where they fit."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import flax.linen as nn
import jax
import numpy as np
import optax
import pytest
from flax.traverse_util import flatten_dict

from experiments import evaluate, train
from shuffle_jax.data import Preprocessing
from shuffle_jax.nn.normalization import BatchNorm
from shuffle_jax.train.config import OptimizerConfig, TrainConfig, from_json, to_json
from shuffle_jax.train.frozen import frozen, stopped, with_frozen_norms
from shuffle_jax.train.optimizer import make_optimizer
from shuffle_jax.train.start import Start, read_start, take


def params():
    """As of a network, with a relaxed permutation."""
    rng = np.random.default_rng(0)

    def leaf(*shape):
        return rng.uniform(0.5, 1.5, shape).astype(np.float32)

    return {
        "stem": {"kernel": leaf(3, 4), "norm": {"scale": leaf(4)}},
        "stage2_0": {"kernel": leaf(4, 4), "mixer": {"relaxed_permutation": np.full((4, 4), 0.25, np.float32)}},
        "head": {"kernel": leaf(4, 2), "bias": leaf(2)},
    }


def steps(config, params, count=2):
    """The parameters by path after some steps along a made-up gradient, and the state of the optimiser."""
    optimizer = make_optimizer(config, optax.constant_schedule(0.1))
    state, gradient = optimizer.init(params), jax.tree.map(np.cos, params)
    with jax.numpy_dtype_promotion("standard"):  # optax's own count is an integer
        for _ in range(count):
            updates, state = optimizer.update(gradient, state, params)
            params = optax.apply_updates(params, updates)
    return flatten_dict(params, sep="/"), state


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_what_is_frozen_has_no_state_and_no_decay_and_leaves_the_others_alone(kind):
    config, before = OptimizerConfig(kind=kind, weight_decay=0.5, freeze=("stem", ".*mixer")), params()
    after, state = steps(config, before)
    trained = {"stage2_0": {"kernel": before["stage2_0"]["kernel"]}, "head": before["head"]}
    alone, smaller = steps(dataclasses.replace(config, freeze=()), trained)
    for path, leaf in flatten_dict(before, sep="/").items():
        np.testing.assert_array_equal(after[path], alone.get(path, leaf))
    assert len(jax.tree.leaves(state)) == len(jax.tree.leaves(smaller))


def test_the_limit_of_the_gradient_does_not_see_what_is_frozen():
    gradient = {"stem": np.full(4, 100.0, np.float32), "head": np.full(4, 0.5, np.float32)}
    config = OptimizerConfig(clip_norm=1.0, weight_decay=0.0, momentum=0.0, nesterov=False, freeze=("stem",))
    optimizer = make_optimizer(config, optax.constant_schedule(1.0))
    updates, _ = optimizer.update(gradient, optimizer.init(gradient), gradient)
    np.testing.assert_array_equal(updates["head"], -0.5)
    np.testing.assert_array_equal(updates["stem"], 0.0)


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_the_body_learns_at_its_own_rate(kind):
    config, before = OptimizerConfig(kind=kind), params()
    del before["stage2_0"]["mixer"]  # its step is brought back to the constraint
    (whole, _), (slow, _) = steps(config, before, 1), steps(dataclasses.replace(config, body_rate=0.25), before, 1)
    for path, leaf in flatten_dict(before, sep="/").items():
        rate = 1.0 if path.startswith("head") else 0.25
        np.testing.assert_allclose(slow[path] - leaf, rate * (whole[path] - leaf), rtol=1e-4, atol=1e-6)
    with pytest.raises(
        ValueError, match=r'body_rate must be 1 for a network .* submodule named "head", this one has a$'
    ):
        steps(dataclasses.replace(config, body_rate=0.25), {"a": before["head"]})


def test_patterns_are_asked_for_something():
    for pattern, message in (
        ("stage3", r"got 'stage3', which matches none: they begin with head, stage2_0, stem$"),
        ("", "must leave something to train"),
    ):
        with pytest.raises(ValueError, match=message):
            frozen(params(), ["stem", pattern])
    with pytest.raises(ValueError, match=r"freeze must be regular expressions, got '\('"):
        OptimizerConfig(freeze=("(",))
    with pytest.raises(ValueError, match="body_rate must be positive, got 0"):
        OptimizerConfig(body_rate=0)
    everything_else = flatten_dict(frozen(params(), ["(?!head)"]), sep="/")
    assert {path for path, off in everything_else.items() if not off} == {"head/kernel", "head/bias"}


TUNED = "outside_networks:Tuned"


class Norms(nn.Module):
    """One norm of the library's and one of flax's, each in two places."""

    @nn.compact
    def __call__(self, x, train=False):
        for name in ("stem", "late"):
            x = BatchNorm(name=f"{name}_own")(x, train)
            x = nn.BatchNorm(use_running_average=not train, name=f"{name}_flax")(x)
        return x


def test_frozen_norms_compute_as_in_evaluation_and_keep_their_statistics():
    rng = np.random.default_rng(0)
    x = rng.normal(1.0, 2.0, (2, 3, 3, 4)).astype(np.float32)
    network = Norms()
    variables = network.init(jax.random.key(0), x)

    @jax.jit
    def whole(variables):
        frozen_stem = with_frozen_norms(network, ["stem"])

        def loss(params):
            held = {**variables, "params": stopped(params, ["stem"])}
            y, updated = frozen_stem.apply(held, x, train=True, mutable=["batch_stats"])
            return y[..., 0].sum() ** 2, (y, updated)

        all_frozen, _ = with_frozen_norms(network, [".*(own|flax)"]).apply(variables, x, train=True, mutable=[])
        gradient, (y, updated) = jax.grad(loss, has_aux=True)(variables["params"])
        return gradient, y, updated["batch_stats"], all_frozen, network.apply(variables, x, train=False)

    gradient, y, statistics, all_frozen, evaluated = jax.device_get(whole(variables))
    kept = {name: not s["mean"].any() for name, s in statistics.items()}
    assert kept == {"stem_own": True, "stem_flax": True, "late_own": False, "late_flax": False}
    # The first two are the identity to a factor, which batch norms behind them take back.
    np.testing.assert_allclose(y.mean((0, 1, 2)), 0, atol=1e-5)
    np.testing.assert_allclose(y.std((0, 1, 2)), 1, rtol=1e-4)
    np.testing.assert_array_equal(all_frozen, evaluated)
    assert with_frozen_norms(network, []) is network
    assert not any(leaf.any() for name in ("stem_own", "stem_flax") for leaf in gradient[name].values())


def start_of(tree, classes, path="runs/a"):
    leaves = {name: flatten_dict(leaves) for name, leaves in tree.items()}
    return Start(Path(path), 7, leaves, Preprocessing(8, 1, (0.5,), (0.5,)), classes)


def test_weights_are_taken_where_they_fit_and_what_is_not_is_said():
    old = {"params": params(), "batch_stats": {"stem": {"norm": {"mean": np.ones(4, np.float32)}}}}
    fresh = jax.tree.map(np.zeros_like, old)
    same, said = take(start_of(old, 2), fresh, 2)
    jax.tree.map(np.testing.assert_array_equal, same, old)
    assert said == "7 of 7 arrays from runs/a, step 7"

    fresh["params"]["head"] = {"kernel": np.zeros((4, 3), np.float32), "bias": np.zeros(3, np.float32)}
    fresh["params"]["extra"] = {"bias": np.zeros(4, np.float32)}
    fresh["progress"] = {"mixer": {"share": np.float32(0)}}
    del fresh["params"]["stage2_0"]["mixer"]
    taken, said = take(start_of(old, 2), fresh, 3)
    assert said == (
        "4 of 7 arrays from runs/a, step 7; the classifier is drawn anew, for 3 classes and not 2; drawn anew: "
        "extra/bias; left out: stage2_0/mixer/relaxed_permutation"
    )
    assert not np.any(taken["params"]["head"]["kernel"]) and taken["progress"] == fresh["progress"]
    np.testing.assert_array_equal(taken["params"]["stem"]["kernel"], old["params"]["stem"]["kernel"])

    del old["params"]["stem"], old["params"]["stage2_0"]
    with pytest.raises(
        ValueError, match=r"has only 1 of the 5 arrays .*: stage2_0/kernel is not there and should be \(4, 4\)"
    ):
        take(start_of(old, 2), fresh, 3)


def test_the_classifier_of_a_network_from_outside_is_known_by_its_shapes():
    old = {
        "params": {"Dense_0": {"kernel": np.ones((8, 4))}, "Dense_1": {"kernel": np.ones((4, 10)), "bias": np.ones(10)}}
    }
    fresh = {"params": {**old["params"], "Dense_1": {"kernel": np.zeros((4, 3)), "bias": np.zeros(3)}}}
    taken, said = take(start_of(old, 10), fresh, 3)
    assert said.endswith("; the classifier is drawn anew, for 3 classes and not 10")
    jax.tree.map(np.testing.assert_array_equal, taken, fresh)


def test_where_a_run_started_from_is_kept_and_earlier_runs_started_from_nothing(tmp_path):
    config = TrainConfig(start_from=Path("runs/a"), optimizer=OptimizerConfig(freeze=("stem", "stage2")))
    plain = json.loads(json.dumps(to_json(config)))
    assert from_json(TrainConfig, plain) == config
    del plain["start_from"], plain["optimizer"]["freeze"], plain["optimizer"]["body_rate"]
    assert from_json(TrainConfig, plain) == TrainConfig()
    (tmp_path / "weights.npz").write_bytes(b"")
    for path in (tmp_path, tmp_path / "weights.npz"):
        with pytest.raises(ValueError, match=r"start_from must be the folder of a run, got .*experiments.convert"):
            read_start(path)


@pytest.mark.slow
def test_a_run_is_fine_tuned_for_other_classes_and_goes_on_without_its_start(tmp_path, monkeypatch, capsys):
    """The network and the size of images come from the run, its pixels' mean too; the frozen part stays to the bit."""
    from PIL import Image

    rng = np.random.default_rng(0)
    for root, classes in (("old", ("dark", "bright", "red")), ("new", ("left", "right"))):
        for i, name in enumerate(classes):
            (tmp_path / root / "train" / name).mkdir(parents=True)
            for n in range(20):
                pixels = rng.integers(80 * i, 80 * i + 40, (8, 8, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / root / "train" / name / f"{n}.png")
    monkeypatch.chdir(tmp_path)
    small, common = "--network.stem small --network.mixer identity", "--devices 1 --batch-size 8 --epochs 2"
    train.run(f"folder --data.root old --run a --data.image-size 8 --network.family {TUNED} {small} {common}".split())
    capsys.readouterr()
    tuned = "--start-from a --optimizer.freeze stem --optimizer.body-rate 0.1"
    train.run(f"folder --data.root new --run b {tuned} {common}".split())
    printed = capsys.readouterr().out
    assert "start: 10 of 12 arrays from a, step 12; the classifier is drawn anew, for 2 classes and not 3" in printed

    about = [json.loads((tmp_path / run / "config.json").read_text()) for run in ("a", "b")]
    for part in ("mean", "std", "size"):
        assert about[0]["preprocessing"][part] == about[1]["preprocessing"][part]
    old, new = (read_start(tmp_path / run).variables for run in ("a", "b"))
    for name in ("params", "batch_stats"):
        for path, leaf in new[name].items():
            off = path[0].startswith("stem")
            assert path[0] == "head" or np.array_equal(leaf, old[name][path]) == off, path

    shutil.rmtree(tmp_path / "a")
    shutil.rmtree(tmp_path / "b" / "checkpoints" / "8")
    train.run(["--resume", "b", "--devices", "1"])
    again = read_start(tmp_path / "b").variables
    jax.tree.map(np.testing.assert_array_equal, again, new)
    evaluate.run(["b"])
