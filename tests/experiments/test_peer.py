"""The torch twin computes what our network computes, and nothing is timed if it does not."""

from __future__ import annotations

import dataclasses
from functools import partial

import jax
import numpy as np
import pytest

torch = pytest.importorskip("torch")

from experiments import peer, peer_cases  # noqa: E402
from experiments.benchmark_cases import Workload  # noqa: E402

WORK = Workload(batch_size=16, image_size=8, width=0.5)


@pytest.fixture(scope="module")
def network():
    """Our network with statistics that are not those of the start, and its images and labels."""
    network, variables, images, labels = peer_cases.our_network(WORK)
    _, updated = jax.jit(partial(network.apply, train=True, mutable=["batch_stats"]))(variables, images)
    return network, {**variables, **updated}, images, labels


def test_both_have_the_same_parameters(network):
    _, variables, _, _ = network
    model = peer.twin(variables, WORK.width)
    assert sum(p.numel() for p in model.parameters()) == sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
    assert model.stage2_1.right2.conv.weight.is_contiguous(memory_format=torch.channels_last)


def test_one_step_moves_the_weights_to_the_same_place(network, monkeypatch):
    # A rate and a decay that move every weight by more than float32 rounds.
    large = dataclasses.replace(peer_cases.OPTIMIZER, learning_rate=0.1, weight_decay=0.1)
    monkeypatch.setattr(peer_cases, "OPTIMIZER", large)
    _, variables, images, labels = network
    model = peer.twin(variables, WORK.width)
    step, state = peer_cases.our_step(WORK, variables)
    peer_cases.torch_step(WORK, model, images, labels)()
    (params, _, _), _ = step(state, images, labels)
    expected = peer.twin({"params": params, "batch_stats": variables["batch_stats"]}, WORK.width)
    before = dict(peer.twin(variables, WORK.width).named_parameters())
    moved = dict(model.named_parameters())
    ways = {}
    for name, weight in expected.named_parameters():
        ways[name] = float((weight - before[name]).abs().max().detach())
        assert (weight - moved[name]).abs().max() < 1e-2 * ways[name] + 1e-6, name
    # Batch norms make the loss blind to a few; the others do move.
    assert sum(way > 1e-3 for way in ways.values()) > 0.7 * len(ways)


def test_verify_accepts_the_twin():
    peer_cases.verify.__wrapped__(WORK.image_size, WORK.width)


@pytest.mark.parametrize(
    ("spoil", "where"),
    [
        (lambda model: model.stage3_2.right2.norm.running_var.mul_(1.01), "the logits differ"),
        (lambda model: setattr(model.stage3_2.right2.norm, "eps", 0.1), "the logits differ"),
    ],
)
def test_verify_refuses_a_network_that_computes_something_else(monkeypatch, spoil, where):
    good = peer.twin

    def spoilt(variables, width):
        model = good(variables, width)
        spoil(model)
        return model

    monkeypatch.setattr(peer_cases, "twin", spoilt)
    with pytest.raises(ArithmeticError, match=where):
        peer_cases.verify.__wrapped__(WORK.image_size, WORK.width)


def test_agreement_is_relative_and_refuses_what_is_not_a_number():
    ours = np.array([100.0, 1.0], np.float32)
    peer_cases.agree("logits", ours, ours + 0.009)
    for theirs in (ours + 0.011, np.array([np.nan, 1.0], np.float32)):
        with pytest.raises(ArithmeticError, match="torch and shuffle_jax do not compute the same"):
            peer_cases.agree("logits", ours, theirs)


def test_torch_has_all_the_cores():
    peer.prepare()
    assert torch.get_num_threads() == peer.cores()
