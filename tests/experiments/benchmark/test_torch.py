"""The torch twin computes what our network computes, and nothing is timed if it does not."""

from __future__ import annotations

import dataclasses
from functools import partial

import jax
import numpy as np
import pytest

torch = pytest.importorskip("torch")

from experiments.benchmark import torch_cases, torch_networks, torch_twin  # noqa: E402
from experiments.benchmark.cases import Workload  # noqa: E402
from shuffle_jax.analysis.count import count  # noqa: E402
from shuffle_jax.models import NetworkConfig, build, mobilenet_v2, shufflenet_v2  # noqa: E402

WORK = Workload(batch_size=16, image_size=8)
CONFIG = NetworkConfig(width=0.5, mixer="shuffle")
MOBILE = NetworkConfig(family="mobilenet_v2", width=0.35, mixer="identity")


@pytest.fixture(scope="module", autouse=True)
def few_units():
    """Every kind of unit and of stage, on both sides, in a third of the compilation."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shufflenet_v2, "UNITS", (2, 3, 1))
        patch.setattr(mobilenet_v2, "TABLE", ((1, 16, 1, 1), (6, 24, 1, 2), (6, 32, 2, 2), (6, 96, 1, 1)))
        yield


@pytest.fixture(scope="module")
def network():
    """Our network with statistics that are not those of the start, and its images and labels."""
    network, variables, images, labels = torch_cases.our_network(WORK, CONFIG)
    _, updated = jax.jit(partial(network.apply, train=True, mutable=["batch_stats"]))(variables, images)
    return network, {**variables, **updated}, images, labels


@pytest.mark.parametrize("config", [CONFIG, MOBILE, dataclasses.replace(CONFIG, stem="imagenet")])
def test_both_have_the_same_parameters(config):
    network = build(config, torch_cases.CLASSES)
    model = torch_networks.torch_network(config, torch_cases.CLASSES)
    assert sum(p.numel() for p in model.parameters()) == count(network, (32, 32, 3)).parameters


def test_the_twin_keeps_its_channels_last(network):
    _, variables, _, _ = network
    model = torch_twin.twin(variables, CONFIG)
    assert model.stage2_1.right2.conv.weight.is_contiguous(memory_format=torch.channels_last)
    assert torch_twin.to_torch(np.ones((2, 4, 4, 3), np.float32)).is_contiguous(memory_format=torch.channels_last)


def test_a_network_that_is_not_written_in_torch_is_refused():
    for config in (NetworkConfig(mixer="auto"), dataclasses.replace(MOBILE, dropout=0.2), NetworkConfig("resnet")):
        with pytest.raises(ValueError, match=f"{config.family} .* is not written in torch here: choose"):
            torch_networks.torch_network(config, classes=10)


def test_one_step_moves_the_weights_to_the_same_place(network, monkeypatch):
    # A rate and a decay that move every weight by more than float32 rounds.
    large = dataclasses.replace(torch_cases.OPTIMIZER, learning_rate=0.1, weight_decay=0.1)
    monkeypatch.setattr(torch_cases, "OPTIMIZER", large)
    ours, variables, images, labels = network
    model = torch_twin.twin(variables, CONFIG)
    step, state = torch_cases.our_step(ours, variables)
    torch_cases.torch_step(WORK, model, images, labels)()
    (params, _, _), _ = step(state, images, labels)
    expected = torch_twin.twin({"params": params, "batch_stats": variables["batch_stats"]}, CONFIG)
    before = dict(torch_twin.twin(variables, CONFIG).named_parameters())
    moved = dict(model.named_parameters())
    ways = {}
    for name, weight in expected.named_parameters():
        ways[name] = float((weight - before[name]).abs().max().detach())
        assert (weight - moved[name]).abs().max() < 1e-2 * ways[name] + 1e-6, name
    # Batch norms make the loss blind to a few; the others do move.
    assert sum(way > 1e-3 for way in ways.values()) > 0.7 * len(ways)


@pytest.mark.parametrize(
    ("config", "size"),
    [(CONFIG, 8), (MOBILE, 8), (dataclasses.replace(CONFIG, stem="imagenet"), 17)],
    ids=["shufflenet", "mobilenet", "imagenet"],
)
@pytest.mark.fast_cases(1)
def test_verify_accepts_the_twin_far_below_its_tolerance(config, size, monkeypatch):
    monkeypatch.setattr(torch_cases, "TOLERANCE", 1e-5)
    torch_cases.verify.__wrapped__(size, config)


@pytest.mark.parametrize(
    ("spoil", "where"),
    [
        (lambda model: model.stage3_2.right2.norm.running_var.mul_(1.01), "the logits differ"),
        (lambda model: setattr(model.stage3_2.right2.norm, "eps", 0.1), "the logits differ"),
    ],
)
def test_verify_refuses_a_network_that_computes_something_else(monkeypatch, spoil, where):
    good = torch_twin.twin

    def spoilt(variables, config):
        model = good(variables, config)
        spoil(model)
        return model

    monkeypatch.setattr(torch_cases, "twin", spoilt)
    with pytest.raises(ArithmeticError, match=where):
        torch_cases.verify.__wrapped__(WORK.image_size, CONFIG)


def test_verify_refuses_another_optimiser(monkeypatch):
    good = torch_cases.torch_step

    def slower(*arguments):
        with monkeypatch.context() as patch:
            patch.setattr(torch_cases, "OPTIMIZER", dataclasses.replace(torch_cases.OPTIMIZER, learning_rate=0.00099))
            return good(*arguments)

    monkeypatch.setattr(torch_cases, "torch_step", slower)
    with pytest.raises(ArithmeticError, match="the losses of the second step differ"):
        torch_cases.verify.__wrapped__(WORK.image_size, CONFIG)


def test_a_step_stands_beside_one_product_of_as_many_multiply_adds(monkeypatch):
    monkeypatch.setattr(torch_cases, "verify", lambda *_: None)
    work = Workload(batch_size=2, image_size=8)
    *networks, product = torch_cases.training(work, CONFIG)
    assert networks == ["torch", "shuffle_jax"]
    side = int(product.split()[-1])
    exact = 3 * 2 * count(build(CONFIG, torch_cases.CLASSES), (8, 8, 3)).multiply_adds
    assert side**3 == pytest.approx(exact, rel=0.02)


def test_agreement_is_relative_and_refuses_what_is_not_a_number():
    ours = np.array([100.0, 1.0], np.float32)
    torch_cases.agree("logits", ours, ours + 0.009)
    for theirs in (ours + 0.011, np.array([np.nan, 1.0], np.float32)):
        with pytest.raises(ArithmeticError, match="torch and shuffle_jax do not compute the same"):
            torch_cases.agree("logits", ours, theirs)


def test_torch_has_all_the_cores():
    torch_twin.prepare()
    assert torch.get_num_threads() == torch_twin.cores()
