"""What a mixer adds is measured against the network without one, with the same weights, and with bytes that add up."""

from __future__ import annotations

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from experiments.benchmark import __main__ as benchmark
from experiments.benchmark import measuring, shifts, showing
from experiments.benchmark.cases import Workload
from experiments.benchmark.effort import Effort
from experiments.benchmark.shifts import GROUPS, IDENTITY, MIXERS
from experiments.benchmark.tables import tables
from shuffle_jax.ops import permutation

WORK = Workload(batch_size=2, image_size=8)
PERMUTATION, DEPTHWISE = "learned hard permutation", "depthwise 3x3"


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(measuring, "SHORTEST", 0.0)
    monkeypatch.setattr(measuring, "rest", lambda: True)


@pytest.fixture(scope="module")
def networks():
    """Three units and not fifteen: one of each stage."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shifts, "DEPTH", 8)
        return shifts.networks(WORK)


@pytest.fixture(scope="module")
def programs(networks):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shifts, "networks", lambda work: networks)
        return shifts.mixers(WORK)


def cost(seconds, accessed=0.0, moved=0):
    return {"seconds": seconds, "accessed": accessed, "moved": moved}


def result(costs):
    """By what is known of all, and not by program."""
    return {key: {name: one[key] for name, one in costs.items()} for key in ("seconds", "accessed", "moved")}


def test_what_is_added_is_taken_round_by_round_from_the_first_and_the_limit_from_the_copy():
    costs = {
        "without": cost([0.010, 0.020, 0.040], accessed=2.0**30),
        "with": cost([0.012, 0.020, 0.030], accessed=2.0**30 + 2.5 * 2**20, moved=2_000_000),
        "unmoved": cost([0.020, 0.040, 0.120], accessed=0.0),
        "copies": cost([0.004, 0.001, 0.002], moved=8_000_000),
    }
    headings, rows = showing.added_columns(showing.Table("added", lambda effort: {}), result(costs))
    spread = ["added_ms_min", "added_ms_median", "added_ms_max", "ratio_min", "ratio_median", "ratio_max"]
    assert headings == ["", "median_ms", *spread, "added_MiB", "limit_ms"]
    assert rows == [
        ["without", "20", "0", "0", "0", "1.00", "1.00", "1.00", "0", "0"],
        ["with", "20", "-10", "0", "2", "0.75", "1.00", "1.20", "2.5", "0.5"],  # 2 MB at 4 GB/s
        ["unmoved", "40", "10", "20", "80", "2.00", "2.00", "3.00", "-1024", "0"],
        ["copies, 4 GB/s", "2", *[""] * 8],
    ]


def test_bytes_that_the_compiler_does_not_count_are_unknown_and_the_times_stay():
    costs = {"without": cost([1.0], accessed=None), "with": cost([3.0], accessed=None), "copies": cost([1.0], moved=1)}
    _, rows = showing.added_columns(showing.Table("added", lambda effort: {}), result(costs))
    assert rows[1] == ["with", "3000", "2000", "2000", "2000", "3.00", "3.00", "3.00", "unknown", "0"]


def test_the_bytes_of_a_program_are_those_that_it_reads_and_writes():
    class Told:
        def __init__(self, costs):
            self.costs = costs

        def cost_analysis(self):
            return self.costs

    compiled = jax.jit(lambda x, y: x + y).lower(*[jnp.zeros(1000)] * 2).compile()
    assert shifts.accessed(compiled) == 3 * 4000
    assert shifts.accessed(Told([{"bytes accessed": 5.0}])) == 5.0  # as some versions say it
    assert shifts.accessed(Told(None)) is None
    assert shifts.accessed(Told({})) is None


@pytest.mark.slow
def test_networks_share_the_weights_of_the_one_that_mixes_nothing(networks):
    shared = flatten_dict(networks[IDENTITY][1])
    own = {}
    for label, (network, variables) in networks.items():
        shapes = jax.eval_shape(network.init, jax.random.key(0), jnp.zeros((1, 8, 8, 3)))
        assert jax.tree.map(jnp.shape, variables) == jax.tree.map(jnp.shape, shapes)
        flat = flatten_dict(variables)
        assert all(flat[path] is leaf for path, leaf in shared.items())
        own[label] = sorted(leaf.shape for path, leaf in flat.items() if path not in shared)
    widths = (72, 72, 144)
    assert {label: shapes for label, shapes in own.items() if shapes} == {
        PERMUTATION: [(c,) for c in widths],
        DEPTHWISE: [(3, 3, 1, c) for c in widths],
    }


@pytest.mark.slow
def test_forms_of_a_shift_give_the_same_logits_and_other_mixers_others(programs):
    logits = {label: np.asarray(programs[label].case()) for label in MIXERS}
    assert list(programs)[:-1] == list(MIXERS)
    pairs = {name: name.replace("plain", "folded" if "and" not in name else "fused") for name in MIXERS}
    pairs = {plain: other for plain, other in pairs.items() if plain.endswith("plain")}
    assert len(pairs) == 3
    for plain, other in pairs.items():
        np.testing.assert_allclose(logits[plain], logits[other], rtol=1e-4, atol=1e-5)
    different = [label for label in MIXERS if label not in pairs.values()]
    for i, one in enumerate(different):
        for other in different[:i]:
            assert np.abs(logits[one] - logits[other]).max() > 1e-3, (one, other)


@pytest.mark.slow
def test_a_mixer_with_variables_of_its_own_can_do_what_others_do(networks, programs):
    """A permutation that is the shuffle, and a window that sees its centre alone."""
    images = programs[IDENTITY].case.args[1]
    for label, like in ((PERMUTATION, "fixed shuffle"), (DEPTHWISE, IDENTITY)):
        network, variables = networks[label]
        flat = flatten_dict(variables)
        for path, leaf in flat.items():
            if path[-1] == "index":
                flat[path] = permutation.channel_shuffle(leaf.size, GROUPS)
            elif path[-2:] == ("mixer", "kernel"):
                flat[path] = jnp.zeros_like(leaf).at[1, 1].set(1)
        logits = jax.jit(network.apply)(unflatten_dict(flat), images)
        np.testing.assert_allclose(logits, programs[like].case(), rtol=1e-4, atol=1e-5)


def test_the_bytes_to_move_are_those_of_the_paper_s_network():
    """Five units a stage, inside of which are 72, 144 and 288 channels, but in the first of a stage half of these."""
    between = 5 * 72 * 32**2 + (72 + 4 * 144) * 16**2 + (144 + 4 * 288) * 8**2
    after = 5 * 36 * 32**2 + (36 + 4 * 72) * 16**2 + (72 + 4 * 144) * 8**2
    network = shifts.AddressNet(10, shifts.DEPTH, mixer=shifts.Identity, offsets=())
    images = jax.ShapeDtypeStruct((3, 32, 32, 3), jnp.float32)
    shapes = jax.eval_shape(network.init, jax.random.key(0), images)
    for _ in range(2):  # also where it has been traced before
        found = shifts.arrays(network, shapes, images)
        assert len(found) == 15
        assert tuple(map(sum, zip(*found, strict=True))) == (3 * 4 * between, 3 * 4 * after)


@pytest.mark.slow
def test_only_what_is_not_folded_into_a_convolution_must_move(programs):
    between, smaller = (
        {programs[n].moved for n in MIXERS if MIXERS[n].moves == kind} for kind in ("between", "smaller")
    )
    values = 2 * (72 * 8**2 + 72 * 4**2 + 144 * 2**2)  # of two images, in one unit of each stage
    assert between == {2 * 4 * values}
    assert smaller == {2 * 4 * values // 2}
    assert [n for n in MIXERS if programs[n].moved == 0] == [IDENTITY, "channel shift, folded"]
    name, copy = list(programs.items())[-1]
    assert name == f"{shifts.COPIES} copies of 0.0352 MiB"
    assert copy.moved == shifts.COPIES * 2 * 4 * 2 * 72 * 8**2
    np.testing.assert_allclose(copy.case(), copy.case.args[0] + shifts.COPIES, rtol=1e-5)


@pytest.mark.parametrize("table", [shifts.shifts, shifts.steps])
@pytest.mark.slow
def test_operations_are_linear_in_each_argument_and_their_gradients_are_the_adjoints(table):
    forward, both = (table(Workload(2, 8), 144, backward) for backward in (False, True))
    assert list(forward) == list(both)
    for name, case in both.items():
        (gradient, *arguments), (y, found) = case.args, case()
        np.testing.assert_allclose(y, forward[name](), rtol=1e-5, atol=1e-5)
        assert arguments[0].shape == (2, 4, 4, 144)  # of the second stage
        product = np.vdot(y, gradient)
        for argument, derivative in zip(arguments, found, strict=True):
            np.testing.assert_allclose(np.vdot(argument, derivative), product, rtol=1e-3, atol=1e-2)


def test_shifts_move_values_and_the_step_is_the_same_in_both_forms():
    moved = {name: np.asarray(case()) for name, case in shifts.shifts(WORK, 72, backward=False).items()}
    x = moved["copy"] / 2
    assert {y.shape for y in moved.values()} == {(2, 8, 8, 72)}
    for name in ("channel shift", "fixed shuffle", "permutation", "address shift, wrap"):
        np.testing.assert_array_equal(np.sort(moved[name].ravel()), np.sort(x.ravel()))
        assert (moved[name] != x).any()
    by_edge = [moved[f"address shift, {edge}"] for edge in ("pointer", "zero", "wrap")]
    for one, other in zip(by_edge, by_edge[1:] + by_edge[:1], strict=True):
        np.testing.assert_array_equal(one[:, 1:-1, 1:-1], other[:, 1:-1, 1:-1])
        assert (one != other).any()
    alone, plain, fused = (case() for case in shifts.steps(WORK, 72, backward=False).values())
    np.testing.assert_allclose(plain, fused, rtol=1e-4, atol=1e-4)
    assert alone.shape == fused.shape == (2, 8, 8, 36)
    assert np.abs(np.asarray(alone - fused)).max() > 1


def test_the_kernel_is_measured_where_it_can_run(monkeypatch):
    here = list(shifts.steps(WORK, 72, backward=False))
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert list(shifts.steps(WORK, 72, backward=False)) == [*here, "channel and address shift, one kernel"]


def test_tables_are_of_one_image_and_of_128_and_nothing_is_made_before_its_turn(monkeypatch):
    made = []
    monkeypatch.setattr(shifts, "mixers", lambda work: made.append(work) or {})
    found = tables(Workload(batch_size=5, image_size=16))
    assert not made
    for name in ("mixers-1", "mixers-128"):
        found[name].measure(Effort(1))
    assert made == [Workload(1, 16), Workload(128, 16)]


@pytest.mark.slow
def test_the_command_measures_and_writes_them(networks, monkeypatch, tmp_path, capsys):
    some = (IDENTITY, "channel shift, folded", "fixed shuffle")
    monkeypatch.setattr(shifts, "DEPTH", 8)
    monkeypatch.setattr(shifts, "networks", lambda work: {name: networks[name] for name in some})
    monkeypatch.setattr(shifts, "BATCHES", (1, 3))
    path = tmp_path / "times.json"
    only = ("mixers-3", "shifts-288")
    benchmark.run(["--rounds", "3", "--batch-size", "2", "--image-size", "8", "--only", *only, "--json", str(path)])
    printed = capsys.readouterr().out
    rows = {line.split("  ")[0]: line.split()[-9:] for line in printed.splitlines()}
    assert rows[IDENTITY][1:] == ["0", "0", "0", "1.00", "1.00", "1.00", "0", "0"]
    assert rows["channel shift, folded"][-1] == "0"
    assert float(rows["fixed shuffle"][-1]) > 0
    assert "what a mixer adds to AddressNet-8, 8x8, inference, batch 3, float32" in printed
    written = json.loads(path.read_text())["tables"]
    assert list(written) == list(only)
    costs = written["mixers-3"]
    assert list(costs["seconds"])[:-1] == list(some)
    for name, seconds in costs["seconds"].items():
        assert len(seconds) == 3
        assert costs["accessed"][name] > 0
    bandwidth = [float(line.split(", ")[-1].split()[0]) for line in printed.splitlines() if " copies of " in line]
    copy = list(costs["seconds"])[-1]
    assert bandwidth == [pytest.approx(costs["moved"][copy] / np.median(costs["seconds"][copy]) / 1e9, rel=1e-2)]
