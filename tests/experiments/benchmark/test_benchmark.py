"""The benchmark measures what it says: the same operation in every form, in turn, against the first."""

from __future__ import annotations

import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.benchmark import __main__ as benchmark
from experiments.benchmark import aims, cases, convolutions, machine, measuring, startup
from experiments.benchmark.cases import Workload
from experiments.benchmark.effort import Effort, OutOfTime
from experiments.benchmark.results import Results
from experiments.benchmark.showing import Table
from experiments.benchmark.tables import tables
from experiments.cli import main
from shuffle_jax.models import NetworkConfig, build
from shuffle_jax.models.config import MixerKind, PointwiseKind
from shuffle_jax.models.decomposition import basic_sizes
from shuffle_jax.nn import BatchNorm, PointwiseConv

WORK = Workload(batch_size=2, image_size=8, width=0.5)
NETWORKS = {cases.FIXED, cases.RELAXED, cases.HARDENED, cases.NONE, cases.DYNAMIC, cases.STATIC_DYNAMIC}
RESNET = NetworkConfig(family="resnet", mixer="identity")
SMALL = ["--rounds", "2", "--batch-size", "2", "--image-size", "8"]


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(measuring, "SHORTEST", 0.0)
    monkeypatch.setattr(measuring, "rest", lambda: True)


@pytest.fixture
def no_torch(monkeypatch):
    find = machine.is_there
    monkeypatch.setattr(machine, "is_there", lambda name: name != "torch" and find(name))


@pytest.mark.parametrize("table", [cases.depthwise, cases.grouped_pointwise])
def test_both_forms_of_a_convolution_compute_the_same_gradients(table):
    first, second = [case() for case in table(WORK).values()][:2]
    for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-2)


def test_the_ways_to_permute_agree_and_move_the_bytes_that_the_copy_moves():
    results = {name: case() for name, case in cases.moving_channels(WORK, backward=False).items()}
    for name in ("permute (gather)", "jnp.take"):
        assert bool(jnp.all(results[name] == results["shuffle (reshape)"]))
    assert {(y.shape, y.dtype) for y in results.values()} == {((2, 4, 4, 116), jnp.dtype("float32"))}


class Small(nn.Module):
    """One layer of each kind, and one mixer."""

    mixer: MixerKind
    pointwise: PointwiseKind

    @nn.compact
    def __call__(self, x, train=False):
        config = NetworkConfig(mixer=self.mixer, pointwise=self.pointwise)
        x = BatchNorm()(PointwiseConv(8)(x), train)
        network = build(config, cases.CLASSES)
        x = network.mixer(name="mixer")(network.pointwise(features=8)(x))
        return nn.Dense(cases.CLASSES)(x.mean((1, 2)))


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(cases, "shufflenet", lambda work, mixer, pointwise="plain": Small(mixer, pointwise))


@pytest.fixture(scope="module")
def networks():
    """Those that are measured, of :class:`Small`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cases, "shufflenet", lambda work, mixer, pointwise="plain": Small(mixer, pointwise))
        return cases.networks(WORK)


@pytest.mark.slow
def test_networks_are_what_their_labels_say(networks):
    structures = {label: str(jax.tree.structure(variables)) for label, (_, variables) in networks.items()}
    assert {label for label, text in structures.items() if "relaxed_permutation" in text} == {cases.RELAXED}
    assert {label for label, text in structures.items() if "'permutations'" in text} == {cases.HARDENED}
    assert {label for label, text in structures.items() if "generator" in text} == {cases.DYNAMIC, cases.STATIC_DYNAMIC}
    assert set(structures) == NETWORKS
    assert next(iter(structures)) == cases.FIXED  # the base of the ratios


@pytest.mark.parametrize(
    "labels",
    [
        (cases.RELAXED, cases.HARDENED),  # which share arrays
        pytest.param((cases.FIXED, cases.NONE, cases.DYNAMIC, cases.STATIC_DYNAMIC), marks=pytest.mark.slow),
    ],
)
@pytest.mark.slow
def test_each_network_is_trained_from_a_state_of_its_own(networks, monkeypatch, labels):
    monkeypatch.setattr(cases, "networks", lambda work: {label: networks[label] for label in labels})
    steps = cases.training(WORK)
    assert tuple(steps) == labels
    for step in steps.values():  # in turn, as they are measured
        first, second = step(), step()
        assert float(second["loss"]) != float(first["loss"])


def test_the_code_that_compiles_in_another_process_runs_as_it_stands(small, capsys):
    exec(startup.COMPILE.format(work=WORK, mixer="auto"), {})
    tracing, compiling = map(float, capsys.readouterr().out.split())
    assert tracing > 0
    assert compiling > 0


def test_an_advancing_case_goes_on_from_its_own_state():
    step = jax.jit(lambda state, by: (state + by, state * 10), donate_argnums=0)
    case = cases.advancing(step, jnp.asarray(1), jnp.asarray(2))
    assert [int(case()) for _ in range(3)] == [10, 30, 50]


def test_the_command_writes_every_round_and_goes_on_with_what_is_missing(tmp_path, capsys, no_torch, monkeypatch):
    path = tmp_path / "new" / "times.json"
    benchmark.run([*SMALL, "--only", "permute", "grouped", "--json", str(path)])
    printed = capsys.readouterr().out
    assert [line.split()[:2] for line in printed.splitlines() if line.startswith("[")] == [
        ["[1/2]", "permute:"],
        ["[2/2]", "grouped:"],
    ]
    assert printed.count("disturbed rounds: ") == 2
    written = json.loads(path.read_text())["tables"]
    assert set(written) == {"permute", "grouped"}
    assert {len(values) for values in written["permute"]["seconds"].values()} == {2}
    assert {"device", "processor", "cores", "python", "jax"} <= set(written["permute"]["machine"])
    assert {"date", "rounds", "title", "load_average", "others"} <= set(written["permute"])

    monkeypatch.setattr(measuring, "take_turns", lambda *_: pytest.fail("measured again"))
    benchmark.run([*SMALL, "--only", "permute", "grouped", "--json", str(path), "--resume"])
    assert capsys.readouterr().out.count(", known\n") == 2
    assert json.loads(path.read_text())["tables"] == written


@pytest.mark.parametrize("other", ["title", "machine", "rounds"])
def test_what_was_measured_otherwise_is_not_known(tmp_path, other):
    path, here = tmp_path / "times.json", {"cores": 2}
    Results(path, here, 9, resume=False).add("permute", {"title": "moving", "seconds": {}})
    assert Results(path, here, 9, resume=True).known("permute", "moving")["seconds"] == {}
    others = {"title": "a", "machine": {}, "rounds": 8}
    chosen = {"title": "moving", "machine": here, "rounds": 9} | {other: others[other]}
    results = Results(path, chosen["machine"], chosen["rounds"], resume=True)
    assert results.known("permute", chosen["title"]) is None
    assert Results(path, here, 9, resume=False).known("permute", "moving") is None


def test_the_end_of_the_minutes_leaves_the_rest_for_another_time(tmp_path, capsys):
    def late(effort):
        raise OutOfTime

    good = Table("good", lambda effort: {"seconds": {"one": [1.0] * effort.rounds}})
    chosen = {"first": good, "second": Table("late", late), "third": good}
    results = Results(tmp_path / "times.json", {}, 2, resume=False)
    benchmark.measure_all(chosen, results, Effort(2), {})
    assert "the minutes are over; 2 of 3 are missing, --resume goes on with them" in capsys.readouterr().out
    assert list(json.loads(results.path.read_text())["tables"]) == ["first"]
    with pytest.raises(ArithmeticError, match="over before second was done: give more"):
        benchmark.measure_all(chosen, results, Effort(2), {})


def test_tables_are_chosen_by_patterns_and_by_their_aims(no_torch, capsys):
    only = benchmark.select(benchmark.Arguments(only=("assignment-58*", "import")))
    assert set(only) == {"import", *(f"assignment-58{kind}" for kind in ("", "-batch", "-near", "-integers"))}
    aimed = benchmark.select(benchmark.Arguments(aims=True))
    assert list(aimed) == [name for name in aims.aimed() if not name.startswith("torch")]
    assert all(table.goals for table in aimed.values())
    assert "batch 32, float32" in aimed["mobilenet-inference"].title
    assert "batch 64" in aimed["training"].title
    assert not tables(Workload(batch_size=63))["training"].goals
    capsys.readouterr()


def test_every_aim_is_of_a_table():
    by_batch = {size: tables(Workload(size)) for size in (aims.BATCH_SIZE, aims.DYNAMIC_BATCH_SIZE)}
    found = {name: by_batch[aims.batch_size(name)][name] for name in aims.aimed()}
    assert all(table.goals for table in found.values())
    titles = [found[f"torch-inference-{name}"].title for name in ("shufflenet-32", "mobilenet-224-1")]
    assert titles == [
        "shufflenet_v2 1.0x, 32x32, float32, inference, batch 64",
        "mobilenet_v2 1.0x, 224x224, float32, inference, batch 1",
    ]
    assert found["torch-resnet-32"].title.startswith("resnet-18, 32x32, float32, training step")


def test_without_torch_its_tables_are_left_out_with_the_remedy(capsys, no_torch):
    chosen = benchmark.select(benchmark.Arguments())
    assert "torch-training" not in chosen
    assert {"permute", "training", "inference-1", "compile", "import"} <= set(chosen)
    printed = capsys.readouterr().out
    assert printed.count("\n") == 1
    assert "torch is not installed" in printed
    assert ".[bench]" in printed


def test_torch_is_compared_on_both_networks_at_both_sizes_with_a_quarter_of_the_batch_at_the_larger():
    found = tables(Workload(batch_size=64))
    for network in ("shufflenet", "mobilenet"):
        for size, images in ((32, 64), (224, 16)):
            table = found[f"torch-{network}-{size}"]
            assert table.images == images
            assert f"{size}x{size}, float32, training step without augmentation, batch {images}" in table.title
    assert tables(Workload(batch_size=1))["torch-mobilenet-224"].images == 1


def test_both_types_are_measured_on_a_gpu_and_one_if_that_is_asked_for(monkeypatch, no_torch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    both = benchmark.select(benchmark.Arguments(only=("training", "import")))
    assert list(both) == ["training", "import", "training bfloat16"]
    one = benchmark.select(benchmark.Arguments(only=("training",), dtype="bfloat16"))
    assert list(one) == ["training bfloat16"]
    assert cases.depthwise(Workload(2, 8, 0.5, "bfloat16"))["native"]()[1].dtype == jnp.bfloat16


def test_a_table_that_is_refused_does_not_stop_the_others(monkeypatch, tmp_path, capsys):
    def refuse(effort):
        raise ArithmeticError("they differ")

    table = Table("good", lambda effort: {"seconds": {"one": [1.0] * effort.rounds}})
    monkeypatch.setattr(benchmark, "select", lambda *_: {"bad": Table("bad", refuse), "good": table})
    with pytest.raises(SystemExit) as stop:
        main(lambda: benchmark.run(["--json", str(tmp_path / "times.json")]))
    assert stop.value.code == 1
    printed = capsys.readouterr()
    assert "not measured: they differ" in printed.out
    assert "1000" in printed.out
    assert printed.err.startswith("not measured: bad;")


def test_a_busy_machine_is_named_in_one_line(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(benchmark, "select", lambda *_: {})
    for load, lines in ((0.49, 0), (0.51, 1)):
        monkeypatch.setattr(benchmark.os, "getloadavg", lambda load=load: (load, 0.0, 0.0))
        benchmark.run(["--json", str(tmp_path / "times.json")])
        assert capsys.readouterr().out.count("machine is busy") == lines


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--only", "permute", "trainig"], "there is no table 'trainig'; near: training"),
        (["--rounds", "0"], "rounds must be at least 1, got 0"),
        (["--width", "0.7"], "has no width 0.7"),
        (["--only", "torch-training"], "torch is not installed"),
        (["--only", "torch-trai*g", "x*"], "there is no table 'x*'"),
        (["--aims", "--only", "import"], "there is no table 'import'"),
        (["--minutes", "0"], "minutes must be positive, got 0"),
    ],
)
def test_a_mistake_is_one_line_and_code_2_before_anything_is_measured(arguments, message, mistake, tmp_path, no_torch):
    assert message in mistake(benchmark.run, [*arguments, "--json", tmp_path / "times.json"])


def test_imports_alternate_and_the_first_of_each_is_not_counted(monkeypatch):
    ran = []
    monkeypatch.setattr(startup, "run_python", ran.append)
    times = startup.import_times(Effort(2))["seconds"]
    assert ran == [*startup.IMPORTS.values()] * 10
    assert [len(values) for values in times.values()] == [9, 9]


def test_compilations_are_cold_and_reported_apart_from_tracing(monkeypatch):
    monkeypatch.setattr(startup, "run_python", lambda code: "1.5 20.25" if "'auto'" in code else "1.0 10.0")
    times = startup.compile_times(WORK, Effort(15))["seconds"]
    assert times["learned, relaxed, compiling"] == [20.25] * startup.MOST_COMPILATIONS
    assert times["fixed shuffle, tracing"] == [1.0] * startup.MOST_COMPILATIONS
    assert next(iter(times)) == "fixed shuffle, compiling"


def test_a_measuring_process_runs_here_without_a_cache_and_its_failure_is_told():
    code = "import jax, experiments.benchmark.startup; print(jax.config.jax_enable_compilation_cache)"
    assert startup.run_python(code).split() == ["False"]
    with pytest.raises(RuntimeError, match=r"ended with code 1: .*division by zero"):
        startup.run_python("1 / 0")


@pytest.mark.slow
def test_forms_of_a_dynamic_convolution_are_measured_on_the_same_layer(monkeypatch):
    monkeypatch.setitem(convolutions.SHAPES, "small", convolutions.Shape(8, 12, 3, 2, 5, basic_sizes))
    built = convolutions.layer(WORK, "small")
    results = {name: case() for name, case in built.cases.items()}
    np.testing.assert_allclose(built.outputs()[convolutions.OUTPUT], results["DCD"])
    first, second = (results[f"DCD, {form}"] for form in ("features", "kernels"))
    np.testing.assert_allclose(first, second, atol=1e-4)
    assert {y.shape for y in results.values()} == {(2, 3, 3, 12)}


class Shallow(nn.Module):
    """One convolution of the kind."""

    config: NetworkConfig

    @nn.compact
    def __call__(self, x, train=False):
        x = BatchNorm()(
            build(self.config, cases.CLASSES).conv(features=8, kernel_size=3)(PointwiseConv(8)(x), train=train), train
        )
        return nn.Dense(cases.CLASSES)(x.mean((1, 2)))


@pytest.fixture(scope="module")
def kinds():
    """A network with each kind of convolution."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(convolutions, "build", lambda config, classes: Shallow(config))
        return convolutions._made(WORK, RESNET)


@pytest.mark.slow
def test_networks_with_each_kind_of_convolution_infer_and_say_their_memory(kinds, monkeypatch):
    monkeypatch.setattr(convolutions, "_made", lambda work, config: kinds)
    logits = {name: case() for name, case in convolutions.inference(WORK, RESNET).items()}
    assert {y.shape for y in logits.values()} == {(2, cases.CLASSES)}
    assert list(logits) == [name + suffix for name in convolutions.KINDS for suffix in ("", ", folded")]
    for name in ("static", "DCD"):
        np.testing.assert_allclose(logits[name], logits[f"{name}, folded"], atol=1e-4)
    needed = convolutions.memory(WORK, RESNET)
    assert list(needed) == list(convolutions.KINDS)
    for one, batch in needed.values():
        assert 0 < one < batch


@pytest.mark.parametrize("index", [1, *(pytest.param(k, marks=pytest.mark.slow) for k in (0, 2, 3))])
@pytest.mark.slow
def test_networks_with_each_kind_of_convolution_train(kinds, monkeypatch, index):
    monkeypatch.setattr(convolutions, "_made", lambda work, config: kinds[index : index + 1])
    (step,) = convolutions.training(WORK, RESNET).values()
    first, second = step(), step()
    assert float(second["loss"]) != float(first["loss"])
