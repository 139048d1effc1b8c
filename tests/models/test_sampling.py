"""Networks that sample as the image chooses: the authors' figures and counts, and no circular shift changes them."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import unflatten_dict

from shuffle_jax.analysis.channel_reach import channel_reach
from shuffle_jax.analysis.count import count
from shuffle_jax.analysis.shift_consistency import circular, consistency, logits_at, moved, shift_breakers
from shuffle_jax.deploy.exported import load
from shuffle_jax.deploy.exporting import export
from shuffle_jax.deploy.folding import fold
from shuffle_jax.deploy.hardening import harden
from shuffle_jax.deploy.routing import route
from shuffle_jax.models import (
    AddressNet,
    MobileNetV2,
    NetworkConfig,
    ResNet,
    ShuffleNetV1,
    ShuffleNetV2,
    build,
)
from shuffle_jax.models.resnet import BasicUnit, static_conv
from shuffle_jax.nn import (
    AddressShift,
    AutoShuffle,
    ChannelShuffle,
    CondConv,
    DynamicConv,
    DynamicShuffle,
    Identity,
    PolyphaseSampling,
)

FIGURES = np.load(Path(__file__).parents[1] / "fixtures" / "aps.npz")
BLURRED = partial(PolyphaseSampling, blur=3)
SHAPE = (16, 8, 3)

NETWORKS = {
    "shufflenet_v1": ShuffleNetV1(5, 3, 0.5, "small", sampling=BLURRED),
    "shufflenet_v2": ShuffleNetV2(5, 0.5, "small", sampling=PolyphaseSampling),
    "mobilenet_v2": MobileNetV2(5, 0.35, "small", groups=2, sampling=PolyphaseSampling),
    "resnet, basic": ResNet(5, 10, 1 / 8, "small", groups=2, sampling=BLURRED),
    "resnet, bottleneck": ResNet(5, 50, 1 / 8, "small", groups=2, sampling=PolyphaseSampling),
    "resnet, imagenet": ResNet(5, 10, 1 / 8, groups=2, sampling=PolyphaseSampling),
    "addressnet": AddressNet(5, 8, boundary="wrap", sampling=PolyphaseSampling),
}


def last(x):
    return np.moveaxis(x, 1, -1)


def weights(case, names):
    """The authors' weights under our names: of a convolution its kernel, else what a norm or the classifier has."""
    found = {}
    ours = {"weight": ("params", "scale"), "bias": ("params", "bias")}
    ours |= {"running_mean": ("batch_stats", "mean"), "running_var": ("batch_stats", "var")}
    for theirs, path in names.items():
        for leaf, (collection, name) in ours.items():
            if (key := f"{case}/w/{theirs}.{leaf}") not in FIGURES:
                continue
            value = FIGURES[key]
            kernel = value.transpose(2, 3, 1, 0) if value.ndim == 4 else value.T
            found[collection, *path, "kernel" if value.ndim > 1 else name] = kernel
    return unflatten_dict(found)


def unit_names(theirs, path):
    names = {"conv1.1": "conv1", "bn1": "norm1", "conv2.1": "conv2", "bn2": "norm2"}
    names |= {"downsample.1": "downsample", "downsample.2": "downsample_norm"}
    return {f"{theirs}{name}": (*path, own) for name, own in names.items()}


def assert_same_structure(variables, module, x):
    shapes = jax.eval_shape(module.init, jax.random.key(0), x)
    assert jax.tree.map(jnp.shape, variables) == jax.tree.map(jnp.shape, shapes)


@pytest.mark.slow
def test_a_unit_has_the_figures_of_the_authors_forward_and_backward():
    case = "block_basic_f3_s2_8"
    unit = BasicUnit(6, 2, 1, Identity, static_conv, sampling=BLURRED)
    x, variables = last(FIGURES[f"{case}/x"]), weights(case, unit_names("", ()))
    assert_same_structure(variables, unit, x)

    @jax.jit
    def run(variables, x, cotangent):
        y, pull, _ = jax.vjp(lambda x: unit.apply(variables, x, True, mutable=["batch_stats"]), x, has_aux=True)
        return unit.apply(variables, x), y, *pull(cotangent)

    names = ("y_eval", "y_train", "gx_train")
    for found, name in zip(run(variables, x, last(FIGURES[f"{case}/ct"])), names, strict=True):
        np.testing.assert_allclose(found, last(FIGURES[f"{case}/{name}"]), atol=2e-5, err_msg=name)


@pytest.mark.slow
def test_a_network_with_the_stem_for_imagenet_has_the_figures_of_the_authors_under_shifts():
    case = "net_imagenet_f3_64"
    network = ResNet(5, 10, sizes=(4, 4, 6, 6, 8, 8, 10, 10), sampling=BLURRED)
    names = {"conv1.1": ("stem", "conv"), "bn1": ("stem", "norm"), "fc": ("head",)}
    for stage in range(1, 5):
        names |= unit_names(f"layer{stage}.0.", (f"stage{stage}_0",))
    x, variables = last(FIGURES[f"{case}/x"]), weights(case, names)
    assert_same_structure(variables, network, x)
    apply = jax.jit(network.apply)
    np.testing.assert_allclose(apply(variables, x), FIGURES[f"{case}/y_eval"], atol=1e-5)
    for shift, expected in zip(FIGURES[f"{case}/shifts"], FIGURES[f"{case}/y_shifted"], strict=True):
        np.testing.assert_allclose(apply(variables, np.roll(x, shift, (1, 2))), expected, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("network", "side", "expected"),
    [
        (ResNet(1000, 18, sampling=PolyphaseSampling), 224, (11_689_512, 2_688_339_968)),
        (ResNet(10, 18, stem="small", sampling=partial(PolyphaseSampling, blur=5)), 32, (11_173_962, 725_292_032)),
        (ResNet(10, 34, stem="small", sampling=PolyphaseSampling), 32, (21_282_122, 1_329_271_808)),
        (ResNet(10, 50, stem="small", sampling=PolyphaseSampling), 32, (23_520_842, 1_637_568_512)),
    ],
)
def test_parameters_are_those_of_strides_and_the_work_is_that_of_the_authors(network, side, expected):
    found = count(network, (side, side, 3))
    assert (found.parameters, found.multiply_adds) == expected
    assert count(network.clone(sampling=None), (side, side, 3)).parameters == found.parameters


def share_under_shifts(network, variables, shape, images=3, by=8):
    x = np.random.default_rng(1).standard_normal((images, *shape)).astype(np.float32)
    program = moved(network.apply)
    (true,) = logits_at(program, variables, x, circular(shape[:2], range(1)))
    return consistency(true, logits_at(program, variables, x, circular(shape[:2], range(by))))


MIXERS = {
    "fixed": lambda groups: partial(ChannelShuffle, groups),
    "learned": lambda groups: AutoShuffle,
    "dynamic": lambda groups: partial(DynamicShuffle, groups),
}


@pytest.mark.slow
@pytest.mark.usefixtures("short")
@pytest.mark.parametrize("name", NETWORKS)
def test_no_circular_shift_changes_a_network_and_a_strided_one_changes(name, draw):
    network = NETWORKS[name]
    shape = (32, 32, 3) if "imagenet" in name else SHAPE
    kinds = MIXERS if name in ("resnet, basic", "mobilenet_v2", "shufflenet_v2") else {"fixed": MIXERS["fixed"]}
    for kind, make in kinds.items():
        own = network.clone(mixer=make(network.mixing_groups))
        variables = draw(own, shape)
        forms = [variables, harden(variables).variables] if kind == "learned" else [variables]
        for form in forms:
            found = share_under_shifts(own, form, shape, by=4 if kind != "fixed" else 8)
            assert (found.survived, found.kept) == (1, 1) and found.changed < 1e-6, kind
    assert not shift_breakers(network, shape)
    if kinds is MIXERS:
        half = network.clone(dtype=jnp.dtype(jnp.bfloat16))
        found = share_under_shifts(half, draw(half, shape), shape, by=4)
        assert found.survived == 1 and found.changed < 1e-2
    if name == "resnet, basic":
        strided = network.clone(sampling=None)
        assert share_under_shifts(strided, draw(strided, shape), shape, by=2).changed > 1e-3


@pytest.mark.slow
@pytest.mark.usefixtures("short")
@pytest.mark.parametrize("name", ["shufflenet_v2", "mobilenet_v2"])
def test_folded_hardened_routed_and_exported_it_is_the_same_network(name, draw, tmp_path):
    network = NETWORKS[name].clone(mixer=AutoShuffle)
    variables = draw(network, SHAPE)
    hard = harden(variables).variables
    x = np.random.default_rng(2).standard_normal((2, *SHAPE)).astype(np.float32)
    true = jax.jit(network.apply)(hard, x)
    folded = fold(network, hard, SHAPE)
    assert folded.folded and not folded.kept
    scale = np.abs(true).max()
    np.testing.assert_allclose(jax.jit(network.apply)(folded.variables, x), true, atol=1e-4 * scale)
    routed = route(network, folded.variables, SHAPE)
    np.testing.assert_allclose(jax.jit(routed.apply)(routed.params, x), true, atol=1e-4 * scale)
    assert set(channel_reach(network, hard, SHAPE))
    if name == "shufflenet_v2":
        about = {"classes": list("abcde"), "image_shape": SHAPE, "about": {}}
        about["preprocessing"] = {"size": 16, "channels": 3, "mean": [0.5] * 3, "std": [0.2] * 3}
        export(routed.apply, routed.params, tmp_path / "network.jax", **about)
        np.testing.assert_allclose(load(tmp_path / "network.jax").logits(x), true, atol=1e-4 * scale)


@pytest.mark.fast_cases(2)
@pytest.mark.parametrize(
    ("network", "shape", "message"),
    [
        (ResNet(5, sampling=PolyphaseSampling), (48, 64, 3), "multiples of 32, got 48 x 64: resize or crop"),
        (
            ResNet(5, stem="small", sampling=PolyphaseSampling),
            (8, 9, 3),
            "sampling 3 times .* multiples of 8, got 8 x 9",
        ),
        (ShuffleNetV1(5, sampling=PolyphaseSampling), (33, 32, 3), "multiples of 32, got 33 x 32"),
        (ShuffleNetV2(5, stem="small", sampling=PolyphaseSampling), (12, 8, 3), "multiples of 8, got 12 x 8"),
        (MobileNetV2(5, stem="small", sampling=PolyphaseSampling), (4, 8, 3), "multiples of 8, got 4 x 8"),
        (MobileNetV2(5, sampling=PolyphaseSampling), (16, 32, 3), "multiples of 32, got 16 x 32"),
        (AddressNet(5, sampling=PolyphaseSampling), (8, 6, 3), "multiples of 4, got 8 x 6"),
    ],
)
def test_sizes_that_cannot_be_halved_to_the_whole_are_refused(network, shape, message):
    with pytest.raises(ValueError, match=message) as error:
        jax.eval_shape(network.init, jax.random.key(0), jnp.zeros((1, *shape)))
    assert "\n" not in str(error.value)


@pytest.mark.slow
@pytest.mark.usefixtures("short")
@pytest.mark.parametrize(
    ("network", "reason", "layer"),
    [
        (NETWORKS["mobilenet_v2"].clone(pointwise=DynamicConv), "sees the image in 2 x 2 parts", "stage2_0/expand"),
        (NETWORKS["addressnet"].clone(boundary="pointer"), "shifts by a moved pointer", "stage1_0/step"),
        (
            NETWORKS["mobilenet_v2"].clone(shift=partial(AddressShift, boundary="zero")),
            "shifts zeros in",
            "stage1_0/shift",
        ),
        (NETWORKS["resnet, basic"].clone(sampling=None), "pads with zeros", "stem/conv"),
        (ShuffleNetV2(5, 0.5, "small"), "strides", "stage2_0/left_depthwise"),
    ],
)
def test_layers_that_do_not_follow_every_shift_are_named(network, reason, layer):
    assert layer in shift_breakers(network, SHAPE)[reason]


class Unpadded(nn.Module):
    """A layer of any size that cannot wrap."""

    features: int
    kernel_size: int = 1
    stride: int = 1
    groups: int = 1
    dtype: jnp.dtype | None = None


def test_a_configuration_chooses_it_and_what_cannot_wrap_is_refused():
    network = build(
        NetworkConfig("resnet", pointwise="condconv", sampling="aps", aps={"blur": 3, "select": "unblurred"}), 5
    )
    assert network.sampling() == PolyphaseSampling(blur=3, select="unblurred")
    assert network.conv is not None and isinstance(network.conv(features=2), CondConv)
    assert build(NetworkConfig("resnet"), 5).sampling is None
    with pytest.raises(ValueError, match=r"shift_resnet has no place for --network.sampling aps: choose stride, or a"):
        build(NetworkConfig("shift_resnet", sampling="aps"), 5)
    with pytest.raises(ValueError, match=r"Unpadded must take padding, as nn.Conv does, where the network samples by"):
        build(NetworkConfig("resnet", pointwise=Unpadded, sampling="aps"), 5)
