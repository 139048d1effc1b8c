"""CondConv and DY-Conv equal their equations, in both forms, and cost what they say."""

from __future__ import annotations

import itertools
import re
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from shuffle_jax.analysis.count import count, count_layers, inside
from shuffle_jax.models.mobilenet_v2 import MobileNetV2
from shuffle_jax.nn import CondConv, DYConv
from shuffle_jax.nn.collections import PROGRESS
from shuffle_jax.nn.kernel_attention import KernelAttention
from shuffle_jax.ops import convolution
from shuffle_jax.sharding import batch_sharding, data_mesh, replicated

FORMS = ("features", "kernels")
compiled = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})  # Half the compilation.
LAYERS = (CondConv, DYConv)
CASES = {  # shape of the images, options
    "pointwise": ((3, 4, 5, 6), {"features": 8}),
    "3x3, strided, with biases": ((2, 6, 5, 6), {"features": 5, "kernel_size": 3, "stride": 2, "use_bias": True}),
    "in groups, padded as given": (
        (2, 5, 4, 6),
        {"features": 9, "kernel_size": (2, 3), "groups": 3, "padding": ((0, 2), (1, 0)), "use_bias": True, "count": 3},
    ),
    "depthwise": ((2, 4, 4, 6), {"features": 6, "kernel_size": 3, "groups": 6}),
    "a sequence": (
        (3, 9, 6),
        {"features": 4, "kernel_size": 4, "stride": 2, "groups": 2, "padding": ((3, 0),), "use_bias": True},
    ),
    "a sequence, padded by itself": ((2, 5, 6), {"features": 4, "kernel_size": (3,), "count": 1}),
    "one image of one position": ((1, 1, 1, 6), {"features": 4, "kernel_size": 3, "use_bias": True}),
}


def numbers(shapes, seed=0):
    """Parameters of ordinary size, none of them at its start."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: rng.standard_normal(leaf.shape).astype(np.float32), shapes)


def images(shape, seed=1):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def parameters(layer, x):
    return {"params": numbers(jax.eval_shape(layer.init, jax.random.key(0), x)["params"])}


def routing(layer, params, x, temperature=1.0):
    """The weights of each image as the docstrings read, in float64."""
    head = jax.tree.map(np.float64, params["generator"])
    mean = np.float64(x).mean(tuple(range(1, x.ndim - 1)))
    if isinstance(layer, CondConv):
        return 1 / (1 + np.exp(-(mean @ head["kernel"] + head["bias"])))
    h = np.maximum(mean @ head["hidden"]["kernel"] + head["hidden"]["bias"], 0)
    powers = np.exp((h @ head["logits"]["kernel"] + head["logits"]["bias"]) / temperature)
    return powers / powers.sum(-1, keepdims=True)


def oracle(layer, params, x):
    """One image, position and channel out at a time."""
    weights, k, pads = routing(layer, params, x), layer.kernel_size, layer.padding
    axes = x.ndim - 2
    k = (k,) * axes if isinstance(k, int) else k
    pads = tuple((size // 2, size // 2) for size in k) if pads is None else pads
    padded = np.pad(np.float64(x), ((0, 0), *pads, (0, 0)))
    if axes == 1:
        padded, k = padded[:, None], (1, *k)
    rows, columns = ((m - size) // layer.stride + 1 for m, size in zip(padded.shape[1:3], k, strict=True))
    y = np.zeros((len(x), rows, columns, layer.features))
    inputs, outputs = x.shape[-1] // layer.groups, layer.features // layer.groups
    for image, i, j, out in np.ndindex(y.shape):
        kernel = sum(r * np.float64(w) for r, w in zip(weights[image], params["kernels"], strict=True))
        bias = weights[image] @ params["biases"][:, out] if layer.use_bias else 0
        top, left, first = i * layer.stride, j * layer.stride, out // outputs * inputs
        seen = padded[image, top : top + k[0], left : left + k[1], first : first + inputs]
        y[image, i, j, out] = (seen * kernel[..., out]).sum() + bias
    return y[:, 0] if axes == 1 else y


@pytest.mark.parametrize("make", LAYERS)
@pytest.mark.parametrize("name", CASES)
@pytest.mark.fast_cases(3)
def test_both_forms_equal_the_equation_and_each_other_with_gradients(name, make):
    shape, options = CASES[name]
    layer, x = make(**options), images(shape)
    variables = parameters(layer, x)
    expected = oracle(layer, variables["params"], x)
    cotangent = images(expected.shape, seed=2)

    def run(form, variables, x, train=False):
        y, pull_back = jax.vjp(partial(layer.clone(form=form).apply, train=train), variables, x)
        return y, pull_back(jnp.asarray(cotangent))

    for form in FORMS:  # What training computes is the same program.
        trained, evaluated = (jax.make_jaxpr(partial(run, form, train=train))(variables, x) for train in (True, False))
        assert str(trained) == str(evaluated)
    (one, first), (other, second) = compiled(lambda *args: [run(form, *args) for form in FORMS])(variables, x)
    np.testing.assert_allclose(one, np.float32(expected), rtol=1e-4, atol=1e-4, strict=True)
    np.testing.assert_allclose(other, np.float32(expected), rtol=1e-4, atol=1e-4, strict=True)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-4), first, second)
    assert layer.count == 1 or all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(first))


def one_hot(make, params, chosen, size):
    """A head that chooses one kernel, whatever the image."""
    bias = np.where(np.arange(size) == chosen, 1e4, -1e4).astype(np.float32)
    if make is CondConv:
        head = {"kernel": 0 * params["generator"]["kernel"], "bias": bias}
    else:
        logits = params["generator"]["logits"]
        head = params["generator"] | {"logits": {"kernel": 0 * logits["kernel"], "bias": bias}}
    return {"params": params | {"generator": head}}


@pytest.mark.parametrize("make", LAYERS)
def test_a_head_that_chooses_one_kernel_makes_the_layer_static(make):
    layer = make(6, kernel_size=3, stride=2, groups=2, use_bias=True, count=3)
    x = images((2, 5, 5, 4))
    params = parameters(layer, x)["params"]

    @compiled
    def run(variables, kernel):
        static = convolution.convolution(x, kernel, 2, groups=2)
        return static, [layer.clone(form=form).apply(variables, x) for form in FORMS]

    for chosen in range(3):
        static, found = run(one_hot(make, params, chosen, 3), params["kernels"][chosen])
        for y in found:
            np.testing.assert_allclose(y, static + params["biases"][chosen].reshape(1, 1, 1, -1), rtol=1e-5, atol=1e-5)


def test_attention_over_equal_kernels_is_that_kernel():
    layer, x = DYConv(6, kernel_size=3), images((3, 4, 4, 5))
    params = parameters(layer, x)["params"]
    params["kernels"][:] = params["kernels"][:1]

    @compiled
    def run(x):
        found = [layer.clone(form=form).apply({"params": params}, x) for form in FORMS]
        return convolution.convolution(x, params["kernels"][0]), found

    expected, found = run(x)
    for y in found:
        np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("make", LAYERS)
def test_an_image_has_its_own_kernel_whatever_else_is_in_the_batch(make, form):
    layer, x = make(5, kernel_size=3, form=form, use_bias=True), images((3, 4, 3, 6))
    variables = parameters(layer, x)
    apply = compiled(layer.apply)
    together, twice, nothing = (apply(variables, times * x) for times in (1, 2, 0))
    alone = compiled(lambda x: layer.apply(variables, x, train=True))
    for i in range(3):
        np.testing.assert_allclose(alone(x[i : i + 1])[0], together[i], rtol=1e-5, atol=1e-5)
    doubled, linear = twice - nothing, 2 * (together - nothing)
    assert np.abs(doubled - linear).max() > 0.1  # A kernel that images do not change would be linear.


@pytest.mark.parametrize(
    ("layer", "own", "head"),
    [
        (CondConv(8), 8 * 6 * 8, 6 * 8 + 8),
        (CondConv(9, kernel_size=3, groups=3, count=5, use_bias=True), 5 * (9 * 2 * 9 + 9), 6 * 5 + 5),
        (DYConv(8), 4 * 6 * 8, 6 * 4 + 4 + 4 * 4 + 4),
        (DYConv(8, kernel_size=(1, 5), count=2, hidden=3), 2 * 5 * 6 * 8, 6 * 3 + 3 + 3 * 2 + 2),
    ],
)
def test_parameters(layer, own, head):
    shapes = jax.eval_shape(layer.init, jax.random.key(0), jnp.zeros((1, 5, 5, 6)))["params"]
    assert set(shapes) == {"generator", "kernels"} | ({"biases"} if layer.use_bias else set())
    assert {leaf.dtype for leaf in jax.tree.leaves(shapes)} == {jnp.dtype(jnp.float32)}
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes["generator"])) == head
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == own + head


def test_a_quarter_of_the_channels_is_hidden():
    shapes = jax.eval_shape(DYConv(8).init, jax.random.key(0), jnp.zeros((1, 2, 2, 70)))["params"]
    assert shapes["generator"]["hidden"]["kernel"].shape == (70, 17)


@pytest.mark.parametrize("make", LAYERS)
def test_every_kernel_starts_as_a_kernel_by_itself(make):
    asked = []

    def start(key, shape):
        asked.append(shape)
        return jax.random.normal(key, shape)

    x = jnp.zeros((1, 3, 3, 6))
    head = nn.initializers.constant(0.5)
    layer = make(60, kernel_size=3, groups=2, kernel_init=start, head_init=head, use_bias=True)
    params = compiled(layer.init)(jax.random.key(0), x)["params"]
    assert set(asked) == {(3, 3, 3, 60)}
    assert len(np.unique(params["kernels"])) > 0.99 * params["kernels"].size
    assert not params["biases"].any()
    assert all((leaf == 0.5 * (leaf.ndim == 2)).all() for leaf in jax.tree.leaves(params["generator"]))
    default = compiled(make(60, kernel_size=3).init)(jax.random.key(0), jnp.zeros((1, 3, 3, 40)))["params"]
    np.testing.assert_allclose(default["kernels"].var((1, 2, 3, 4)), 2 / (9 * 60), rtol=0.05)


def weights_of(layer, variables, x):
    """What the submodule "generator" gives; logits in CondConv."""
    _, kept = layer.apply(variables, x, capture_intermediates=True, mutable=["intermediates"])
    (y,) = kept["intermediates"]["generator"]["__call__"]
    return y


@pytest.mark.parametrize("make", LAYERS)
def test_dtype_is_that_of_the_computation_and_routing_is_float32(make):
    half = make(5, kernel_size=3, use_bias=True, dtype=jnp.bfloat16)
    x = images((2, 6, 6, 6))
    variables = parameters(half, x)
    expected = oracle(half, variables["params"], x)
    for y in compiled(lambda x: [half.clone(form=form).apply(variables, x) for form in FORMS])(x):
        assert y.dtype == jnp.bfloat16
        np.testing.assert_allclose(y.astype(jnp.float32), expected, atol=2**-6 * np.abs(expected).max())
    # The mean of images that are given in bfloat16 is taken in float32, and so is all that follows.
    narrow = jnp.asarray(x, jnp.bfloat16)
    assert jax.eval_shape(make(5).apply, parameters(make(5), x), narrow).dtype == jnp.bfloat16
    weights = weights_of(half, variables, narrow)
    assert weights.dtype == jnp.float32
    weights = nn.sigmoid(weights) if make is CondConv else weights
    np.testing.assert_allclose(weights, routing(half, variables["params"], narrow), rtol=1e-4)


def told(x):
    return {PROGRESS: {"generator": {"share": jnp.float32(x)}}}


def test_the_temperature_falls_linearly_and_ends_where_nobody_tells_the_progress():
    layer, x = DYConv(4, temperature=30.0, end_temperature=2.0, annealing=0.4), images((3, 2, 2, 8))
    variables = parameters(layer, x)
    laws = ((0.0, 30.0), (0.1, 23.0), (0.2, 16.0), (0.4, 2.0), (0.7, 2.0), (1.0, 2.0))
    weigh = compiled(partial(weights_of, layer))
    for done, temperature in laws:
        weights = weigh(variables | told(done), x)
        expected = routing(layer, variables["params"], x, temperature)
        np.testing.assert_allclose(weights, expected, rtol=1e-4, err_msg=str(done))
    np.testing.assert_allclose(weights_of(layer, variables, x), weights, rtol=1e-6)
    every = {}, told(0.0), told(1.0)
    for train in (False, True):  # It is the progress that counts, and not the mode.
        run = compiled(lambda x, t=train: [layer.apply(variables | own, x, train=t) for own in every])
        untold, early, late = run(x)
        assert np.abs(early - late).max() > 0.01
        np.testing.assert_array_equal(untold, late)


def test_the_defaults_fall_from_thirty_to_one_in_a_tenth_of_the_training():
    layer, x = DYConv(4), images((3, 2, 2, 8))
    variables = parameters(layer, x)
    weigh = compiled(partial(weights_of, layer))
    for done, temperature in ((0.0, 30.0), (0.05, 15.5), (0.1, 1.0), (1.0, 1.0)):
        expected = routing(layer, variables["params"], x, temperature)
        np.testing.assert_allclose(weigh(variables | told(done), x), expected, rtol=1e-4)


def test_high_temperatures_make_attention_uniform_and_low_ones_choose():
    x = images((3, 2, 2, 8))
    variables = parameters(DYConv(4, count=5), x)

    def at(temperature):
        layer = DYConv(4, count=5, temperature=temperature, end_temperature=None)
        return np.asarray(weights_of(layer, variables | told(0.5), x))

    np.testing.assert_allclose(at(1e7), 1 / 5, rtol=1e-5)
    assert (at(1e-4).max(-1) > 0.95).all()
    spreads = [at(temperature).std(-1) for temperature in (0.3, 1.0, 3.0, 30.0)]
    assert all((hot < cold).all() for cold, hot in itertools.pairwise(spreads))


def test_only_a_temperature_that_moves_asks_for_the_progress():
    x = jnp.zeros((1, 2, 2, 8))
    moving = jax.eval_shape(DYConv(4).init, jax.random.key(0), x)
    assert jax.tree.structure(moving[PROGRESS]) == jax.tree.structure({"generator": {"share": 0}})
    for layer in (DYConv(4, end_temperature=None), CondConv(4)):
        assert set(jax.eval_shape(layer.init, jax.random.key(0), x)) == {"params"}


@pytest.mark.parametrize(
    ("layer", "shape", "form", "own", "head"),
    [
        # Kernels: (K + s) k^2 c o / g; features: s K (k^2 c / g + 1) o; biases: K o.
        (CondConv(8), (4, 5, 6), "kernels", (8 + 20) * 6 * 8, 6 * 8),
        (CondConv(8, form="features"), (4, 5, 6), "features", 20 * 8 * 7 * 8, 6 * 8),
        (CondConv(8, count=5, use_bias=True), (1, 1, 6), "features", 5 * 7 * 8 + 5 * 8, 6 * 5),
        (CondConv(8, count=5, form="kernels"), (1, 1, 6), "kernels", (5 + 1) * 6 * 8, 6 * 5),
        (CondConv(8, count=7), (1, 1, 6), "kernels", (7 + 1) * 6 * 8, 6 * 7),
        (
            DYConv(9, kernel_size=3, stride=2, groups=3, use_bias=True),
            (5, 6, 6),
            "kernels",
            (4 + 9) * 9 * 2 * 9 + 4 * 9,
            24 + 16,
        ),
        (
            DYConv(4, kernel_size=5, form="features", padding=((0, 0),)),
            (11, 6),
            "features",
            7 * 4 * (5 * 6 + 1) * 4,
            24 + 16,
        ),
    ],
)
def test_multiply_adds_of_the_form_that_is_taken(layer, shape, form, own, head):
    layers = count_layers(layer, shape)
    assert inside(layers, "generator").multiply_adds == head
    assert count(layer, shape).multiply_adds == own + head
    x = jnp.zeros((1, *shape))
    variables = parameters(layer, x)
    programs = {name: str(jax.make_jaxpr(layer.clone(form=name).apply)(variables, x)) for name in FORMS}
    assert programs["features"] != programs["kernels"]
    assert str(jax.make_jaxpr(layer.apply)(variables, x)) == programs[form]


@pytest.mark.parametrize("make", LAYERS)
def test_the_compiled_gradient_reduces_over_devices_and_never_gathers_the_batch(make):
    layer = make(6, kernel_size=3, groups=2, use_bias=True)
    x = images((4, 6, 6, 8))
    mesh = data_mesh(jax.devices()[:2])
    split, whole = batch_sharding(mesh), replicated(mesh)
    variables = jax.device_put(parameters(layer, x), whole)

    def loss(variables, x):
        return sum(jnp.square(layer.clone(form=form).apply(variables, x, train=True)).mean() for form in FORMS)

    gradient = compiled(jax.grad(loss, argnums=(0, 1)), out_shardings=(whole, split))
    text = gradient.lower(variables, jax.device_put(x, split)).compile().as_text()
    assert "all-reduce" in text
    assert re.findall("all-gather|all-to-all|collective-permute", text) == []


@pytest.mark.parametrize(("make", "kernels"), [(CondConv, 8), (DYConv, 4)])
@pytest.mark.fast_cases(1)
def test_takes_the_place_of_every_pointwise_layer_of_a_network(make, kernels):
    static, dynamic = MobileNetV2(10, width=0.35), MobileNetV2(10, width=0.35, pointwise=make)
    counts = [count(network, (33, 33, 3)) for network in (static, dynamic)]
    layers = [layer for layer in count_layers(static, (33, 33, 3)) if layer.path.endswith(("/expand", "/project"))]
    layers = [layer for layer in layers if not layer.path.startswith("stage1")]
    assert len(layers) == 32
    more = inside(count_layers(dynamic, (33, 33, 3)), "generator").parameters
    more += (kernels - 1) * sum(layer.cost.parameters for layer in layers)
    assert counts[1].parameters == counts[0].parameters + more


@pytest.mark.parametrize("make", LAYERS)
def test_errors_name_value_limit_and_remedy(make):
    def run(shape=(1, 4, 4, 6), **options):
        jax.eval_shape(make(**{"features": 8} | options).init, jax.random.key(0), jnp.zeros(shape))

    with pytest.raises(ValueError, match=r"^6 channels cannot be split into 4 groups: choose one of \[1, 2, 3, 6\]"):
        run(groups=4)
    with pytest.raises(ValueError, match=r"^8 channels cannot be split into 3 groups: choose one of \[1, 2, 4, 8\]"):
        run(groups=3)
    with pytest.raises(ValueError, match=r"^count must be positive, got 0"):
        run(count=0)
    with pytest.raises(ValueError, match=r"takes \(n, h, w, c\) or \(n, l, c\), not 5 axes"):
        run((1, 2, 2, 2, 6))
    with pytest.raises(ValueError, match=r"^kernel_size \(3, 3\) is for 2 axes, the input has 1: give one for each"):
        run((1, 4, 6), kernel_size=(3, 3))
    with pytest.raises(ValueError, match=r"^padding \(\(1, 1\),\) is for 1 axes, the input has 2: give one for each"):
        run(padding=((1, 1),))
    with pytest.raises(ValueError, match=r"^kernel_size and stride must be positive, got \(3, 3\) and 0"):
        run(kernel_size=3, stride=0)
    with pytest.raises(ValueError, match=r"window of 5 x 5 does not fit an image of 4 x 4 padded by .*: use a larger"):
        run(kernel_size=5, padding=((0, 0), (0, 0)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": 0.0}, "temperature must be positive, got 0.0"),
        ({"end_temperature": -1.0}, "end_temperature must be positive, got -1.0"),
        ({"annealing": 0.0}, "annealing must be above 0 and at most 1, got 0.0"),
        ({"annealing": 1.5}, "annealing must be above 0 and at most 1, got 1.5"),
        ({"hidden": 0}, "hidden must be positive, got 0"),
    ],
)
def test_a_head_that_cannot_be_is_refused(options, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        jax.eval_shape(DYConv(4, **options).init, jax.random.key(0), jnp.zeros((1, 2, 2, 8)))


def test_what_layers_share_is_no_layer():
    with pytest.raises(NotImplementedError, match="use CondConv or DYConv"):
        jax.eval_shape(KernelAttention(4).init, jax.random.key(0), jnp.zeros((1, 2, 2, 8)))
