"""Which layers of a network are dynamic: those that freezing replaces."""

from __future__ import annotations

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from shuffle_jax.deploy.freezing import dynamic_layers, freeze
from shuffle_jax.models import ResNet, ShuffleNetV2
from shuffle_jax.nn import AutoShuffle, DynamicShuffle, FactorGenerator, StaticDynamicShuffle

SHAPE = (4, 4, 3)
MIXERS = ("stage2_0/mixer", "stage2_1/mixer", "stage3_0/mixer", "stage4_0/mixer")
BLOCKS = ("stage1_0/conv1",)
learned = partial(DynamicShuffle, generator=partial(FactorGenerator, dynamic=False))


@pytest.mark.parametrize(
    ("network", "expected"),
    [
        (ShuffleNetV2(3, 0.5, "small", DynamicShuffle), MIXERS),
        (ShuffleNetV2(3, 0.5, "small", learned), MIXERS),
        (ShuffleNetV2(3, 0.5, "small", AutoShuffle), ()),
        (
            ResNet(3, 50, 1 / 4, "small", pointwise=partial(StaticDynamicShuffle, replaced="square")),
            ("stage1_0/conv1",),
        ),
    ],
)
def test_layers_with_factors_are_named_in_their_order(network, expected, draw, few_units):
    assert dynamic_layers(network, draw(network, SHAPE), SHAPE) == expected


def test_a_frozen_network_has_none_and_nothing_of_a_head(draw):
    network, shape = nn.Sequential([learned(2), DynamicShuffle(2)]), (1, 1, 8)
    variables = draw(network, shape)
    frozen = freeze(network, variables, [np.zeros((1, *shape), np.float32)])
    assert tuple(frozen.factors) == ("layers_0", "layers_1")
    assert dynamic_layers(network, frozen.variables, shape) == ()
    assert jax.tree.leaves(variables["batch_stats"]) and not jax.tree.leaves(frozen.variables["batch_stats"])
    assert not jax.tree.leaves(frozen.variables["params"])


class Stack(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
        axes = {"variable_axes": {"params": 0, "batch_stats": 0, "progress": 0}, "split_rngs": {"params": True}}
        return nn.vmap(DynamicShuffle, axis_size=2, in_axes=None, **axes)(name="layers")(x)


def test_factors_that_stay_inside_of_a_transformation_are_missed():
    variables = jax.eval_shape(Stack().init, jax.random.key(0), jnp.zeros((1, 1, 1, 8)))
    with pytest.raises(ValueError, match=r'the factors of layers/generator do not come out .* an axis for "factors"'):
        dynamic_layers(Stack(), variables, (1, 1, 8))
