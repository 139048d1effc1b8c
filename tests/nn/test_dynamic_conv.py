"""The layer against the authors' blocks, evaluated elsewhere: values, gradients and running statistics."""

from __future__ import annotations

import math
import re
from functools import partial
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from shuffle_jax.analysis.count import count, count_layers, inside
from shuffle_jax.models.decomposition import basic_sizes, bottleneck_sizes
from shuffle_jax.nn.dynamic_conv import DynamicConv, DynamicDense, Sizes, default_sizes
from shuffle_jax.sharding import batch_sharding, data_mesh, replicated

FIGURES = np.load(Path(__file__).parents[1] / "fixtures" / "dcd_blocks.npz")
BLOCKS = {
    "mb_expand_24_144_7": DynamicConv(144, rule=default_sizes, squeeze=16),
    "mb_tiny_4_6_4": DynamicConv(6, rule=default_sizes, squeeze=8),
    "rb_3x3_s2_16_32_7": DynamicConv(32, 3, 2, rule=basic_sizes),
    "rn_3x3_s1_32_32_8": DynamicConv(32, 3, 1, rule=bottleneck_sizes),
    "cls_64_10": DynamicDense(10),
}
HEAD = {"fc.0": "squeeze", "fc.1.fc.0": "gate", "fc_phi": "fusion", "fc_scale": "scale"}
NORM = {"weight": "scale", "bias": "bias", "running_mean": "mean", "running_var": "var"}
rng = np.random.default_rng(0)


def last(array):
    """Channels last."""
    return np.moveaxis(array, 1, -1) if array.ndim == 4 else array


def arrays(case, kind):
    """The figures of one kind, such as "w" for weights, under the names of our variables."""
    found = {"params": {"generator": {}}, "batch_stats": {}}
    for key in FIGURES.files:
        owner, _, leaf = key.removeprefix(f"{case}/{kind}/").rpartition(".")
        if not key.startswith(f"{case}/{kind}/"):
            continue
        value = FIGURES[key]
        if owner in HEAD:
            found["params"]["generator"][HEAD[owner]] = {"kernel": value.T}
        elif owner.startswith("bn"):
            collection = "batch_stats" if leaf.startswith("running") else "params"
            found[collection].setdefault(f"norm{owner[2]}", {})[NORM[leaf]] = value
        elif leaf == "bias":
            found["params"]["bias"] = value
        else:
            name = owner.rpartition("_")[2] if owner[-2:] in ("_q", "_p") or owner in ("q", "p") else "kernel"
            found["params"][name] = value.reshape(*value.shape, *(1,) * (4 - value.ndim)).transpose(2, 3, 1, 0)
    return {name: {"layer": tree} for name, tree in found.items()} if case.startswith("cls") else found


compiled = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})  # Half the compilation.


def drawn(layer, x, dtype=np.float32):
    """Variables of ordinary size, none of them at its start; coefficients of the order of 1."""
    own = np.random.default_rng(1)

    def leaf(path, shape):
        match path[-1].key:
            case "scale" | "var":
                return own.uniform(0.5, 1.5, shape.shape).astype(dtype)
            case "kernel" | "q" | "p" | "r":
                fan = max(1, math.prod(shape.shape[:-1]))
                return (own.standard_normal(shape.shape) / np.sqrt(fan)).astype(dtype)
        return (0.3 * own.standard_normal(shape.shape)).astype(dtype)

    return jax.tree_util.tree_map_with_path(leaf, jax.eval_shape(layer.init, jax.random.key(0), x))


def evaluated(layer, variables, x):
    return compiled(layer.apply)(variables, x)


def assert_near(actual, expected, tolerance=1e-5):
    expected = np.asarray(expected)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance * np.abs(expected).max())


@pytest.mark.parametrize("case", BLOCKS)
def test_published_blocks_are_reproduced_in_value_gradient_and_statistics(case):
    module, variables, x = BLOCKS[case], arrays(case, "w"), last(FIGURES[f"{case}/x"])
    shapes = jax.eval_shape(module.init, jax.random.key(0), x)
    assert jax.tree.map(np.shape, variables) == jax.tree.map(np.shape, shapes)

    @compiled
    def step(params, x):
        def loss(params, x):
            y, updates = module.apply({**variables, "params": params}, x, train=True, mutable=["batch_stats"])
            return jnp.vdot(y, jnp.asarray(last(FIGURES[f"{case}/ct"]))), (y, updates["batch_stats"])

        return jax.grad(loss, argnums=(0, 1), has_aux=True)(params, x), module.apply(variables, x)

    ((of_params, of_x), (y, statistics)), evaluation = step(variables["params"], x)
    assert_near(evaluation, last(FIGURES[f"{case}/y_eval"]))
    assert_near(y, last(FIGURES[f"{case}/y_train"]))
    assert_near(of_x, last(FIGURES[f"{case}/gx_train"]))
    jax.tree.map(assert_near, of_params, arrays(case, "g")["params"])
    jax.tree.map(assert_near, statistics, arrays(case, "after")["batch_stats"])


def reference(x, params, statistics, stride, latent, groups=1):
    """The equations of the paper's page in NumPy, float64: evaluation of a k x k layer with pool 2, channels first."""

    def gate(z):
        return np.clip(z + 3, 0, 6) / 3

    def norm(q, name):
        p, s = params[name], statistics[name]
        factor = p["scale"] / np.sqrt(s["var"] + 1e-5)
        return (q - s["mean"][:, None, None]) * factor[:, None, None] + p["bias"][:, None, None]

    c, h, w = x.shape[1:]
    kernel, head = params["kernel"], {name: entry["kernel"].T for name, entry in params["generator"].items()}
    k, out = kernel.shape[0], kernel.shape[-1]
    padded = np.pad(x, ((0, 0), (0, 0), (k // 2, k // 2), (k // 2, k // 2)))
    results = []
    for image, wide in zip(x, padded, strict=True):
        bins = [
            (slice(i * h // 2, -(-(i + 1) * h // 2)), slice(j * w // 2, -(-(j + 1) * w // 2)))
            for i, j in np.ndindex(2, 2)
        ]
        v = np.array([image[channel][rows, columns].mean() for channel in range(c) for rows, columns in bins])
        hidden = head["squeeze"] @ v
        hidden = hidden * gate(head["gate"] @ hidden)
        phi, scale = (head["fusion"] @ hidden).reshape(latent, latent), gate(head["scale"] @ hidden)
        q = norm(np.einsum("cl,chw->lhw", params["q"][0, 0], image[:, ::stride, ::stride]), "norm1")
        fused = norm(np.einsum("ml,lhw->mhw", phi, q), "norm2") + q
        static = np.zeros((out, *q.shape[1:]))
        for (i, j), (a, b) in ((s, t) for s in np.ndindex(*q.shape[1:]) for t in np.ndindex(k, k)):
            static[:, i, j] += kernel[a, b].T @ wide[:, stride * i + a, stride * j + b]
        results.append(scale[:, None, None] * static + np.einsum("lo,lhw->ohw", params["p"][0, 0], fused))
    return np.array(results)


@pytest.mark.parametrize("stride", [1, 2])
def test_both_forms_are_the_equations_to_ten_digits_in_float64(stride):
    layer = DynamicConv(6, 3, stride, rule=basic_sizes)
    x = rng.standard_normal((2, 5, 6, 7))
    variables = jax.eval_shape(layer.init, jax.random.key(0), jnp.zeros((2, 6, 7, 5)))
    draw = jax.tree.map(lambda leaf: rng.uniform(0.5, 1.5, leaf.shape) * rng.choice([-1.0, 1.0], leaf.shape), variables)
    draw["batch_stats"] = jax.tree.map(np.abs, draw["batch_stats"])
    expected = reference(x, draw["params"], draw["batch_stats"], stride, latent=4)
    with jax.enable_x64(True):
        both = compiled(lambda v, x: [layer.clone(form=form).apply(v, x) for form in FORMS])
        for actual in both(jax.tree.map(jnp.asarray, draw), jnp.asarray(x.transpose(0, 2, 3, 1))):
            assert actual.dtype == np.float64
            np.testing.assert_allclose(np.moveaxis(actual, -1, 1), expected, rtol=1e-10, atol=1e-9)


def test_a_latent_that_is_not_given_is_a_multiple_of_the_blocks():
    for groups, latent in ((1, 12), (2, 12), (8, 8), (24, 24)):
        shapes = jax.eval_shape(DynamicConv(144, groups=groups).init, jax.random.key(0), jnp.zeros((1, 2, 2, 24)))
        assert shapes["params"]["q"].shape == (1, 1, 24 // groups, latent)


def test_sizes_are_those_of_the_published_rules():
    assert default_sizes(24, 144, 16) == Sizes(2, 12, 9)
    assert default_sizes(4, 6, 8) == Sizes(2, 4, 4)
    # 960 -> 320: min(960, 320) / 2 = 160, 160^2 > 2 * 960; / 4 = 80; / 8 = 40, 40^2 = 1600 fits.
    assert default_sizes(960, 320, 8) == Sizes(1, 40, 1600 // 8)
    assert basic_sizes(16, 32) == Sizes(2, 8, 4)
    assert basic_sizes(512, 512) == Sizes(2, 45, 2048 // 16)
    assert bottleneck_sizes(32, 32) == Sizes(1, 5, 2)
    assert bottleneck_sizes(9, 9).hidden == 1  # The rule gives none.


def test_at_the_start_it_is_almost_the_static_convolution_with_its_latent_identity():
    x = rng.standard_normal((2, 6, 6, 8)).astype(np.float32)
    layer = DynamicConv(12, 3, rule=basic_sizes)
    variables = compiled(layer.init)(jax.random.key(0), x)
    params = {**variables["params"], "p": jnp.zeros_like(variables["params"]["p"])}
    y = evaluated(layer, {**variables, "params": params}, x)
    expected = nn.Conv(12, (3, 3), padding=1, use_bias=False).apply({"params": {"kernel": params["kernel"]}}, x)
    assert_near(y, expected, 0.02)  # lambda is one but for a head that starts near zero.


FORMS = ("features", "kernels")
LAYERS = {
    "grouped": DynamicConv(8, 3, groups=2, rule=basic_sizes, latent=4),
    "sparse": DynamicConv(12, 1, blocks=4, latent=8),
    "elements": DynamicConv(12, 3, 2, rule=basic_sizes, elements=2),
    "bias, padding": DynamicConv(12, (3, 5), padding=((0, 1), (2, 2)), rule=basic_sizes, use_bias=True),
}


@pytest.mark.parametrize("layer", LAYERS.values(), ids=LAYERS)
def test_both_forms_agree(layer):
    x = rng.standard_normal((3, 7, 6, 8)).astype(np.float32)
    variables = drawn(layer, x)
    assert_near(*compiled(lambda x: [layer.clone(form=form).apply(variables, x) for form in FORMS])(x))


def test_a_sequence_is_an_image_of_one_row_whose_bins_are_its_own():
    x = rng.standard_normal((2, 9, 8)).astype(np.float32)
    layer = DynamicConv(12, 3, 2, rule=basic_sizes, pool=1)
    variables = drawn(layer, x)
    assert variables["params"]["kernel"].shape == (1, 3, 8, 12)
    image = layer.clone(kernel_size=(1, 3))
    y, as_image = compiled(lambda x: (layer.apply(variables, x), image.apply(variables, x[:, None])))(x)
    assert y.shape == (2, 5, 12)
    assert_near(y, as_image[:, 0])
    two = drawn(layer.clone(pool=2), x)
    assert two["params"]["generator"]["squeeze"]["kernel"].shape[0] == 8 * 2


@pytest.mark.parametrize("size", [(1, 1), (2, 5)])
def test_one_image_of_any_size_is_trained_and_evaluated(size):
    x = rng.standard_normal((1, *size, 8)).astype(np.float32)
    layer = DynamicConv(12, 3, 2, rule=basic_sizes)
    variables = drawn(layer, x)

    def loss(params):
        y, updates = layer.apply({**variables, "params": params}, x, train=True, mutable=["batch_stats"])
        return jnp.sum(y**2), (updates, layer.apply({**variables, **updates}, x))

    found = compiled(jax.grad(loss, has_aux=True))(variables["params"])
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(found))


def test_the_compiled_gradient_reduces_over_devices_and_never_gathers_the_batch():
    layer = DynamicConv(6, kernel_size=3, groups=2, latent=4, rule=basic_sizes)
    x = jnp.asarray(rng.standard_normal((4, 6, 6, 8)), jnp.float32)
    mesh = data_mesh(jax.devices()[:2])
    split, whole = batch_sharding(mesh), replicated(mesh)
    variables = jax.device_put(drawn(layer, x), whole)

    def loss(variables, x):
        trained, _ = layer.apply(variables, x, train=True, mutable=["batch_stats"])
        found = [trained, *(layer.clone(form=form).apply(variables, x) for form in FORMS)]
        return sum(jnp.square(y).mean() for y in found)

    gradient = compiled(jax.grad(loss, argnums=(0, 1)), out_shardings=(whole, split))
    text = gradient.lower(variables, jax.device_put(x, split)).compile().as_text()
    assert "num_partitions=2" in text and "all-reduce" in text
    assert re.findall("all-gather|all-to-all|collective-permute", text) == []


def test_half_precision_stays_half_precision_with_parameters_in_float32():
    layer = DynamicConv(12, 3, rule=basic_sizes, dtype=jnp.bfloat16)
    x = rng.standard_normal((2, 5, 5, 8)).astype(np.float32)
    shapes = jax.eval_shape(layer.init, jax.random.key(0), x)
    assert {leaf.dtype for leaf in jax.tree.leaves(shapes)} == {jnp.dtype("float32")}
    variables = drawn(layer, x)
    y, full = compiled(lambda x: [layer.clone(dtype=dtype).apply(variables, x) for dtype in (jnp.bfloat16, None)])(x)
    assert y.dtype == jnp.bfloat16
    assert_near(y.astype(jnp.float32), full, 0.03)


def test_parameters_and_multiply_adds_are_counted_with_the_head_apart():
    # 24 -> 144 with L = 12, s = 9, pool 2, at 7 x 7.
    layers = count_layers(DynamicConv(144, squeeze=16, form="features"), (7, 7, 24))
    head = 96 * 9 + 9 * 9 + 9 * 144 + 9 * 144
    assert inside(layers, "generator").parameters == inside(layers, "generator").multiply_adds == head
    total = count(DynamicConv(144, squeeze=16, form="features"), (7, 7, 24))
    assert total.parameters == head + 24 * 144 + 24 * 12 + 12 * 144 + 4 * 12
    assert total.multiply_adds == head + 49 * (24 * 144 + 24 * 12 + 12 * 12 + 12 * 144 + 144)
    kernels = DynamicConv(144, squeeze=16, form="kernels")
    synthesised = 24 * 144 + 24 * 12 * 12 + 24 * 144 * 12 + 12 * 12
    assert count(kernels, (7, 7, 24)).multiply_adds == head + 49 * 24 * 144 + synthesised
    # The numbers do not depend on where the variables come from.
    variables = jax.eval_shape(kernels.init, jax.random.key(0), jnp.zeros((1, 7, 7, 24)))
    assert count(kernels, (7, 7, 24), variables) == count(kernels, (7, 7, 24))
    assert total.parameters == sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(variables["params"]))


@pytest.mark.parametrize(
    "layer, shape, fewest, auto",
    [
        (DynamicConv(144), (16, 16, 24), "kernels", "kernels"),
        (DynamicConv(144), (2, 2, 24), "features", "features"),
        (DynamicConv(64, 3, rule=basic_sizes), (64, 64, 64), "kernels", "features"),
        (DynamicConv(64, 3, rule=basic_sizes), (4, 4, 64), "features", "features"),
    ],
)
def test_large_windows_are_added_even_where_kernels_take_fewer_multiply_adds(layer, shape, fewest, auto):
    counts = {form: count(layer.clone(form=form), shape).multiply_adds for form in ("features", "kernels")}
    assert min(counts, key=counts.__getitem__) == fewest
    assert count(layer.clone(form="fewest"), shape).multiply_adds == counts[fewest]
    assert count(layer, shape).multiply_adds == counts[auto]


@pytest.mark.parametrize(
    "layer, message",
    [
        (
            DynamicConv(12, latent=9),
            "9 latent channels in 1 blocks do not fit 8 channels: set latent to a multiple of 1",
        ),
        (DynamicConv(12, groups=3), "8 channels"),
        (DynamicConv(12, blocks=3), "3 blocks do not fit 8 channels"),
        (DynamicConv(12, groups=2, blocks=1), "1 blocks do not fit 8 channels in 2 groups"),
        (DynamicConv(12, latent=0), "latent must be positive, got 0"),
        (DynamicConv(12, (3, 3, 3)), "is for 3 axes, the input has 2"),
        (DynamicConv(12, 3, padding=((1, 1),)), "is for 1 axes, the input has 2"),
        (DynamicConv(12, 9, padding=((0, 0), (0, 0))), "does not fit an image"),
    ],
)
def test_what_does_not_fit_is_refused(layer, message):
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(layer.init, jax.random.key(0), jnp.zeros((1, 5, 5, 8)))


@pytest.mark.parametrize(
    "layer, channels", [(DynamicConv(32, 3, groups=32), 32), (DynamicConv(12), 3), (DynamicConv(2, groups=2), 2)]
)
def test_the_sizes_of_a_layer_fit_few_channels_and_any_groups(layer, channels):
    variables = jax.eval_shape(layer.init, jax.random.key(0), jnp.zeros((1, 5, 5, channels)))
    latent = variables["params"]["q"].shape[-1]
    assert latent <= channels and latent % layer.groups == 0


def test_a_classifier_of_few_features_has_as_many_latent_channels():
    variables = jax.eval_shape(DynamicDense(10).init, jax.random.key(0), jnp.zeros((1, 8)))
    assert variables["params"]["layer"]["q"].shape == (1, 1, 8, 8)
