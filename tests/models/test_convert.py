"""Networks by torch's names, written out in NumPy with channels first, against the converted ones; and what is refused.

The oracle draws each array where a definition first asks for it, so that it says all names and shapes on its own.
"""

from __future__ import annotations

import io
import json
import math
import re
import sys
import zipfile
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from shuffle_jax.models import (
    MobileNetV2,
    ResNet,
    ShuffleNetV1,
    ShuffleNetV2,
    mobilenet_v2,
    resnet,
    shufflenet_v1,
    shufflenet_v2,
)
from shuffle_jax.models.convert import convert_network, count_classes, dynamic_conv, dynamic_dense, load_arrays
from shuffle_jax.models.convert.names import plain
from shuffle_jax.models.convert.tables import modules
from shuffle_jax.models.convert.variables import _shape_there, rows
from shuffle_jax.models.decomposition import basic_sizes, bottleneck_sizes
from shuffle_jax.nn import AutoShuffle, DynamicConv, DynamicDense
from shuffle_jax.nn.dynamic_conv import default_sizes

FIGURES = np.load(Path(__file__).parents[1] / "fixtures" / "dcd_blocks.npz")
BLOCKS = {
    "mb_expand_24_144_7": DynamicConv(144, rule=default_sizes, squeeze=16),
    "mb_tiny_4_6_4": DynamicConv(6, rule=default_sizes, squeeze=8),
    "rb_3x3_s2_16_32_7": DynamicConv(32, 3, 2, rule=basic_sizes),
    "rn_3x3_s1_32_32_8": DynamicConv(32, 3, 1, rule=bottleneck_sizes),
}
CLASSES = 7
compiled = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})  # Half the compilation.
COUNTER = "num_batches_tracked"


def relu(x):
    return np.maximum(x, 0)


def relu6(x):
    return np.clip(x, 0, 6)


def gate(z):
    return relu6(z + 3) / 3


def pooled(x, bins):
    """The means of overlapping bins, by channel and row and column, as one vector."""
    edges = [[(i * n // bins, -(-(i + 1) * n // bins)) for i in range(bins)] for n in x.shape[2:]]
    cells = [[x[:, :, a:b, c:d].mean((2, 3)) for c, d in edges[1]] for a, b in edges[0]]
    return np.moveaxis(np.array(cells), (0, 1), (2, 3)).reshape(len(x), -1)


def max_pool(x):
    x = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)), constant_values=-np.inf)
    return np.lib.stride_tricks.sliding_window_view(x, (3, 3), (2, 3))[:, :, ::2, ::2].max((4, 5))


def torch_mobilenet_sizes(channels, features, squeeze):
    """Pool, L and s of the authors' 1x1 layers."""
    pool, r = (2, 8) if channels < features else (1, 2)
    m = pool**2
    while min(channels * m // r, features // r) ** 2 > 2 * channels * m:
        r *= 2
    latent = max(4, min(channels * m // r, features // r))
    return pool, latent, max(4, max(channels * m, latent**2) // squeeze)


def torch_basic_sizes(channels, features):
    latent = int(math.sqrt(4 * channels))
    return 2, latent, max(4, max(4 * channels, latent**2) // 16)


def torch_bottleneck_sizes(channels, features):
    latent = int(math.sqrt(channels))
    return 1, latent, max(channels, latent**2) // 16


class Torch:
    """Layers in evaluation, float64, by the names of their arrays, which are float32."""

    def __init__(self):
        self.arrays, self._rng = {}, np.random.default_rng(0)

    def array(self, name, shape, low, high, times=1.0):
        assert name not in self.arrays
        self.arrays[name] = (times * self._rng.uniform(low, high, shape)).astype(np.float32)
        return self.arrays[name].astype(np.float64)

    def conv(self, name, x, features, k=1, stride=1, groups=1):
        n, c, *_ = x.shape
        bound = math.sqrt(6 * groups / (k * k * c))
        weight = self.array(f"{name}.weight", (features, c // groups, k, k), -bound, bound)
        x = np.pad(x, ((0, 0), (0, 0), (k // 2, k // 2), (k // 2, k // 2)))
        windows = np.lib.stride_tricks.sliding_window_view(x, (k, k), (2, 3))[:, :, ::stride, ::stride]
        windows = windows.reshape(n, groups, c // groups, *windows.shape[2:])
        weight = weight.reshape(groups, features // groups, c // groups, k, k)
        y = np.einsum("ngchwij,gocij->ngohw", windows, weight, optimize=True)
        return y.reshape(n, features, *y.shape[3:])

    def linear(self, name, x, features, bias=False, scale=0.3):
        bound = scale * math.sqrt(3 / x.shape[1])
        y = x @ self.array(f"{name}.weight", (features, x.shape[1]), -bound, bound).T
        return y + self.array(f"{name}.bias", features, -1, 1) if bias else y

    def norm(self, name, x):
        c = x.shape[1]
        moments = np.moveaxis(x, 1, 0).reshape(c, -1)
        scale, bias = self.array(f"{name}.weight", c, 0.5, 1.5), self.array(f"{name}.bias", c, -0.3, 0.3)
        # Around those of the images: dynamic layers grow with the square of what they see, and must not explode.
        mean = self.array(f"{name}.running_mean", c, 0.5, 1.5, moments.mean(1))
        var = self.array(f"{name}.running_var", c, 0.5, 1.5, moments.var(1) + 0.5)
        scale, bias, mean, var = (v.reshape(1, c, *[1] * (x.ndim - 2)) for v in (scale, bias, mean, var))
        self.arrays[f"{name}.{COUNTER}"] = np.array(3)
        return (x - mean) / np.sqrt(var + 1e-5) * scale + bias

    def decomposed(self, name, x, static, seen, sizes, q, p):
        """The equations of the decomposition around a static layer: features in, features out."""
        _, latent, hidden = sizes
        linear = self.linear if x.ndim == 2 else self.conv
        h = self.linear(f"{name}.fc.0", seen, hidden)
        h = h * gate(self.linear(f"{name}.fc.1.fc.0", h, hidden))
        phi = self.linear(f"{name}.fc_phi", h, latent**2, scale=0.1).reshape(-1, latent, latent)
        scale = gate(self.linear(f"{name}.fc_scale", h, static.shape[1]))
        latents = self.norm(f"{name}.bn1", q(x))
        flat = latents.reshape(len(x), latent, -1)
        fused = (self.norm(f"{name}.bn2", phi @ flat) + flat).reshape(latents.shape)
        return scale.reshape(*scale.shape, *[1] * (x.ndim - 2)) * static + linear(f"{name}.{p}", fused, static.shape[1])

    def dynamic(self, name, x, features, k=1, stride=1, *, sizes, q="q", p="p"):
        sizes = sizes(x.shape[1], features)
        static = self.conv(f"{name}.conv", x, features, k, stride)
        latents = partial(self.conv, f"{name}.{q}", features=sizes[1], stride=stride)
        return self.decomposed(name, x, static, pooled(x, sizes[0]), sizes, latents, p)

    def classifier(self, name, x, features):
        static = self.linear(f"{name}.cls", x, features, bias=True)
        return self.decomposed(
            name, x, static, x, (1, 32, 32), partial(self.linear, f"{name}.cls_q", features=32), "cls_p"
        )


def torch_shufflenet_v2(x, units, channels=(24, 48, 96, 192, 1024)):
    torch = Torch()
    stem, *stages, last = channels
    x = max_pool(relu(torch.norm("conv1.1", torch.conv("conv1.0", x, stem, 3, 2))))
    for stage, (out, count) in enumerate(zip(stages, units, strict=True), start=2):
        for i in range(count):
            name, stride, half = f"stage{stage}.{i}", 2 if i == 0 else 1, out // 2
            left, right = (x, x) if i == 0 else np.split(x, 2, axis=1)
            if i == 0:
                left = torch.conv(f"{name}.branch1.0", left, left.shape[1], 3, stride, left.shape[1])
                left = torch.conv(f"{name}.branch1.2", torch.norm(f"{name}.branch1.1", left), half)
                left = relu(torch.norm(f"{name}.branch1.3", left))
            right = relu(torch.norm(f"{name}.branch2.1", torch.conv(f"{name}.branch2.0", right, half)))
            right = torch.norm(f"{name}.branch2.4", torch.conv(f"{name}.branch2.3", right, half, 3, stride, half))
            right = relu(torch.norm(f"{name}.branch2.6", torch.conv(f"{name}.branch2.5", right, half)))
            x = np.stack([left, right], axis=2).reshape(len(x), out, *right.shape[2:])  # one of each in turn
    x = relu(torch.norm("conv5.1", torch.conv("conv5.0", x, last)))
    return torch.arrays, torch.linear("fc", x.mean((2, 3)), CLASSES, bias=True)


def torch_mobilenet_v2(x, table, last, source, squeeze=None, head="plain"):
    """torchvision's, and the authors' with layers that are dynamic where ``squeeze`` is given."""
    torch, nested = Torch(), source == "torchvision"
    pointwise = torch.conv
    if squeeze is not None:
        sizes = partial(torch_mobilenet_sizes, squeeze=squeeze)
        pointwise = partial(torch.dynamic, sizes=sizes, q="conv_q", p="conv_p")
    x = relu6(torch.norm("features.0.1", torch.conv("features.0.0", x, 16, 3, 2)))
    index = 0
    for t, out, units, first_stride in table:
        for i in range(units):
            index += 1
            name, before, stride = f"features.{index}.conv", x, first_stride if i == 0 else 1
            places = iter(("0.0 0.1 1.0 1.1 2 3" if nested else "0 1 3 4 6 7").split())
            if t == 1:
                places = iter(("0.0 0.1 1 2" if nested else "0 1 3 4").split())
            else:
                x = pointwise(f"{name}.{next(places)}", x, t * x.shape[1])
                x = relu6(torch.norm(f"{name}.{next(places)}", x))
            x = torch.conv(f"{name}.{next(places)}", x, x.shape[1], 3, stride, x.shape[1])
            x = relu6(torch.norm(f"{name}.{next(places)}", x))
            x = (torch.conv if t == 1 else pointwise)(f"{name}.{next(places)}", x, out)
            x = torch.norm(f"{name}.{next(places)}", x)
            x = x + before if x.shape == before.shape and stride == 1 else x
    name = f"features.{index + 1}" if nested else "conv"
    x = relu6(torch.norm(f"{name}.1", torch.conv(f"{name}.0", x, last))).mean((2, 3))
    if head == "dcd":
        return torch.arrays, torch.classifier("classifier.0", x, CLASSES)
    return torch.arrays, torch.linear("classifier.1", x, CLASSES, bias=True)


def torch_resnet(x, units, width, bottleneck, dynamic=False, head="fc"):
    torch = Torch()
    conv = torch.conv
    if dynamic:
        conv = partial(torch.dynamic, sizes=torch_bottleneck_sizes if bottleneck else torch_basic_sizes)
    x = max_pool(relu(torch.norm("bn1", torch.conv("conv1", x, width, 7, 2))))
    for stage, count in enumerate(units, start=1):
        for i in range(count):
            name, stride, shortcut = f"layer{stage}.{i}", 2 if i == 0 and stage > 1 else 1, x
            inner = width * 2 ** (stage - 1)
            if bottleneck:
                layers = [(inner, 1, 1), (inner, 3, stride), (4 * inner, 1, 1)]
            else:
                layers = [(inner, 3, stride), (inner, 3, 1)]
            for j, layer in enumerate(layers, start=1):
                x = torch.norm(f"{name}.bn{j}", conv(f"{name}.conv{j}", x, *layer))
                x = x if j == len(layers) else relu(x)
            if shortcut.shape != x.shape:
                shortcut = torch.conv(f"{name}.downsample.0", shortcut, x.shape[1], 1, stride)
                shortcut = torch.norm(f"{name}.downsample.1", shortcut)
            x = relu(x + shortcut)
    x = x.mean((2, 3))
    logits = torch.classifier(head, x, CLASSES) if dynamic else torch.linear(head, x, CLASSES, bias=True)
    return torch.arrays, logits


def images(size):
    return np.random.default_rng(1).standard_normal((2, 3, size, size)).astype(np.float32)


def assert_same(network, source, x, oracle):
    """The network computes with the converted arrays what the oracle does."""
    arrays, expected = oracle
    variables = convert_network(network, arrays, source)
    logits = compiled(network.apply)(variables, jnp.asarray(np.moveaxis(x, 1, -1), jnp.float32))
    assert count_classes(arrays, source) == CLASSES
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def test_shufflenet_v2_of_torchvision(monkeypatch):
    x = images(64)
    units = (2, 1, 1)  # of (4, 8, 4), whose names are all told below
    monkeypatch.setattr(shufflenet_v2, "UNITS", units)
    assert_same(ShuffleNetV2(CLASSES, 0.5), "torchvision", x, torch_shufflenet_v2(x, units))


@pytest.fixture
def short(monkeypatch):
    """Few units of every kind: with and without a shortcut, a downsampling, an expansion."""
    monkeypatch.setattr(mobilenet_v2, "TABLE", ((1, 16, 1, 1), (6, 24, 1, 2), (6, 96, 2, 1)))
    monkeypatch.setattr(mobilenet_v2, "LAST", 48)
    monkeypatch.setattr(resnet, "UNITS", {10: (1, 1, 1, 1), 18: (1, 2, 1), 50: (2, 1)})


SHORT_TABLE = ((1, 8, 1, 1), (6, 8, 1, 2), (6, 32, 2, 1))
"""The same at width 0.35."""


def test_mobilenet_v2_of_torchvision(short):
    x = images(17)
    oracle = torch_mobilenet_v2(x, SHORT_TABLE, 48, "torchvision")
    assert_same(MobileNetV2(CLASSES, 0.35), "torchvision", x, oracle)


@pytest.mark.parametrize(("depth", "units"), [(18, (1, 2, 1)), (50, (2, 1))])
def test_resnet_of_torchvision(short, depth, units):
    x = images(33)
    oracle = torch_resnet(x, units, 16, depth >= 50)
    assert_same(ResNet(CLASSES, depth, 0.25), "torchvision", x, oracle)


@pytest.mark.parametrize(
    ("squeeze", "head"),
    [(8, "dcd"), pytest.param(16, "plain", marks=pytest.mark.slow), pytest.param(None, "dcd", marks=pytest.mark.slow)],
)
def test_mobilenet_v2_of_dcd(short, squeeze, head):
    x = images(17)
    pointwise = mobilenet_v2.static_pointwise
    if squeeze is not None:
        pointwise = partial(DynamicConv, rule=default_sizes, squeeze=squeeze)
    chosen = DynamicDense if head == "dcd" else mobilenet_v2.small_normal_dense
    network = MobileNetV2(CLASSES, 0.35, pointwise=pointwise, head=chosen)
    assert_same(network, "dcd", x, torch_mobilenet_v2(x, SHORT_TABLE, 48, "dcd", squeeze, head))


@pytest.mark.parametrize(
    ("depth", "units", "head"),
    [(10, (1, 1, 1, 1), "classifier.0"), pytest.param(50, (2, 1), "classifier.1", marks=pytest.mark.slow)],
)
def test_resnet_of_dcd(short, depth, units, head):
    x = images(33)
    conv = partial(DynamicConv, rule=bottleneck_sizes if depth >= 50 else basic_sizes)
    network = ResNet(CLASSES, depth, 0.25, conv=conv, pointwise=conv, head=DynamicDense)
    assert_same(network, "dcd", x, torch_resnet(x, units, 16, depth >= 50, dynamic=True, head=head))


def block(case, prefix=""):
    """The authors' arrays of one block."""
    start = f"{case}/w/"
    return {f"{prefix}{key.removeprefix(start)}": FIGURES[key] for key in FIGURES.files if key.startswith(start)}


@pytest.mark.parametrize("case", BLOCKS)
@pytest.mark.parametrize("prefix", ["", "layer1.0.conv1"])
def test_blocks_of_the_authors(case, prefix):
    """Evaluated elsewhere with their modules; other arrays beside those of the block do not count."""
    arrays = block(case, prefix and f"{prefix}.")
    beside = {"layer1.0.conv10.conv.weight": np.zeros(1)} if prefix else {}
    x, y = (np.moveaxis(FIGURES[f"{case}/{name}"], 1, -1) for name in ("x", "y_eval"))
    actual = compiled(BLOCKS[case].apply)(dynamic_conv(arrays | beside, prefix), jnp.asarray(x))
    np.testing.assert_allclose(actual, y, rtol=0, atol=1e-5 * np.abs(y).max())


def test_classifier_of_the_authors():
    variables = dynamic_dense(block("cls_64_10", "classifier.1."), "classifier.1")
    y = FIGURES["cls_64_10/y_eval"]
    actual = compiled(DynamicDense(10).apply)(variables, jnp.asarray(FIGURES["cls_64_10/x"]))
    np.testing.assert_allclose(actual, y, rtol=0, atol=1e-5 * np.abs(y).max())


def problems(error):
    """What one line says of each array, by kind."""
    start, _, told = str(error).partition(" (")
    assert start == "nothing is loaded, choose the network or layer that the arrays are of" and "\n" not in told
    kinds = (kind.split(": ") for kind in told.removesuffix(")").split("; "))
    return {
        kind: sorted(re.findall(r"\S+ \([^)]*\)(?:, not \([^)]*\))?", arrays) or [arrays]) for kind, arrays in kinds
    }


def asked_for(network):
    """The shape there of every array of torchvision's that a network is converted from."""
    shapes = jax.eval_shape(partial(network.init, train=False), jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    paths = flatten_dict(shapes, sep="/")
    return {row.name: _shape_there(row, paths) for row in rows(modules("torchvision", network, (), ()), shapes)}


def test_blocks_say_all_that_is_wrong():
    arrays = block("mb_tiny_4_6_4")
    del arrays["fc_phi.weight"]
    arrays |= {"conv_q.weight": np.zeros((9, 4, 1, 1)), "bn2.bias": np.zeros(3), "gamma": np.zeros((2, 3))}
    with pytest.raises(ValueError) as caught:
        dynamic_conv(arrays)
    assert problems(caught.value) == {
        "missing": ["fc_phi.weight (16, 4)"],
        "extra": ["gamma (2, 3)"],
        "of the wrong shape": ["bn2.bias (3,), not (4,)", "conv_q.weight (9, 4, 1, 1), not (4, 4, 1, 1)"],
    }


@pytest.mark.parametrize(
    ("network", "entries", "parameters"),
    [
        # what torch counts: entries without counters, 5 for each normalised convolution and 2 for the classifier
        (ShuffleNetV2(1000, 0.5), 5 * 56 + 2, 1_366_792),
        (MobileNetV2(1000), 5 * 52 + 2, 3_504_872),
        (ResNet(1000, 18), 5 * 20 + 2, 11_689_512),
        (ResNet(1000, 50), 5 * 53 + 2, 25_557_032),
    ],
)
def test_all_arrays_of_a_published_network_are_asked_for(network, entries, parameters):
    shapes = asked_for(network)
    assert len(shapes) == entries
    assert sum(math.prod(shape) for name, shape in shapes.items() if ".running_" not in name) == parameters


def test_of_many_arrays_that_do_not_fit_the_first_are_named_and_the_rest_counted():
    with pytest.raises(ValueError) as caught:
        convert_network(ResNet(1000, 50), {f"block{i}.weight": np.zeros(3) for i in range(400)})
    told = problems(caught.value)
    assert {kind: len(names) for kind, names in told.items()} == {"missing": 5, "extra": 5}
    assert "and 262 more; extra:" in str(caught.value) and str(caught.value).endswith("and 395 more)")
    assert len(str(caught.value)) < 500


@pytest.fixture(scope="module")
def small():
    """A ResNet of one unit and its arrays."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(resnet, "UNITS", {10: (1,)})
        yield ResNet(CLASSES, 10, 0.125), torch_resnet(images(8), (1,), 8, False)[0]


def leaves(variables):
    return {jax.tree_util.keystr(path): np.asarray(x) for path, x in jax.tree_util.tree_leaves_with_path(variables)}


def test_one_error_names_every_array_that_does_not_fit(small):
    network, arrays = small
    arrays = dict(arrays)
    del arrays["layer1.0.bn2.running_var"]
    arrays |= {
        "conv1.weight": np.zeros((8, 3, 3, 3), np.float32),
        "fc.bias": np.zeros(CLASSES, np.int64),
        "bn1.weight": np.full(8, np.nan),
        "layer1.0.downsample.0.weight": np.zeros((8, 8, 1, 1)),
        "bn1.num_batches": np.zeros(()),
    }
    with pytest.raises(ValueError) as caught:
        convert_network(network, arrays)
    assert problems(caught.value) == {
        "missing": ["layer1.0.bn2.running_var (8,)"],
        "extra": ["bn1.num_batches ()", "layer1.0.downsample.0.weight (8, 8, 1, 1)"],
        "of the wrong shape": ["conv1.weight (8, 3, 3, 3), not (8, 3, 7, 7)"],
        "of no finite floats": ["bn1.weight, fc.bias"],
    }


WRAPPED = {
    "module": lambda arrays: {f"module.{name}": array for name, array in arrays.items()},
    "several": lambda arrays: {f"state_dict.model.module._orig_mod.module.{name}": a for name, a in arrays.items()},
    "average": lambda arrays: WRAPPED["module"](arrays) | {"n_averaged": np.array(3)},
    "moving average": lambda arrays: WRAPPED["several"](arrays) | {"num_updates": np.array(3), "decay": np.array(0.9)},
    "nested": lambda arrays: {"epoch": 3, "arch": "resnet", "state_dict": WRAPPED["module"](arrays), "optimizer": {}},
    "flattened": lambda arrays: WRAPPED["several"](arrays) | {"optimizer.state.0.exp_avg": np.ones(3)},
}


@pytest.mark.parametrize("dtype", [np.float16, jnp.bfloat16, np.float64])
def test_other_floats_change_nothing(small, dtype):
    network, arrays = small
    rounded = {name: array.astype(dtype) for name, array in arrays.items() if COUNTER not in name}
    found = leaves(convert_network(network, rounded))
    expected = leaves(convert_network(network, {name: array.astype(np.float32) for name, array in rounded.items()}))
    assert found.keys() == expected.keys() and {array.dtype for array in found.values()} == {np.dtype(np.float32)}
    for path in found:
        np.testing.assert_array_equal(found[path], expected[path])


@pytest.mark.parametrize("kind", WRAPPED)
def test_what_training_programs_put_around_a_network_does_not_count(small, kind):
    arrays = small[1]
    own = {name: array for name, array in arrays.items() if COUNTER not in name}
    found = plain(WRAPPED[kind](arrays))
    assert found.keys() == own.keys() and all(found[name] is own[name] for name in own)
    assert count_classes(WRAPPED[kind](arrays), "torchvision") == CLASSES


def test_of_several_networks_one_is_named(small):
    network, arrays = small
    several = {"model": {name: 0 * array for name, array in arrays.items()}, "ema": {"module": arrays}, "epoch": 3}
    with pytest.raises(ValueError, match=r"there are several networks, model, ema: name one as the part"):
        convert_network(network, several)
    chosen = plain(several, "ema")
    assert all(chosen[name] is array for name, array in arrays.items() if COUNTER not in name)
    with pytest.raises(ValueError, match=r"there is no part 'emma': choose one of model, ema"):
        plain(several, "emma")
    with pytest.raises(ValueError, match=r"module\.fc\.bias"):  # only some have it: then it is a name
        convert_network(network, {**arrays, "module.fc.bias": arrays["fc.bias"]})
    assert list(plain({"model": np.zeros(3)})) == ["model"]  # an array of that name, and nothing inside


def test_what_the_source_does_not_have(short, monkeypatch):
    for module in (shufflenet_v1, shufflenet_v2):
        monkeypatch.setattr(module, "UNITS", (1, 1, 1))
    with pytest.raises(ValueError, match=r"3 arrays that the source does not know \(params/stage2_0/mixer/relaxed"):
        convert_network(ShuffleNetV2(CLASSES, 0.5, mixer=AutoShuffle), {})
    with pytest.raises(ValueError, match="params/stage2_0/expand/generator/gate/kernel"):
        convert_network(MobileNetV2(CLASSES, 0.35, pointwise=DynamicConv), {}, "torchvision")
    with pytest.raises(ValueError, match=r"^dcd has no ShuffleNetV2: choose MobileNetV2 and ResNet$"):
        convert_network(ShuffleNetV2(CLASSES, 0.5), {}, "dcd")
    with pytest.raises(ValueError, match=r"^torchvision has no ShuffleNetV1: choose ShuffleNetV2, Mob"):
        convert_network(ShuffleNetV1(CLASSES, 3, 0.5), {})
    assert count_classes({}, "torchvision") is None


def test_npz_keeps_every_array(tmp_path):
    path = tmp_path / "arrays.npz"
    values = np.arange(-3, 5).reshape(2, 4) / 4
    half = {str(np.dtype(dtype)): values.astype(dtype) for dtype in (np.float16, jnp.bfloat16, np.float32, np.float64)}
    np.savez(path, float8=values.astype(jnp.float8_e4m3fn))
    with pytest.raises(
        ValueError, match=r"float8 is of a type that \.npz files do not keep \(1 bytes a number\): save"
    ):
        load_arrays(path)
    np.savez(path, **half, counter=np.array(3))
    found = load_arrays(path)
    assert found.pop("counter") == 3
    assert set(found) == {"float16", "bfloat16", "float32", "float64"}
    for array in found.values():  # quarters are exact in all of them
        assert array.dtype == np.float32
        np.testing.assert_array_equal(array, values.astype(np.float32))


def in_safetensors(arrays, size=None):
    """The content of a file with these arrays, each of the type that is its name."""
    header, end = {}, 0
    for kind, array in arrays.items():
        start, end = end, end + array.nbytes
        header[kind] = {"dtype": kind, "shape": [size] if size else array.shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + b"".join(array.tobytes() for array in arrays.values())


def test_safetensors_keeps_every_array(tmp_path):
    from safetensors import numpy

    path = tmp_path / "arrays.safetensors"
    values = np.arange(-3, 5).reshape(2, 4) / 4
    half = {str(np.dtype(dtype)): values.astype(dtype) for dtype in (np.float16, jnp.bfloat16, np.float32)}
    numpy.save_file(half | {"counter": np.array(3)}, path)
    found = load_arrays(path)
    assert found.pop("counter") == 3
    assert set(found) == {"float16", "bfloat16", "float32"}
    for array in found.values():
        assert array.dtype == np.float32
        np.testing.assert_array_equal(array, values.astype(np.float32))
    floats8 = {"F8_E4M3": jnp.float8_e4m3fn, "F8_E5M2": jnp.float8_e5m2}  # which safetensors.numpy does not read
    path.write_bytes(in_safetensors({kind: values.astype(dtype) for kind, dtype in floats8.items()}))
    for array in load_arrays(path).values():
        np.testing.assert_array_equal(array, values.astype(np.float32))
    path.write_bytes(in_safetensors({"F4": np.zeros(8, np.uint8)}, size=16))
    with pytest.raises(ValueError, match=r"F4 is of type F4, which is not read: save it as float32"):
        load_arrays(path)
    numpy.save_file(half, path)
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(ValueError, match=r"is no whole \.safetensors file"):
        load_arrays(path)


def test_safetensors_says_what_to_install(tmp_path, monkeypatch):
    path = tmp_path / "arrays.safetensors"
    path.write_bytes(b"")
    monkeypatch.setitem(sys.modules, "safetensors", None)
    with pytest.raises(ValueError, match=r"pip install 'shuffle_jax\[convert\]', or give an .npz file"):
        load_arrays(path)


class Trap:
    """Unpickled, it leaves a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_pickles_are_refused_and_run_nothing(tmp_path):
    path, sprung = tmp_path / "arrays.npz", tmp_path / "sprung"
    np.savez(path, weight=np.array([Trap(sprung)], object), allow_pickle=True)
    with pytest.raises(ValueError, match=r"is no \.npz file of plain arrays \(Object arrays cannot be loaded"):
        load_arrays(path)
    assert not sprung.exists()


def test_files_that_are_none(tmp_path):
    whole = io.BytesIO()
    np.savez_compressed(whole, weight=np.arange(1000.0))
    contents = {
        "text.npz": b"hello",
        "empty.npz": b"",
        "cut.npz": whole.getvalue()[:-100],
        "spoilt.npz": whole.getvalue().replace(whole.getvalue()[200:208], b"\0" * 8),
    }
    array = io.BytesIO()
    np.save(array, np.arange(3.0))
    contents["array.npz"] = array.getvalue()
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=f"{name} is no .npz file of plain arrays .*: write it with numpy.savez"):
            load_arrays(tmp_path / name)
    with zipfile.ZipFile(tmp_path / "none.npz", "w"):
        pass
    for name, text in {
        "none.npz": "holds no array",
        "nowhere.npz": "there is no file",
    }.items():
        with pytest.raises(ValueError, match=text):
            load_arrays(tmp_path / name)
    for name in ("weights.pth", "weights"):
        (tmp_path / name).write_bytes(b"")
        with pytest.raises(ValueError, match=r"not \.npz or \.safetensors: where torch is, write one of these"):
            load_arrays(tmp_path / name)
