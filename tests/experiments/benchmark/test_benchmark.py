"""The benchmark measures what it says: the same operation in every form, in turn, against the first."""

from __future__ import annotations

import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.benchmark import __main__ as benchmark
from experiments.benchmark import cases, convolutions, measuring, startup
from experiments.benchmark.cases import Workload
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
    monkeypatch.setattr(measuring, "PAUSE", 0.0)


@pytest.fixture
def no_torch(monkeypatch):
    find = benchmark.importlib.util.find_spec
    monkeypatch.setattr(benchmark.importlib.util, "find_spec", lambda name: None if name == "torch" else find(name))


def test_cases_run_in_turn_after_two_runs_each():
    calls = []
    times = measuring.measure({name: lambda name=name: calls.append(name) for name in "ab"}, rounds=3)
    assert "".join(calls) == "aabb" + "ab" * 3
    assert {name: len(values) for name, values in times.items()} == {"a": 3, "b": 3}


def test_a_short_case_is_repeated_and_its_time_is_that_of_one_run(monkeypatch):
    monkeypatch.setattr(measuring, "SHORTEST", 1.0)
    clock, calls = [0.0], []
    monkeypatch.setattr(measuring.time, "perf_counter", lambda: clock[0])

    def case(seconds):
        clock[0] += seconds
        calls.append(seconds)

    times = measuring.measure({"short": lambda: case(0.375), "long": lambda: case(2.0)}, rounds=2)
    assert times == {"short": [0.375] * 2, "long": [2.0] * 2}
    assert calls.count(0.375) == 2 + 2 * 3  # the fewest that take a second
    assert calls.count(2.0) == 2 + 2


def test_ratios_are_taken_round_by_round_against_the_first_case():
    headings, rows = measuring.columns({"base": [1.0, 2.0, 4.0], "twice": [2.0, 4.0, 12.0]}, images=64)
    assert headings == ["", "median_ms", "images/s", "ratio_min", "ratio_median", "ratio_max"]
    assert rows == [["base", "2000", 32, "1.00", "1.00", "1.00"], ["twice", "4000", 16, "2.00", "2.00", "3.00"]]
    headings, rows = measuring.columns({"base": [0.00125]}, images=None)
    assert rows == [["base", "1.25", "1.00", "1.00", "1.00"]]
    assert len(headings) == 5


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


def test_the_command_prints_tables_and_writes_every_round(tmp_path, capsys, no_torch):
    path = tmp_path / "new" / "times.json"
    benchmark.run([*SMALL, "--only", "permute", "grouped", "--json", str(path)])
    printed = capsys.readouterr().out
    assert [line.split()[:2] for line in printed.splitlines() if line.startswith("[")] == [
        ["[1/2]", "permute:"],
        ["[2/2]", "grouped:"],
    ]
    written = json.loads(path.read_text())
    assert set(written["tables"]) == {"permute", "grouped"}
    assert {len(values) for values in written["tables"]["permute"]["seconds"].values()} == {2}
    assert {"device", "processor", "cores", "python", "jax", "load_average"} <= set(written["about"])


def test_without_torch_its_tables_are_left_out_with_the_remedy(capsys, no_torch):
    chosen = benchmark.select(benchmark.Arguments(), Workload())
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
    both = benchmark.select(benchmark.Arguments(only=("training", "import")), Workload())
    assert list(both) == ["training", "import", "training bfloat16"]
    one = benchmark.select(benchmark.Arguments(only=("training",), dtype="bfloat16"), Workload())
    assert list(one) == ["training bfloat16"]
    assert cases.depthwise(Workload(2, 8, 0.5, "bfloat16"))["native"]()[1].dtype == jnp.bfloat16


def test_a_table_that_is_refused_does_not_stop_the_others(monkeypatch, tmp_path, capsys):
    def refuse(rounds):
        raise ArithmeticError("they differ")

    table = measuring.Table("good", lambda rounds: {"one": [1.0] * rounds})
    monkeypatch.setattr(benchmark, "select", lambda *_: {"bad": measuring.Table("bad", refuse), "good": table})
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
    ],
)
def test_a_mistake_is_one_line_and_code_2_before_anything_is_measured(arguments, message, mistake, tmp_path, no_torch):
    assert message in mistake(benchmark.run, [*arguments, "--json", tmp_path / "times.json"])


def test_imports_alternate_and_the_first_of_each_is_not_counted(monkeypatch):
    ran = []
    monkeypatch.setattr(startup, "run_python", ran.append)
    times = startup.import_times(rounds=2)
    assert ran == [*startup.IMPORTS.values()] * 10
    assert [len(values) for values in times.values()] == [9, 9]


def test_compilations_are_cold_and_reported_apart_from_tracing(monkeypatch):
    monkeypatch.setattr(startup, "run_python", lambda code: "1.5 20.25" if "'auto'" in code else "1.0 10.0")
    times = startup.compile_times(WORK, rounds=15)
    assert times["learned, relaxed, compiling"] == [20.25] * startup.MOST_COMPILATIONS
    assert times["fixed shuffle, tracing"] == [1.0] * startup.MOST_COMPILATIONS
    assert next(iter(times)) == "fixed shuffle, compiling"


def test_a_measuring_process_runs_here_without_a_cache_and_its_failure_is_told():
    code = "import jax, experiments.benchmark.startup; print(jax.config.jax_enable_compilation_cache)"
    assert startup.run_python(code).split() == ["False"]
    with pytest.raises(RuntimeError, match=r"ended with code 1: .*division by zero"):
        startup.run_python("1 / 0")


def test_memory_is_shown_for_one_image_a_batch_and_each_image_more():
    table = measuring.Table("memory", lambda rounds: {}, images=9, unit="bytes")
    headings, rows = measuring.in_columns(table, {"a": [2.0**20, 9 * 2.0**20], "b": [2.0**20, 18 * 2.0**20]})
    assert headings == ["", "1_image_MiB", "9_images_MiB", "each_MiB", "ratio"]
    assert rows == [["a", "1", "9", "1", "1.00"], ["b", "1", "18", "2.12", "2.00"]]


@pytest.mark.slow
def test_forms_of_a_dynamic_convolution_are_measured_on_the_same_layer():
    shape = convolutions.Shape(8, 12, 3, 2, 5, basic_sizes)
    results = {name: case() for name, case in convolutions.layer(WORK, shape).items()}
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
    needed = convolutions.memory(WORK, RESNET)
    assert list(needed) == list(logits) == list(convolutions.KINDS)
    for one, batch in needed.values():
        assert 0 < one < batch


@pytest.mark.parametrize("index", [1, *(pytest.param(k, marks=pytest.mark.slow) for k in (0, 2, 3))])
@pytest.mark.slow
def test_networks_with_each_kind_of_convolution_train(kinds, monkeypatch, index):
    monkeypatch.setattr(convolutions, "_made", lambda work, config: kinds[index : index + 1])
    (step,) = convolutions.training(WORK, RESNET).values()
    first, second = step(), step()
    assert float(second["loss"]) != float(first["loss"])
