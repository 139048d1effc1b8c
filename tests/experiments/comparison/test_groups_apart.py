"""The network of a comparison: nothing in it leads out of a group but what is compared."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.comparison.groups_apart import phases_apart
from shuffle_jax.analysis.channel_reach import channel_reach
from shuffle_jax.analysis.count import count
from shuffle_jax.models import NetworkConfig, build

PHASES = "experiments.comparison.groups_apart:GroupsApart(features=32, units=1, phases=2)"
FAMILY = "experiments.comparison.groups_apart:GroupsApart(features=32, units=1)"


@pytest.mark.slow
def test_without_a_mixer_grouped_layers_stay_apart_and_rolling_ones_of_the_same_cost_do_not():
    found = {}
    for pointwise in ("plain", "rolling"):
        network = build(NetworkConfig(FAMILY, groups=4, mixer="identity", pointwise=pointwise), 10)
        (reaches,) = channel_reach(network, {}, (16, 16, 3), start="stage1_0").values()
        found[pointwise] = [one.share * 32 for one in reaches], count(network, (16, 16, 3))
    assert found["plain"][0] == [8, 8, 8]
    assert np.all(np.diff([8, *found["rolling"][0]]) > 0)
    assert found["plain"][1] == found["rolling"][1]


def test_phases_are_every_second_pixel_with_its_channels_side_by_side():
    x = np.random.default_rng(0).normal(size=(2, 4, 6, 3))
    apart = phases_apart(x, 2)
    for k, (a, b) in enumerate([(0, 0), (0, 1), (1, 0), (1, 1)]):
        np.testing.assert_array_equal(apart[..., 3 * k : 3 * k + 3], x[:, a::2, b::2])
    with pytest.raises(ValueError, match="height and width must be multiples of 2, got 5 x 6"):
        phases_apart(np.zeros((1, 5, 6, 3)), 2)


def test_groups_that_would_see_two_phases_are_refused():
    with pytest.raises(ValueError, match="groups must be a multiple of 4, one for each phase, got 2"):
        count(build(NetworkConfig(PHASES, groups=2, mixer="identity"), 10), (16, 16, 3))


@pytest.mark.parametrize(("reduction", "between"), [(1, 32), (2, 16), (4, 8)])
def test_a_unit_has_so_many_times_fewer_channels_between_its_1x1_layers(reduction, between):
    family = FAMILY.replace(")", f", reduction={reduction})")
    network = build(NetworkConfig(family, groups=4, mixer="identity"), 10)
    shapes = jax.eval_shape(network.init, jax.random.key(0), jnp.zeros((1, 16, 16, 3)))["params"]
    for unit in (shapes[f"stage{stage}_0"]["unit"] for stage in (1, 2, 3)):
        assert unit["pointwise1"]["kernel"].shape == (1, 1, 8, between)
        assert unit["depthwise"]["kernel"].shape == (3, 3, 1, between)
        assert unit["pointwise2"]["kernel"].shape == (1, 1, between // 4, 32)


@pytest.mark.slow
def test_without_a_mixer_a_group_sees_one_phase_and_with_it_more():
    seen = {}
    for mixer in ("identity", "shuffle"):
        network = build(NetworkConfig(PHASES, groups=4, mixer=mixer), 10)
        variables = jax.jit(network.init)(jax.random.key(0), jnp.ones((1, 8, 8, 3)))

        def channels(x, network=network, variables=variables):
            """The channels of the last unit, over all positions."""
            _, found = network.apply(variables, x, capture_intermediates=lambda module, _: module.name == "stage3_0")
            return found["intermediates"]["stage3_0"]["__call__"][0].sum((0, 1, 2))

        reached = jnp.abs(jax.jacobian(channels)(jax.random.normal(jax.random.key(1), (1, 8, 8, 3)))) > 0
        by_phase = [reached[:, 0, a::2, b::2].any((1, 2, 3)) for a, b in ((0, 0), (0, 1), (1, 0), (1, 1))]
        seen[mixer] = np.array([phase.reshape(4, -1).any(1) for phase in by_phase])
    np.testing.assert_array_equal(seen["identity"], np.eye(4, dtype=bool))
    assert seen["shuffle"].sum() > 8
