"""Folding: the same network, and the same function, without norms; what cannot be folded stays."""

from __future__ import annotations

import math
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from shuffle_jax.deploy.exporting import export
from shuffle_jax.deploy.folding import fold
from shuffle_jax.deploy.hardening import harden
from shuffle_jax.models import (
    AddressNet,
    CoResNet,
    MobileNetV2,
    ResNet,
    ShiftResNet,
    ShuffleNetV1,
    ShuffleNetV2,
    coresnet,
    mobilenet_v2,
    resnet,
)
from shuffle_jax.nn import (
    AddressShift,
    AutoShuffle,
    BatchNorm,
    ChannelShuffle,
    CondConv,
    Conv,
    Dense,
    DepthwiseConv,
    DYConv,
    DynamicConv,
    DynamicDense,
    DynamicShuffle,
    FixedPermutation,
    PointwiseConv,
    ShiftedPointwise,
    StaticDynamicShuffle,
)
from shuffle_jax.nn.collections import COLLECTIONS
from shuffle_jax.nn.normalization import absorbed

LAYERS = {  # Every way in which a layer takes a scale: what follows one another, each with a norm and a ReLU behind it.
    "conv": partial(Conv, 8, use_bias=True),
    "decomposition": partial(DynamicConv, 8, kernel_size=3),
    "elements": partial(DynamicConv, 16, 3, stride=2, elements=2, blocks=2, latent=4, use_bias=True, form="features"),
    "blocks": partial(DynamicConv, 16, 3, elements=1, groups=2, blocks=4, latent=8, pool=1, form="kernels"),
    "shared": partial(DynamicConv, 16, 3, elements=2, latent=3, use_bias=True, form="kernels"),
    "kernels": partial(CondConv, 12, 3, count=3, use_bias=True, form="kernels"),
    "features": partial(DYConv, 12, 3, count=2, use_bias=True, form="features"),
    "grouped": partial(PointwiseConv, 16, groups=4, use_bias=True),
    "step": partial(ShiftedPointwise, 16, groups=2),
    "pointwise": partial(DynamicConv, 24),
}


class Layers(nn.Module):
    """One layer of each kind, then a depthwise convolution and a 1x1 one, and a classifier with norms inside."""

    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, x):
        norm = partial(BatchNorm, self.dtype)
        for name, make in LAYERS.items():
            x = nn.relu(norm(name=f"{name}_norm")(make(dtype=self.dtype, name=name)(x)))
        x = norm(name="depthwise_norm")(DepthwiseConv(dtype=self.dtype, name="depthwise")(x))
        x = nn.relu(norm(name="last_norm")(PointwiseConv(8, groups=2, dtype=self.dtype, name="last")(x)))
        return DynamicDense(5, latent=4, name="head")(x.mean((1, 2), dtype=jnp.float32))


HEAD = "mixer/generator/norm"  # goes into the hidden layer behind it, bias and all
CASES = {
    # A network, the size of its images, what keeps its norms, and whose biases move on.
    "every layer": (Layers(), (6, 5), ("elements/norm1", "shared/norm1"), ("depthwise_norm",)),
    "shufflenet_v1": (
        ShuffleNetV1(5, 3, 0.5, "small", mixer=AutoShuffle),
        (5, 7),
        (),
        [f"stage{i}_0/norm2" for i in (2, 3, 4)] + ["stage2_1/norm2"],
    ),
    "shufflenet_v2": (
        ShuffleNetV2(5, 0.5, "imagenet", mixer=partial(DynamicShuffle, 2)),
        (25, 18),
        (),
        [f"stage{i}_0/{norm}" for i in (2, 3, 4) for norm in ("left_norm1", "norm2", HEAD)]
        + [f"stage2_1/{norm}" for norm in ("norm2", HEAD)],
    ),
    "mobilenet_v2": (
        MobileNetV2(5, 0.35, "imagenet", groups=2, mixer=partial(ChannelShuffle, 2)),
        (9, 12),
        (),
        ("stage1_0/norm3",),  # Straight into the first layer of a unit that adds nothing to its input.
    ),
    "mobilenet_v2, address": (MobileNetV2(5, 0.35, "small", head=DynamicDense, shift=AddressShift), (6, 3), (), ()),
    "resnet": (ResNet(5, 10, 1 / 8, "imagenet", groups=2, mixer=FixedPermutation), (16, 23), (), ()),
    "bottlenecks": (ResNet(5, 50, 1 / 8, "small"), (4, 5), (), ()),
    "coresnet": (
        CoResNet(5, 50, 1 / 8, "small", "21"),
        (4, 5),
        ("stage1_1/norm3", "stage2_0/norm3"),  # Of a sum.
        (),
    ),
    "addressnet": (AddressNet(5, 8, mixer=AutoShuffle), (9, 6), (), ()),
    "enhanced": (AddressNet(5, 8, shortcut="shift", boundary="zero"), (9, 6), (), ()),
    "shift_resnet": (ShiftResNet(5, 8), (9, 6), (), ()),
}


def trained_like(network, shape, draw):
    """Hardened variables of which none is what it was at the start, half-way through the fall of temperatures."""

    def calmed(path, leaf):
        names = [key.key for key in path]
        if names[-1] == "share":
            return np.float32(0.05)
        if names[-1] in ("kernels", "p", "q", "r"):
            return leaf / 0.3 * math.prod(leaf.shape[1 if names[-1] == "kernels" else 0 : -1]) ** -0.5
        # Phi is linear in the image and nothing here normalises it: large heads would square it layer by layer.
        return 0.3 * leaf if {"squeeze", "fusion"} & set(names) else leaf

    return harden(jax.tree.map_with_path(calmed, draw(network, shape))).variables


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(
            name, marks=pytest.mark.slow if name in ("addressnet", "enhanced", "shufflenet_v1", "coresnet") else ()
        )
        for name in CASES
    ],
)
def case(request, draw, few_units):
    with pytest.MonkeyPatch.context() as patch:  # Fewer units of each kind.
        patch.setattr(mobilenet_v2, "TABLE", ((1, 16, 1, 1), (6, 24, 2, 2)))
        patch.setattr(mobilenet_v2, "LAST", 48)
        patch.setattr(resnet, "UNITS", {10: (1, 1), 50: (2, 1)})
        patch.setattr(coresnet, "UNITS", {50: (2, 1)})
        patch.setattr(coresnet, "CHANNELS", (64, 128))
        network, size, kept, moved = CASES[request.param]
        shape = (*size, 3)
        variables = trained_like(network, shape, draw)
        yield network, variables, fold(network, variables, shape), shape, set(kept), set(moved)


def images(n, shape):
    return np.random.default_rng(1).standard_normal((n, *shape)).astype(np.float32)


def test_the_folded_network_is_the_same_function_and_has_the_same_gradient(case, compiled):
    network, variables, folded, shape, _, _ = case

    @compiled
    def both(variables, folded, x):
        function = [lambda x, v=v: network.apply(v, x) for v in (variables, folded)]
        if not isinstance(network, AddressNet):  # One network for all: a gradient takes long to compile.
            return [(f(x), x) for f in function]
        pulled = [jax.vjp(f, x) for f in function]
        return [(y, pull(jnp.cos(jnp.arange(y.size, dtype=jnp.float32)).reshape(y.shape))[0]) for y, pull in pulled]

    (expected, slope), (found, folded_slope) = both(variables, folded.variables, images(2, shape))
    assert found.shape == (2, 5) and np.std(expected) > 0.01 and np.abs(expected).max() < 1e4
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
    np.testing.assert_allclose(folded_slope, slope, rtol=0, atol=1e-4 * np.abs(slope).max())


def test_no_variable_is_left_but_kernels_and_a_bias_for_each_norm(case):
    network, variables, folded, _, kept, moved = case
    norms = {path[:-1] for path in flatten_dict(variables["batch_stats"])}
    assert set(folded.folded) | set(folded.kept) == {"/".join(norm) for norm in norms}
    assert set(folded.kept) == kept and not set(folded.folded) & kept
    of_sum = "its input is not the output of one layer that takes a scale, or is used elsewhere too"
    assert set(folded.kept.values()) <= {of_sum if isinstance(network, CoResNet) else "the layer around it keeps it"}

    def stays(path):
        collection, *module, name = path
        norm = "/".join(module)
        gone = tuple(module) in norms and norm not in kept and (name != "bias" or norm in moved)
        return not gone if collection == "params" else norm in kept

    before, after = flatten_dict(variables), flatten_dict(folded.variables)
    assert after.keys() == {path for path in before if path[0] not in ("params", "batch_stats") or stays(path)}
    assert all((after[path].shape, after[path].dtype) == (before[path].shape, before[path].dtype) for path in after)


def operations(network, variables, x):
    """Of a program: its products, its square roots, and all."""
    text = str(jax.make_jaxpr(network.apply)(variables, x))
    return [text.count(name) for name in ("dot_general[", "conv_general_dilated[", "rsqrt ", " = ")]


def test_it_takes_the_same_products_and_no_square_root(case):
    network, variables, folded, shape, kept, _ = case
    *products, roots, every = operations(network, folded.variables, images(1, shape))
    *expected, norms, before = operations(network, variables, images(1, shape))
    assert products == expected
    assert (roots, norms) == (len(kept), len(folded.folded) + len(kept))
    assert every < before


@pytest.mark.slow
def test_half_precision_is_computed_in_half_precision_and_exported(draw, compiled, tmp_path):
    shape, network = (6, 5, 3), Layers()
    variables = trained_like(network, shape, draw)
    folded, half = fold(network, variables, shape).variables, network.clone(dtype=jnp.dtype(jnp.bfloat16))

    def types(variables):
        equations = jax.make_jaxpr(half.apply)(variables, images(1, shape)).eqns
        products = ("conv_general_dilated", "dot_general")
        return [e.outvars[0].aval.dtype for e in equations if e.primitive.name in products]

    assert types(folded) == types(variables) and types(folded).count(jnp.bfloat16) >= 10
    about = {"classes": list("abcde"), "preprocessing": {}, "image_shape": shape, "about": {}, "platforms": ("cpu",)}
    assert export(half.apply, folded, tmp_path / "network.jax", **about)["output"]["shape"] == ["n", 5]
    expected, found = compiled(
        lambda *both, x: [net.apply(v, x) for net, v in zip((network, half), both, strict=True)]
    )(variables, folded, x=images(1, shape))
    assert found.dtype == jnp.float32
    assert 0 < np.abs(found - expected).max() < 0.1 * np.abs(expected).max()


class Doubling(nn.Module):
    """A layer from outside that says how it takes a scale."""

    @nn.compact
    def __call__(self, x):
        return 2 * x * self.param("gain", nn.initializers.ones_init(), (x.shape[-1],)).reshape(1, 1, 1, -1)

    def scale_outputs(self, variables, scale):
        return {"params": {"gain": np.asarray(variables["params"]["gain"], np.float64) * scale}}


class Outside(nn.Module):
    """Norms that fold, and norms in every place where they cannot."""

    @nn.compact
    def __call__(self, x):
        y = BatchNorm(name="conv_norm")(Conv(4, name="conv")(x))
        y = BatchNorm(name="gain_norm")(Doubling(name="gain")(nn.relu(y)))
        y = nn.remat(Unit)(name="unit")(nn.relu(y))
        branches = PointwiseConv(4, name="branching")(nn.relu(y))
        y = branches + BatchNorm(name="kept_branch")(branches)
        twice, norm_twice = PointwiseConv(4, name="twice"), BatchNorm(name="kept_twice")
        y = BatchNorm(name="kept_second")(twice(nn.relu(BatchNorm(name="kept_first")(twice(y)))))
        y = norm_twice(PointwiseConv(4, name="before_one")(y)) + norm_twice(PointwiseConv(4, name="before_other")(y))
        y = BatchNorm(name="kept_foreign")(nn.Conv(4, (1, 1), name="foreign")(y))
        y = nn.BatchNorm(use_running_average=True, name="kept_other")(PointwiseConv(4, name="before_foreign")(y))
        y = BatchNorm(name="kept_behind_relu")(nn.relu(PointwiseConv(4, name="inner")(y)))
        many = nn.scan(Step, {"params": 0, "batch_stats": 0}, length=2, split_rngs={"params": True})
        y, _ = many(name="scanned")(y, None)
        # A bias that moves on, and one that does not, as it goes to two places.
        y = BatchNorm(name="moving")(DepthwiseConv(name="depthwise")(y))
        y = BatchNorm(name="two_places")(PointwiseConv(4, groups=2, name="first")(y))
        y = y + BatchNorm(name="end")(PointwiseConv(4, name="second")(y))
        return Dense(3, name="head")(y.mean((1, 2)))


class Unit(nn.Module):
    @nn.compact
    def __call__(self, x):
        return x + BatchNorm(name="norm")(PointwiseConv(4, name="conv")(x))


class Step(nn.Module):
    @nn.compact
    def __call__(self, x, _):
        return BatchNorm(name="kept_norm")(PointwiseConv(4, name="conv")(x)), None


def test_a_network_from_outside_is_folded_as_far_as_it_can_be(draw, compiled):
    network, shape = Outside(), (4, 3, 3)
    variables = draw(network, shape)
    folded = fold(network, variables, shape)
    assert set(folded.folded) == {"conv_norm", "gain_norm", "unit/norm", "moving", "two_places", "end"}
    assert all("kept" in name for name in folded.kept) and len(folded.kept) == 8
    assert "called more than once" in folded.kept["kept_second"]
    assert "for other variables each time" in folded.kept["scanned/kept_norm"]
    assert "not the output of one layer" in folded.kept["kept_branch"]
    assert "moving" not in folded.variables["params"] and "bias" in folded.variables["params"]["two_places"]
    expected, found = compiled(lambda *both: [network.apply(v, images(2, shape)) for v in both])(
        variables, folded.variables
    )
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
    again = fold(network, folded.variables, shape)
    assert again.folded == () and set(again.kept) == set(folded.kept)
    jax.tree.map(np.testing.assert_array_equal, again.variables, folded.variables)


class Heads(nn.Module):
    """Heads of dynamic shuffles: one that is called once, and a stack of them."""

    @nn.compact
    def __call__(self, x):
        class Mixed(nn.Module):
            @nn.compact
            def __call__(self, x, _):
                return DynamicShuffle(2, name="mixer")(x), None

        x = StaticDynamicShuffle(8, 2, name="once")(x)
        axes = dict.fromkeys(COLLECTIONS, 0)
        return nn.scan(Mixed, axes, length=2, split_rngs={"params": True})(name="stack")(x, None)[0]


def test_a_head_that_is_called_once_absorbs_its_norm(draw):
    shape = (2, 2, 8)
    variables = draw(Heads(), shape)
    folded = fold(Heads(), variables, shape)
    assert folded.folded == ("once/generator/norm",)
    assert list(folded.kept) == ["stack/mixer/generator/norm"]
    assert "for other variables each time" in folded.kept["stack/mixer/generator/norm"]
    assert set(folded.variables["params"]["once"]["generator"]) == {"hidden", "logits"}


def test_a_network_without_norms_is_returned_as_it_is(draw):
    network = nn.Sequential([PointwiseConv(4), nn.relu])
    variables = draw(network, (4, 3, 3))
    assert fold(network, variables, (4, 3, 3)) == (variables, (), {})


def test_a_folded_norm_is_its_bias_and_cannot_train():
    x, bias = images(1, (2, 2, 4)), np.arange(4, dtype=np.float32)
    np.testing.assert_array_equal(BatchNorm().apply({"params": {"bias": bias}}, x), x + bias)
    np.testing.assert_array_equal(BatchNorm().apply({}, x), x)
    assert BatchNorm(jnp.bfloat16).apply({"params": {"bias": bias}}, x).dtype == jnp.bfloat16
    for variables, shift in (({"params": {"bias": bias}}, bias), ({}, 0 * bias)):
        found = BatchNorm().apply(variables, 4, method="affine")
        np.testing.assert_array_equal(found.scale, np.ones(4))
        np.testing.assert_array_equal(found.shift, shift)
    with pytest.raises(ValueError, match="is folded and cannot train: train first, then fold"):
        BatchNorm().apply({"params": {"bias": bias}}, x, train=True)
    with pytest.raises(ValueError, match='has a scale but no statistics: pass the collection "batch_stats" too'):
        BatchNorm().apply({"params": {"bias": bias, "scale": bias}}, x)


@pytest.mark.parametrize("groups", [1, 2, 3])
def test_a_constant_before_a_pointwise_convolution_moves_behind_it(groups):
    rng = np.random.default_rng(0)
    constant, kernel = rng.normal(size=6), rng.normal(size=(1, 1, 6 // groups, 12))
    found = PointwiseConv.constant_outputs({"params": {"kernel": kernel}}, constant)
    expected = [
        part @ rows for part, rows in zip(np.split(constant, groups), np.split(kernel[0, 0], groups, -1), strict=True)
    ]
    np.testing.assert_allclose(found, np.concatenate(expected), rtol=1e-12)


def test_what_a_norm_absorbs_is_computed_in_double_precision():
    rng = np.random.default_rng(0)
    scale, bias, mean, x = rng.normal(size=(4, 6))
    var = rng.uniform(0.5, 2, 6)
    factor, shift = absorbed({"scale": scale, "bias": bias}, {"mean": mean, "var": var})
    np.testing.assert_allclose(factor * x + shift, (x - mean) / np.sqrt(var + 1e-5) * scale + bias, rtol=1e-12)
