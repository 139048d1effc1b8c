"""Folding networks of shifts: the same function, no norm left, and of the channel shift nothing."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from shuffle_jax.deploy.export import export
from shuffle_jax.deploy.exported import load
from shuffle_jax.deploy.fold import Unfoldable, fold
from shuffle_jax.deploy.harden import harden
from shuffle_jax.models import AddressNet, NetworkConfig, ShiftResNet, build, mobilenet_v2
from shuffle_jax.models.config import ShiftConfig
from shuffle_jax.nn import StaticDynamicShuffle

ENHANCED = ShiftConfig(shortcut="shift", boundary="zero")
NETWORKS = {
    "addressnet": NetworkConfig("addressnet", depth=8, mixer="shift"),
    "enhanced": NetworkConfig("addressnet", depth=8, mixer="shift", shift=ENHANCED),
    "addressnet, fixed shuffle": NetworkConfig("addressnet", depth=8, mixer="shuffle"),
    "addressnet, learned": NetworkConfig("addressnet", depth=8, mixer="auto"),
    "shift_resnet": NetworkConfig("shift_resnet", depth=8, mixer="identity"),
    "mobilenet, address": NetworkConfig("mobilenet_v2", width=0.35, mixer="identity", spatial="address"),
    "v1, channel shift": NetworkConfig("shufflenet_v1", width=0.5, mixer="shift"),
    "v2, channel shift": NetworkConfig("shufflenet_v2", width=0.5, mixer="shift"),
}


@pytest.fixture(scope="module", params=NETWORKS)
def case(request, draw, few_units):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mobilenet_v2, "TABLE", ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 1, 2)))
        network = build(NETWORKS[request.param], 5)
        variables = harden(jax.tree.map(jnp.asarray, draw(network, (9, 6, 3)))).variables
        images = np.random.default_rng(1).standard_normal((2, 9, 6, 3)).astype(np.float32)
        yield network, variables, images


def test_the_folded_network_is_the_same_function_without_norms(case):
    network, variables, images = case
    apply, params = fold(network, variables)
    expected = jax.jit(network.apply)(variables, images)
    assert np.std(expected) > 0.01
    np.testing.assert_allclose(jax.jit(apply)(params, images), expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())
    text, before = (str(jax.make_jaxpr(f)(v, images)) for f, v in ((apply, params), (network.apply, variables)))
    assert "rsqrt" in before and "rsqrt" not in text
    fixed = isinstance(network, AddressNet) and network.mixer is not None
    assert ("gather[" in text) == fixed  # The pointer reads neighbours, so that their order is not the kernels'.


def test_a_folded_network_has_the_gradient_of_the_plain_one(draw):
    network = build(NETWORKS["enhanced"], 5)
    variables = draw(network, (8, 8, 3))
    images = np.random.default_rng(1).standard_normal((2, 8, 8, 3)).astype(np.float32)
    apply, params = fold(network, variables)

    def slope(function, weights):
        return jax.jit(jax.grad(lambda x: jnp.square(function(weights, x)).sum()))(images)

    expected = slope(network.apply, variables)
    np.testing.assert_allclose(slope(apply, params), expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max())


def test_it_comes_back_from_a_file(tmp_path, draw):
    network = build(NETWORKS["addressnet"], 5)
    variables = draw(network, (8, 8, 3))
    images = np.random.default_rng(1).standard_normal((3, 8, 8, 3)).astype(np.float32)
    path = tmp_path / "network.jax"
    options = {"classes": list("abcde"), "preprocessing": {}, "about": {}}
    export(*fold(network, variables), path, image_shape=(8, 8, 3), **options)
    expected = jax.jit(network.apply)(variables, images)
    np.testing.assert_allclose(load(path).logits(images), expected, rtol=1e-4, atol=1e-4)


class Blur(StaticDynamicShuffle):
    """Anything that is no shift."""


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (AddressNet(5, 8, pointwise=partial(StaticDynamicShuffle, replaced="all")), "StaticDynamicShuffle cannot be"),
        (ShiftResNet(5, 8, shift=partial(Blur, 48)), "a Blur in the place of a shift cannot be folded"),
        (build(replace(NETWORKS["addressnet"], mixer="auto"), 5), "stage1_0/step/mixer is still a relaxed matrix"),
    ],
)
def test_what_cannot_be_folded_is_named(network, message, draw):
    with pytest.raises(Unfoldable, match=message):
        fold(network, draw(AddressNet(5, 8) if isinstance(network, AddressNet) else ShiftResNet(5, 8), (8, 8, 3)))
