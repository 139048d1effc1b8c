"""The receptive field in three dimensions: the worked table, closed forms, and networks against their gradients."""

from __future__ import annotations

from functools import partial

import flax.linen as fnn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from shuffle_jax import nn
from shuffle_jax.analysis.receptive_field import layer_fields, receptive_field
from shuffle_jax.models import NetworkConfig, build, shufflenet_v1, shufflenet_v2

IMAGE = (8, 8, 3)


class Stack(fnn.Module):
    """Layers in a row, each a unit."""

    channels: int
    layers: tuple

    @fnn.compact
    def __call__(self, x, train=False):
        x = fnn.Dense(self.channels)(x)
        for i, layer in enumerate(self.layers):
            x = layer(name=f"stage1_{i}")(x)
        return x


class Dilated(fnn.Module):
    """3x3 convolutions side by side, of so many outputs by dilation; depthwise ones if they are as many as channels."""

    outputs: dict
    depthwise: bool = False

    @fnn.compact
    def __call__(self, x, train=False):
        groups = x.shape[-1] if self.depthwise else 1
        each = [
            fnn.Conv(features, (3, 3), kernel_dilation=d, feature_group_count=groups, name=f"dilation{d}")
            for d, features in self.outputs.items()
        ]
        return jnp.concatenate([layer(x) for layer in each], axis=-1)


def gpw(groups, features):
    return partial(nn.PointwiseConv, features, groups)


def rpw(groups, overlap, features=8):
    return partial(nn.RollingPointwise, features, groups, overlap)


DW, DW2 = nn.DepthwiseConv, partial(nn.DepthwiseConv, stride=2)
GPW4, SHIFT4, SHUFFLE4 = gpw(4, 8), partial(nn.ChannelShift, 4), partial(nn.ChannelShuffle, 4)
SHUFFLE2, HALF, QUARTER = partial(nn.ChannelShuffle, 2), rpw(2, 0.5), rpw(2, 0.25)
CONTEXT = partial(Dilated, fnn.FrozenDict({1: 4, 2: 2, 3: 2}))

TABLE = {  # channels, layers, rows and columns, reach, exact
    "dense 3x3": (4, [partial(nn.Conv, 4)], 3, 4, 36),
    "depthwise and grouped": (4, [DW, gpw(2, 4)], 3, 2, 18),
    "the same twice": (4, [DW, gpw(2, 4)] * 2, 5, 2, 50),
    "with a shuffle between": (4, [DW, gpw(2, 4), SHUFFLE2, DW, gpw(2, 4)], 5, 4, 100),
    "two grouped, one channel shift": (8, [GPW4, SHIFT4, GPW4], 1, 4, 4),
    "three grouped, two channel shifts": (8, [GPW4, SHIFT4, GPW4, SHIFT4, GPW4], 1, 6, 6),
    "three grouped, two shuffles": (8, [GPW4, SHUFFLE4, GPW4, SHUFFLE4, GPW4], 1, 8, 8),
    "one rolling, g = 4": (8, [rpw(4, 0.5)], 1, 2, 2),
    "two rolling, g = 4": (8, [rpw(4, 0.5)] * 2, 1, 3, 3),
    "four rolling, g = 4": (8, [rpw(4, 0.5)] * 4, 1, 5, 5),
    "two rolling, g = 2": (8, [HALF] * 2, 1, 6, 6),
    "three rolling, g = 2": (8, [HALF] * 3, 1, 8, 8),
    "two rolling, overlap 1/4": (8, [QUARTER] * 2, 1, 8, 8),
    "depthwise and rolling, twice": (8, [DW, HALF] * 2, 5, 6, 150),
    "strided, with a shuffle": (8, [DW2, gpw(2, 8), SHUFFLE2, DW2, gpw(2, 8)], 7, 8, 392),
    "dilated depthwise": (4, [partial(Dilated, fnn.FrozenDict({2: 4}), depthwise=True), gpw(1, 4)], 5, 4, 36),
    "context": (8, [CONTEXT], 7, 8, 72),
    "context, dense": (8, [CONTEXT, gpw(1, 8)], 7, 8, 200),
    "roll, address shift, grouped": (
        8,
        [nn.ChannelRotation, partial(nn.AddressShift, boundary="wrap"), GPW4],
        3,
        2,
        2,
    ),
}


@pytest.mark.parametrize("row", TABLE)
@pytest.mark.fast_cases(12)
def test_the_worked_table(row):
    channels, layers, side, reach, exact = TABLE[row]
    found = receptive_field(Stack(channels, tuple(layers)), {}, IMAGE)[-1]
    assert (found.rows, found.columns, found.reach, found.exact) == (side, side, reach, exact)
    assert found.box == side * side * reach
    assert found.fill == exact / found.box


SHUFFLED = partial(shufflenet_v1.Unit, 8, groups=2, mixer=SHUFFLE2)
UNITS = {  # Of 4 channels in front: branches that are added, put side by side, and shifted past each other.
    "rolling": [
        partial(SHUFFLED, stride=2, pointwise=nn.RollingPointwise, mixer=nn.Identity, groups=2),
        partial(SHUFFLED, stride=1, pointwise=nn.RollingPointwise, mixer=partial(nn.FixedPermutation, seed=1)),
    ],
    "halves": [
        partial(shufflenet_v2.Unit, 8, stride=2, mixer=SHUFFLE2, pointwise=nn.PointwiseConv),
        partial(shufflenet_v2.Unit, 8, stride=1, mixer=nn.ChannelRotation, pointwise=nn.PointwiseConv),
    ],
    "shifts": [
        partial(nn.ShiftedPointwise, 8, 2, boundary="wrap"),
        partial(nn.ShiftedPointwise, 8, 4, boundary="zero"),
        partial(nn.AddressShift, stride=2),
    ],
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", UNITS)
def test_units_in_a_row_see_what_their_gradients_say(kind):
    """Of an output in the middle, by every pixel and channel in front of the units; weights are drawn, all positive."""
    network, rng, size = Stack(4, tuple(UNITS[kind])), np.random.default_rng(0), 24
    variables = network.init(jax.random.key(0), jnp.zeros((1, size, size, 3)))
    around = {"bias": 0.0, "mean": 0.0, "scale": 1.0, "var": 1.0}

    def drawn(path, leaf):
        name = path[-1].key
        positive = rng.uniform(0.5, 1, leaf.shape)
        return leaf if name == "index" else np.asarray(np.full(leaf.shape, around.get(name, positive)), leaf.dtype)

    variables = jax.tree_util.tree_map_with_path(drawn, variables)

    def middle(x):
        with fnn.intercept_methods(from_here(x)):
            y = network.apply(variables, jnp.zeros((1, size, size, 3)))
        return y[0, y.shape[1] // 2, y.shape[2] // 2]

    seen = np.asarray(jax.jit(jax.jacrev(middle))(jnp.ones((1, size, size, 4)))[:, 0]) != 0
    rows, columns = (np.flatnonzero(seen.any(axes)) for axes in ((0, 2, 3), (0, 1, 3)))
    found = receptive_field(network, {}, IMAGE)[-1]
    assert (found.rows, found.columns) == (np.ptp(rows) + 1, np.ptp(columns) + 1)
    assert (found.reach, found.exact) == (seen.any((1, 2)).sum(-1).mean(), seen.sum((1, 2, 3)).mean())


def from_here(x):
    """Gives this in place of what stands before the units."""

    def visit(call, args, kwargs, context):
        return x if isinstance(context.module, fnn.Dense) else call(*args, **kwargs)

    return visit


@pytest.mark.slow
def test_layers_gain_and_cost_what_they_do():
    unit = partial(shufflenet_v1.Unit, 8, stride=1, groups=2, mixer=SHUFFLE2, pointwise=nn.PointwiseConv)
    network = Stack(8, (DW, gpw(2, 8), unit))
    found = [(layer.path, layer.kind, field.gain, field.cost[::2]) for layer, field in layer_fields(network, {}, IMAGE)]
    assert found == [
        ("stage1_0", "DepthwiseConv", 9.0, (72, 64 * 72)),
        ("stage1_1", "PointwiseConv", 4.0, (32, 64 * 32)),
        ("stage1_2/pointwise1", "PointwiseConv", 1.0, (8, 64 * 8)),
        ("stage1_2/depthwise", "DepthwiseConv", 25 / 9, (18, 64 * 18)),
        ("stage1_2/pointwise2", "PointwiseConv", 1.0, (8, 64 * 8)),
        ("stage1_2", "Unit", 25 / 9, (58, 64 * 34)),
    ]
    units = receptive_field(network, {}, IMAGE)
    assert [field.gain for field in units] == [9.0, 4.0, 25 / 9]
    (last,) = receptive_field(network, {}, IMAGE, begin="stage1_2", match="_2")
    assert (last.box, last.exact) == (9 * 4, 9 * 4)


@pytest.mark.slow
def test_what_depends_on_the_image_counts_as_where_it_says_nothing():
    dense, none = TABLE["dense 3x3"], partial(nn.Identity)
    for layer in (partial(nn.DynamicConv, 4, 3), partial(nn.CondConv, 4, 3), partial(nn.DYConv, 4, 3)):
        (found,) = receptive_field(Stack(4, (layer,)), {}, IMAGE)
        assert (found.rows, found.reach, found.exact) == dense[2:]
    (found,) = receptive_field(Stack(4, (nn.SqueezeExcitation,)), {}, IMAGE)
    assert found[2:6] == receptive_field(Stack(4, (none,)), {}, IMAGE)[0][2:6] == (1, 1, 1.0, 1.0)


class Sampled(fnn.Module):
    """A convolution and what samples behind it."""

    blur: int

    @fnn.compact
    def __call__(self, x, train=False):
        return nn.PolyphaseSampling(blur=self.blur, name="sampling")(nn.DepthwiseConv(padding="wrap")(x), None)[0]


@pytest.mark.parametrize(("blur", "side"), [(1, 3), (2, 4), (3, 5)])
@pytest.mark.slow
def test_what_an_image_chooses_is_seen_as_the_first_choice(blur, side):
    one, two = receptive_field(Stack(4, (partial(Sampled, blur), DW)), {}, IMAGE)
    assert (one.rows, one.columns, one.exact) == (side, side, side**2)
    assert (two.rows, two.columns, two.exact) == (side + 4, side + 4, (side + 4) ** 2 if blur > 1 else 49)


def test_what_cannot_be_told_is_said_in_one_line():
    class Whole(fnn.Module):
        sign: int = 1

        @fnn.compact
        def __call__(self, x, train=False):
            return self.sign * (x + x.mean((1, 2), keepdims=True))

    for network, begin, message in (
        (fnn.Dense(4), "image", "Dense has no units: its submodules may be called stem, stage1_0, stage1_1 and so on"),
        (Stack(4, (DW,)), "stage2_0", "there is no unit 'stage2_0' to start from: choose one of image, stage1_0"),
        (
            Stack(4, (partial(Whole, -1),)),
            "image",
            "stage1_0 subtracts: what an output sees can be",
        ),
        (Stack(4, (Whole,)), "image", "what stage1_0 sees has no end within 72 x 72 pixels"),
    ):
        with pytest.raises(ValueError) as error:
            receptive_field(network, {}, IMAGE, begin)
        assert str(error.value).startswith(message) and "\n" not in str(error.value)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("config", "rows", "columns", "fill"),
    [
        (NetworkConfig("resnet", depth=18, width=1 / 64, mixer="identity", stem="imagenet"), 435, 435, 1),
        (NetworkConfig("resnet", depth=50, width=1 / 64, mixer="identity", stem="imagenet"), 427, 427, 1),
        (NetworkConfig("resnet", depth=152, width=1 / 64, mixer="identity", stem="imagenet"), 1451, 1451, 1),
        (NetworkConfig("mobilenet_v2", width=0.35, mixer="identity", stem="imagenet"), 491, 491, 1),
        (NetworkConfig("shufflenet_v2", width=0.5, mixer="shuffle", stem="imagenet"), 527, 527, None),
        (NetworkConfig("shift_resnet", mixer="identity"), 39, 39, 1),
        (NetworkConfig("addressnet", mixer="shift", depth=32), 73, 70, None),
    ],
    ids=lambda value: f"{value.family}-{value.depth}" if isinstance(value, NetworkConfig) else None,
)
def test_networks_see_as_many_rows_as_the_recursion_says(config, rows, columns, fill):
    """``r += (k - 1) j`` for windows of k at the jump j, worked out by hand; all three colours."""
    found = receptive_field(build(config, 10), {}, (32, 32, 3))[-1]
    assert (found.rows, found.columns, found.reach) == (rows, columns, 3)
    assert found.fill == fill if fill else 0.3 < found.fill < 1
