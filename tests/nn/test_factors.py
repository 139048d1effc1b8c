"""The factors of dynamic layers: how many numbers make them, where they start, and what is told of them."""

from __future__ import annotations

import itertools
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from scipy.special import xlogy

from shuffle_jax.nn.collections import DIAGNOSTICS, FACTORS, PENALTIES, PERMUTATIONS, PROGRESS
from shuffle_jax.nn.factors import FactorGenerator, Factors, HardFactorGenerator
from shuffle_jax.nn.normalization import EPSILON, MOMENTUM

N, C, P, Q, COPIES = 6, 24, 3, 4, 2
rng = np.random.default_rng(0)
IMAGES = rng.standard_normal((N, 3, 2, C)).astype(np.float32)
IMAGES[3] = IMAGES[1]  # The same image has the same permutations.
HIDDEN = 4
RAMP = {"regularize_from": 0.5, "regularize_fully": 0.7}
KINDS = pytest.mark.parametrize(
    ("kind", "dynamic"), [(FactorGenerator, True), (FactorGenerator, False), (HardFactorGenerator, True)]
)
compiled = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})  # Half the compilation.


def draw(module, share=None, spread=0.7):
    """Variables near the start "identity", so far from it that some images have other permutations and some none."""
    start = np.tile(np.concatenate([module.start_logit * np.eye(size).ravel() for size in (P, Q)]), COPIES)
    generator = np.random.default_rng(3)
    told = {} if share is None else {PROGRESS: {"share": np.float32(share)}}
    if not module.dynamic:
        return {"params": {"static_logits": np.float32(start + spread * generator.standard_normal(start.shape))}} | told
    layers = {
        "hidden": {"kernel": generator.standard_normal((C, HIDDEN)), "bias": generator.standard_normal(HIDDEN)},
        "logits": {"kernel": spread * generator.standard_normal((HIDDEN, start.size)), "bias": start},
    }
    statistics = {}
    if module.pooled_norm:
        layers["norm"] = {"scale": generator.uniform(0.5, 1.5, C), "bias": 0.3 * generator.standard_normal(C)}
        own = {"mean": 0.3 * generator.standard_normal(C), "var": generator.uniform(0.5, 1.5, C)}
        statistics = {"batch_stats": {"norm": own}}
    return jax.tree.map(np.float32, {"params": layers, **statistics, **told})


def run(module, variables, images=IMAGES, **options):
    """Compiled as a whole, which takes less than op by op, and once for each module and options."""
    options = {name: tuple(value) if isinstance(value, list) else value for name, value in options.items()}
    return applied(module, tuple(options.items()))(variables, images)


@cache
def applied(module, options):
    return compiled(partial(module.apply, **dict(options)))


def make(kind=FactorGenerator, **options):
    return kind(**{"sizes": (P, Q), "copies": COPIES, "hidden": HIDDEN} | options)


def normalized(matrix, *axes):
    """Divided by the sums along each axis in turn."""
    for axis in axes:
        matrix = matrix / matrix.sum(axis, keepdims=True)
    return matrix


def expected_factors(module, variables, images, train=False):
    """Both factors as the docstring's formulas read, in float64."""
    params = jax.tree.map(np.float64, variables["params"])
    if module.dynamic:
        pooled = np.float64(images).mean((1, 2))
        if module.pooled_norm:
            statistics = {"mean": pooled.mean(0), "var": pooled.var(0)} if train else variables["batch_stats"]["norm"]
            pooled = (pooled - statistics["mean"]) / np.sqrt(statistics["var"] + EPSILON)
            pooled = pooled * params["norm"]["scale"] + params["norm"]["bias"]
        y = np.maximum(pooled @ params["hidden"]["kernel"] + params["hidden"]["bias"], 0)
        logits = y @ params["logits"]["kernel"] + params["logits"]["bias"]
    else:
        logits = params["static_logits"][None]
    temperature, done = module.temperature, variables.get(PROGRESS, {}).get("share", 1.0)
    if module.end_temperature is not None:
        temperature = temperature ** (1 - done) * module.end_temperature**done
    logits = logits.reshape(len(logits), COPIES, -1) / temperature
    passes = [-1] if module.normalization == "rows" else [-2, -1] * 20
    return [
        normalized(np.exp(part.reshape(-1, COPIES, size, size)), *passes)
        for part, size in zip(np.split(logits, [P * P], axis=-1), (P, Q), strict=True)
    ]


def assert_near(found, expected, **tolerance):
    for actual, wanted in zip(pair(found), expected, strict=True):
        np.testing.assert_allclose(actual, np.float32(wanted), **{"rtol": 2e-4, "atol": 1e-6} | tolerance, strict=True)


def pair(factors):
    return factors.outer, factors.inner


def size_of(variables):
    return sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))


@pytest.mark.parametrize(
    ("channels", "sizes", "copies", "hidden"),
    [(24, (3, 4), 1, None), (96, (6, 8), 2, None), (576, (2, 29), 1, None), (24, (1, 6), 4, 9)],
)
def test_parameters_are_those_of_two_layers_or_the_logits_alone(channels, sizes, copies, hidden):
    x, (p, q) = jnp.zeros((2, 3, 3, channels)), sizes
    entries = copies * (p * p + q * q)
    for kind, norm, least in ((FactorGenerator, 2 * channels, 32), (HardFactorGenerator, 0, 4)):
        width = hidden or max(least, channels // 16)
        layers = channels * width + width + (width + 1) * entries
        for dynamic in (True, False):
            module = kind(sizes, copies, dynamic=dynamic, hidden=hidden)
            shapes = jax.eval_shape(module.init, jax.random.key(0), x)
            assert size_of(shapes) == (layers + norm if dynamic else entries)
            assert {leaf.dtype for leaf in jax.tree.leaves(shapes)} == {jnp.dtype(jnp.float32)}
            others = {PROGRESS, "batch_stats"} if dynamic else {PROGRESS}
            assert set(shapes) == {"params"} | (others if norm else set())  # nothing is sown at initialisation


@KINDS
def test_factors_are_those_of_the_head_for_every_image(kind, dynamic):
    module = make(kind, dynamic=dynamic)
    variables = draw(module, 0.25)
    factors = run(module, variables, IMAGES)
    assert_near(factors, expected_factors(module, variables, IMAGES))
    assert not factors.frozen
    assert len(factors.outer) == (N if dynamic else 1)


def test_training_normalises_by_the_batch_whose_statistics_are_kept():
    module = make()
    variables = draw(module, 0.25)
    factors, updated = run(module, variables, IMAGES, train=True, mutable=["batch_stats"])
    assert_near(factors, expected_factors(module, variables, IMAGES, train=True))
    pooled = np.float64(IMAGES).mean((1, 2))
    for name, batch in (("mean", pooled.mean(0)), ("var", pooled.var(0))):
        before, after = (v["batch_stats"]["norm"][name] for v in (variables, updated))
        np.testing.assert_allclose(after, MOMENTUM * before + (1 - MOMENTUM) * batch, rtol=1e-5, atol=1e-6)
    # Of one image and one position nothing is left but the bias of the norm.
    alone, _ = run(module, variables, IMAGES[:1, :1, :1], train=True, mutable=["batch_stats"])
    assert_near(alone, expected_factors(module, variables, IMAGES[:1, :1, :1], train=True))


@KINDS
def test_starts_at_the_identity_whatever_the_image(kind, dynamic):
    module = make(kind, dynamic=dynamic)
    started = compiled(module.init)(jax.random.key(5), IMAGES)
    started |= {PROGRESS: {"share": jnp.zeros(())}} if PROGRESS in started else {}
    for images in (IMAGES, -1e6 * IMAGES, np.zeros_like(IMAGES)):
        for factor, size in zip(pair(run(module, started, images)), (P, Q), strict=True):
            # With the same diagonal everywhere the softmax is doubly stochastic.
            largest = np.exp(module.start_logit / module.temperature)
            softmax = (1 + (largest - 1) * np.eye(size)) / (largest + size - 1)
            np.testing.assert_allclose(factor, np.broadcast_to(softmax, factor.shape), rtol=1e-6)
            np.testing.assert_array_equal(factor.argmax(-1), np.broadcast_to(np.arange(size), factor.shape[:-1]))


def test_a_random_start_is_another_for_every_image_and_key():
    module = make(start="random")
    first, second = (compiled(module.init)(jax.random.key(k), IMAGES) for k in (0, 1))
    found = run(module, first, IMAGES)
    assert np.abs(found.outer[0] - found.outer[1]).max() > 0.01
    assert np.abs(found.inner - run(module, second, IMAGES).inner).max() > 0.1
    assert (found.inner.argmax(-1) != np.arange(Q).reshape(1, 1, Q)).any()
    np.testing.assert_array_equal(found.outer[3], found.outer[1])
    static = compiled(make(dynamic=False, start="random").init)(jax.random.key(0), IMAGES)["params"]["static_logits"]
    assert np.unique(static).size == COPIES * (P * P + Q * Q)


def test_half_precision_images_have_float32_factors_of_rows_that_sum_to_one():
    module, half = make(), jnp.asarray(IMAGES, jnp.bfloat16)
    variables = draw(module, 0.25)
    factors, sown = run(module, variables, half, mutable=[PENALTIES, DIAGNOSTICS, FACTORS])
    assert_near(factors, expected_factors(module, variables, half))  # The mean was not taken in bfloat16.
    for factor in pair(factors):
        assert factor.dtype == jnp.float32
        np.testing.assert_allclose(factor.sum(-1), 1, atol=1e-6)
    assert {leaf.dtype for leaf in jax.tree.leaves(sown)} == {jnp.dtype(jnp.float32)}


def told_of(factors, images):
    """The four numbers, factor by factor and row by row."""
    n, copies = factors[0].shape[:2]
    regulariser = invalid = entropy = 0.0
    seen = set()
    for image in range(n):
        chosen = []
        for copy in range(copies):
            peaks = []
            for factor in (factors[0][image, copy], factors[1][image, copy]):
                size = len(factor)
                regulariser += np.square(factor @ factor.T - np.eye(size)).sum() / size
                entropy -= xlogy(factor, factor).sum() / np.log(size)
                peaks.append(tuple(factor.argmax(-1)))
            invalid += any(len(set(index)) < len(index) for index in peaks)
            chosen += peaks
        seen.add(tuple(itertools.chain(*chosen)))
    pairs = n * copies
    return {
        "regulariser": regulariser / pairs,
        "invalid": invalid / pairs,
        "distinct": len(seen) / images,
        "entropy": entropy / (pairs * sum(factor.shape[-1] for factor in factors)),
    }


@KINDS
def test_penalty_and_diagnostics_are_counted_by_hand(kind, dynamic):
    module = make(kind, dynamic=dynamic, **({} if kind is HardFactorGenerator else RAMP))
    variables = draw(module, 0.65)
    factors, sown = run(module, variables, IMAGES, mutable=[PENALTIES, DIAGNOSTICS, FACTORS])
    expected = told_of(expected_factors(module, variables, IMAGES), N)
    assert sorted(sown[DIAGNOSTICS]) == sorted(expected)
    for name, value in expected.items():
        np.testing.assert_allclose(sown[DIAGNOSTICS][name], value, rtol=1e-3, err_msg=name)
    ramp = 0.75 if kind is FactorGenerator else 1  # three quarters of the way from 0.5 to 0.7
    assert list(sown[PENALTIES]) == ["orthogonality"]
    np.testing.assert_allclose(sown[PENALTIES]["orthogonality"], ramp * expected["regulariser"], rtol=1e-3)
    np.testing.assert_array_equal(sown[FACTORS]["outer"], factors.outer)
    np.testing.assert_array_equal(sown[FACTORS]["inner"], factors.inner)
    if not dynamic:
        assert sown[DIAGNOSTICS]["distinct"] == np.float32(1 / N)
    elif kind is HardFactorGenerator:
        assert 0 < expected["invalid"] < 1
        assert 1 / N < expected["distinct"] <= 1 - 1 / N


def test_the_regulariser_waits_and_the_information_does_not_even_over_devices():
    make_one = partial(make, **{"information": 0.5} | RAMP)

    @jax.jit
    def sown(variables, images, shares):
        def at(module, share):
            told = {**variables, PROGRESS: {"share": share}}
            return module.apply(told, images, train=True, mutable=[PENALTIES, "batch_stats"])[1][PENALTIES]

        step = make_one().clone(regularize_from=0.6, regularize_fully=0.6)
        return jax.vmap(partial(at, make_one()))(shares), jax.vmap(partial(at, step))(shares)

    variables, shares = draw(make_one()), np.float32([0, 0.5, 0.55, 0.6, 0.7, 1])
    ramp, step = alone = sown(variables, IMAGES, shares)
    for penalties, expected in ((ramp, [0, 0, 0.25, 0.5, 1, 1]), (step, [0, 0, 0, 1, 1, 1])):
        for index, share in enumerate(shares):
            factors = expected_factors(make_one(), {**variables, PROGRESS: {"share": share}}, IMAGES, train=True)
            regulariser = expected[index] * told_of(factors, N)["regulariser"]
            np.testing.assert_allclose(penalties["orthogonality"][index], regulariser, rtol=1e-3, atol=1e-6)
            known = sum(row_information(factor) for factor in factors)
            np.testing.assert_allclose(penalties["information"][index], 0.5 * (2 - known), rtol=1e-4)
    mesh = jax.make_mesh((2,), ("batch",))
    parted = jax.device_put(IMAGES, NamedSharding(mesh, PartitionSpec("batch")))
    for one, other in zip(jax.tree.leaves(alone), jax.tree.leaves(sown(variables, parted, shares)), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)


def test_a_layer_mixes_with_the_identity_until_it_is_used_up():
    variables = draw(make())

    @jax.jit
    def at(shares):
        def one(share):
            told = {**variables, PROGRESS: {"share": share}}
            return [make(kept=kept, kept_until=0.4).apply(told, IMAGES, mutable=[FACTORS]) for kept in (0.0, 0.8)]

        return jax.vmap(one)(shares)

    (bare, sown), (factors, told) = at(np.float32([0, 0.1, 0.4, 1]))
    for name in ("outer", "inner"):
        for index, share in enumerate([0.8, 0.6, 0, 0]):
            own = np.asarray(getattr(bare, name)[index])
            expected = share * np.eye(own.shape[-1]) + (1 - share) * own
            np.testing.assert_allclose(getattr(factors, name)[index], expected, rtol=1e-5, atol=1e-7)
            np.testing.assert_array_equal(getattr(factors, f"{name}_index")[index], expected.argmax(-1))
    jax.tree.map(np.testing.assert_array_equal, told, sown)  # of the factors themselves


def row_information(factor):
    """``mean_rows (H(mean over images) - mean over images H) / log c``, H by its definition."""
    size = factor.shape[-1]
    within, mean = -xlogy(factor, factor).sum(-1).mean(0), factor.mean(0)
    return ((-xlogy(mean, mean).sum(-1) - within) / np.log(size)).mean()


def test_a_value_sown_before_is_replaced():
    module = make()
    variables = draw(module)
    _, first = run(module, variables, IMAGES, mutable=[PENALTIES, DIAGNOSTICS, FACTORS])
    _, again = run(module, {**variables, **first}, IMAGES, mutable=[PENALTIES, DIAGNOSTICS, FACTORS])
    jax.tree.map(np.testing.assert_array_equal, first, again)


def test_nothing_is_sown_or_computed_unless_it_is_asked_for():
    module = make()
    variables = draw(module)
    silent = jax.make_jaxpr(lambda x: module.apply(variables, x))(IMAGES)
    asked = jax.make_jaxpr(lambda x: module.apply(variables, x, mutable=[DIAGNOSTICS]))(IMAGES)
    assert " sort[" in str(asked)  # of the index vectors, to see whether they are permutations
    assert " sort[" not in str(silent)
    stats = {"norm"}
    for collection, names in ((PENALTIES, {"orthogonality"}), (FACTORS, {"outer", "inner"}), ("batch_stats", stats)):
        _, sown = jax.eval_shape(partial(module.apply, mutable=[collection]), variables, IMAGES)
        assert set(sown) <= {collection}
        assert set(sown.get(collection, {})) == names
    assert isinstance(jax.eval_shape(module.apply, variables, IMAGES), Factors)


def test_index_vectors_take_the_place_of_the_head():
    outer, inner = np.array([[2, 0, 1], [0, 2, 1]], np.int32), np.array([[3, 1, 0, 2], [1, 0, 2, 3]], np.int32)
    variables = {PERMUTATIONS: {"outer": outer, "inner": inner}}
    factors, sown = run(make(), variables, IMAGES, mutable=[PENALTIES, DIAGNOSTICS, FACTORS])
    assert factors.frozen
    assert jax.tree.leaves(sown) == []
    for factor, index in ((factors.outer, outer), (factors.inner, inner)):
        assert factor.shape == (1, COPIES, index.shape[-1], index.shape[-1])
        for copy, row in np.ndindex(index.shape):
            assert factor[0, copy, row].tolist() == [float(j == index[copy, row]) for j in range(index.shape[-1])]


def test_the_temperature_falls_geometrically_with_the_progress_and_ends_where_nobody_tells_it():
    module = make(HardFactorGenerator, temperature=4.0, end_temperature=0.25)
    variables = draw(module)
    for share, temperature in ((0.0, 4.0), (0.25, 2.0), (0.5, 1.0), (1.0, 0.25), (None, 0.25)):
        told = {} if share is None else {PROGRESS: {"share": jnp.float32(share)}}
        constant = module.clone(temperature=temperature, end_temperature=None)
        expected = expected_factors(constant, variables, IMAGES)
        assert_near(run(module, variables | told, IMAGES), expected, rtol=1e-3, atol=1e-5)


def test_only_what_moves_asks_for_the_progress():
    moving = [{"end_temperature": 0.5}, {"regularize_fully": 0.1}]
    for options in (*moving, {"normalization": "sinkhorn"}):
        told = jax.eval_shape(make(HardFactorGenerator, **options).init, jax.random.key(0), IMAGES).get(PROGRESS)
        assert jax.tree.structure(told) == jax.tree.structure({"share": 0} if options in moving else None)


def test_a_constant_temperature_is_one_that_ends_where_it_begins():
    module = make(temperature=2.5, end_temperature=2.5)
    variables = draw(module, 0.3)
    expected = expected_factors(module.clone(end_temperature=None), variables, IMAGES)
    assert_near(run(module, variables, IMAGES), expected)


def test_the_norm_is_absorbed_into_the_hidden_layer():
    module = make()
    variables = draw(module, 0.25)
    folded = module.absorb_norms(variables)
    assert jax.tree.map(np.shape, folded["params"]) == jax.tree.map(
        np.shape, {name: tree for name, tree in variables["params"].items() if name != "norm"}
    )
    assert jax.tree.leaves(folded["batch_stats"]) == []
    assert_near(run(module, jax.tree.map(np.float32, folded)), expected_factors(module, variables, IMAGES))
    with pytest.raises(ValueError, match="the batch norm norm is folded and cannot train"):
        jax.eval_shape(partial(module.apply, train=True), folded, IMAGES)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": 0.0}, "^temperature must be positive, got 0.0"),
        ({"temperature": -1.0}, "^temperature must be positive, got -1.0"),
        ({"end_temperature": 0.0}, "^end_temperature must be positive, got 0.0"),
        ({"start_logit": 0}, "^start_logit must be positive, got 0"),
        ({"hidden": 0}, "^hidden must be positive, got 0"),
        ({"least_hidden": 0}, "^least_hidden must be positive, got 0"),
        ({"regularize_from": -0.1}, "^regularize_from must be .*got -0.1"),
        ({"regularize_fully": 1.1}, "^regularize_fully must be .*got 1.1"),
        ({"regularize_from": 0.8}, "^regularize_from must be at most regularize_fully, got 0.8 and 0.7: lower"),
        ({"information": -0.1}, "^information must be at least 0 and finite, got -0.1: 0 leaves it out"),
        ({"information": float("nan")}, "^information must be at least 0 and finite, got nan"),
        ({"kept": 1.0}, "^kept must be at least 0 and below 1, got 1.0: 0 leaves the identity out"),
        ({"kept_until": 0}, "^kept_until must be positive, got 0"),
    ],
)
def test_what_is_out_of_range_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(make(**options).init, jax.random.key(0), IMAGES)
