"""ONNX files: what each part becomes there, held against JAX by ONNX Runtime; what cannot be is refused by name."""

from __future__ import annotations

import json
import sys
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import onnx
import pytest
from jax import lax
from PIL import Image

from shuffle_jax.deploy.exported import load
from shuffle_jax.deploy.folding import fold
from shuffle_jax.deploy.hardening import harden
from shuffle_jax.deploy.onnx import write
from shuffle_jax.deploy.onnx.primitives import RULES
from shuffle_jax.deploy.routing import route
from shuffle_jax.models import NetworkConfig, build
from shuffle_jax.ops import (
    contextual,
    convolution,
    kernel_attention,
    kronecker,
    mixing,
    per_sample,
    polyphase,
    pooling,
    relaxation,
    rolling_pointwise,
    shift,
    shifted_pointwise,
)

SHAPE = (6, 5, 8)
PREPARED = {"size": 8, "channels": 3, "mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.4]}


def drawn(*shape):
    """Numbers at random, the same for one shape."""
    return jnp.asarray(np.random.default_rng(shape).standard_normal(shape), jnp.float32)


def written(logits, path, shape=SHAPE, params=(), **options):
    """What the export says of a function of images, whose outputs become one row an image."""

    def rows(params, x):
        y = logits(params, x) if params else logits(x)
        return y.reshape(y.shape[0], -1)

    count = jax.eval_shape(rows, params, jax.ShapeDtypeStruct((1, *shape), jnp.float32)).shape[1]
    about = {"classes": [f"class {i}" for i in range(count)], "preprocessing": PREPARED, "about": {"step": 7}}
    return write.export(rows, params, path, image_shape=shape, **about, **options)


def operations(path):
    return Counter(node.op_type for node in onnx.load(path).graph.node)


def mean(x):
    return x.mean((1, 2))


def permuted_by_itself(x):
    """A permutation for each image, the order of its channels' means."""
    means = mean(x)
    rank = (means[:, :, None] > means[:, None, :]).sum(-1).astype(jnp.int32)
    return jax.vmap(mixing.permute)(x.reshape(x.shape[0], -1, x.shape[-1]), rank)


def two_in_one_pass(x):
    """A reduction by a function of its own, over an even and an odd number of values."""
    zero = jnp.zeros((), x.dtype)
    both = lax.reduce((x, x * x), (zero, zero), lambda a, b: (a[0] + b[0], jnp.maximum(a[1], b[1])), (1, 2))
    return jnp.concatenate(both, axis=-1)


def outer(rows):
    return rows[:, :2, None] * rows[:, None, 2:4]


OPS = {
    "shuffle": lambda x: mixing.shuffle(x, 4),
    "permute": lambda x: mixing.permute(x, jnp.array([3, 1, 0, 2, 7, 5, 6, 4])),
    "mix": lambda x: mixing.mix(x, drawn(6, 8)),
    "channel shift": lambda x: shift.channel_shift(x, 2),
    "address shift, zero": lambda x: shift.address_shift(x, boundary="zero"),
    "address shift, pointer": shift.address_shift,
    "shortcut shift": lambda x: shift.shortcut_shift(x, x[..., :3]),
    "shifted pointwise": lambda x: shifted_pointwise.shifted_pointwise(x, drawn(1, 1, 2, 4)),
    "rolling": lambda x: rolling_pointwise.rolling_pointwise(x, drawn(1, 1, 4, 8), 2),
    "depthwise, wrapped": lambda x: convolution.depthwise(x, drawn(3, 3, 1, 8), padding="wrap"),
    "stride, groups, dilation": lambda x: convolution.convolution(x, drawn(3, 3, 4, 6), 2, "zeros", 2, 2),
    "contextual": lambda x: contextual.contextual(x, drawn(3, 3, 8, 8), (4, 4), (1, 2)),
    "halve": pooling.halve,
    "largest": pooling.largest,
    "largest 2x2": pooling.largest_2x2,
    "polyphase": lambda x: polyphase.sample(x, size=3)[0],
    "polyphase, smallest": lambda x: polyphase.sample(x, criterion="smallest_l1")[0],
    "permutation of each image": permuted_by_itself,
    "kernel of each image": lambda x: per_sample.convolution(
        x, kernel_attention.aggregate(jax.nn.softmax(mean(x)[:, :3]), drawn(3, 3, 3, 8, 4))
    ),
    "factors of each image": lambda x: kronecker.mix(x, outer(mean(x)), drawn(4, 4)),
    "sinkhorn": lambda x: relaxation.sinkhorn(jnp.einsum("nhwc,nhwd->ncd", x, x) / 30, iterations=3),
    "loop": lambda x: lax.scan(lambda y, w: (y * w, y.sum((1, 2))), x, drawn(3, 1, 1, 1, 8), reverse=True)[1].sum(0),
    "reduction of its own": two_in_one_pass,
    "negative padding": lambda x: lax.pad(x, jnp.float32(2), ((0, 0, 0), (-1, 2, 0), (1, -2, 0), (0, 0, 0))),
    "slices": lambda x: jnp.concatenate([x[:, 1::2, ::3, 2:7], x[:, :3, 1:3, :5][:, ::-1]], axis=1),
    "number of images": lambda x: x + jnp.where(jnp.arange(x.shape[0]) < x.shape[0], 1.0, 0.0)[:, None, None, None],
    "elementwise": lambda x: (
        jax.nn.silu(x) + jnp.clip(x, -1, 1) ** 3 + jnp.exp2(x) * lax.rsqrt(1 + x * x) + jnp.log1p(abs(x)) % 0.3
    ),
    "comparisons": lambda x: jnp.where((x > 0) & (x != 1) | ~jnp.isfinite(x), x, jnp.sign(x) - 1),
    "any and all": lambda x: jnp.where((x > 2).any((1, 2)) & (x > -3).all((1, 2)), mean(x), x.max((1, 2))),
}


@pytest.mark.parametrize("name", OPS)
def test_what_ops_are_in_onnx_gives_the_same_at_every_number_of_images(name, tmp_path):
    assert written(OPS[name], tmp_path / "op.onnx")["difference"] <= write.TOLERANCE["float32"]
    assert write.BATCHES == (1, 3, 64) and write.TOLERANCE["float32"] == 1e-5


def chain(x):
    """The parts of a folded network: an image is transposed once, and no number is moved that need not be."""
    x = jax.nn.relu6(convolution.convolution(x, drawn(3, 3, 8, 4), 2) + drawn(1, 1, 1, 4))
    x = jax.nn.relu(convolution.depthwise(x, drawn(3, 3, 1, 4)) + drawn(1, 1, 1, 4))
    x = pooling.halve(convolution.pointwise(x, drawn(1, 1, 4, 6)) + drawn(1, 1, 1, 6))
    left, right = jnp.split(mixing.shuffle(jnp.concatenate([x, x], axis=-1), 2), 2, axis=-1)
    return (left + right).mean((1, 2)) @ drawn(6, 3) + drawn(1, 3)


def test_a_chain_of_layers_is_what_one_would_write_by_hand(tmp_path):
    written(chain, tmp_path / "chain.onnx")
    assert operations(tmp_path / "chain.onnx") == {
        "Transpose": 2,  # of the image, and of the shuffle
        "Conv": 3,
        "Clip": 1,
        "Relu": 1,
        "AveragePool": 1,
        "Concat": 1,
        "Reshape": 2,
        "Split": 1,
        "Add": 1,
        "ReduceMean": 1,
        "Gemm": 1,
    }


def test_the_file_says_what_goes_in_and_what_comes_out(tmp_path):
    path = tmp_path / "net.onnx"
    said = written(chain, path)
    model = onnx.load(path)
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", 17)] and model.ir_version == 8
    told = {entry.key: json.loads(entry.value) for entry in model.metadata_props}
    assert told["classes"] == ["class 0", "class 1", "class 2"] and told["preprocessing"] == PREPARED
    assert (told["opset"], told["weights"], told["step"]) == (17, "float32", 7)
    (images,), (logits,) = model.graph.input, model.graph.output
    shapes = [[d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim] for v in (images, logits)]
    assert shapes == [["n", 6, 5, 8], ["n", 3]] and (images.name, logits.name) == ("images", "logits")
    assert said["bytes"] == path.stat().st_size
    assert not [node.name for node in model.graph.node if node.name] and "/" not in str(model.graph.node)


def test_half_precision_is_half_as_large_and_nearly_the_same(tmp_path):
    kernel = drawn(3, 3, 8, 256)

    def logits(x):
        return jnp.tanh(convolution.convolution(x, kernel)).mean((1, 2))

    whole, half = (written(logits, tmp_path / f"{kind}.onnx", weights=kind) for kind in ("float32", "float16"))
    assert 2 * kernel.size <= half["bytes"] < whole["bytes"] - 1.9 * kernel.size
    assert whole["difference"] < 1e-5 < half["difference"] < write.TOLERANCE["float16"]
    x = np.random.default_rng(0).standard_normal((2, *SHAPE)).astype(np.float32)
    rounded = np.asarray(kernel.astype(jnp.float16), np.float32)  # what is kept is the kernel, rounded once
    expected = jnp.tanh(convolution.convolution(x, jnp.asarray(rounded))).mean((1, 2))
    np.testing.assert_allclose(load(tmp_path / "float16.onnx").logits(x), expected, rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match=r"a weight is 1e\+05, and float16 ends at 65504: use float32"):
        written(lambda x: mean(x) @ jnp.full((8, 3), 1e5), tmp_path / "large.onnx", weights="float16")
    assert not (tmp_path / "large.onnx").exists()


def searched(x):
    with jax.named_scope("stage2_0"), jax.named_scope("mixer"):
        return lax.while_loop(lambda y: (y < 9).any(), lambda y: y + 1, x)


def sorted_within(x):
    with jax.named_scope("head"):
        return jax.jit(lambda x: jnp.sort(x, axis=-1))(x)


REFUSED = {
    "while": (searched, r"stage2_0/mixer: it loops until something is reached, as a linear assignment for each image"),
    "sort": (sorted_within, r"head.*: it sorts for each image"),
    "long loop": (lambda x: lax.fori_loop(0, 65, lambda k, y: y * 0.9, x), "the network: it loops 65 times"),
    "image as the batch": (lambda x: x.reshape(-1, 6, 10, 4).sum((1, 2))[:1], "the network: "),
    "constant": (lambda x: jnp.ones((x.shape[0], 3)), "its logits do not depend on the images"),
    "window": (lambda x: lax.cummax(x, axis=1), "the network: ONNX has no cummax"),
    "bits": (lambda x: (x > 0).astype(jnp.int32) & 3, "the network: it combines the bits of numbers"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_onnx_has_not_is_refused_by_the_name_of_its_layer_and_nothing_is_written(name, tmp_path):
    logits, message = REFUSED[name]
    with pytest.raises(ValueError, match=message) as refused:
        written(logits, tmp_path / "net.onnx")
    assert "\n" not in str(refused.value) and list(tmp_path.iterdir()) == []


def test_a_file_that_is_not_the_network_is_not_written(monkeypatch, tmp_path):
    right = RULES["conv_general_dilated"]

    def wrong(graph, values, equation):
        return right(graph, [values[0], values[1] * np.float32(1.0001)], equation)

    monkeypatch.setitem(RULES, "conv_general_dilated", wrong)
    with pytest.raises(ArithmeticError, match=r"differ from the network's by \S+e-04 of the largest, and not by 1e-05"):
        written(lambda x: convolution.convolution(x, drawn(3, 3, 8, 4)), tmp_path / "net.onnx")
    monkeypatch.undo()
    with pytest.raises(ArithmeticError, match=r"own logits are not finite: .*net.onnx is not written"):
        written(lambda x: x / 0, tmp_path / "net.onnx")
    with pytest.raises(ValueError, match="the network has 8 logits for 1 classes: give one name for each"):
        write.export(
            lambda _, x: mean(x),
            (),
            tmp_path / "net.onnx",
            classes=["a"],
            preprocessing={},
            image_shape=SHAPE,
            about={},
        )
    assert list(tmp_path.iterdir()) == []


def test_pictures_are_classified_as_with_a_file_for_jax(tmp_path):
    written(lambda x: mean(x) @ drawn(3, 3), tmp_path / "net.onnx", (8, 8, 3))
    net = load(tmp_path / "net.onnx")
    pixels = np.random.default_rng(1).integers(0, 256, (2, 8, 8, 3), np.uint8)
    paths = [tmp_path / f"{i}.png" for i in range(2)]
    for path, image in zip(paths, pixels, strict=True):
        Image.fromarray(image).save(path)
    prepared = (pixels / 255 - np.array(PREPARED["mean"])) / np.array(PREPARED["std"])
    odds = np.exp(prepared.mean((1, 2)) @ np.asarray(drawn(3, 3)))
    for found, row in zip(net.predict(paths), odds / odds.sum(-1, keepdims=True), strict=True):
        assert [name for name, _ in found] == [f"class {i}" for i in np.argsort(-row)]
        np.testing.assert_allclose([p for _, p in found], np.sort(row)[::-1], rtol=1e-4)
    assert net.logits(np.zeros((0, 8, 8, 3), np.float32)).shape == (0, 3)
    with pytest.raises(ValueError, match=r"must be normalised, float32 \(n, 8, 8, 3\), got uint8"):
        net.logits(pixels)


def test_files_of_others_and_damaged_ones_are_refused_in_one_line(tmp_path, monkeypatch):
    path = tmp_path / "net.onnx"
    with pytest.raises(ValueError, match=r"there is no .*net.onnx: make it with experiments.export --format onnx"):
        load(path)
    written(lambda x: mean(x) @ drawn(8, 3), path)
    model = onnx.load(path)
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(ValueError, match=r"net.onnx is no ONNX file, or damaged") as refused:
        load(path)
    assert "\n" not in str(refused.value)
    model.graph.node[0].op_type = "Unheard"
    onnx.save(model, path)
    with pytest.raises(ValueError, match=r"net.onnx cannot be run \(") as refused:
        load(path)
    assert "\n" not in str(refused.value)
    del model.metadata_props[:]
    onnx.save(model, path)
    with pytest.raises(ValueError, match="does not say its input, output, classes, preprocessing: only what"):
        load(path)
    for name in ("onnx", "onnxruntime"):
        monkeypatch.setitem(sys.modules, name, None)
        with pytest.raises(ValueError, match=r"is not installed: pip install 'shuffle_jax\[onnx\]'"):
            load(path)
        monkeypatch.undo()


FAMILIES = {
    "shufflenet_v1": {"family": "shufflenet_v1", "width": 0.5, "mixer": "auto", "stem": "imagenet"},
    "shufflenet_v2": {"width": 0.5, "mixer": "auto"},
    "shift": {"width": 0.5, "mixer": "shift", "stem": "imagenet"},
    "squeeze": {"width": 0.5, "mixer": "squeeze"},
    "rolling": {"family": "shufflenet_v1", "width": 0.5, "mixer": "shuffle", "pointwise": "rolling"},
    "contextual": {"width": 0.5, "mixer": "shuffle", "spatial": "contextual"},
    "mobilenet_v2": {"family": "mobilenet_v2", "width": 0.35, "groups": 2, "mixer": "random"},
    "resnet": {"family": "resnet", "depth": 50, "width": 1 / 8, "stem": "imagenet", "mixer": "identity"},
    "aps": {"family": "resnet", "depth": 10, "width": 1 / 8, "sampling": "aps", "mixer": "identity"},
    "coresnet": {"family": "coresnet", "depth": 50, "width": 1 / 8, "mixer": "identity"},
    "addressnet": {"family": "addressnet", "depth": 8, "mixer": "shift"},
    "shift_resnet": {"family": "shift_resnet", "depth": 8, "mixer": "identity"},
    "anchored": {"family": "anchored", "depth": 10, "width": 1 / 16, "anchored": {"kernels": "each_width"}},
    "condconv": {"family": "resnet", "depth": 10, "width": 1 / 8, "pointwise": "condconv", "mixer": "identity"},
    "dcd": {"width": 0.5, "mixer": "shuffle", "pointwise": "dcd", "head": "dcd"},
    "dynamic": {"width": 0.5, "mixer": "dynamic", "dynamic": {"evaluation": "soft"}},
    "dynamic_hard": {"width": 0.5, "mixer": "dynamic_hard"},
    "static_dynamic": {"width": 0.5, "mixer": "shuffle", "pointwise": "static_dynamic_hard"},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_is_the_same_in_onnx_runtime(name, few_units, draw, tmp_path):
    shape = (16, 16, 3)
    network = build(NetworkConfig(**FAMILIES[name]), 5)
    variables = harden(draw(network, shape)).variables
    if name == "dcd":  # its residuals multiply: parameters as large as those overflow
        variables |= {"params": jax.tree.map(lambda leaf: leaf / 4, variables["params"])}
    exported = route(network, fold(network, variables, shape).variables, shape)
    about = {"classes": tuple("abcde"), "preprocessing": PREPARED, "about": {}}
    said = write.export(exported.apply, exported.params, tmp_path / "net.onnx", image_shape=shape, **about)
    assert said["difference"] <= 1e-5
    found = operations(tmp_path / "net.onnx")
    if name in ("shufflenet_v1", "shufflenet_v2", "mobilenet_v2", "resnet"):
        assert found["Transpose"] == 1 and not found["Reshape"] and not found["Mul"] and not found["Expand"]
