"""Exported networks: any batch size, several platforms, run by JAX alone; damaged files are refused."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from shuffle_jax.deploy.exported import FORMAT, load, sidecar
from shuffle_jax.deploy.exporting import export
from shuffle_jax.deploy.folding import fold
from shuffle_jax.deploy.hardening import harden
from shuffle_jax.deploy.routing import route
from shuffle_jax.models import NetworkConfig, build

CLASSES = ("cat", "dog", "vole")
SHAPE = (8, 8, 3)
PREPARED = {"size": 8, "channels": 3, "mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.4]}
ABOUT = {"classes": CLASSES, "preprocessing": PREPARED, "image_shape": SHAPE, "about": {"step": 7}}


@pytest.fixture(scope="module")
def hardened(few_units, draw):
    network = build(NetworkConfig(width=0.5, mixer="auto"), len(CLASSES))
    return network, harden(draw(network, SHAPE)).variables


@pytest.fixture(scope="module")
def images():
    return jnp.asarray(np.random.default_rng(0).normal(size=(5, *SHAPE)), jnp.float32)


@pytest.fixture(scope="module")
def whole(hardened, tmp_path_factory):
    """Folded and routed."""
    network, variables = hardened
    routed = route(network, fold(network, variables, SHAPE).variables, SHAPE)
    path = tmp_path_factory.mktemp("exported") / "network.jax"
    export(routed.apply, routed.params, path, **ABOUT)
    return path


@pytest.fixture
def copy(whole, tmp_path):
    """A copy that a test may damage."""
    path = tmp_path / "network.jax"
    path.write_bytes(whole.read_bytes())
    sidecar(path).write_text(sidecar(whole).read_text())
    return path


@pytest.mark.slow
def test_any_number_of_images_gives_the_logits_of_the_hardened_network(hardened, whole, images):
    network, variables = hardened
    expected = jax.jit(network.apply)(variables, images)
    exported = load(whole)
    assert exported.classes == CLASSES
    for count in (1, 2, 5):
        found = exported.logits(images[:count])
        assert (found.shape, found.dtype) == ((count, 3), jnp.float32)
        np.testing.assert_allclose(found, expected[:count], rtol=1e-4, atol=1e-5 * np.abs(expected).max())


def test_layers_can_be_exported_as_they_are(hardened, images, tmp_path):
    network, variables = hardened
    export(network.apply, variables, tmp_path / "plain.jax", **ABOUT, platforms=("cpu",))
    found = load(tmp_path / "plain.jax").logits(images)
    np.testing.assert_allclose(found, jax.jit(network.apply)(variables, images), rtol=1e-5, atol=1e-5)


@pytest.fixture(scope="module")
def linear(tmp_path_factory):
    """The mean pixel times a matrix, of three classes of which two have one name."""
    path = tmp_path_factory.mktemp("exported") / "linear.jax"
    weights = jnp.asarray(np.random.default_rng(0).normal(size=(3, 3)), jnp.float32)
    about = ABOUT | {"classes": ("crane", "ant", "crane")}
    export(lambda weights, x: x.mean((1, 2)) @ weights, weights, path, **about, platforms=("cpu",))
    return load(path), np.asarray(weights)


def test_three_lines_give_names_and_probabilities_of_pictures(linear, tmp_path):
    net, weights = linear
    pixels = np.random.default_rng(1).integers(0, 256, (3, 8, 8, 3), np.uint8)
    paths = [tmp_path / f"{i}.png" for i in range(3)]
    for path, image in zip(paths, pixels, strict=True):
        Image.fromarray(image).save(path)
    prepared = (pixels / 255 - np.array(PREPARED["mean"])) / np.array(PREPARED["std"])
    np.testing.assert_allclose(net.preprocess(map(str, paths)), prepared, rtol=1e-5, atol=1e-6)
    exponents = np.exp(prepared.mean((1, 2)) @ weights)
    expected = exponents / exponents.sum(-1, keepdims=True)
    for found, row in zip(net.predict(paths, batch_size=2), expected, strict=True):
        assert [name for name, _ in found] == [("crane", "ant", "crane (2)")[i] for i in np.argsort(-row)]
        np.testing.assert_allclose([p for _, p in found], np.sort(row)[::-1], rtol=1e-4)
    assert [len(found) for found in net.predict(paths[:1], top=2)] == [2]
    assert net.predict([]) == [] and net.preprocess([]).shape == (0, 8, 8, 3)
    assert net.logits(jnp.zeros((0, 8, 8, 3))).shape == (0, 3)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda net, x: jax.grad(lambda x: net.logits(x).sum())(x), "a fixed program .*, without derivatives: diff"),
        (lambda net, x: jax.jvp(net.logits, (x,), (x,)), "a fixed program .*, without derivatives: differentiate"),
        (lambda net, x: jax.vmap(net.logits)(x[:, None]), "give all images as one batch .*, without vmap"),
        (lambda net, x: net.logits(x[0]), r"must be normalised, float32 \(n, 8, 8, 3\), got float32 \(8, 8, 3\): see"),
        (lambda net, x: net.logits(np.zeros(x.shape, np.uint8)), r"got uint8 \(2, 8, 8, 3\): see preprocess\(\)"),
        (lambda net, x: net.predict("a.png"), r"must be a list, got 'a.png' alone: write \['a.png'\]"),
        (lambda net, x: net.predict([], top=0), "batch_size and top must be at least 1, got 64 and 0"),
    ],
    ids=["grad", "jvp", "vmap", "shape", "type", "path", "top"],
)
def test_what_a_program_cannot_take_is_said_in_words(linear, call, message):
    with pytest.raises(ValueError, match=message):
        call(linear[0], jnp.zeros((2, 8, 8, 3)))


def test_the_json_beside_it_says_what_is_in_it(whole):
    about = json.loads(sidecar(whole).read_text())
    assert whole.with_name("network.jax.json") == sidecar(whole)
    assert about["format"] == FORMAT
    assert about["sha256"] == hashlib.sha256(whole.read_bytes()).hexdigest()
    assert about["input"] == {"shape": ["n", 8, 8, 3], "dtype": "float32"}
    assert about["output"] == {"shape": ["n", 3], "dtype": "float32"}
    assert about["classes"] == list(CLASSES) and about["preprocessing"] == PREPARED and about["step"] == 7
    assert about["platforms"] == ["cpu", "cuda", "tpu"]
    assert set(about["versions"]) == {"shuffle_jax", "jax", "program"}


def test_one_file_holds_the_program_for_every_platform(whole):
    program = jax.export.deserialize(bytearray(whole.read_bytes()))
    assert program.platforms == ("cpu", "cuda", "tpu")
    assert "stablehlo.case" in program.mlir_module()  # forms differ between platforms, and all are in it


def test_no_path_of_this_machine_and_no_name_of_a_module_is_written(whole):
    content = whole.read_bytes()
    assert not re.search(rb"\.py\b|stage2_0|pointwise1", content)
    assert jax.config.jax_traceback_in_locations_limit > 0  # as it was


def test_it_runs_in_a_process_that_knows_no_model_code(whole, images, tmp_path):
    np.save(tmp_path / "images.npy", np.asarray(images), allow_pickle=False)
    code = f"""
import sys, numpy as np
from shuffle_jax.deploy.exported import load
logits = load({str(whole)!r}).logits(np.load({str(tmp_path / "images.npy")!r}, allow_pickle=False))
np.save({str(tmp_path / "logits.npy")!r}, logits, allow_pickle=False)
print(*sorted(name for name in sys.modules if name.count('.') < 2))
"""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, env=environment)
    loaded = set(done.stdout.split())
    assert "jax" in loaded
    strangers = {"flax", "optax", "orbax", "chex", "tyro", "PIL", "sklearn", "matplotlib"}
    assert not loaded & (strangers | {f"shuffle_jax.{part}" for part in ("nn", "models", "train", "data", "ops")})
    np.testing.assert_allclose(np.load(tmp_path / "logits.npy"), load(whole).logits(images), rtol=1e-5, atol=1e-6)


def test_a_damaged_program_is_refused(copy):
    content = copy.read_bytes()
    copy.write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=rf"damaged .* it has {len(content) // 2} bytes of {len(content)} and another"):
        load(copy)
    copy.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(ValueError, match=r"damaged or does not belong to network.jax.json"):
        load(copy)


def test_missing_files_are_named(copy, tmp_path):
    with pytest.raises(ValueError, match=r"there is no exported network .*other.jax"):
        load(tmp_path / "other.jax")
    sidecar(copy).unlink()
    with pytest.raises(ValueError, match=r"there is no .*network.jax.json: an exported network is two files"):
        load(copy)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": FORMAT + 1}, rf"has format {FORMAT + 1}, this version reads up to {FORMAT}: update"),
        ({"format": "new"}, "is damaged"),
        ({"platforms": ["tpu"]}, "runs on tpu, not on cpu: export it with --platforms cpu"),
    ],
)
def test_what_the_json_says_is_checked_first(copy, change, message):
    sidecar(copy).write_text(json.dumps(json.loads(sidecar(copy).read_text()) | change))
    with pytest.raises(ValueError, match=message):
        load(copy)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"format": 1}'])
def test_a_json_file_that_is_none_is_damaged(copy, text):
    sidecar(copy).write_text(text)
    with pytest.raises(ValueError, match=r"network.jax.json is damaged \(.*\): copy it again, or export again"):
        load(copy)


def test_a_program_of_another_jax_is_refused_in_one_line(copy):
    about = json.loads(sidecar(copy).read_text())
    content = b"not a program at all"
    copy.write_bytes(content)
    about |= {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    for version, remedy in (("9.9", "update JAX, or export"), ("0.9.1", "export again"), ("?", "export again")):
        sidecar(copy).write_text(json.dumps(about | {"versions": {"jax": version}}))
        with pytest.raises(
            ValueError, match=rf"was written by JAX {re.escape(version)} and JAX \S+ cannot read it.*: {remedy}"
        ) as e:
            load(copy)
        assert "\n" not in str(e.value)


def test_what_does_not_fit_is_not_written(hardened, tmp_path):
    network, variables = hardened
    apply, params = network.apply, variables
    with pytest.raises(ValueError, match="the network has 3 logits for 2 classes"):
        export(apply, params, tmp_path / "a", **ABOUT | {"classes": ("cat", "dog")})
    with pytest.raises(ValueError, match=r"platforms \['gpu'\] are not among cpu, cuda, rocm and tpu"):
        export(apply, params, tmp_path / "b", **ABOUT, platforms=("gpu",))
    assert not list(tmp_path.iterdir())
