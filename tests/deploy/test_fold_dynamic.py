"""Folding networks whose layers may depend on the image: the same function, the same products, no norm left."""

from __future__ import annotations

import math
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from shuffle_jax.deploy.export import export
from shuffle_jax.deploy.exported import load
from shuffle_jax.deploy.fold import Unfoldable, fold
from shuffle_jax.models import MobileNetV2, ResNet, mobilenet_v2, resnet
from shuffle_jax.models.decomposition import basic_sizes, bottleneck_sizes
from shuffle_jax.nn import (
    CondConv,
    Conv,
    DYConv,
    DynamicConv,
    DynamicDense,
    PointwiseConv,
    StaticDynamicShuffle,
)

LAYERS = {
    # features and stride of a 3x3 convolution in a ResNet of width 1/8: what it is
    (8, 1): partial(DynamicConv, rule=basic_sizes),
    (16, 2): partial(DynamicConv, elements=2, blocks=2, latent=4, use_bias=True, form="features"),
    (16, 1): partial(DynamicConv, elements=1, groups=2, blocks=4, latent=8, pool=1, form="kernels"),
    (32, 2): partial(CondConv, count=3, use_bias=True, form="kernels"),
    (32, 1): partial(DynamicConv, elements=2, latent=3, use_bias=True, form="kernels"),
    (64, 2): partial(DYConv, count=2, use_bias=True, form="features"),
    (64, 1): partial(Conv, use_bias=True),
}


def of_every_kind(features, stride, **options):
    return LAYERS[features, stride](features=features, stride=stride, **options)


def sometimes_static(features, **options):
    layer = partial(PointwiseConv, use_bias=True) if features < 16 else partial(DynamicConv, squeeze=8)
    return layer(features=features, **options)


NETWORKS = {
    # A network and the size of its images.
    "resnet": (ResNet(5, 10, 1 / 8, "small", of_every_kind, head=DynamicDense), (10, 7)),
    "bottlenecks": (ResNet(5, 50, 1 / 8, "imagenet", pointwise=partial(DynamicConv, rule=bottleneck_sizes)), (16, 23)),
    "mobilenet": (MobileNetV2(5, 0.35, "imagenet", sometimes_static, partial(DynamicDense, latent=7)), (23, 40)),
    "static mobilenet": (MobileNetV2(5, 0.5, "small"), (6, 9)),
}


def trained_like(network, images):
    """Variables of which none is what it was at the start, half-way through the fall of temperatures."""
    rng = np.random.default_rng(0)

    def drawn(path, leaf):
        match path[-1].key:
            case "scale":
                found = rng.normal(1, 0.3, leaf.shape)
            case "bias" | "biases" | "mean":
                found = rng.normal(0, 0.3, leaf.shape)
            case "var":
                found = rng.uniform(0.5, 2, leaf.shape)
            case "share":
                found = np.array(0.05)
            case name:
                # Phi is linear in the image and nothing here normalises it: large heads would square it layer by layer.
                gain = 0.3 if any(key.key in ("squeeze", "fusion") for key in path) else 1.0
                fan = math.prod(leaf.shape[1 if name == "kernels" else 0 : -1])
                found = rng.normal(0, gain * fan**-0.5, leaf.shape)
        return jnp.asarray(found, jnp.float32)

    return jax.tree_util.tree_map_with_path(drawn, jax.eval_shape(network.init, jax.random.key(0), images))


def with_variables(name):
    network, size = NETWORKS[name]
    images = jnp.asarray(np.random.default_rng(1).normal(size=(3, *size, 3)), jnp.float32)
    return network, trained_like(network, images), images


@pytest.fixture(scope="module", params=list(NETWORKS))
def case(request):
    with pytest.MonkeyPatch.context() as patch:  # Fewer units of each kind.
        patch.setitem(resnet.UNITS, 50, (2, 1, 1, 1))
        patch.setattr(mobilenet_v2, "TABLE", mobilenet_v2.TABLE[:2] + mobilenet_v2.TABLE[-1:])
        yield with_variables(request.param)


@pytest.fixture(scope="module")
def every_kind():
    return with_variables("resnet")


def test_the_folded_network_is_the_same_function(case):
    network, variables, images = case
    folded = fold(network, variables)
    expected = jax.jit(network.apply)(variables, images)
    found = jax.jit(folded.apply)(folded.params, images)
    assert found.shape == (3, 5) and 0.1 < np.abs(expected).max() < 1000
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def has_counterpart(path, params):
    """Whether folding leaves an array of this shape for a parameter of the network."""
    *module, layer, name = path
    if "norm" not in layer:  # The bias of a static convolution joins that of its norm.
        static = layer in ("conv1", "conv2", "conv3", "expand", "project") and (*module, layer, "q") not in params
        return not (static and name == "bias")
    if (*module, "q") not in params:
        return name == "bias"
    # N1 leaves the bias of Q, and its scale where copies share Q; N2 nothing.
    shared = (*module, "r") in params and params[*module, "r"].shape[-1] > 1
    return layer == "norm1" and (name == "bias" or shared)


def test_a_bias_is_left_of_each_norm_and_no_other_array(case):
    network, variables, _ = case
    before = flatten_dict(variables["params"])
    leaves = jax.tree.leaves(fold(network, variables).params)
    expected = [leaf.shape for path, leaf in before.items() if has_counterpart(path, before)]
    if "layer" in variables["params"]["head"]:
        expected.append((5,))  # What N2 shifts, for there is no norm behind it whose bias it joins.
    assert sorted(leaf.shape for leaf in leaves) == sorted(expected)
    assert {leaf.dtype for leaf in leaves} == {jnp.dtype(jnp.float32)}


def operations(apply, variables, images):
    """Of a program: its products, its square roots, and all."""
    text = str(jax.make_jaxpr(apply)(variables, images))
    names = ("dot_general[", "conv_general_dilated[", "rsqrt ", " = ")
    return [text.count(name) for name in names]


def test_it_takes_the_same_products_and_no_square_root(case):
    network, variables, images = case
    apply, params = fold(network, variables)
    (*products, roots, every), (*expected, norms, before) = (
        operations(apply, params, images),
        operations(network.apply, variables, images),
    )
    assert products == expected
    assert (roots, norms) == (0, sum(path[-1] == "var" for path in flatten_dict(variables["batch_stats"])))
    assert every < before


def test_half_precision_is_computed_in_half_precision(every_kind):
    network, variables, images = every_kind
    half = network.clone(dtype=jnp.bfloat16)
    apply, params = fold(half, variables)
    logits, wide = jax.jit(apply)(params, images), jax.jit(network.apply)(variables, images)
    assert logits.dtype == jnp.float32
    assert 0 < np.abs(logits - wide).max() < 0.1 * np.abs(wide).max()

    def types(apply, variables):
        equations = jax.make_jaxpr(apply)(variables, images).eqns
        return [e.outvars[0].aval.dtype for e in equations if e.primitive.name == "conv_general_dilated"]

    *layers, classifier = types(apply, params)
    assert {*layers} == {jnp.dtype(jnp.bfloat16)} and [*layers, classifier] == types(half.apply, variables)


def test_it_is_exported_for_any_number_of_images(every_kind, tmp_path):
    network, variables, images = every_kind
    folded, path = fold(network, variables), tmp_path / "network.jax"
    about = {"classes": list("abcde"), "preprocessing": {}, "image_shape": images.shape[1:], "about": {}}
    export(*folded, path, **about)
    expected = jax.jit(network.apply)(variables, images)
    for count in (1, 3):
        found = load(path).logits(images[:count])
        np.testing.assert_allclose(found, expected[:count], rtol=0, atol=1e-5 * np.abs(expected).max())


class Other(nn.Module):
    """A convolution or classifier of a kind that nobody knows."""

    features: int

    @nn.compact
    def __call__(self, x, train=False):
        return nn.Dense(self.features)(x)


def test_what_cannot_be_folded_is_named(every_kind):
    network, variables, _ = every_kind

    def shuffled(features, kernel_size, stride, dtype, name=None):
        return StaticDynamicShuffle(features, name=name)

    with pytest.raises(Unfoldable, match=r"^convolutions of StaticDynamicShuffle cannot be folded, only .* as it is$"):
        fold(network.clone(conv=shuffled), variables)
    with pytest.raises(Unfoldable, match=r"^a classifier of Other cannot be folded, only those of Dense and Dynamic"):
        fold(network.clone(head=Other), variables)
    with pytest.raises(ValueError, match="a Other cannot be folded, only ShuffleNets, MobileNetV2, ResNet, Add"):
        fold(Other(3), variables)
