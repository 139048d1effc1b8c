"""AdaS: rates by hand, the chain that they scale, and a run that is resumed as if it had not stopped."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from shuffle_jax.analysis.convolutions import Convolutions
from shuffle_jax.analysis.knowledge import Knowledge, Side
from shuffle_jax.data import DigitsConfig
from shuffle_jax.records import read_records
from shuffle_jax.run import Run
from shuffle_jax.sharding import data_mesh
from shuffle_jax.train.adas import LEAST, AdasState, adapted
from shuffle_jax.train.config import OptimizerConfig, TrainConfig, with_network
from shuffle_jax.train.experiment import prepare, read_state
from shuffle_jax.train.loop import train
from shuffle_jax.train.optimizer import learning_rate, make_optimizer

CONFIG = OptimizerConfig(
    "adas", learning_rate=0.5, schedule="constant", warmup_epochs=0, weight_decay=0.1, adas_beta=0.8, adas_zeta=2.0
)
LAYERS = Convolutions(
    {"one": 1, "two": 1},
    {"one/kernel": "one", "norm/scale": "one", "two/kernel": "two", "head/kernel": "two"},
)


def params(first, second):
    """Kernels of 16 channels with so many equal singular values, the others 0: S is a sixteenth of the number."""
    kernels = {name: np.diag([1.0] * n + [0.0] * (16 - n))[None, None] for name, n in (("one", first), ("two", second))}
    tree = {name: {"kernel": jnp.asarray(kernel, jnp.float32)} for name, kernel in kernels.items()}
    return tree | {"norm": {"scale": jnp.ones(16)}, "head": {"kernel": jnp.ones((16, 2))}}


def rates(opt_state):
    leaves = jax.tree.leaves(opt_state, is_leaf=lambda node: isinstance(node, AdasState))
    (state,) = [leaf for leaf in leaves if isinstance(leaf, AdasState)]
    return {path: float(rate) for path, rate in flat(state.rates).items()}


def flat(tree):
    return {
        jax.tree_util.keystr(p, simple=True, separator="/"): leaf
        for p, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def test_rates_go_with_what_kernels_gain():
    mesh = data_mesh(jax.devices()[:1])
    state = make_optimizer(CONFIG, optax.constant_schedule(0.5)).init(params(1, 4))
    expected = dict.fromkeys(LAYERS.followed, 1.0)
    assert rates(state) == expected
    one, two, before = 1.0, 1.0, (2, 4)
    for numbers in ((2, 4), (3, 4), (3, 1), (1, 4), (0, 4)):
        state, known = adapted(state, params(*numbers), LAYERS, CONFIG, mesh)
        assert [known[name].gain for name in LAYERS.groups] == [n / 16 for n in numbers]
        if numbers != (2, 4):  # there is none before the first epoch
            one, two = (
                max(0.8 * rate + 2 * (new - old) / 16 / 0.5, LEAST / 0.5)
                for rate, new, old in zip((one, two), numbers, before, strict=True)
            )
        before = numbers
        expected = {"one/kernel": one, "norm/scale": one, "two/kernel": two, "head/kernel": two}
        np.testing.assert_allclose(list(rates(state).values()), [expected[path] for path in rates(state)], rtol=1e-6)
    assert (one, two) == (LEAST / 0.5, pytest.approx(0.6))  # one lost more than it had


def test_it_is_sgd_whose_updates_are_scaled_and_frozen_leaves_have_no_rate():
    start, mesh = params(2, 3), data_mesh(jax.devices()[:1])
    gradient = jax.tree.map(lambda leaf: leaf + 1, start)
    schedule = optax.constant_schedule(0.5)
    sgd, adas = (make_optimizer(dataclasses.replace(CONFIG, kind=kind), schedule) for kind in ("sgd", "adas"))
    wanted, _ = sgd.update(gradient, sgd.init(start), start)
    found, state = adas.update(gradient, adas.init(start), start)
    jax.tree.map(np.testing.assert_array_equal, wanted, found)
    for numbers in ((2, 3), (3, 3)):
        state, _ = adapted(state, params(*numbers), LAYERS, CONFIG, mesh)
    nothing = jax.tree.map(np.zeros_like, start)
    later, _ = adas.update(nothing, state, nothing)
    carried = 0.9**2 / (1 + 0.9)  # of the first update by Nesterov's momentum
    scale = {path: float(np.max(leaf / flat(found)[path])) / carried for path, leaf in flat(later).items()}
    assert scale == pytest.approx({path: 1.05 if layer == "one" else 0.8 for path, layer in LAYERS.followed.items()})
    frozen = make_optimizer(dataclasses.replace(CONFIG, freeze=("one", "norm")), schedule).init(start)
    frozen, _ = adapted(frozen, start, LAYERS, CONFIG, mesh)
    assert set(rates(frozen)) == {"two/kernel", "head/kernel"}


def test_the_rate_stays_where_it_is_constant_and_beta_has_its_limits():
    config = dataclasses.replace(CONFIG, warmup_epochs=2)
    np.testing.assert_allclose([learning_rate(config, 100, 10)(s) for s in (0, 10, 20, 99)], [0, 0.25, 0.5, 0.5])
    with pytest.raises(ValueError, match="adas_beta must be at least 0 and below 1, got 1"):
        OptimizerConfig(adas_beta=1.0)


@pytest.mark.slow
def test_a_resumed_run_is_one_that_never_stopped(tmp_path, networks, monkeypatch):
    def size(kernel, groups):  # kernels of 8 channels have no rank in so short a training
        return Knowledge(None, Side(1.0, 1.0, 1e-3 * float(np.abs(kernel).mean())), None)  # no rate falls to its floor

    monkeypatch.setattr("shuffle_jax.analysis.convolutions.knowledge", size)
    optimizer = dataclasses.replace(CONFIG, learning_rate=0.05)
    short = TrainConfig(DigitsConfig(0.9), optimizer=optimizer, epochs=2, batch_size=44, evaluate_every=3)
    short = with_network(short, networks.Tuned)
    config = dataclasses.replace(short, epochs=4)
    train(config, tmp_path / "whole")
    train(short, tmp_path / "resumed")
    train(config, tmp_path / "resumed", resume=True)
    shapes = prepare(config).state_shapes()
    whole, resumed = (read_state(Run(tmp_path / name), "last", shapes) for name in ("whole", "resumed"))
    jax.tree.map(np.testing.assert_array_equal, whole.params, resumed.params)
    jax.tree.map(np.testing.assert_array_equal, whole.opt_state, resumed.opt_state)
    assert len(set(rates(whole.opt_state).values())) == 2
    found = [
        [record for record in read_records(Run(tmp_path / name).metrics) if record["kind"] == "knowledge"]
        for name in ("whole", "resumed")
    ]
    assert found[0] == found[1]
    assert [record["epoch"] for record in found[0] if record["layer"] == "stem_conv"] == [1, 2, 3, 4]


@pytest.mark.slow
def test_a_network_without_convolutions_is_refused_before_anything_is_written(tmp_path, networks):
    config = with_network(TrainConfig(DigitsConfig(0.9), optimizer=CONFIG, epochs=1), networks.Plain)
    with pytest.raises(ValueError, match="Plain has no convolution with a kernel"):
        train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()
