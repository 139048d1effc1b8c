"""What holds of every network: parts, groups, one image, odd sizes, half precision, the classifier."""

from __future__ import annotations

from contextlib import nullcontext
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.errors import InvalidRngError
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from shuffle_jax.analysis.channel_reach import channel_reach
from shuffle_jax.analysis.count import count_layers
from shuffle_jax.models import (
    AddressNet,
    AnchoredNet,
    CoResNet,
    MobileNetV2,
    ResNet,
    ShiftResNet,
    ShuffleNetV1,
    ShuffleNetV2,
)
from shuffle_jax.models.classifier import classify
from shuffle_jax.nn import (
    AutoShuffle,
    ChannelShift,
    ChannelShuffle,
    CondConv,
    Conv,
    DYConv,
    DynamicConv,
    DynamicDense,
    DynamicShuffle,
    FactorGenerator,
    FixedPermutation,
    Identity,
    PointwiseConv,
    SqueezeExcitation,
    StaticDynamicShuffle,
)
from shuffle_jax.nn.collections import PENALTIES, PERMUTATIONS, PROGRESS, penalty_sum
from shuffle_jax.nn.dense import Dense
from shuffle_jax.nn.remat import rematerialized

SHAPE = (17, 9, 3)
compiled = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})  # Half the compilation.

NETWORKS = {  # With as few units as there are kinds of them, as the fixture below leaves them.
    "shufflenet_v1": ShuffleNetV1(5, 3, 0.5, "small"),
    "shufflenet_v2": ShuffleNetV2(5, 0.5, "small"),
    "mobilenet_v2": MobileNetV2(5, 0.35, "small", groups=2),
    "resnet, basic": ResNet(5, 10, 1 / 8, "small", groups=2),
    "resnet, bottleneck": ResNet(5, 50, 1 / 8, "small", groups=2),
    "coresnet": CoResNet(5, 50, 1 / 8, "small", "21", groups=2),
    "addressnet": AddressNet(5, 8),
    "shift_resnet": ShiftResNet(5, 8, groups=2),
    "anchored": AnchoredNet(5, 10, 1 / 16, "each_width", regulator="pointwise"),
    "anchored, layers": AnchoredNet(5, 14, 1 / 16, regulator="pointwise"),
}
UNGROUPED = ("mobilenet_v2", "resnet, basic", "resnet, bottleneck", "coresnet", "shift_resnet")
"""Those whose papers have no groups and no mixer."""
PLACES = dict(zip(NETWORKS, (4, 4, 3, 2, 2, 2, 3, 3, 3, 3), strict=True))
"""How many mixers they have."""


def images(n, shape=SHAPE):
    return np.random.default_rng(1).standard_normal((n, *shape)).astype(np.float32)


def traced(network, train=True, shape=SHAPE):
    """Logits and variables, without running anything."""
    start = partial(network.init_with_output, train=train)
    return jax.eval_shape(start, jax.random.key(0), jax.ShapeDtypeStruct((2, *shape), jnp.float32))


MIXERS = {  # A factory for a number of groups.
    "identity": lambda groups: Identity,
    "shuffle": lambda groups: partial(ChannelShuffle, groups),
    "shift": lambda groups: partial(ChannelShift, groups),
    "random": lambda groups: FixedPermutation,
    "auto": lambda groups: AutoShuffle,
    "dynamic": lambda groups: partial(DynamicShuffle, groups),
    "factors": lambda groups: partial(DynamicShuffle, groups, generator=partial(FactorGenerator, dynamic=False)),
    "squeeze": lambda groups: partial(SqueezeExcitation, groups),
}


@pytest.mark.usefixtures("short")
@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.fast_cases(1)
def test_every_mixer_fits_every_network_with_half_precision_inside_only(name, recorder):
    network = NETWORKS[name].clone(dtype=jnp.dtype(jnp.bfloat16))
    for kind, make in MIXERS.items():
        mixer = recorder(make(network.mixing_groups))
        logits, variables = traced(network.clone(mixer=mixer))
        assert logits.shape == (2, 5)
        assert mixer.calls == [{"name": "mixer"}] * PLACES[name]
        # The bridge of flax.nnx would take what the class has of that name for the child.
        assert not [key for tree in variables.values() for key in tree if callable(getattr(type(network), key, None))]
        found = {key: len(jax.tree.leaves(tree)) for key, tree in variables.items()}
        soft = {PROGRESS: 2 * PLACES[name]}  # of the factors, and of when they are binarized
        # And nothing is sown at initialisation.
        wanted = {"random": {PERMUTATIONS: PLACES[name]}, "dynamic": soft, "factors": soft}.get(kind, {})
        assert {key: found[key] for key in found.keys() - {"params", "batch_stats"}} == wanted
        kinds = {leaf.dtype for leaf in jax.tree.leaves((logits, variables | {PERMUTATIONS: {}}))}
        assert kinds == {jnp.dtype(jnp.float32)}


@pytest.mark.usefixtures("short")
@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.fast_cases(1)
def test_every_1x1_layer_and_head_fits_every_network(name):
    for make in (StaticDynamicShuffle, DynamicConv, CondConv, DYConv):
        others = {"conv": make} if name.startswith("resnet") and make is not StaticDynamicShuffle else {}
        logits, variables = traced(NETWORKS[name].clone(pointwise=make, head=partial(DynamicDense, latent=4), **others))
        assert logits.shape == (2, 5)
        assert "layer" in variables["params"]["head"]
        exchanged = [path for path, _ in jax.tree.leaves_with_path(variables["params"]) if "generator" in str(path)]
        units = {path[0].key for path in exchanged} - {"head"}
        if (name, make) != ("resnet, basic", StaticDynamicShuffle):
            assert len(units) >= PLACES[name]


@pytest.mark.usefixtures("short")
@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.fast_cases(1)
def test_what_is_computed_again_of_every_network_changes_nothing_and_is_not_kept(name):
    network = NETWORKS[name].clone(mixer=AutoShuffle, dropout=0.2)
    x, streams = images(4), {"dropout": jax.random.key(1)}
    start = compiled(network.init)(jax.random.key(0), x)
    params, rest = start["params"], {key: tree for key, tree in start.items() if key != "params"}

    def loss(context, params):
        with context():
            told = [*rest, PENALTIES]
            logits, updated = network.apply({"params": params, **rest}, x, train=True, mutable=told, rngs=streams)
        return jnp.square(logits).mean() + penalty_sum({"params": params, **updated}), updated

    plain, again = (
        compiled(jax.value_and_grad(partial(loss, context), has_aux=True))(params)
        for context in (nullcontext, rematerialized)
    )
    size = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(plain[1]))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(b, a, rtol=1e-4, atol=1e-5 * size), plain, again)
    kept = [
        sum(
            leaf.size
            for leaf in jax.tree.leaves(jax.eval_shape(lambda p, c=c: jax.vjp(partial(loss, c), p)[1], params))
        )
        for c in (nullcontext, rematerialized)
    ]
    assert kept[1] < kept[0] / 2


def marked(base, told):
    """A class of layers that keep whether they were told that it trains."""

    class Marked(base):
        @nn.compact
        def __call__(self, x, train=None):
            told.append((base.__name__, train))
            return super().__call__(x, train)

    return Marked


@pytest.mark.usefixtures("short")
@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.fast_cases(2)
def test_exchangeable_layers_are_told_whether_it_trains(name):
    told: list = []
    parts = {"mixer": Identity, "pointwise": PointwiseConv, "head": Dense, "conv": Conv}
    parts = {place: part for place, part in parts.items() if hasattr(NETWORKS[name], place)}
    network = NETWORKS[name].clone(**{place: marked(part, told) for place, part in parts.items()})
    for train in (False, True):
        told.clear()
        traced(network, train)
        assert {mode for _, mode in told} == {train}
        places = {part for part, _ in told}
        assert places >= {"Identity", "Dense", "Conv" if name == "resnet, basic" else "PointwiseConv"}


@pytest.mark.usefixtures("short")
@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=() if n == "resnet, basic" else pytest.mark.slow) for n in NETWORKS]
)
def test_one_image_of_odd_size_and_half_precision(name, draw):
    network = NETWORKS[name]
    if name in UNGROUPED:
        network = network.clone(mixer=partial(ChannelShuffle, 2))
    half = network.clone(dtype=jnp.dtype(jnp.bfloat16))
    variables, batch = draw(network, SHAPE), images(2) * np.float32([1, 4]).reshape(2, 1, 1, 1)

    @compiled
    def run(variables, batch):
        def loss(params):
            own = {**variables, "params": params}
            logits, updated = network.apply(own, batch[1:], train=True, mutable=["batch_stats"])
            return -jax.nn.log_softmax(logits)[0, 0], updated["batch_stats"]

        gradient, statistics = jax.grad(loss, has_aux=True)(variables["params"])
        return network.apply(variables, batch), half.apply(variables, batch[1:]), gradient, statistics

    logits, alone, gradient, statistics = run(variables, batch)
    assert logits.dtype == alone.dtype == jnp.float32
    assert np.any(alone[0] != logits[1])
    off, apart = np.abs(alone[0] - logits[1]).max(), np.abs(logits[0] - logits[1]).max()
    assert off < 0.1 * np.abs(logits).max() and off < 0.2 * apart
    for path, leaf in jax.tree.leaves_with_path(gradient):
        assert np.isfinite(leaf).all() and np.abs(leaf).max() > 0, path
    moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), statistics, variables["batch_stats"])
    assert min(jax.tree.leaves(moved)) > 0


class Pooled(nn.Module):
    """A head that shows its input."""

    features: int

    @nn.compact
    def __call__(self, x, train=False):
        return x


@pytest.mark.usefixtures("short")
@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.fast_cases(2)
def test_dropout_is_before_the_head_and_in_training_only(name):
    network = NETWORKS[name].clone(head=Pooled, dropout=0.25)
    pooled, variables = traced(network.clone(dropout=0.0))
    assert pooled.ndim == 2 and pooled.shape[1] > 5  # What the head sees has no positions left.

    def run(train):
        apply = partial(network.apply, train=train, mutable=["batch_stats"])
        return jax.eval_shape(apply, variables, jnp.zeros((2, *SHAPE)))[0]

    assert run(train=False).shape == pooled.shape
    with pytest.raises(InvalidRngError, match='"dropout"'):  # It asks for the random stream.
        run(train=True)
    for dropout in (-0.1, 1.0):
        with pytest.raises(ValueError, match=rf"dropout must be at least 0 and below 1, got {dropout}"):
            traced(network.clone(dropout=dropout))


def test_dropout_sets_a_share_to_zero_and_scales_the_others():
    class Last(nn.Module):
        dropout: float

        @nn.compact
        def __call__(self, x, train=False):
            return classify(x, 5, Pooled, self.dropout, train)

    x = images(8, (2, 3, 64))
    mean = x.mean((1, 2))
    dropped = np.asarray(Last(0.25).apply({}, x, train=True, rngs={"dropout": jax.random.key(3)}))
    kept = dropped != 0
    np.testing.assert_allclose(dropped, np.where(kept, mean / 0.75, 0), rtol=1e-4, atol=1e-6)
    assert kept.mean() == pytest.approx(0.75, abs=0.1)
    for network, train in ((Last(0.25), False), (Last(0.0), True)):
        np.testing.assert_allclose(network.apply({}, x, train=train), mean, rtol=1e-4, atol=1e-6)


@pytest.mark.usefixtures("short")
@pytest.mark.parametrize(
    ("name", "start"), [("mobilenet_v2", "stage2_1"), ("shift_resnet", "stage1_0"), ("resnet, basic", "stage1_0")]
)
@pytest.mark.fast_cases(1)
def test_groups_are_apart_until_a_mixer_brings_them_together(name, start, draw):
    for mixer, share in ((Identity, 0.5), (partial(ChannelShuffle, 2), 1.0)):
        network = NETWORKS[name].clone(mixer=mixer)
        (reaches,) = channel_reach(network, draw(network, (4, 4, 3)), (4, 4, 3), start).values()
        assert reaches[0].share == share


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (MobileNetV2(10, groups=3), r"16 channels cannot be split into 3 groups: choose one of \[1, 2, 4, 8, 16\]"),
        (ResNet(10, 18, groups=3), "64 channels cannot be split into 3 groups: choose one of"),
        (ResNet(10, 50, groups=128), "64 channels cannot be split into 128 groups: choose one of"),
        (ShiftResNet(10, 20, groups=5), "16 channels cannot be split into 5 groups: choose one of"),
        (ShiftResNet(10, 20, groups=0), "16 channels cannot be split into 0 groups: choose one of"),
        (ShuffleNetV1(10, 5), r"ShuffleNetV1 has no 5 groups: choose one of \[1, 2, 3, 4, 8\]"),
        (ShuffleNetV1(10, 3, 0.75), r"ShuffleNetV1 has no width 0.75: choose one of \[0.25, 0.5, 1.0, 1.5, 2.0\]"),
        (ShuffleNetV2(10, 0.75), r"ShuffleNetV2 has no width 0.75: choose one of \[0.5, 1.0, 1.5, 2.0\]"),
        (MobileNetV2(10, 1.5), r"MobileNetV2 has no width 1.5: choose one of \[0.35, 0.5, 0.75, 1.0\]"),
        (ResNet(10, 20), r"ResNet has no depth 20: choose one of \[10, 18, 34, 50, 101, 152\]"),
        (ResNet(10, width=0.35), "ResNet of width 0.35 has 22.4 channels: give a multiple of 1/64 above 0"),
        (ResNet(10, width=0), "ResNet of width 0 has 0 channels: give a multiple of 1/64 above 0"),
        (ResNet(10, width=-1), "ResNet of width -1 has -64 channels: give a multiple of 1/64 above 0"),
        (ShiftResNet(5, 18), r"no depth 18: choose 6 n \+ 2, such as \[20, 56, 110\]"),
        (ShiftResNet(5, 20, 0), "expansion must be positive, got 0"),
        (AnchoredNet(10, 20), r"AnchoredNet has no depth 20: choose one of \[10, 18, 34, 14\]"),
        (AnchoredNet(10, width=0.3), "AnchoredNet of width 0.3 has 38.4 channels: give a multiple of 1/128 above 0"),
        (AnchoredNet(10, width=0, kernels="each_width"), "has 0 channels: give a multiple of 1/64 above 0"),
        (AnchoredNet(10, kernels="two"), "kernels must be one of one, each_width, got 'two'"),
        (AnchoredNet(10, pointwise=DynamicConv), "others with the regulator none: choose the regulator pointwise"),
        (AddressNet(5, 21), r"no depth 21: choose 6 n \+ 2, such as 20, 32 or 44"),
        (AddressNet(5, 2), "no depth 2"),
        (AddressNet(5, 8, groups=8), "36 channels cannot be split into 8 groups"),
        (AddressNet(5, 8, offsets=((0, 1),) * 5), "72 channels cannot move in 5 directions"),
        (AddressNet(5, 8, offsets=((9, 0),)), r"\(9, 0\) is larger than the image of 8 x 8"),
        (AddressNet(5, 8, boundary="mirror"), "no boundary 'mirror'"),
    ],
)
def test_what_cannot_be_is_refused_with_what_can(network, message):
    with pytest.raises(ValueError, match=message):
        traced(network, shape=(8, 8, 3))


SIZES = {  # Network, layers, and the sizes of their outputs for images of each size.
    "shufflenet_v1, small": (
        ShuffleNetV1(7, width=0.5, stem="small"),
        [f"stage{stage}_3/norm3" for stage in (2, 3, 4)],
        {(7, 9): [(4, 5), (2, 3), (1, 2)], (1, 1): [(1, 1)] * 3},
    ),
    "shufflenet_v1, imagenet": (
        ShuffleNetV1(7, width=0.5),
        [f"stage{stage}_3/norm3" for stage in (2, 3, 4)],
        {(33, 35): [(5, 5), (3, 3), (2, 2)], (1, 2): [(1, 1)] * 3},
    ),
    "shufflenet_v2, small": (
        ShuffleNetV2(7, 0.5, "small"),
        [f"stage{stage}_3/mixer" for stage in (2, 3, 4)],
        {(7, 9): [(4, 5), (2, 3), (1, 2)], (1, 1): [(1, 1)] * 3},
    ),
    "shufflenet_v2, imagenet": (
        ShuffleNetV2(7, 0.5),
        [f"stage{stage}_3/mixer" for stage in (2, 3, 4)],
        {(33, 35): [(5, 5), (3, 3), (2, 2)], (1, 2): [(1, 1)] * 3},
    ),
    "mobilenet_v2, small": (
        MobileNetV2(7, 0.35, "small"),
        [f"stage{stage}_0/norm3" for stage in range(1, 8)],
        {
            (32, 32): [(32, 32), (32, 32), (16, 16), (8, 8), (8, 8), (4, 4), (4, 4)],
            (7, 9): [(7, 9), (7, 9), (4, 5), (2, 3), (2, 3), (1, 2), (1, 2)],
            (1, 1): [(1, 1)] * 7,
        },
    ),
    "mobilenet_v2, imagenet": (
        MobileNetV2(7, 0.35),
        [f"stage{stage}_0/norm3" for stage in range(1, 8)],
        {
            (193, 33): [(97, 17), (49, 9), (25, 5), (13, 3), (13, 3), (7, 2), (7, 2)],
            (1, 2): [(1, 1)] * 7,
        },
    ),
    "resnet, small": (
        ResNet(7, 10, stem="small"),
        [f"stage{stage}_0/norm2" for stage in range(1, 5)],
        {
            (32, 32): [(32, 32), (16, 16), (8, 8), (4, 4)],
            (7, 9): [(7, 9), (4, 5), (2, 3), (1, 2)],
            (1, 1): [(1, 1)] * 4,
        },
    ),
    "resnet, imagenet": (
        ResNet(7, 50),
        [f"stage{stage}_0/norm3" for stage in range(1, 5)],
        {
            (193, 33): [(49, 9), (25, 5), (13, 3), (7, 2)],
            (8, 8): [(2, 2), (1, 1), (1, 1), (1, 1)],
            (1, 2): [(1, 1)] * 4,
        },
    ),
    "addressnet": (
        AddressNet(7, 8),
        [f"stage{stage}_0/norm2" for stage in (1, 2, 3)],
        {(5, 9): [(5, 9), (3, 5), (2, 3)], (1, 1): [(1, 1)] * 3},
    ),
    "shift_resnet": (
        ShiftResNet(7, 8),
        [f"stage{stage}_0/norm2" for stage in (1, 2, 3)],
        {(5, 9): [(5, 9), (3, 5), (2, 3)], (1, 1): [(1, 1)] * 3},
    ),
    "anchored": (
        AnchoredNet(7, 10),
        [f"stage{stage}_0/norm2" for stage in (1, 2, 3, 4)],
        {
            (32, 32): [(32, 32), (16, 16), (8, 8), (4, 4)],
            (7, 9): [(7, 9), (3, 4), (1, 2), (1, 1)],
            (1, 1): [(1, 1)] * 4,
        },
    ),
    "anchored, layers": (
        AnchoredNet(7, 14),
        [f"stage{stage}_0/norm" for stage in range(1, 6)],
        {(32, 32): [(n, n) for n in (32, 16, 8, 4, 2)], (8, 1): [(8, 1), (4, 1), (2, 1), (1, 1), (1, 1)]},
    ),
}


@pytest.mark.parametrize("name", SIZES)
@pytest.mark.fast_cases(4)
def test_odd_sizes_and_other_numbers_of_colours(name):
    network, paths, sizes = SIZES[name]
    known: dict = {}
    for size, expected in sizes.items():
        layers = {layer.path: layer.output_shape for layer in count_layers(network, (*size, 1), known=known)}
        assert layers["head"] == (7,)
        assert [layers[path][:2] for path in paths] == expected


def test_what_networks_tell_of_themselves():
    assert {name: network.mixing_groups for name, network in NETWORKS.items()} == {
        "shufflenet_v1": 3,
        "shufflenet_v2": 2,
        "addressnet": 4,
        **dict.fromkeys((*UNGROUPED, "anchored", "anchored, layers"), 2),
    }
    for depth, pool in ((18, 2), (50, 1)):
        own = ResNet(5, depth).layer_defaults()
        assert own[DynamicConv]["rule"](64, 64, 16).pool == pool
        kernel = own[DynamicDense]["kernel_init"](jax.random.key(0), (300, 40))
        assert np.abs(kernel).max() <= 300**-0.5
        assert float(kernel.var()) == pytest.approx(1 / 900, rel=0.1)


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_a_gradient_is_traced_where_float64_is_the_default_on_explicit_axes_and_in_shard_map(name, short):
    network, whole, batch = NETWORKS[name], PartitionSpec(), PartitionSpec("batch")
    auto, explicit = (jax.make_mesh((2,), ("batch",), axis_types=(a,)) for a in (AxisType.Auto, AxisType.Explicit))
    x = jax.ShapeDtypeStruct((2, *SHAPE), jnp.float32)

    def gradient(variables, x):
        def loss(params, x):
            rngs, mutable = {"dropout": jax.random.key(0)}, ["batch_stats", "penalties"]
            y, updated = network.apply({**variables, "params": params}, x, train=True, rngs=rngs, mutable=mutable)
            return y.sum(), updated

        return jax.value_and_grad(loss, (0, 1), has_aux=True)(variables["params"], x)

    with jax.enable_x64(True):
        variables = jax.eval_shape(network.init, jax.random.key(0), x)
        types = {str(leaf.dtype) for leaf in jax.tree.leaves((variables, jax.eval_shape(gradient, variables, x)))}
    assert types <= {"float32", "int32"}

    def lying(leaf, part):
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=NamedSharding(explicit, part))

    with jax.set_mesh(explicit):
        jax.eval_shape(gradient, jax.tree.map(partial(lying, part=whole), variables), lying(x, batch))

    def local(variables, x):
        return jax.tree.map(lambda leaf: leaf.sum()[None], gradient(variables, x))

    jax.eval_shape(jax.shard_map(local, mesh=auto, in_specs=(whole, batch), out_specs=batch), variables, x)
