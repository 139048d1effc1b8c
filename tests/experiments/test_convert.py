"""From a state-dict to a run that predict, export and evaluate take, and the mistakes on the way."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict
from PIL import Image

from experiments import convert, evaluate, export, predict
from shuffle_jax.models import build, mobilenet_v2, resnet, shufflenet_v2
from shuffle_jax.models.catalogue import catalogue
from shuffle_jax.models.config import NetworkConfig
from shuffle_jax.models.convert.tables import modules
from shuffle_jax.models.convert.variables import rows
from shuffle_jax.nn.dynamic_conv import default_sizes
from shuffle_jax.train.checkpoint import Checkpoints
from shuffle_jax.train.trained import load_trained

NAME, SIZE = "shufflenet_v2_0.5x", 32
CLASSES = ("ant", "bee", "cow")
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@pytest.fixture(scope="module", autouse=True)
def few_units():
    """A few units of each network, to compile them soon."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shufflenet_v2, "UNITS", (2, 1, 1))
        patch.setattr(mobilenet_v2, "TABLE", ((1, 16, 1, 1), (6, 24, 2, 2), (6, 96, 1, 2)))
        patch.setattr(resnet, "UNITS", {18: (1, 1)})
        yield


def generated(config, source):
    """Variables at random, and the state-dict they would have there."""
    network = build(config, len(CLASSES))
    shapes = jax.eval_shape(partial(network.init, train=False), jax.random.key(0), jnp.zeros((1, SIZE, SIZE, 3)))
    rng = np.random.default_rng(0)
    variables, arrays = {}, {}
    paths = flatten_dict(shapes, sep="/")
    dynamic = {path.removeprefix("params/").removesuffix("/q") for path in paths if path.endswith("/q")}
    names = ("classifier.0.weight",) if source == "dcd" else ()
    for row in rows(modules(source, network, dynamic, names), shapes):
        shape = paths[row.path].shape
        low, high = (0.5, 1.5) if row.path.endswith(("scale", "var")) else (-1, 1)
        times = math.sqrt(6 / math.prod(shape[:-1])) if len(shape) > 1 else 1.0
        variables[row.path] = (times * rng.uniform(low, high, shape)).astype(np.float32)
        own = variables[row.path].reshape(shape[len(shape) - len(row.axes) :])
        arrays[row.name] = own.transpose(np.argsort(row.axes))
    return network, unflatten_dict(variables, sep="/"), arrays


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    root = tmp_path_factory.mktemp("data") / "pictures"
    rng = np.random.default_rng(0)
    for split, count in (("train", 2), ("val", 2)):
        for name in CLASSES:
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                Image.fromarray(rng.integers(0, 256, (SIZE + i, SIZE, 3), np.uint8)).save(
                    root / split / name / f"{i}.png"
                )
    return root


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A network of the catalogue, its variables, and the file they come from."""
    network, variables, arrays = generated(catalogue()[NAME].config, "torchvision")
    path = tmp_path_factory.mktemp("arrays") / "weights.npz"
    np.savez(path, **arrays, **{"conv1.1.num_batches_tracked": np.array(7)})
    return network, variables, path


@pytest.fixture(scope="module")
def converted(source, pictures, tmp_path_factory):
    """The run, by the command."""
    out = tmp_path_factory.mktemp("runs") / "converted"
    options = ["--root", str(pictures), "--image-size", str(SIZE), "--batch-size", "6", "--crop", "0.875"]
    convert.run(["torchvision", NAME, str(source[2]), str(out), *options])
    return out


def same(tree, other):
    assert jax.tree.structure(tree) == jax.tree.structure(other)
    jax.tree.map(np.testing.assert_array_equal, tree, other)


def test_the_run_holds_exactly_the_weights(source, converted):
    _, variables, _ = source
    trained = load_trained(converted)
    same(dict(trained.variables), variables)
    assert trained.step == 0 and trained.classes == CLASSES
    assert trained.preprocessing.to_json() == {"size": SIZE, "channels": 3, "mean": MEAN, "std": STD, "crop": 0.875}
    assert trained.config.data.crop == 0.875
    assert trained.config.network == catalogue()[NAME].config


@pytest.mark.slow
def test_predict_and_export_take_it(source, converted, pictures, tmp_path, capsys):
    network, variables, _ = source
    files = sorted((pictures / "val").rglob("*.png"))
    trained = load_trained(converted)
    pixels = np.stack([trained.preprocessing.read(file) for file in files]) / 255
    images = jnp.asarray((pixels - np.array(MEAN)) / np.array(STD), jnp.float32)
    expected = np.asarray(jax.jit(network.apply)(variables, images))
    export.run([str(converted), "--platforms", "cpu"])
    for model in (converted, converted / "network.jax"):
        predict.run([str(model), str(pictures / "val"), "--logits", str(tmp_path / "logits.npy")])
        logits = np.load(tmp_path / "logits.npy", allow_pickle=False)
        np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-4 * np.abs(expected).max())
    assert "ant" in capsys.readouterr().out


@pytest.mark.slow
def test_evaluate_prepares_pictures_as_their_source_did(converted, pictures, tmp_path, capsys):
    """Not by the mean and standard deviation of the training pictures that are there."""
    predict.run([str(converted), str(pictures / "val"), "--logits", str(tmp_path / "logits.npy")])
    logits = np.load(tmp_path / "logits.npy", allow_pickle=False).reshape(len(CLASSES), -1, len(CLASSES))
    loss = np.mean([np.log(np.exp(row - row[label]).sum()) for label, rows in enumerate(logits) for row in rows])
    evaluate.run([str(converted), "--devices", "1", "--json", str(tmp_path / "numbers.json")])
    assert "6 test images" in capsys.readouterr().out
    numbers = json.loads((tmp_path / "numbers.json").read_text())
    assert numbers["step"] == 0 and list(numbers["networks"]) == ["as trained"]
    assert numbers["networks"]["as trained"]["loss"] == pytest.approx(loss, rel=1e-4)


def test_names_of_classes(source, tmp_path, capsys):
    file = tmp_path / "names.txt"
    file.write_bytes("\ufeffzebra\r\n\r\n  the\u0301 \r\nzebra\r\n".encode())
    arguments = ["torchvision", NAME, str(source[2])]
    convert.run([*arguments, str(tmp_path / "by name"), "--classes", str(file)])
    convert.run(["torchvision", "shufflenet_v2_x0_5", *arguments[2:], str(tmp_path / "numbered")])
    printed = capsys.readouterr().out
    assert f"{NAME} of torchvision" in printed and "3 classes, images of 224x224" in printed
    assert f"python -m experiments.predict '{tmp_path / 'by name'}' PICTURES" in printed
    assert printed.count("(convert again with --root)") == printed.count("--data.root ROOT") == 1
    classes = [json.loads((tmp_path / out / "config.json").read_text())["classes"] for out in ("by name", "numbered")]
    assert classes == [["zebra", "th\u00e9", "zebra (2)"], ["class_0", "class_1", "class_2"]]


@pytest.mark.parametrize(("head", "squeeze"), [pytest.param("plain", 8, marks=pytest.mark.slow), ("dcd", 16)])
def test_the_arrays_tell_head_and_squeeze(squeeze, head, tmp_path):
    """Whichever of the two sizes the name stands for."""
    named = catalogue()["dcd_mobilenet_v2_0.5x"].config
    told = dataclasses.replace(named, head=head, dcd={"squeeze": squeeze})
    _, variables, arrays = generated(told, "dcd")
    np.savez(tmp_path / "weights.npz", **{f"module.{name}": array for name, array in arrays.items()})
    convert.run(["dcd", "dcd_mobilenet_v2_0.5x", str(tmp_path / "weights.npz"), str(tmp_path / "run")])
    trained = load_trained(tmp_path / "run")
    assert trained.config.network == told
    same(dict(trained.variables), variables)


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2_0.35x", "dcd_resnet18"])
@pytest.mark.fast_cases(1)
def test_every_family_goes_through_the_command(name, tmp_path):
    source = "dcd" if name.startswith("dcd") else "torchvision"
    _, variables, arrays = generated(catalogue()[name].config, source)
    np.savez(tmp_path / "weights.npz", **arrays)
    convert.run([source, name, str(tmp_path / "weights.npz"), str(tmp_path / "run")])
    same(dict(load_trained(tmp_path / "run").variables), variables)


@pytest.mark.parametrize("squeeze", [8, 16, 5])
@pytest.mark.parametrize("width", mobilenet_v2.WIDTHS)
def test_the_squeeze_of_every_published_width(width, squeeze):
    """The real tables, by their rule alone."""
    arrays, c = {}, mobilenet_v2.scale(16, width)
    for out, units in ((24, 2), (32, 3), (64, 4), (96, 3), (160, 3), (320, 1)):
        for i in range(units):
            features = mobilenet_v2.scale(out, width)
            for name, (a, b) in {"expand": (c, 6 * c), "project": (6 * c, features)}.items():
                pool, latent, hidden = default_sizes(a, b, squeeze)
                arrays[f"{out}.{i}.{name}.fc.0.weight"] = np.zeros((hidden, a * pool**2))
                arrays[f"{out}.{i}.{name}.fc_phi.weight"] = np.zeros((latent**2, hidden))
            c = features
    arrays["classifier.0.fc.0.weight"] = np.zeros((32, 1280))
    config = NetworkConfig("mobilenet_v2", width, mixer="identity", pointwise="dcd")
    assert convert.as_arrays_say(config, arrays).dcd.squeeze == squeeze


@pytest.fixture
def mistakes(source, pictures, tmp_path):
    """Files to be wrong about."""
    shutil.copy(source[2], tmp_path / "weights.npz")
    arrays = dict(np.load(source[2], allow_pickle=False))
    del arrays["conv5.0.weight"]
    np.savez(tmp_path / "few.npz", **arrays, more=np.zeros(2))
    two = {f"{part}.{name}": array for part in ("ema", "model") for name, array in arrays.items()}
    np.savez(tmp_path / "two.npz", **two)
    (tmp_path / "weights.pth").write_bytes(b"")
    (tmp_path / "names.txt").write_text("ant\nbee\n")
    (tmp_path / "latin.txt").write_bytes(b"\xe9\n")
    (tmp_path / "there").mkdir()
    return tmp_path


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            "torchvision shufflenet_v2_05x weights.npz out",
            "there is no network 'shufflenet_v2_05x'; near: shuffle",
        ),
        ("torchvision {} nothing.npz out", "there is no file nothing.npz"),
        ("torchvision {} weights.pth out", "weights.pth is of type .pth, not .npz or .safetensors"),
        (
            "torchvision {} few.npz out",
            "few.npz is no {} of torchvision: nothing is loaded,",
        ),
        ("torchvision {} two.npz out", "two.npz is no {} of torchvision: there are several networks, ema, model: name"),
        ("torchvision {} two.npz out --part ema", "two.npz is no {} of torchvision: nothing is loaded"),
        ("torchvision auto_{} weights.npz out", "arrays that the source does not know (params/stage2_0/mixer/relaxed"),
        ("dcd {} weights.npz out", "dcd has no ShuffleNetV2: choose MobileNetV2 and ResNet"),
        ("torchvision {} weights.npz there", "there exists: name another OUT, or remove it"),
        ("torchvision {} weights.npz names.txt", "names.txt exists: name another OUT, or remove it"),
        (
            "torchvision {} weights.npz out --classes names.txt",
            "names.txt names 2 classes, the network has 3 logits: give",
        ),
        ("torchvision {} weights.npz out --classes latin.txt", "latin.txt is no text in UTF-8"),
        (
            "torchvision {} weights.npz out --root there",
            "no folder there/train: give --root the folder that holds",
        ),
        (
            "torchvision {} weights.npz out --std 0 1 1",
            "a preprocessing must have a size, and a mean and",
        ),
        ("torchvision {} weights.npz out --batch-size 0", "batch_size must be at least 1, got 0"),
        ("torchvision {} weights.npz out --image-size -1", "Preprocessing(size=-1, channels=3"),
        ("flax {} weights.npz out", "source has no choice 'flax'; near: torchvision, dcd"),
    ],
)
def test_a_mistake_is_told_and_nothing_is_written(arguments, message, mistakes, monkeypatch):
    monkeypatch.chdir(mistakes)
    before = sorted(mistakes.rglob("*"))
    with pytest.raises(ValueError) as caught:
        convert.run(arguments.format(NAME).split())
    assert message.format(NAME) in str(caught.value) and "\n" not in str(caught.value)
    assert sorted(mistakes.rglob("*")) == before


def test_a_run_that_could_not_be_written_leaves_nothing(source, tmp_path, monkeypatch):
    def fail(self, state, metrics=None):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Checkpoints, "save", fail)
    with pytest.raises(OSError, match="No space left"):
        convert.run(["torchvision", NAME, str(source[2]), str(tmp_path / "out")])
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_the_command_as_a_person_types_it(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "experiments.convert", "torchvision", NAME, "weights.npz", "out"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr == "there is no file weights.npz: name an .npz or a .safetensors file\n"
