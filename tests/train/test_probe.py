"""Dynamic layers in a run: what is told of them, how they change over the training, and what is said at its end."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import evaluate, export
from experiments.comparison.runs import run_result
from shuffle_jax.analysis.dynamic_use import dynamic_use
from shuffle_jax.data import DeviceBatches, DigitsConfig, normalize
from shuffle_jax.files import load_arrays
from shuffle_jax.models import NetworkConfig
from shuffle_jax.nn.collections import FACTORS, PROGRESS
from shuffle_jax.records import read_records
from shuffle_jax.run import Run
from shuffle_jax.train import trained
from shuffle_jax.train.config import OptimizerConfig, TrainConfig
from shuffle_jax.train.experiment import prepare, read_state
from shuffle_jax.train.loop import Stopped, train

CONFIG = TrainConfig(
    data=DigitsConfig(test_fraction=0.9),  # 180 images to train on
    network=NetworkConfig(
        family="outside_networks:Mixing",
        mixer="dynamic",
        dynamic={
            "start": "random",
            "normalization": "rows",
            "temperature": 2.0,
            "end_temperature": 0.5,
            "binarize_from": 0.5,
        },
    ),
    optimizer=OptimizerConfig(learning_rate=0.1, warmup_epochs=0.5),
    epochs=3,
    batch_size=44,
    log_every=4,
)
STEPS = 12
LAYERS = ("first/mixer", "second/mixer")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    path = tmp_path_factory.mktemp("probe") / "whole"
    return path, train(CONFIG, path, devices=1)


def state_of(path, step):
    return read_state(Run(path), str(step), prepare(CONFIG, 1).state_shapes())


def information(factor):
    """Entropy of the mean row less mean entropy of the rows, over the largest; the mean over rows and groups."""

    def entropy(rows):
        return -np.sum(rows * np.log(np.maximum(rows, 1e-300)), axis=-1) / np.log(rows.shape[-1])

    return np.mean(entropy(factor.mean(0)) - entropy(factor).mean(0))


def told(path):
    """The records without what depends on the clock."""
    records = read_records(path / "metrics.jsonl")
    return [{k: v for k, v in r.items() if k not in ("images_per_second", "seconds")} for r in records]


@pytest.mark.parametrize("mixer", ["dynamic", "factors"])
def test_the_probe_tells_of_an_even_sample_what_the_network_itself_does(mixer, draw):
    parts = prepare(dataclasses.replace(CONFIG, network=dataclasses.replace(CONFIG.network, mixer=mixer)))
    variables = draw(parts.network, parts.dataset.image_shape)
    variables.pop(PROGRESS, None)
    test = parts.dataset.test
    chosen = np.round(np.arange(512) * (len(test) - 1) / 511).astype(int)
    assert len(np.unique(chosen)) == 512 < len(test)
    images = normalize(jnp.asarray(test.images[chosen]), *parts.mean_std)
    _, sown = jax.jit(partial(parts.network.apply, mutable=[FACTORS]))(variables, images)

    probe = parts.probe
    numbers, arrays = probe.numbers(variables), probe.permutations(variables)
    names = {f"{layer}/{name}" for layer in LAYERS for name in ("outer", "inner", "outer_mean", "inner_mean")}
    assert set(arrays) == {"labels", *names}
    np.testing.assert_array_equal(arrays["labels"], test.labels[chosen])
    assert tuple(numbers) == LAYERS
    for layer in LAYERS:
        unit, name = layer.split("/")
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
        made = {"images": 512, "permutations": len(np.unique(rows, axis=0))}
        made["distinct"] = made["permutations"] / 512
        known = sum(f.shape[-1] * information(f) for f in pair.values()) / sum(f.shape[-1] for f in pair.values())
        made["information"] = pytest.approx(known, abs=1e-5)
        assert set(numbers[layer]) == {"regulariser", "invalid", "entropy", *(made if mixer == "dynamic" else ())}
        if mixer == "dynamic":  # what is learned once makes none
            assert {name: numbers[layer][name] for name in made} == made
            assert known > 0 and 1 < made["permutations"] < 512
        np.testing.assert_allclose(numbers[layer]["regulariser"], regulariser, rtol=1e-4)
        valid = np.all([(np.sort(index) == np.arange(index.shape[1])).all(1) for index in indices], axis=0)
        np.testing.assert_allclose(numbers[layer]["invalid"], np.mean(~valid), atol=1e-6)


@pytest.mark.slow
def test_a_run_tells_of_its_dynamic_layers_and_keeps_their_permutations(whole):
    path, outcome = whole
    dynamic = [record for record in told(path) if record["kind"] == "dynamic"]
    assert [(r["step"], r["layer"]) for r in dynamic] == [(s, layer) for s in (0, 4, 8, 12) for layer in LAYERS]
    assert sorted(p.name for p in (path / "dynamic").iterdir()) == [f"{step:08d}.npz" for step in (0, 6, 12)]
    assert list(outcome.results) == ["relaxed", "soft", "repaired", "frozen"]
    assert outcome.dynamic == dynamic_use({r["layer"]: r for r in dynamic[-2:]})
    assert run_result(read_records(path / "metrics.jsonl"))["dynamic"]["counts"] == list(outcome.dynamic.counts)
    networks = {r["network"]: r["top1"] for r in told(path) if r["kind"] == "result"}
    assert networks == {name: result["top1"] for name, result in outcome.results.items()}
    # What is recorded is what the probe sees at that step, the temperature included.
    numbers = prepare(CONFIG, 1).probe.numbers(state_of(path, STEPS).variables())
    for record in dynamic[-2:]:
        for name, value in numbers[record["layer"]].items():
            np.testing.assert_allclose(record[name], value, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_progress_is_the_share_of_the_steps_done_and_ends_at_one(whole):
    for step in (8, STEPS):
        leaves = jax.tree.leaves(state_of(whole[0], step).collections[PROGRESS])
        assert len(leaves) == 2 * len(LAYERS)  # of the temperature, and of the binarization
        assert {float(leaf) for leaf in leaves} == {float(np.float32(step / STEPS))}
    assert {float(leaf) for leaf in jax.tree.leaves(prepare(CONFIG, 1).init().collections[PROGRESS])} == {0.0}


@pytest.mark.slow
def test_the_temperature_of_a_run_is_what_its_progress_says(whole):
    parts, variables = prepare(CONFIG, 1), state_of(whole[0], STEPS).variables()
    images = normalize(jnp.asarray(parts.dataset.test.images[:3]), *parts.mean_std)

    @jax.jit
    def factor(variables):
        _, sown = parts.network.apply(variables, images, mutable=[FACTORS])
        return sown[FACTORS]["first"]["mixer"]["generator"]

    cold = factor(variables)["inner"]
    warm = factor(variables | {PROGRESS: jax.tree.map(jnp.zeros_like, variables[PROGRESS])})["inner"]
    power = np.float64(warm) ** (2.0 / 0.5)  # from the temperature of the start to that of the end
    np.testing.assert_allclose(cold, power / power.sum(-1, keepdims=True), rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_stopped_before_factors_are_binarized_and_resumed_equals_never_stopped_bit_for_bit(
    whole, tmp_path, monkeypatch
):
    original = DeviceBatches.train

    def batches(self, start=0):
        for k, batch in enumerate(original(self, start), start=start + 1):
            if k == 5:
                os.kill(os.getpid(), signal.SIGTERM)
            yield batch

    path = tmp_path / "stopped"
    with monkeypatch.context() as patched:
        patched.setattr(DeviceBatches, "train", batches)
        with pytest.raises(Stopped, match="stopped at step 5 of 12"):
            train(CONFIG, path, devices=1)
    train(CONFIG, path, resume=True, devices=1)

    expected, actual = (state_of(p, STEPS) for p in (whole[0], path))
    expected, actual = (jax.device_get(s.replace(key=jax.random.key_data(s.key))) for s in (expected, actual))
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, actual, expected)
    # A mean over a logging interval forgets what came before the stop; every other number is the same.
    assert [r for r in told(path) if r["step"] != 8] == [r for r in told(whole[0]) if r["step"] != 8]
    for file in (whole[0] / "dynamic").iterdir():
        jax.tree.map(np.testing.assert_array_equal, load_arrays(path / "dynamic" / file.name), load_arrays(file))


@pytest.mark.slow
def test_evaluate_compares_the_forms_of_dynamic_layers_and_gives_its_verdict(whole, tmp_path, capsys):
    path, outcome = whole
    capsys.readouterr()
    evaluate.run([str(path), "--devices", "1", "--layers", "--json", str(tmp_path / "numbers.json")])
    printed = capsys.readouterr().out
    found = json.loads((tmp_path / "numbers.json").read_text())
    networks = found["networks"]
    frozen = "frozen to the mean permutation"
    assert list(networks) == ["hard", "soft", "repaired", frozen, "fixed shuffle, same weights"]
    for name, result in {
        "hard": outcome.results["relaxed"],
        "soft": outcome.results["soft"],
        frozen: outcome.results["frozen"],
    }.items():
        assert networks[name]["top1"] == result["top1"]
        assert networks[name]["loss"] == pytest.approx(result["loss"], rel=1e-4)
    assert sorted(found["dynamic"]) == sorted(LAYERS)
    assert found["permutations"] == {}
    for part in (*networks, *LAYERS, "1618 test images", "static in effect  invalid", "512 of the test images"):
        assert part in printed
    hard = {"hard": outcome.results["relaxed"], "frozen": outcome.results["frozen"]}
    assert outcome.dynamic.text(hard, 1618) in printed.splitlines()
    assert found["dynamic_use"] == {**dataclasses.asdict(outcome.dynamic), "counts": list(outcome.dynamic.counts)}
    export.run([str(path), str(tmp_path / "network.jax"), "--platforms", "cpu"])
    assert outcome.dynamic.text(outcome.results) in capsys.readouterr().out.splitlines()


@pytest.mark.slow
def test_layers_placed_by_hand_are_told_of_as_those_that_the_configuration_names(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(trained, "save_run_figures", lambda run: [])
    config = dataclasses.replace(CONFIG, network=NetworkConfig(family="outside_networks:ByHand", mixer="identity"))
    outcome = train(dataclasses.replace(config, epochs=1), tmp_path / "run", devices=1)
    use, results = outcome.dynamic, outcome.results
    assert list(results) == ["relaxed", "frozen"]
    assert (len(use.counts), use.learned, use.images) == (2, 1, 512)  # a stack of two, and one that is learned once
    assert use.text(results, 1618) in capsys.readouterr().out.splitlines()
    records = read_records(tmp_path / "run" / "metrics.jsonl")
    assert {r["layer"] for r in records if r["kind"] == "dynamic"} == {"stack/mix[0]", "stack/mix[1]", "learned"}
    assert run_result(records)["dynamic"]["counts"] == list(use.counts)  # and is finished
    evaluate.run([str(tmp_path / "run"), "--devices", "1", "--layers"])
    said = capsys.readouterr().out
    assert use.text(results, 1618).replace("as trained", "hard") in said.splitlines() and "learned once  " in said


@pytest.mark.slow
def test_what_is_soft_in_evaluation_is_measured_hard_as_well(whole):
    soft = dataclasses.replace(CONFIG.network.dynamic, evaluation="soft")
    parts = prepare(dataclasses.replace(CONFIG, network=dataclasses.replace(CONFIG.network, dynamic=soft)), 1)
    variables = state_of(whole[0], STEPS).variables()
    found = dict(trained.forms(parts, variables, trained.hardened_experiment(parts, variables)))
    assert list(found) == ["relaxed", "hard", "repaired", "frozen"]
    before = whole[1].results
    for name, other in {"relaxed": "soft", "hard": "relaxed", "repaired": "repaired"}.items():
        assert found[name]["loss"] == pytest.approx(before[other]["loss"], rel=1e-4)
    assert f"(hard {before['relaxed']['top1']:.1%}, frozen" in whole[1].dynamic.text(found)
