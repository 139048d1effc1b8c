"""AddressNet against its counts, its definition written out, and itself without anything fused."""

from __future__ import annotations

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from shuffle_jax.analysis.count import count, count_layers
from shuffle_jax.models import AddressNet
from shuffle_jax.models.addressnet import IMAGENET, Unit
from shuffle_jax.nn import ChannelShift, ChannelShuffle, Identity, PointwiseConv, ShiftedPointwise
from shuffle_jax.sharding import data_mesh

MIXERS = (None, partial(ChannelShift, groups=4))
compiled = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})  # Half the compilation.
KNOWN: dict = {}  # Layers counted before, shared by all tests.


def images(*shape):
    return np.random.default_rng(1).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize(("depth", "parameters"), [(20, 81_640), (32, 139_096), (44, 196_552)])
def test_parameters_for_small_images_and_100_classes(depth, parameters):
    for mixer in (None, ChannelShuffle):
        assert count(AddressNet(100, depth, mixer=mixer), (32, 32, 3), known=KNOWN).parameters == parameters


def test_parameters_and_multiply_adds_of_the_table_for_imagenet():
    found = count(AddressNet(1000, stem="imagenet"), (224, 224, 3), known=KNOWN)
    total, c, size = 112 * 112 * 27 * 32, 32, 112
    for stage in IMAGENET:
        for i, expansion in enumerate(stage.expansions):
            new, size = (stage.channels - c, size // 2) if i == 0 else (stage.channels, size)
            total += size**2 * (c * expansion * c + expansion * c * new) // 4
            c = stage.channels
    assert (found.parameters, found.multiply_adds) == (3_703_688, total + 768 * 1000)
    assert round(found.multiply_adds / 1e6, 1) == 523.4


def test_an_enhanced_unit_makes_half_of_its_channels():
    plain = {layer.path: layer for layer in count_layers(AddressNet(10, 8), (32, 32, 3), known=KNOWN)}
    enhanced = {layer.path: layer for layer in count_layers(AddressNet(10, 14, shortcut="shift"), (32, 32, 3))}
    assert plain["stage2_0/step"].cost == enhanced["stage2_0/step"].cost  # Where the size is halved they are alike.
    # 18 channels are no multiple of 4: they are made in 2 groups, each from 36, which takes the same parameters.
    assert enhanced["stage1_0/step"].output_shape == (32, 32, 18)
    assert enhanced["stage1_0/step"].cost == plain["stage1_0/step"].cost
    assert enhanced["stage3_1/step"].output_shape == (8, 8, 72)
    assert enhanced["stage3_1/step"].cost.parameters == 72 * 288 // 4


def grouped(x, kernel, groups=4):
    """The native convolution."""
    dimensions = ("NHWC", "HWIO", "NHWC")
    return np.asarray(
        jax.lax.conv_general_dilated(
            x, kernel, (1, 1), "VALID", dimension_numbers=dimensions, feature_group_count=groups
        )
    )


def by_pointer(x):
    """The address shift in channel-major memory, one sample after the other: no read leaves the sample."""
    n, h, w, c = x.shape
    memory, size = np.moveaxis(x, -1, 1).reshape(n, -1), c // 4 * h * w
    reads = [(k * size + offset, (k + 1) * size + offset) for k, offset in enumerate((1, w, -1, -w))]
    assert min(first for first, _ in reads) >= 0 and max(last for _, last in reads) <= c * h * w
    return np.moveaxis(np.concatenate([memory[:, a:b] for a, b in reads], 1).reshape(n, c, h, w), 1, -1)


@pytest.mark.parametrize(
    ("channels", "features", "stride", "shortcut", "groups"),
    [(16, 16, 1, "add", 4), (16, 48, 2, "add", 4), (16, 16, 1, "shift", 4), (12, 12, 1, "shift", 2)],
)
def test_unit_equals_its_definition(channels, features, stride, shortcut, groups, draw):
    unit = Unit(features, stride, 2, 4, shortcut, ShiftedPointwise, PointwiseConv)
    variables, x = draw(unit, (5, 7, channels)), np.abs(images(2, 5, 7, channels))

    def norm(y, name):
        p, s = variables["params"][name], variables["batch_stats"][name]
        return (y - s["mean"]) / np.sqrt(s["var"] + 1e-5) * p["scale"] + p["bias"]

    y = grouped(x[:, ::stride, ::stride], variables["params"]["pointwise1"]["kernel"])
    y = by_pointer(np.roll(np.maximum(norm(y, "norm1"), 0), -2 * channels // (2 * groups), -1))
    y = norm(grouped(y, variables["params"]["step"]["kernel"], groups), "norm2")
    if stride == 2:
        padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
        past = sum(padded[:, a : a + 5 : 2, b : b + 7 : 2] for a in range(3) for b in range(3)) / 9
        expected = np.concatenate([past, y], -1)
    elif shortcut == "shift":
        expected = np.concatenate([x[..., features // 2 :], y], -1)
    else:
        expected = x + y
    actual = compiled(unit.apply)(variables, x)
    assert actual.shape == (2, *(-(-n // stride) for n in (5, 7)), features)
    np.testing.assert_allclose(actual, np.maximum(expected, 0), rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_what_is_fused_is_the_plain_network_forward_and_backward(draw):
    fused = AddressNet(5, 8, shortcut="shift")
    plain = fused.clone(form="plain")
    variables, x = draw(fused, (8, 8, 3)), images(3, 8, 8, 3)

    def loss(network, params):
        logits, _ = network.apply({**variables, "params": params}, x, train=True, mutable=["batch_stats"])
        return jnp.square(logits - 1).sum()

    def both(params):
        return [jax.value_and_grad(partial(loss, network))(params) for network in (fused, plain)]

    (value, gradient), (expected_value, expected) = compiled(both)(variables["params"])
    np.testing.assert_allclose(value, expected_value, rtol=1e-4)
    scale = max(np.abs(leaf).max() for leaf in jax.tree.leaves(expected))
    for (path, found), wanted in zip(jax.tree.leaves_with_path(gradient), jax.tree.leaves(expected), strict=True):
        assert np.abs(wanted).max() > 0, path
        np.testing.assert_allclose(found, wanted, rtol=1e-2, atol=1e-4 * scale, err_msg=str(path))


@pytest.mark.parametrize("shortcut", ["add", "shift"])
def test_the_channel_shift_as_a_mixer_is_the_one_that_is_fused(shortcut, draw):
    network, x = AddressNet(5, 8, shortcut=shortcut), images(1, 4, 4, 3)
    variables = draw(network, (4, 4, 3))
    own, given = (str(jax.make_jaxpr(network.clone(mixer=mixer).apply)(variables, x)) for mixer in MIXERS)
    assert own == given
    mixers = (None, partial(ChannelShuffle, groups=4), Identity)
    logits = compiled(lambda x: [network.clone(mixer=mixer).apply(variables, x) for mixer in mixers])(x)
    for other in logits[1:]:
        assert np.abs(other - logits[0]).max() > 0.1


@pytest.mark.slow
def test_the_window_is_put_together_once_a_stage_where_groups_are_read_one_by_one(draw):
    # Above 96 channels grouped convolutions read slices; below, one product reads the whole window of each unit.
    def windows(units):
        network = AddressNet(5, 6 * units + 2, shortcut="shift")
        program = jax.jit(network.apply).lower(draw(network, (8, 8, 3)), jnp.zeros((2, 8, 8, 3)))
        text = program.compile().as_text()
        return [len(re.findall(rf"= f32\[2,{n},{n},{c}\]\S* concatenate\(", text)) for n, c in ((8, 36), (2, 144))]

    (few_first, few_last), (many_first, many_last) = windows(2), windows(3)
    assert many_last == few_last <= 2
    assert many_first == few_first + 1


def test_on_two_devices_gradients_are_reduced_and_no_batch_is_gathered(draw):
    unit = Unit(16, 1, 2, 4, "shift", ShiftedPointwise, PointwiseConv)
    mesh = data_mesh(jax.devices()[:2])
    variables = jax.device_put(draw(unit, (5, 7, 16)), NamedSharding(mesh, PartitionSpec()))
    x = jax.device_put(images(4, 5, 7, 16), NamedSharding(mesh, PartitionSpec(mesh.axis_names[0])))

    def loss(params, x):
        y, _ = unit.apply({**variables, "params": params}, x, train=True, mutable=["batch_stats"])
        return jnp.square(y).mean()

    text = jax.jit(jax.grad(loss)).lower(variables["params"], x).compile().as_text()
    assert "all-reduce" in text
    for collective in ("all-gather", "all-to-all", "collective-permute"):
        assert collective not in text
