"""The torch twin computes what our network computes, and so does what ONNX Runtime makes of it."""

from __future__ import annotations

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")

from experiments.benchmark import __main__ as benchmark  # noqa: E402
from experiments.benchmark import (  # noqa: E402
    beside,
    convolutions,
    jax_engine,
    torch_dynamic_conv,
    torch_engine,
    torch_networks,
    torch_twin,
)
from experiments.benchmark.beside import TOLERANCE  # noqa: E402
from experiments.benchmark.cases import CLASSES, Workload  # noqa: E402
from experiments.benchmark.given import Network, given  # noqa: E402
from shuffle_jax.analysis.count import count  # noqa: E402
from shuffle_jax.models import NetworkConfig, build, mobilenet_v2, resnet, shufflenet_v2  # noqa: E402
from shuffle_jax.models.decomposition import basic_sizes  # noqa: E402

WORK = Workload(batch_size=4, image_size=8)
SHUFFLE = Network("shufflenet_v2", "shuffle", 0.5)
MOBILE = Network("mobilenet_v2", "identity", 0.35)
RESNET = Network("resnet", "identity", 1 / 16, depth=10)
NETWORKS = {"shufflenet": SHUFFLE, "imagenet": SHUFFLE._replace(stem="imagenet"), "mobilenet": MOBILE, "resnet": RESNET}


@pytest.fixture(scope="module", autouse=True)
def few_units():
    """Every kind of unit and of stage, on both sides, in a third of the compilation."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shufflenet_v2, "UNITS", (2, 3, 1))
        patch.setattr(mobilenet_v2, "TABLE", ((1, 16, 1, 1), (6, 24, 1, 2), (6, 32, 2, 2), (6, 96, 1, 1)))
        patch.setattr(resnet, "UNITS", {10: (1, 2, 1, 1)})
        patch.setattr(torch_twin, "cores", lambda: 1)  # threads of torch wait for one another where cores are busy
        yield


@pytest.mark.parametrize("network", NETWORKS.values(), ids=NETWORKS)
def test_both_have_the_same_parameters(network):
    ours = build(network.config(), CLASSES)
    model = torch_networks.torch_network(network.config(), CLASSES)
    assert sum(p.numel() for p in model.parameters()) == count(ours, (32, 32, 3)).parameters


def test_the_twin_keeps_its_channels_last():
    model = torch_twin.twin(given(WORK, SHUFFLE).variables, SHUFFLE.config(), "cpu")
    assert model.stage2_1.right2.conv.weight.is_contiguous(memory_format=torch.channels_last)
    images = torch_twin.to_torch(np.ones((2, 4, 4, 3), np.float32), "cpu")
    assert images.is_contiguous(memory_format=torch.channels_last)


def test_a_network_that_is_not_written_in_torch_is_refused():
    for config in (
        NetworkConfig(mixer="auto"),
        dataclasses.replace(MOBILE.config(), dropout=0.2),
        NetworkConfig("resnet", mixer="identity", depth=50),
        dataclasses.replace(RESNET.config(), stem="imagenet"),
    ):
        with pytest.raises(ValueError, match=f"{config.family} .* is not written in torch here: choose"):
            torch_networks.torch_network(config, classes=10)


def test_weights_are_the_same_in_every_process_and_unlike_those_of_a_start():
    first, second = (given(WORK, SHUFFLE) for _ in range(2))
    for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True):
        np.testing.assert_array_equal(a, b)
    norm = first.variables["batch_stats"]["stem"]["norm"]
    assert np.ptp(norm["mean"]) > 0.1 and np.ptp(norm["var"]) > 0.1


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.fast_cases(1)
def test_logits_and_losses_agree_far_below_the_tolerance(name):
    work = dataclasses.replace(WORK, image_size=17) if name == "imagenet" else WORK
    network = NETWORKS[name]
    ours, variables = build(network.config(), CLASSES), given(work, network).variables
    expected = jax.jit(ours.apply)(variables, jnp.asarray(given(work, network).images))
    theirs = torch_engine.inference(work, network).outputs()
    beside.agree({"ours": {"logits": np.asarray(expected)}, "torch": theirs}, TOLERANCE / 10)
    losses = [engine.losses(work, network) for engine in (jax_engine, torch_engine)]
    beside.agree(dict(zip(("ours", "torch"), losses, strict=True)), 1e-6)
    assert abs(np.diff(losses[0][jax_engine.LOSSES])) > 1e-4  # a step moves it


@pytest.mark.parametrize(
    ("spoil", "where"),
    [
        (lambda model: model.stage3_2.right2.norm.running_var.mul_(1.01), "the logits differ"),
        (lambda model: setattr(model.stage3_2.right2.norm, "eps", 0.1), "the logits differ"),
    ],
)
def test_a_network_that_computes_something_else_is_refused(monkeypatch, spoil, where):
    good = torch_engine.twin
    right = torch_engine.inference(WORK, SHUFFLE).outputs()

    def spoilt(*arguments):
        model = good(*arguments)
        spoil(model)
        return model

    monkeypatch.setattr(torch_engine, "twin", spoilt)
    with pytest.raises(ArithmeticError, match=where):
        beside.agree({"right": right, "torch": torch_engine.inference(WORK, SHUFFLE).outputs()}, TOLERANCE)


def test_another_optimiser_is_refused_by_the_second_loss(monkeypatch):
    right = torch_engine.losses(WORK, SHUFFLE)
    faster = dataclasses.replace(torch_engine.OPTIMIZER, learning_rate=0.01)
    monkeypatch.setattr(torch_engine, "OPTIMIZER", faster)
    other = torch_engine.losses(WORK, SHUFFLE)
    first, second = np.abs(right[jax_engine.LOSSES] - other[jax_engine.LOSSES])
    assert first < 1e-12 < 1e-3 < second
    with pytest.raises(ArithmeticError, match="losses of two steps in float64 differ"):
        beside.agree({"right": right, "torch": other}, TOLERANCE)


@pytest.mark.parametrize("name", ["shufflenet", "mobilenet", "resnet"])
@pytest.mark.slow
def test_onnx_runtime_computes_the_same_with_every_norm_folded(name):
    pytest.importorskip("onnxruntime")
    onnx = pytest.importorskip("onnx")
    from experiments.benchmark import onnx_engine

    network = NETWORKS[name]
    right, found = (engine.inference(WORK, network).outputs() for engine in (torch_engine, onnx_engine))
    beside.agree({"torch": right, "onnx": found}, TOLERANCE)
    model = torch_twin.twin(given(WORK, network).variables, network.config(), "cpu").eval()
    images = torch.from_numpy(given(WORK, network).images.transpose(0, 3, 1, 2).copy())
    program = onnx.load_from_string(onnx_engine.exported(onnx_engine.folded(model), images))
    assert not {node.op_type for node in program.graph.node} & {"BatchNormalization", "Mul", "Sub", "Div"}


@pytest.mark.slow
def test_the_exported_network_computes_the_same():
    right, found = (engine.inference(WORK, SHUFFLE).outputs() for engine in (torch_engine, jax_engine))
    beside.agree({"torch": right, "ours": found}, TOLERANCE)


def test_a_dynamic_convolution_in_torch_computes_what_ours_does(monkeypatch):
    strided, wider = convolutions.Shape(8, 12, 3, 2, 5, basic_sizes), convolutions.Shape(8, 24, 1, 1, 6)
    for name, shape in (("strided", strided), ("wider", wider)):
        monkeypatch.setitem(convolutions.SHAPES, name, shape)
        theirs = torch_dynamic_conv.layer(WORK, name).outputs()
        module, variables = convolutions._decomposed(shape), convolutions.variables_of(shape)
        ours = jax.jit(module.apply)(variables, jnp.asarray(convolutions.inputs(WORK, shape)))
        beside.agree({"ours": {convolutions.OUTPUT: np.asarray(ours)}, "torch": theirs}, TOLERANCE / 10)


def test_a_step_stands_beside_one_product_of_as_many_multiply_adds():
    work = Workload(batch_size=2, image_size=8)
    network, product = jax_engine.training(work, SHUFFLE).cases
    assert network == jax_engine.OURS
    side = int(product.split()[-1])
    exact = 3 * 2 * count(build(SHUFFLE.config(), CLASSES), (8, 8, 3)).multiply_adds
    assert side**3 == pytest.approx(exact, rel=0.02)


def test_torch_has_all_the_cores_and_what_it_needs(monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(torch_twin, "cores", lambda: 2)
        torch_twin.prepare(WORK)
        assert torch.get_num_threads() == 2
    torch_twin.prepare(WORK)
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="JAX computes on the gpu and this torch cannot"):
            torch_twin.prepare(dataclasses.replace(WORK, device="gpu"))


@pytest.mark.slow
def test_the_command_measures_every_engine_in_a_process_of_its_own(tmp_path, capsys):
    path = tmp_path / "times.json"
    only = ["torch-inference", "torch-training"]
    small = ["--rounds", "2", "--batch-size", "2", "--image-size", "8", "--width", "0.5"]
    benchmark.run([*small, "--only", *only, "--json", str(path)])
    written = json.loads(path.read_text())["tables"]
    assert list(written) == only
    inference, training = (list(written[name]["seconds"]) for name in only)
    assert inference[-2:] == ["torch", "shuffle_jax, folded and exported"]
    assert training[:2] == ["torch", "shuffle_jax"]
    assert capsys.readouterr().out.count("disturbed rounds: ") == 2
