"""Every part and network is a module of flax.nnx: what it keeps and sows travels, and it is trained as in linen."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

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
from shuffle_jax.models.parts import HEADS, MIXERS, NETWORKS, POINTWISE, SPATIAL
from shuffle_jax.nn import DynamicShuffle
from shuffle_jax.nn.bridge import set_progress
from shuffle_jax.nn.collections import SOWN, collections_of, penalty_sum, with_progress

X = np.random.default_rng(0).standard_normal((4, 4, 4, 8)).astype(np.float32)


class Switched(nnx.Module):
    """A linen module that `train()` and `eval()` of flax.nnx switch, as docs/nnx.md has it."""

    def __init__(self, module, x, rngs):
        self.inner = nnx.bridge.ToNNX(module, rngs=rngs).lazy_init(x)
        self.deterministic = False

    def __call__(self, x):
        kept = [name for name in collections_of(self.inner, "test") if name not in SOWN]
        return self.inner(x) if self.deterministic else self.inner(x, train=True, mutable=[*kept, *SOWN])


PARTS = {
    f"{kind} {name}": (part.make, options, X[:, 0, 0] if kind == "head" else X)
    for kind, table, options in (
        ("mixer", MIXERS, {}),
        ("pointwise", POINTWISE, {"features": 8}),
        ("spatial", SPATIAL, {"stride": 1}),
        ("head", HEADS, {"features": 3}),
    )
    for name, part in table.items()
    if part.make is not None
}


def traced(module, x):
    """Shapes of what training and evaluation give in flax.nnx and in linen, and of gradient and variables after it."""
    x = jnp.asarray(x)

    def in_nnx():
        model = Switched(module, x, nnx.Rngs(0, dropout=1))
        before = collections_of(model.inner, "test")
        set_progress(model, 0.5)
        gradient = nnx.grad(lambda model: model(x).sum() + penalty_sum(model))(model)
        after, sum_of = collections_of(model.inner, "test"), penalty_sum(model)
        model.eval()
        return before, nnx.to_pure_dict(gradient).get("inner", {}), after, sum_of, model(x)

    def in_linen():
        before = module.init(jax.random.key(0), x)
        kept = [name for name in before if name not in SOWN]
        told, keys = with_progress(before, 0.5), {"dropout": jax.random.key(1)}
        _, after = module.apply(told, x, train=True, mutable=[*kept, *SOWN], rngs=keys)
        params = before.get("params", {})
        return before, params, {**told, **after}, jnp.zeros((), jnp.float32), module.apply(before, x)

    return jax.eval_shape(in_nnx), jax.eval_shape(in_linen)


@pytest.mark.parametrize("name", PARTS)
@pytest.mark.fast_cases(6)
def test_every_part_trains_and_evaluates_as_in_linen(name):
    make, options, x = PARTS[name]
    found, expected = traced(make(**options), x)
    assert found == expected


FAMILIES = {  # With as few units as there are kinds of them, as the fixture leaves them.
    "shufflenet_v1": ShuffleNetV1(3, 3, 0.5, "small", mixer=DynamicShuffle),
    "shufflenet_v2": ShuffleNetV2(3, 0.5, "small", mixer=DynamicShuffle),
    "mobilenet_v2": MobileNetV2(3, 0.35, "small", groups=2, mixer=DynamicShuffle),
    "resnet": ResNet(3, 10, 1 / 8, "small", groups=2, mixer=DynamicShuffle),
    "coresnet": CoResNet(3, 50, 1 / 8, "small", "21"),
    "addressnet": AddressNet(3, 8, mixer=DynamicShuffle),
    "shift_resnet": ShiftResNet(3, 8, groups=2, mixer=DynamicShuffle),
    "anchored": AnchoredNet(3, 10, 1 / 16, "each_width", mixer=DynamicShuffle),
}


@pytest.mark.slow
@pytest.mark.usefixtures("short")
@pytest.mark.parametrize("family", NETWORKS)
def test_every_network_trains_and_evaluates_as_in_linen(family):
    found, expected = traced(FAMILIES[family].clone(dropout=0.5), np.zeros((2, 16, 16, 3), np.float32))
    assert found == expected


@pytest.mark.slow
@pytest.mark.usefixtures("short")
def test_a_mixer_of_flax_nnx_stands_in_a_network():
    class Reverse(nnx.Module):
        def __init__(self):
            self.scale = nnx.Param(jnp.ones(()))

        def __call__(self, x, train=False):
            return x[..., ::-1] * self.scale.get_value()

    network = FAMILIES["shufflenet_v2"].clone(mixer=partial(nnx.bridge.ToLinen, Reverse, skip_rng=True))
    variables = jax.eval_shape(network.init, jax.random.key(0), jnp.zeros((1, 8, 8, 3)))
    assert variables["params"]["stage2_0"]["mixer"]["scale"].shape == ()
