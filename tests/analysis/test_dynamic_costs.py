"""What dynamic layers cost in a whole ShuffleNetV2, to the unit, by formulas written out here."""

from __future__ import annotations

import math

import numpy as np
import pytest

from shuffle_jax.analysis.count import Count, Known, count, count_layers, inside, total
from shuffle_jax.models import ShuffleNetV2, build, shufflenet_v2
from shuffle_jax.models.config import NetworkConfig

IMAGENET = (224, 224, 3)
PUBLISHED = {0.5: 1_366_792, 1.0: 2_278_604}
STAGES = {2: (28, 4), 3: (14, 8), 4: (7, 4)}  # height and units
KNOWN: Known = {}


def layers_of(width, **options):
    own = {name: options.pop(name) for name in ("mixer", "pointwise") if name in options}
    config = NetworkConfig(width=width, stem="imagenet", dynamic=options, **own)
    return count_layers(build(config, 1000), IMAGENET, known=KNOWN)


def difference(layers, width, training_only=0):
    """Parameters and multiply-adds beside those of the vanilla network."""
    vanilla = count(ShuffleNetV2(1000, width), IMAGENET, known=KNOWN)
    assert vanilla.parameters == PUBLISHED[width]
    cost = total(layers)
    assert (cost.training_only_parameters, cost.training_only_multiply_adds) == (training_only, 0)
    return cost.parameters - vanilla.parameters, cost.multiply_adds - vanilla.multiply_adds


def nearest(size):
    p = max(p for p in range(1, math.isqrt(size) + 1) if size % p == 0)
    return p, size // p


def head_cost(channels, entries, least=4):
    """A dense layer to max(least, c / 16) hidden units, one to the entries, both with biases."""
    hidden = max(least, channels // 16)
    return np.array(
        [channels * hidden + hidden + hidden * entries + entries, channels * hidden + hidden * entries], np.int64
    )


def soft_head_cost(channels, entries, least):
    """The norm of the pooled vector has a scale and a shift, and no product."""
    return head_cost(channels, entries, least) + np.array([2 * channels, 0], np.int64)


def heads_of_mixers(width, groups):
    found = np.zeros(2, np.int64)
    for channels, (_, units) in zip(shufflenet_v2.WIDTHS[width], STAGES.values(), strict=False):
        p, q = nearest(channels // groups)
        found += units * soft_head_cost(channels, p * p + q * q, 32)
    return found


@pytest.mark.parametrize(
    ("width", "groups", "parameters"), [(0.5, 2, 119_984), (0.5, 24, 64_676), (1.0, 2, 599_744), (1.0, 29, 153_056)]
)
def test_dynamic_mixers_cost_their_heads_and_soft_ones_two_contractions(width, groups, parameters):
    heads = heads_of_mixers(width, groups)
    hard = layers_of(width, mixer="dynamic", groups=groups)
    assert difference(hard, width) == tuple(heads)
    assert inside(hard, "generator") == Count(heads[0], 0, heads[1], 0)
    assert heads[0] == parameters
    contractions = 0
    for channels, (height, units) in zip(shufflenet_v2.WIDTHS[width], STAGES.values(), strict=False):
        p, q = nearest(channels // groups)
        contractions += units * height**2 * channels * (p + q)
    soft = layers_of(width, mixer="dynamic", groups=groups, evaluation="soft")
    assert difference(soft, width) == (heads[0], heads[1] + contractions)


def test_learned_factors_cost_their_entries_in_training_and_squeeze_excitation_its_gates():
    entries, gates = 0, np.zeros(2, np.int64)
    for channels, (height, units) in zip(shufflenet_v2.WIDTHS[1.0], STAGES.values(), strict=False):
        p, q = nearest(channels // 2)
        entries += units * 2 * (p * p + q * q)
        gates += units * (head_cost(channels, channels) + np.array([0, height**2 * channels]))
    assert difference(layers_of(1.0, mixer="factors", per_group=True), 1.0, training_only=entries) == (0, 0)
    assert difference(layers_of(1.0, mixer="squeeze"), 1.0) == tuple(gates)


@pytest.mark.slow
def test_static_dynamic_layers_cost_four_factors_and_a_head_in_place_of_a_kernel():
    heads, other = np.zeros(2, np.int64), np.zeros(2, np.int64)
    for stage, (channels, (height, units)) in enumerate(
        zip(shufflenet_v2.WIDTHS[1.0], STAGES.values(), strict=False), start=2
    ):
        half = channels // 2
        p, q = nearest(half)
        heights = [height] * (2 * units - 1)  # both of every unit but the first of the first, which sees more channels
        if stage > 2:
            heights += [2 * height, height]  # unless it sees as many: that and the one on the left
        for own in heights:
            head = soft_head_cost(half, p * p + q * q, 16)
            heads += head
            other += head + np.array([p * p + q * q - half**2, own**2 * half * (p + q - half)])
    layers = layers_of(1.0, mixer="shuffle", pointwise="static_dynamic")
    assert difference(layers, 1.0) == tuple(other)
    assert inside(layers, "generator") == Count(heads[0], 0, heads[1], 0)
