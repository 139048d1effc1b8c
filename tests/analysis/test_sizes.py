"""The controller of a search: the authors' decisions to the unit, and what holds of every decision."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shuffle_jax.analysis.knowledge import Knowledge, Side
from shuffle_jax.analysis.sizes import Rule, State, decided, decisions, node_values, slope, start_sizes
from shuffle_jax.models.resnet import UNITS, ResNet
from shuffle_jax.models.sizes import Node

FIGURES = np.load(Path(__file__).parents[1] / "fixtures" / "conet.npz")


def figure(case, name):
    return FIGURES[f"{case}/{name}"].astype(np.float64)


def agrees(states, case, chosen=slice(None)):
    for name, theirs, ours in (
        ("size", "sizes", states),
        ("operation", "operations", states[1:]),
        ("phi", "phi", states[1:]),
    ):
        found = np.array([[getattr(state, name) for state in after] for after in ours], np.float64)
        np.testing.assert_allclose(found, figure(case, theirs)[:, chosen], rtol=1e-7, err_msg=name)


def test_the_authors_decisions():
    case = "decisions_default"
    ranks, start = figure(case, "ranks"), FIGURES[f"{case}/sizes"][0]
    agrees(decisions(start, ranks, figure(case, "conditions"), Rule(least=16)), case)
    slopes = [[slope(one) for one in trial] for trial in ranks]
    np.testing.assert_allclose(slopes, figure(case, "slopes"), atol=1e-8)


def test_the_authors_resnet_is_ours():
    """33 convolutions beside the shortcuts have 20 sizes, of which those that a stage shares stand several times."""
    case, nodes = "resnet34_mapping", ResNet(10, 34).nodes()
    order, place, own = ["stem/conv"], [], iter(range(len(nodes)))
    for stage, units in enumerate(UNITS[34], start=1):
        shared = next(own)
        place += [shared] if stage == 1 else []
        for i in range(units):
            place += [next(own), shared]
            order += [f"stage{stage}_{i}/conv1", f"stage{stage}_{i}/conv2"]
            order += [f"stage{stage}_{i}/downsample"] if i == 0 and stage > 1 else []
    read = {name: figure(case, f"{name}") for name in ("in_rank", "out_rank", "in_condition", "out_condition")}
    ranks, conditions = np.zeros((3, len(nodes), 20)), np.zeros((3, len(nodes)))
    for trial in range(3):
        for epoch in range(20):
            known = {
                layer: Knowledge(
                    Side(read["in_rank"][trial, i, epoch], read["in_condition"][trial, i], 0),
                    Side(read["out_rank"][trial, i, epoch], read["out_condition"][trial, i], 0),
                    None,
                )
                for i, layer in enumerate(order)
            }
            ranks[trial, :, epoch], conditions[trial] = node_values(nodes, known)
    np.testing.assert_allclose(ranks[:, place], figure(case, "node_rank"), atol=1e-7)
    states = decisions([64] * len(nodes), ranks, conditions, Rule(delta=0.01))
    agrees([[after[i] for i in place] for after in states], case)


def test_a_size_that_turns_every_time_comes_to_rest():
    state, sizes = State(32, 0.2), []
    for trial in range(8):
        state = decided(state, [0.0, 1.0] if trial % 2 == 0 else [0.0, 0.0], 1.0, Rule(least=16))
        sizes.append(state.size)
    assert sizes == [38, 34, 36, 36, 36, 36, 36, 36]
    assert state == State(36, 0.2 / 2**6, 0)


def test_thresholds_and_bounds():
    rule = Rule(least=16, most=64)
    grows, stands = [0.0, rule.delta * 1.001], [0.0, rule.delta * 0.999]
    assert [decided(State(40, 0.2), ranks, 1.0, rule).size for ranks in (grows, stands)] == [48, 32]
    assert decided(State(40, 0.2), grows, rule.mu, rule).size == 32  # badly conditioned
    assert decided(State(16, 0.2, -1), stands, 1.0, rule) == State(18, 0.1, 1)  # nothing to shrink: it turns
    assert decided(State(80, 0.2), grows, 1.0, rule) == State(64, 0.2, -1)
    assert decided(State(64, 0.2), grows, 1.0, rule) == State(64, 0.2, 1)


@given(
    st.integers(1, 8),
    st.integers(8, 300),
    st.lists(st.tuples(st.lists(st.floats(0, 1), min_size=1, max_size=4), st.floats(0, 20)), max_size=8),
)
def test_sizes_stay_multiples_within_the_bounds(multiple, start, trials):
    rule, node = Rule(least=30, most=100), Node("a", start, multiple, ())
    state = State(*start_sizes([node], rule), rule.phi)
    for ranks, condition in trials:
        after = decided(state, ranks, condition, rule, np.lcm(2, multiple))
        assert rule.least <= after.size <= rule.most
        assert after.size % multiple == after.size % 2 == 0
        assert after.phi <= state.phi
        assert after == state if state.operation == 0 else after.operation in (-1, 0, 1)
        state = after


def test_sides_without_a_rank_are_left_out_and_layers_without_a_kernel_refused():
    side, node = Side(0.5, 3.0, 0.25), Node("a", 8, 1, (("one", "in"), ("one", "out"), ("two", "out")))
    known = {"one": Knowledge(None, side, None), "two": Knowledge(None, Side(0.7, 5.0, 0.1), None)}
    ranks, conditions = node_values([node], known)
    np.testing.assert_allclose((ranks, conditions), ([0.6], [4.0]))
    with pytest.raises(ValueError, match="two must be a convolution with a kernel of its own"):
        node_values([node], {"one": known["one"]})


@pytest.mark.parametrize(
    "wrong", [{"phi": 1.0}, {"gamma": 0}, {"delta": -1}, {"mu": 1}, {"least": 0}, {"least": 40, "most": 32}]
)
def test_wrong_rules_are_refused(wrong):
    with pytest.raises(ValueError, match=f"{[*wrong][-1]} must be .*, got "):
        Rule(**wrong)
    with pytest.raises(ValueError, match="most must leave room for a multiple of 48 from 50 on, got 90"):
        decided(State(50, 0.2), [0.0], 1.0, Rule(least=50, most=90), 48)
