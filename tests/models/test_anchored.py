"""Anchored networks against figures of the authors' modules, published counts, and what becomes of their one kernel.

anchored.npz holds, channels first, images, weights, outputs, and the gradients and running statistics of one step.
"""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from shuffle_jax.analysis.count import count, count_layers
from shuffle_jax.deploy.exporting import export
from shuffle_jax.deploy.folding import fold
from shuffle_jax.deploy.hardening import harden
from shuffle_jax.models import AnchoredNet, anchored
from shuffle_jax.nn import AutoShuffle, BatchNorm, ChannelRotation, DynamicShuffle

compiled = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})  # Half the compilation.
FIXTURE = Path(__file__).parents[1] / "fixtures" / "anchored.npz"

LEAVES = {
    "weight": ("params", "kernel"),
    "bias": ("params", "bias"),
    "running_mean": ("batch_stats", "mean"),
    "running_var": ("batch_stats", "var"),
}
VGG_LAYERS = ["stem", *(f"stage{stage}_{i}" for stage, n in enumerate((1, 2, 3, 3, 3), 1) for i in range(n))]


def vgg_place(layer):
    names = {"conv1.0": ("stem", "conv"), "conv2.0": ("anchor",), "classifier": ("head",)}
    return names.get(layer) or (VGG_LAYERS[int(layer.removeprefix("BN")) - 1], "norm")


def resnet_place(layer):
    names = {"conv1.0": ("stem", "conv"), "conv1.1": ("stem", "norm"), "linear": ("head",)}
    if layer in names:
        return names[layer]
    stage, inner = re.fullmatch(r"layer(\d)\.0\.(.*)", layer).groups()
    inner = {"trans.0": "conv1", "trans.1": "norm1", "bn1": "norm1", "bn2": "norm2"}.get(inner, inner)
    inner = {"shortcut.0": "downsample", "shortcut.1": "downsample_norm"}.get(inner, inner)
    return (f"anchor{stage}",) if inner == "conv" else (f"stage{stage}_0", inner)


CASES = {
    "plain_vgg14_w12": (AnchoredNet(6, 14, 12 / 128), vgg_place),
    "roll_mix_resnet_1111": (
        AnchoredNet(5, 10, kernels="each_width", mixing="stream", mixer=ChannelRotation),
        resnet_place,
    ),
}


def figures(case, kind, place):
    """Figures of a kind by collection and path, channels last."""
    found = {}
    with np.load(FIXTURE) as file:
        for key in file.files:
            if key.startswith(f"{case}/{kind}/"):
                layer, _, leaf = key.removeprefix(f"{case}/{kind}/").rpartition(".")
                collection, name = LEAVES[leaf]
                path = place(layer)
                name = "scale" if name == "kernel" and "norm" in path[-1] else name
                value = file[key]
                value = value.transpose(2, 3, 1, 0) if value.ndim == 4 else value.T
                found[collection, *path, name] = value
    return found


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_values_gradients_and_running_statistics_are_those_of_the_authors_modules(case, monkeypatch):
    monkeypatch.setattr(anchored, "MIX", (6, 8, 10, 12))
    network, place = CASES[case]
    variables = unflatten_dict(figures(case, "w", place))
    with np.load(FIXTURE) as file:
        x, wanted, trained, cotangent = (file[f"{case}/{name}"] for name in ("x", "y_eval", "y_train", "ct"))
    x = x.transpose(0, 2, 3, 1)
    shapes = jax.eval_shape(network.init, jax.random.key(0), x)
    assert jax.tree.map(jnp.shape, shapes) == jax.tree.map(jnp.shape, variables)

    @compiled
    def run(variables, x):
        def loss(params):
            own = {**variables, "params": params}
            y, updated = network.apply(own, x, train=True, mutable=["batch_stats"])
            return (y * cotangent).sum(), (y, updated["batch_stats"])

        gradient, (y, statistics) = jax.grad(loss, has_aux=True)(variables["params"])
        return network.apply(variables, x), y, statistics, gradient

    evaluated, y, statistics, gradient = run(variables, x)
    np.testing.assert_allclose(evaluated, wanted, rtol=0, atol=3e-6 * np.abs(wanted).max())
    np.testing.assert_allclose(y, trained, rtol=0, atol=3e-5 * np.abs(trained).max())
    expected, gradient = figures(case, "g", place), flatten_dict(gradient)
    largest = max(np.abs(leaf).max() for leaf in expected.values())
    assert len(expected) == len(gradient)
    for (_, *path), leaf in expected.items():  # a bias before a norm has the gradient 0
        np.testing.assert_allclose(
            gradient[tuple(path)], leaf, rtol=0, atol=max(2e-4 * np.abs(leaf).max(), 5e-6 * largest)
        )
    wanted, before, values = figures(case, "after", place), figures(case, "w", place), values_of_norms(network, x)
    assert len(wanted) == len(flatten_dict(statistics))
    for (_, *norm, name), leaf in wanted.items():
        found, many = flatten_dict(statistics)[*norm, name], values[tuple(norm)]
        if name == "var":  # Torch averages the unbiased variances of batches, this project the biased ones.
            kept = 0.9 * before["batch_stats", *norm, name]
            found = kept + (np.asarray(found) - kept) * many / (many - 1)
        np.testing.assert_allclose(found, leaf, rtol=0, atol=3e-6 * np.abs(leaf).max())


def values_of_norms(network, x):
    """How many values of a channel each norm averages, by its path."""
    found = {}

    def note(call, args, kwargs, context):
        if isinstance(context.module, BatchNorm) and context.method_name == "__call__":
            found[context.module.path] = args[0].size // args[0].shape[-1]
        return call(*args, **kwargs)

    with nn.intercept_methods(note):
        jax.eval_shape(network.init, jax.random.key(0), x)
    return found


ROLLS = {"kernels": "each_width", "mixing": "stream", "mixer": ChannelRotation}


@pytest.mark.parametrize(
    ("depth", "options", "parameters", "multiply_adds"),
    [
        (14, {}, 167_396, 267_203_072),
        (34, {}, 172_260, 1_338_913_280),
        (14, {"kernels": "each_width"}, 4_744_100, 313_247_744),
        (34, ROLLS, 4_925_668, 1_159_448_576),
        (14, {"classes": 10}, 155_786, None),
        (18, {}, 168_164, None),
        (18, ROLLS, 4_918_244, None),
        (18, {"kernels": "each_width", "regulator": "pointwise"}, 5_614_564, None),
        (34, {"kernels": "each_width", "regulator": "pointwise"}, 6_183_140, None),
    ],
)
@pytest.mark.fast_cases(4)
def test_parameters_in_use_and_multiply_adds_are_the_published_ones(depth, options, parameters, multiply_adds):
    found = count(AnchoredNet(**{"classes": 100, "depth": depth, **options}), (32, 32, 3))
    assert found.parameters == parameters
    assert multiply_adds in (None, found.multiply_adds)


def test_each_use_of_the_one_kernel_counts_its_work_and_the_first_its_parameters():
    network = AnchoredNet(5, 10, 1 / 16)
    layers = [layer for layer in count_layers(network, (8, 8, 3)) if layer.path == "anchor"]
    kernel, sizes = 9 * 8 * 8, [64, 64, 16, 16, 4, 4, 1, 1]
    assert [layer.cost.parameters for layer in layers] == [kernel] + [0] * 7
    assert [layer.cost.multiply_adds for layer in layers] == [kernel * size for size in sizes]
    shapes = jax.eval_shape(network.init, jax.random.key(0), jnp.zeros((1, 8, 8, 3)))
    kernels = [path for path, leaf in flatten_dict(shapes["params"]).items() if leaf.shape == (3, 3, 8, 8)]
    assert kernels == [("anchor", "kernel")]  # so that it is kept, and decays, once
    own = jax.eval_shape(network.clone(shared=False).init, jax.random.key(0), jnp.zeros((1, 8, 8, 3)))
    kernels = [path for path, leaf in flatten_dict(own["params"]).items() if leaf.shape == (3, 3, 8, 8)]
    assert kernels == [(f"stage{stage}_0", f"conv{i}", "own", "kernel") for stage in (1, 2, 3, 4) for i in (1, 2)]
    unshared = count(network.clone(shared=False), (8, 8, 3))
    assert unshared == count(network, (8, 8, 3))._replace(parameters=unshared.parameters)
    assert unshared.parameters == count(network, (8, 8, 3)).parameters + 7 * kernel


@pytest.mark.parametrize("mixing", ["branch", "stream"])
@pytest.mark.slow
def test_a_learned_regulator_has_the_parameters_of_the_1x1_in_training_and_none_when_it_is_hard(mixing, draw):
    network, shape = AnchoredNet(5, 10, 1 / 8, mixing=mixing), (8, 8, 3)
    learned, places = network.clone(mixer=AutoShuffle), 4 if mixing == "branch" else 8
    plain = count(network, shape)
    before = count(learned, shape)
    after = count(learned, shape, harden(draw(learned, shape)).variables)
    regulated = count(network.clone(regulator="pointwise"), shape)
    assert before.training_only_parameters == places * 16**2
    assert regulated.parameters - plain.parameters == 4 * 16**2
    assert before.parameters == after.parameters == plain.parameters
    assert (after.training_only_parameters, after.multiply_adds) == (0, plain.multiply_adds)


def test_a_mixer_on_the_stream_gives_the_shortcut_the_permutation_of_the_branch():
    unit = anchored.Unit(8, anchored.conv(8), False, False, True, None, partial(DynamicShuffle, 2))
    seen = []

    def record(call, arguments, keywords, context):
        if isinstance(context.module, DynamicShuffle) and context.method_name == "__call__":
            seen.append((context.module.name, arguments[0].shape))
        return call(*arguments, **keywords)

    with nn.intercept_methods(record):
        jax.eval_shape(unit.init, jax.random.key(0), jnp.zeros((2, 3, 5, 8)))
    assert seen == [("mixer1", (2, 6, 5, 8)), ("mixer2", (2, 3, 5, 8))]


FOLDED = {  # A network, its norms behind shared layers that come in more places than one, and those behind others.
    "one kernel": (AnchoredNet(5, 10, 1 / 8, mixer=AutoShuffle), 8, 1),
    "each width": (AnchoredNet(5, 10, 1 / 4, "each_width", mixing="stream", mixer=AutoShuffle), 2, 10),
    "layers": (AnchoredNet(5, 14, 1 / 4, "each_width"), 6, 6),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", FOLDED)
def test_a_shared_kernel_keeps_its_norms_and_is_one_in_a_file_unless_copies_are_asked_for(name, draw, tmp_path):
    (network, shared, others), shape = FOLDED[name], (8, 12, 3)
    variables = harden(draw(network, shape)).variables
    folded, copied = fold(network, variables, shape), fold(network, variables, shape, copies=True)
    assert (len(folded.kept), len(folded.folded)) == (shared, others)
    assert all("called more than once" in why for why in folded.kept.values())
    assert (len(copied.kept), len(copied.folded)) == (0, shared + others)

    x = np.random.default_rng(0).normal(size=(2, *shape)).astype(np.float32)
    same = compiled(lambda *all_of_them: [network.apply(one, x) for one in all_of_them])
    expected, kept, apart = same(variables, folded.variables, copied.variables)
    assert np.std(expected) > 1e-3
    for found in (kept, apart):
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())

    sizes, bytes_in_file = {}, {}
    for kind, own in (("kept", folded.variables), ("copied", copied.variables)):
        sizes[kind] = sum(leaf.nbytes for leaf in jax.tree.leaves(own))
        path = tmp_path / f"{kind}.jax"
        about = {"classes": list("abcde"), "preprocessing": {}, "image_shape": shape, "about": {}}
        export(network.apply, own, path, platforms=("cpu",), **about)
        bytes_in_file[kind] = path.stat().st_size
    program = bytes_in_file["kept"] - sizes["kept"]
    assert 0 < program < 60_000  # beside the variables, of which each is there once
    assert bytes_in_file["copied"] - sizes["copied"] < program
    again = fold(network, copied.variables, shape, copies=True)
    jax.tree.map(np.testing.assert_array_equal, again.variables, copied.variables)


@pytest.mark.slow
def test_norms_behind_a_relu_have_nothing_to_be_folded_into_and_no_copies_are_made_for_them(draw):
    network, shape = AnchoredNet(5, 14, 1 / 32), (4, 4, 3)
    variables = draw(network, shape)
    copied = fold(network, variables, shape, copies=True)
    assert copied.folded == () and len(copied.kept) == 13
    jax.tree.map(np.testing.assert_array_equal, copied.variables, variables)
