"""The network of a comparison: nothing in it leads out of a group but what is compared."""

from __future__ import annotations

import numpy as np
import pytest

from shuffle_jax.analysis.channel_reach import channel_reach
from shuffle_jax.analysis.count import count
from shuffle_jax.models import NetworkConfig, build

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
