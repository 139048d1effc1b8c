"""Which channels reach which: against products of boolean matrices, and against the laws of groups and mixers."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import flax.linen as fnn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from shuffle_jax import nn
from shuffle_jax.analysis.channel_reach import (
    ImageDependent,
    Link,
    Rules,
    channel_reach,
    default_starts,
    reach,
    unit_links,
    units_to_full,
)
from shuffle_jax.models import AddressNet, ShuffleNetV1, ShuffleNetV2, shufflenet_v1
from shuffle_jax.nn.collections import RELAXED
from shuffle_jax.ops import permutation

IMAGE = (8, 8, 3)


class Mixing(fnn.Module):
    """A unit: a mixer between two grouped 1x1 layers, as in ShuffleNetV1, or before one, as in an AddressNet's step."""

    channels: int
    groups: int
    mixer: object
    between: bool = True

    @fnn.compact
    def __call__(self, x, train=False):
        layer = partial(nn.PointwiseConv, self.channels, self.groups)
        if self.between:
            x = layer(name="before")(x)
        return fnn.relu(nn.BatchNorm(name="norm")(layer(name="behind")(self.mixer(name="mixer")(x))))


class Stack(fnn.Module):
    """Units in a row, made by ``unit(name=...)``."""

    unit: object
    channels: int
    units: int

    @fnn.compact
    def __call__(self, x, train=False):
        x = fnn.Dense(self.channels)(x)
        for i in range(self.units):
            x = self.unit(name=f"stage1_{i}")(x)
        return x


def shares(unit, channels: int, units: int, variables=None, rules: Rules = Rules()) -> list[float]:  # noqa: B008
    (found,) = channel_reach(Stack(unit, channels, units), variables or {}, IMAGE, rules=rules).values()
    assert [one.unit for one in found] == [f"stage1_{i}" for i in range(units)]
    assert {one[1:3] for one in found} == {(channels, channels)}
    return [one.share for one in found]


def block(channels: int, features: int, groups: int) -> np.ndarray:
    """What a grouped 1x1 layer connects: ``[i, o]``."""
    return np.kron(np.eye(groups), np.ones((channels // groups, features // groups))) > 0


def moved(index: Sequence[int]) -> np.ndarray:
    """What a permutation connects: output i takes from p[i]."""
    return np.eye(len(index))[np.asarray(index)].T > 0


def through(*layers: np.ndarray) -> np.ndarray:
    """Channels that are connected by any path, counted in integers and not in the bits of the code."""
    return np.linalg.multi_dot([layer.astype(int) for layer in layers]) > 0


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_without_a_mixer_no_channel_ever_leaves_its_group(groups: int) -> None:
    assert shares(partial(Mixing, 8, groups, nn.Identity), 8, 5) == [1 / groups] * 5


def test_one_group_sees_all_at_once_whatever_mixes() -> None:
    for mixer in (nn.Identity, partial(nn.ChannelShift, 1), nn.FixedPermutation):
        assert shares(partial(Mixing, 6, 1, mixer), 6, 1) == [1.0]


@pytest.mark.parametrize(("channels", "groups"), [(16, 4), (12, 2), (8, 4), (16, 8), (18, 6), (6, 6)])
def test_shuffles_multiply_the_groups_seen_by_the_channels_of_a_group(channels: int, groups: int) -> None:
    """Group o draws on the groups ``(n o + j) mod g``, j < n = c / g: k shuffles make n into n^k, up to all."""
    n = channels // groups
    found = shares(partial(Mixing, channels, groups, partial(nn.ChannelShuffle, groups)), channels, 4)
    assert found == [min(1, n**k / groups) for k in range(1, 5)]


@pytest.mark.parametrize("groups", [2, 3, 4, 5])
def test_each_shift_by_half_a_group_reaches_one_group_more(groups: int) -> None:
    """Between two layers k shifts see k + 1 whole groups: all after g - 1."""
    units = groups + 1
    found = shares(partial(Mixing, 4 * groups, groups, partial(nn.ChannelShift, groups)), 4 * groups, units)
    assert found == pytest.approx([min(1, (k + 1) / groups) for k in range(1, units + 1)], abs=1e-12)
    assert found.index(1.0) + 1 == groups - 1


@pytest.mark.parametrize("groups", [2, 3, 4])
def test_before_a_layer_half_groups_at_both_ends_cost_one_shift_more(groups: int) -> None:
    """k + 1 groups are touched as well, of the first and the last one half: as many channels as in k, all after g."""
    unit = partial(Mixing, 4 * groups, groups, partial(nn.ChannelShift, groups), between=False)
    found = shares(unit, 4 * groups, groups + 1)
    assert found == pytest.approx([min(1, k / groups) for k in range(1, groups + 2)], abs=1e-12)
    assert found.index(1.0) + 1 == groups


@pytest.mark.parametrize("seed", [0, 1])
def test_random_permutations_connect_what_products_of_boolean_matrices_do(seed: int) -> None:
    channels, groups, units = 12, 6, 4
    network = Stack(partial(Mixing, channels, groups, partial(nn.FixedPermutation, seed=seed)), channels, units)
    if seed:  # given
        indices = np.random.default_rng(seed).permuted(np.tile(np.arange(channels, dtype=np.int32), (units, 1)), axis=1)
        given = {"permutations": {f"stage1_{i}": {"mixer": {"index": index}} for i, index in enumerate(indices)}}
    else:  # as it initialises itself
        variables = network.init(jax.random.key(0), jnp.zeros((1, *IMAGE)))
        indices, given = [variables["permutations"][f"stage1_{i}"]["mixer"]["index"] for i in range(units)], {}
    layer, connected = block(channels, channels, groups), np.eye(channels)
    expected = []
    for index in indices:
        connected = through(connected, layer, moved(index), layer)
        expected.append(connected.sum() / channels**2)
    assert len(set(expected)) > 2  # They differ from unit to unit.
    assert [one.share for one in reach(unit_links(network, given, IMAGE))] == expected


def test_every_unit_of_shufflenet_v1_against_its_matrices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shufflenet_v1, "UNITS", (2, 1))
    network, rng = ShuffleNetV1(classes=2, groups=3, stem="small", mixer=nn.FixedPermutation), np.random.default_rng(0)
    sizes = {"stage2_0": 60, "stage2_1": 60, "stage3_0": 120}
    indices = {name: rng.permutation(size).astype(np.int32) for name, size in sizes.items()}
    variables = {"permutations": {name: {"mixer": {"index": index}} for name, index in indices.items()}}
    links = dict(unit_links(network, variables, IMAGE))
    past = dict(unit_links(network, variables, IMAGE, Rules(shortcuts=False)))
    assert list(links) == list(past) == list(sizes)
    for name, into, out in (
        ("stage2_0", 24, 240),
        ("stage2_1", 240, 240),
        ("stage3_0", 240, 480),
    ):
        first, residual = 1 if name == "stage2_0" else 3, into == out
        index, made = indices[name], out if residual else out - into
        branch = through(block(into, out // 4, first), moved(index), block(out // 4, made, 3))
        shortcut = np.eye(into) > 0
        np.testing.assert_array_equal(links[name], branch | shortcut if residual else np.hstack([shortcut, branch]))
        none = np.zeros_like(shortcut)
        np.testing.assert_array_equal(past[name], branch if residual else np.hstack([none, branch]))


def test_the_half_that_shufflenet_v2_passes_on_is_a_shortcut(few_units: None) -> None:
    network = ShuffleNetV2(classes=2, width=0.5, stem="small")
    links, past = (dict(unit_links(network, {}, IMAGE, Rules(shortcuts=yes), "stage2_1")) for yes in (True, False))
    half, none = np.ones((24, 24)) > 0, np.zeros((24, 24)) > 0
    shuffle = moved(permutation.channel_shuffle(48, 2))
    passed = np.block([[np.eye(24) > 0, none], [none, half]])
    assert list(links) == ["stage2_1"]
    np.testing.assert_array_equal(links["stage2_1"], through(passed, shuffle))
    np.testing.assert_array_equal(past["stage2_1"], through(np.block([[none, none], [none, half]]), shuffle))


@pytest.mark.parametrize(("boundary", "form"), [("pointer", "auto"), ("zero", "plain"), ("wrap", "folded")])
def test_addressnet_connects_all_channels_in_three_units(boundary, form) -> None:
    network = AddressNet(classes=2, depth=20, boundary=boundary, form=form, stem="small")
    found = reach(unit_links(network, {}, IMAGE, match="stage1_"))  # 4 groups, and a shift between two layers
    assert [tuple(one) for one in found] == [(f"stage1_{i}", 36, 36, share) for i, share in enumerate([0.5, 0.75, 1.0])]
    assert units_to_full(found) == 3 and units_to_full(found[:2]) is None


class Moving(fnn.Module):
    """A unit that moves its channels over the image, without a layer."""

    shift: object
    scale: float = 1.0

    @fnn.compact
    def __call__(self, x, train=False):
        return self.scale * self.shift(name="shift")(x)


def test_the_pointer_connects_neighbours_at_the_edge_alone() -> None:
    c = 8
    network = Stack(partial(Moving, nn.AddressShift), c, 1)
    own = np.eye(c) > 0
    np.testing.assert_array_equal(unit_links(network, {}, IMAGE)[0].connected, own)
    # Right of a row comes the next one, below the last row the next channel; the other two directions go back.
    neighbour = np.array([(i + (1 if i < c // 2 else -1)) % c for i in range(c)])
    at_edges = unit_links(network, {}, IMAGE, Rules(edges=True))[0].connected
    np.testing.assert_array_equal(at_edges, own | moved(neighbour))
    for inside in (nn.GridShift, partial(nn.AddressShift, boundary="zero"), partial(nn.AddressShift, boundary="wrap")):
        links = unit_links(Stack(partial(Moving, inside), 12, 1), {}, IMAGE, Rules(edges=True))
        np.testing.assert_array_equal(links[0].connected, np.eye(12) > 0)


def test_relaxed_permutations_connect_above_a_threshold_and_hardened_ones_once() -> None:
    network = Stack(partial(Mixing, 8, 8, nn.AutoShuffle), 8, 1)  # Each channel a group: the links are the mixer's.
    p = np.array([3, 0, 1, 2, 5, 4, 7, 6])
    matrix = (0.6 * np.eye(8)[p] + 0.3 * np.eye(8)).astype(np.float32)
    variables = {"params": {"stage1_0": {"mixer": {RELAXED: jnp.asarray(matrix)}}}}

    def links(variables, threshold):
        return unit_links(network, variables, IMAGE, Rules(threshold=threshold))[0].connected

    np.testing.assert_array_equal(links(variables, 0.0), matrix.T > 0)
    np.testing.assert_array_equal(links(variables, 0.5), moved(p))
    np.testing.assert_array_equal(links(variables, 0.9), np.zeros((8, 8)) > 0)
    hardened = {"permutations": {"stage1_0": {"mixer": {"index": p.astype(np.int32)}}}}
    np.testing.assert_array_equal(links(hardened, 0.9), moved(p))


def test_dynamic_layers_are_refused_unless_frozen() -> None:
    shuffle = Stack(partial(Mixing, 8, 2, nn.DynamicShuffle), 8, 2)
    squeeze = Stack(partial(Mixing, 8, 2, nn.SqueezeExcitation), 8, 1)
    kernels = Stack(partial(nn.DynamicConv, 8), 8, 1)
    for network, layer in ((shuffle, "mixer/generator/hidden"), (squeeze, "mixer/hidden"), (kernels, "generator")):
        with pytest.raises(ImageDependent, match=rf"^what stage1_0 connects .* which stage1_0/{layer} sees.*freeze"):
            unit_links(network, {}, IMAGE)
    factors = {"outer": np.array([[1, 0]], np.int32), "inner": np.array([[0, 1]], np.int32)}
    frozen = {"permutations": {f"stage1_{i}": {"mixer": {"generator": factors}} for i in range(2)}}
    swapped = np.kron(np.eye(2), moved([2, 3, 0, 1])) > 0  # In each group the factors, then the shuffle of groups.
    links = unit_links(shuffle, frozen, IMAGE)
    layer, mixed = block(8, 8, 2), through(swapped, moved(permutation.channel_shuffle(8, 2)))
    for link in links:
        np.testing.assert_array_equal(link.connected, through(layer, mixed, layer))


def test_a_way_by_several_widths_starts_in_each_stage_where_it_is_even() -> None:
    def link(unit: str, connected: list[list[int]]) -> Link:
        return Link(unit, np.array(connected) > 0)

    links = [
        link("stage1_0", [[1, 0, 1]]),
        link("stage1_1", np.eye(3).tolist()),
        link("stage2_0", [[1, 0], [0, 1], [0, 0]]),
        link("stage3_0", [[0, 1], [1, 1]]),
        link("stage3_1", [[1, 1], [0, 1]]),
    ]
    assert default_starts(links) == ["stage1_0", "stage1_1", "stage3_0"]
    assert [tuple(one) for one in reach(links)] == [
        ("stage1_0", 1, 3, 2 / 3),
        ("stage1_1", 1, 3, 2 / 3),
        ("stage2_0", 1, 2, 1 / 2),
        ("stage3_0", 1, 2, 1 / 2),
        ("stage3_1", 1, 2, 1 / 2),
    ]
    assert [one.share for one in reach(links[3:])] == [3 / 4, 3 / 4]
    # All channels may be reached, and lost again where a unit does not look at some outputs.
    lost = [link("stage1_0", [[1, 1], [1, 1]]), link("stage1_1", [[1, 0], [1, 0]])]
    assert [one.share for one in reach(lost)] == [1, 1 / 2]
    assert units_to_full(reach(lost)) == 1 and units_to_full(reach(links)) is None


class Between(fnn.Module):
    """Two units and something between them that neither holds."""

    @fnn.compact
    def __call__(self, x, train=False):
        x = nn.PointwiseConv(4, name="stage1_0")(x)
        return nn.PointwiseConv(4, name="stage1_1")(x[..., ::-1])


def test_what_cannot_be_told_is_said_in_one_line() -> None:
    unit = partial(Mixing, 4, 2, nn.Identity)
    far = partial(nn.AddressShift, offsets=((4, 0),), boundary="zero")
    for network, rules, message in (
        (fnn.Dense(4), Rules(), "Dense has no unit with '' in its name: its units are submodules called stage1_0, "),
        (Between(), Rules(), "something is computed between stage1_0 and stage1_1: make it a part of a unit"),
        (Stack(partial(Moving, nn.Identity, scale=-1.0), 4, 1), Rules(), "stage1_0 subtracts: "),
        (Stack(partial(Moving, far), 4, 1), Rules(), "stage1_0 sees the edge in the middle of 9 x 9 pixels: give "),
        (Stack(unit, 4, 1), Rules(size=2), "stage1_0 sees the edge in the middle of 2 x 2 pixels: give the rules a "),
    ):
        with pytest.raises(ValueError) as error:
            unit_links(network, {}, IMAGE, rules)
        assert str(error.value).startswith(message) and "\n" not in str(error.value)
    assert shares(partial(Moving, far), 4, 1, rules=Rules(size=13)) == [1 / 4]
    with pytest.raises(ValueError, match=r"no unit with 'stage2' in its name: its units are stage1_0, stage1_1$"):
        unit_links(Stack(unit, 4, 2), {}, IMAGE, match="stage2")
    with pytest.raises(ValueError, match=r"no unit 'stage1_2' to start from: choose one of stage1_0, stage1_1$"):
        channel_reach(Stack(unit, 4, 2), {}, IMAGE, start="stage1_2")
    assert [one.unit for one in channel_reach(Stack(unit, 4, 2), {}, IMAGE, start="stage1_1")["stage1_1"]] == [
        "stage1_1"
    ]


def test_units_with_fields_that_are_lists_and_more_channels_than_a_batch() -> None:
    index = np.random.default_rng(0).permutation(130).tolist()
    given = Stack(partial(Moving, partial(nn.FixedPermutation, index)), 130, 2)

    class Listed(fnn.Module):
        order: list[int] | None = None

        @fnn.compact
        def __call__(self, x, train=False):
            return nn.FixedPermutation(self.order, name="mixer")(x)

    for network in (given, Stack(partial(Listed, order=index), 130, 2)):
        for link in unit_links(network, {}, IMAGE):
            np.testing.assert_array_equal(link.connected, moved(index))
