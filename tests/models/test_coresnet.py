"""CoResNet against its published counts and the authors' units and network."""

from __future__ import annotations

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from shuffle_jax.analysis.count import count
from shuffle_jax.models import NetworkConfig, build, coresnet
from shuffle_jax.models.convert import convert_network
from shuffle_jax.models.convert.names import joined
from shuffle_jax.models.coresnet import CoResNet
from shuffle_jax.models.resnet import Bottleneck, ResNet
from shuffle_jax.nn import ContextualConv, Identity, PointwiseConv

compiled = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})  # Half the compilation.
KNOWN: dict = {}  # Layers counted before, shared by all tests.
PARAMETERS = {50: 25_557_032, 101: 44_549_160, 152: 60_192_808}


@pytest.mark.parametrize("depth", PARAMETERS)
@pytest.mark.fast_cases(1)
def test_published_counts_which_are_those_of_resnet(depth):
    counts = [count(network(1000, depth), (224, 224, 3), known=KNOWN) for network in (CoResNet, ResNet)]
    assert counts[0].parameters == PARAMETERS[depth]
    assert counts[0] == counts[1]
    if depth == 50:
        assert counts[0].multiply_adds == 4_089_184_256


UNIT = {"conv1": "conv1", "conv2": "conv2", "conv3": "conv3", "downsample": "downsample.0"}
NORMS = {"norm1": "bn1", "norm2": "bn2", "norm3": "bn3", "downsample_norm": "downsample.1"}
LEAVES = {"scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}


def unit_of(arrays, kind):
    """The variables of a unit, or their gradients, out of arrays by the authors' names."""
    arrays = joined({key.partition("/")[2]: array for key, array in arrays.items() if key.startswith(f"{kind}/")})
    convolutions = {
        ours: {"kernel": arrays[f"{theirs}.weight"].transpose(2, 3, 1, 0)}
        for ours, theirs in UNIT.items()
        if f"{theirs}.weight" in arrays
    }
    norms = {
        ours: {leaf: arrays[f"{theirs}.{name}"] for leaf, name in LEAVES.items() if f"{theirs}.{name}" in arrays}
        for ours, theirs in NORMS.items()
        if any(key.startswith(f"{theirs}.") for key in arrays)
    }
    params = {name: {leaf: own[leaf] for leaf in ("scale", "bias") if leaf in own} for name, own in norms.items()}
    stats = {name: {leaf: own[leaf] for leaf in ("mean", "var") if leaf in own} for name, own in norms.items()}
    return {"params": convolutions | params, "batch_stats": stats}


def images(array):
    return array.transpose(0, 2, 3, 1)


@pytest.mark.parametrize("name", ["bottleneck_l2_end", "bottleneck_l3_s2", "bottleneck_l4_first"])
@pytest.mark.fast_cases(1)
def test_the_authors_units(name, contextual_figures):
    case, arrays = contextual_figures(name)
    conv = partial(ContextualConv, levels=case["levels"])
    ends = case["bn_end_stage"]
    unit = Bottleneck(case["planes"], case["stride"], 1, Identity, conv, PointwiseConv, norm_sum=ends)
    variables, x = unit_of(arrays, "w"), images(arrays["x"])

    @compiled
    def both(variables, x, cotangent):
        def trained(params, x):
            return unit.apply({**variables, "params": params}, x, train=True, mutable=["batch_stats"])

        y, pull, updated = jax.vjp(trained, variables["params"], x, has_aux=True)
        return unit.apply(variables, x), y, pull(cotangent), updated["batch_stats"]

    cotangent = images(arrays.get("ct", arrays["y_eval"]))
    y_eval, y_train, (by_params, by_x), after = both(variables, x, cotangent)
    close = partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-4)
    close(y_eval, images(arrays["y_eval"]))
    if "ct" in arrays:
        close(y_train, images(arrays["y_train"]))
        close(by_x, images(arrays["gx_train"]))
        jax.tree.map(close, by_params, unit_of(arrays, "g")["params"])
        values = {"norm1": x[..., 0].size} | dict.fromkeys(("norm2", "norm3", "downsample_norm"), y_eval[..., 0].size)
        for norm, wanted in unit_of(arrays, "after")["batch_stats"].items():
            close(after[norm]["mean"], wanted["mean"])
            # Torch averages the unbiased variances of batches, this project the biased ones.
            before, unbiased = 0.9 * variables["batch_stats"][norm]["var"], values[norm] / (values[norm] - 1)
            close(before + (np.asarray(after[norm]["var"]) - before) * unbiased, wanted["var"])


@pytest.mark.slow
def test_the_authors_network(contextual_figures, monkeypatch):
    case, arrays = contextual_figures("net_narrow_64")
    monkeypatch.setattr(coresnet, "UNITS", {50: tuple(case["blocks"])})
    monkeypatch.setattr(coresnet, "CHANNELS", tuple(case["planes"]))
    monkeypatch.setattr(coresnet, "STEM", case["stem"])
    network = CoResNet(case["classes"])
    weights = {key.partition("/")[2]: array for key, array in arrays.items() if key.startswith("w/")}
    variables = convert_network(network, weights, "coconv")
    assert sum(leaf.size for leaf in jax.tree.leaves(variables["params"])) == case["params"]
    y = compiled(network.apply)(variables, images(arrays["x"]))
    np.testing.assert_allclose(y, arrays["y_eval"], rtol=1e-5, atol=1e-5 * np.abs(arrays["y_eval"]).max())
    with pytest.raises(ValueError, match="coconv has no ResNet: choose CoResNet"):
        convert_network(ResNet(7, 50), weights, "coconv")


@pytest.mark.slow
@pytest.mark.parametrize("family", ["coresnet", "shufflenet_v2"])
def test_a_network_that_samples_by_the_image_follows_its_circular_shifts(family, monkeypatch, few_units):
    monkeypatch.setattr(coresnet, "UNITS", {50: (1, 1)})
    monkeypatch.setattr(coresnet, "CHANNELS", (64, 128))
    own = {"coresnet": {"levels": "42"}} if family == "coresnet" else {"spatial": "contextual"}
    network = build(NetworkConfig(family, width=0.5, mixer="shuffle", sampling="aps", **own), 3)
    x = np.random.default_rng(0).standard_normal((2, 8, 8, 3)).astype(np.float32)  # Taps go around it.
    variables = jax.jit(network.init)(jax.random.key(0), x)
    evaluate = jax.jit(network.apply)
    expected = evaluate(variables, x)
    assert np.std(expected) > 0.01
    for shift in ((1, 0), (3, 5)):
        np.testing.assert_allclose(evaluate(variables, np.roll(x, shift, (1, 2))), expected, atol=1e-5)


def test_each_stage_has_its_levels_and_its_last_unit_the_norm_of_the_sum(monkeypatch):
    found, units = {}, (2, 1, 3, 1)
    monkeypatch.setattr(coresnet, "UNITS", {50: units})

    def record(call, args, kwargs, context):
        module = context.module
        if isinstance(module, ContextualConv):
            found[module.path[0]] = (module.levels, module.stride, module.padding, found.get(module.path[0]))
        if isinstance(module, Bottleneck):
            found[module.path[0]] = module.norm_sum
        return call(*args, **kwargs)

    with nn.intercept_methods(record):
        shape = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
        jax.eval_shape(CoResNet(3, width=1 / 8, levels="5321", stem="small").init, jax.random.key(0), shape)
    for name, (levels, stride, padding, ends) in found.items():
        stage, unit = int(name[5]), int(name[7])
        assert levels == (5, 3, 2, 1)[stage - 1]
        assert stride == (2 if stage > 1 and unit == 0 else 1)
        assert padding == "zeros"
        assert ends == (unit == units[stage - 1] - 1)
    assert len(found) == 7


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"depth": 18}, r"CoResNet has no depth 18: choose one of \[50, 101, 152\]"),
        ({"levels": "432"}, "levels must be 4 digits from 1 to 5, one a stage, such as 4321, got 432"),
        ({"levels": "6321"}, "one a stage, such as 4321, got 6321"),
        ({"width": 0.3}, "width must be a multiple of 1/64 above 0, got 0.3"),
        ({"width": 1 / 32}, "4 levels divide a multiple of 4 channels, got 2: choose fewer levels"),
        ({"groups": 8, "width": 0.25}, r"8 groups must divide the outputs of every level, got \(4, 4, 4, 4\)"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(options, message):
    network = CoResNet(3, **{"stem": "small", **options})
    with pytest.raises(ValueError, match=message) as refused:
        jax.eval_shape(network.init, jax.random.key(0), jax.ShapeDtypeStruct((1, 8, 8, 3), jnp.float32))
    assert "\n" not in str(refused.value)
