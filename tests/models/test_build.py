"""Every field of a configuration reaches its network."""

from __future__ import annotations

from typing import get_args

import jax.numpy as jnp
import pytest

from shuffle_jax.models import NetworkConfig, ShuffleNetV1, ShuffleNetV2, build
from shuffle_jax.models.build import Family, MixerKind
from shuffle_jax.nn import AutoShuffle, ChannelShuffle, FixedPermutation, Identity


def test_v1():
    config = NetworkConfig("shufflenet_v1", width=1.5, groups=8, stem="imagenet", dtype="bfloat16")
    network = build(config, classes=7)
    assert isinstance(network, ShuffleNetV1)
    assert (network.classes, network.groups, network.width, network.stem) == (7, 8, 1.5, "imagenet")
    assert network.dtype == jnp.bfloat16
    assert network.head_bias


def test_v2():
    network = build(NetworkConfig("shufflenet_v2", width=2.0, groups=8), classes=7)
    assert isinstance(network, ShuffleNetV2)
    assert (network.classes, network.width, network.stem, network.dtype) == (7, 2.0, "small", jnp.float32)


MIXERS = {
    "auto": lambda groups: AutoShuffle(start="shuffle", noise=0.25, groups=groups),
    "shuffle": lambda groups: ChannelShuffle(groups=groups),
    "random": lambda groups: FixedPermutation(seed=9),
    "identity": lambda groups: Identity(),
}


@pytest.mark.parametrize("mixer", get_args(MixerKind))
@pytest.mark.parametrize(("family", "groups"), [("shufflenet_v1", 4), ("shufflenet_v2", 2)])
def test_mixers_have_their_options_and_the_groups_of_the_family(family, groups, mixer):
    config = NetworkConfig(family, groups=4, mixer=mixer, mixer_seed=9, auto_start="shuffle", auto_noise=0.25)
    assert build(config, classes=2).mixer() == MIXERS[mixer](groups)


@pytest.mark.parametrize("family", get_args(Family))
def test_by_default_permutations_are_learned_in_a_network_for_small_images(family):
    network = build(NetworkConfig(family), classes=2)
    assert isinstance(network.mixer(), AutoShuffle)
    assert network.stem == "small"
