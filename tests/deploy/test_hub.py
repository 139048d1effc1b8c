"""A folder for the hub: loads back to the bit, holds no code, and imports none that nobody allowed."""

from __future__ import annotations

import json
import struct
import sys
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from PIL import Image

from shuffle_jax.deploy.hardening import harden
from shuffle_jax.deploy.hub import CONFIG, WEIGHTS, is_folder, load_network, save_network
from shuffle_jax.models import NetworkConfig, build
from shuffle_jax.train.config import to_json

CLASSES = ("cat", "dog", "cat")
SHAPE = (8, 8, 3)
PREPARED = {"size": 8, "channels": 3, "mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.4], "crop": 1.0}
NETWORK = NetworkConfig("addressnet", depth=8, mixer="auto")


@pytest.fixture(scope="module")
def made(draw, tmp_path_factory):
    network = build(NETWORK, len(CLASSES))
    variables = harden(draw(network, SHAPE)).variables
    folder = tmp_path_factory.mktemp("hub") / "net"
    about = {"classes": CLASSES, "preprocessing": PREPARED, "card": "# A net\n", "about": {"step": 7}}
    return network, variables, folder, save_network(folder, to_json(NETWORK), variables, **about)


@pytest.fixture
def copy(made, tmp_path):
    """A copy that a test may damage."""
    for name in (WEIGHTS, CONFIG):
        (tmp_path / name).write_bytes((made[2] / name).read_bytes())
    return tmp_path


def changed(folder, **values):
    about = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps(about | values))
    return folder


@pytest.mark.slow
def test_a_network_loads_back_to_the_bit_and_predicts(made, tmp_path):
    network, variables, folder, size = made
    net = load_network(folder)
    images = np.random.default_rng(0).standard_normal((2, *SHAPE)).astype(np.float32)
    expected = jax.jit(partial(network.apply, train=False))(variables, images)
    np.testing.assert_array_equal(net.logits(images), expected)
    found, wanted = flatten_dict(net.variables), flatten_dict(variables)
    assert found.keys() == wanted.keys() and type(net.network) is type(network)
    for path, leaf in wanted.items():
        np.testing.assert_array_equal(found[path], leaf)
        assert found[path].dtype == leaf.dtype
    assert size == (folder / WEIGHTS).stat().st_size and net.classes == ("cat", "dog", "cat (2)")
    Image.fromarray(np.full((9, 8, 3), 99, np.uint8)).save(tmp_path / "a.png")
    ((best, *others),) = net.predict([tmp_path / "a.png"])
    assert best[0] in net.classes and len(others) == 2
    gradient = jax.grad(lambda v: network.apply(v, jnp.asarray(images)).sum(), allow_int=True)(net.variables)
    assert jnp.isfinite(gradient["params"]["head"]["kernel"]).all()  # to go on from


def test_the_weights_are_what_safetensors_says_and_nothing_else(made):
    content = (made[2] / WEIGHTS).read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    assert header.pop("__metadata__") == {"format": "np"}
    assert {kind["dtype"] for kind in header.values()} == {"F32", "I32"}
    assert 8 + length + max(entry["data_offsets"][1] for entry in header.values()) == len(content)
    assert sorted(path.name for path in made[2].iterdir()) == ["README.md", CONFIG, WEIGHTS]
    assert is_folder(made[2]) and not is_folder(made[2].parent)


OUTSIDE = {
    "outside.py": "outside_of_all:Butterfly(levels=2)",
    "what a file imports": "shuffle_jax.files:os.system(command='touch code_ran')",
    "a function": "shuffle_jax.files:replace_file",
    "another class": "shuffle_jax.run:Run",
}


@pytest.mark.parametrize("name", OUTSIDE)
def test_a_folder_imports_no_code_but_the_librarys_modules(name, copy, monkeypatch):
    monkeypatch.chdir(copy)
    (copy / "outside_of_all.py").write_text("raise SystemError('imported')")
    monkeypatch.syspath_prepend(copy)
    network = json.loads((copy / CONFIG).read_text())["network"]
    changed(copy, network=network | {"mixer": OUTSIDE[name]})
    module = OUTSIDE[name].partition(":")[0]
    with pytest.raises(ValueError, match=r"code that is not in the folder: if you trust it, load with modules=") as e:
        load_network(copy)
    assert f"modules=['{module}']" in str(e.value) and not (copy / "code_ran").exists()
    assert "outside_of_all" not in sys.modules


def test_a_part_of_the_library_by_its_path_and_one_that_is_allowed_are_loaded(copy, made):
    network = json.loads((copy / CONFIG).read_text())["network"]
    changed(copy, network=network | {"mixer": "shuffle_jax.nn.auto_shuffle:AutoShuffle(candidates=0)"})
    assert load_network(copy).network.mixer.keywords["candidates"] == 0
    changed(copy, network=network | {"mixer": "shuffle_jax.nn:AutoShuffle"})
    load_network(copy, modules=["elsewhere"])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / WEIGHTS).unlink(), "there is no .*model.safetensors: make the folder with experiments.export"),
        (lambda f: (f / CONFIG).unlink(), "there is no .*config.json"),
        (lambda f: (f / WEIGHTS).write_bytes(b"x" * 99), "does not belong to config.json beside it, or is damaged"),
        (lambda f: (f / CONFIG).write_text("{"), r"config.json is damaged \(.*: copy it again"),
        (lambda f: (f / CONFIG).write_text("{}"), r"config.json is damaged \(KeyError"),
        (lambda f: (f / CONFIG).write_text('{"format": 1}'), "it lacks sha256, input, output, network, classes"),
        (lambda f: changed(f, format=9), "has format 9, this version reads up to 1: update"),
        (
            lambda f: changed(f, network=to_json(replace(NETWORK, depth=14))),
            r"the weights in .* are not those of its network \(",
        ),
        (lambda f: changed(f, network=to_json(NETWORK) | {"colour": 3}), "describes a network of another version"),
    ],
)
def test_what_is_missing_damaged_or_of_another_version_is_said_in_one_line(copy, damage, message):
    damage(copy)
    with pytest.raises(ValueError, match=message) as e:
        load_network(copy)
    assert "\n" not in str(e.value)


def test_the_missing_package_is_named(made, monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors", None)
    with pytest.raises(ValueError, match=r"safetensors is not installed: pip install 'shuffle_jax\[hub\]'"):
        load_network(made[2])
