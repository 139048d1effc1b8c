"""The factors of dynamic layers: how many numbers make them, where they start, and what is told of them."""

from __future__ import annotations

import itertools
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from shuffle_jax.nn.collections import DIAGNOSTICS, FACTORS, PENALTIES, PERMUTATIONS, PROGRESS
from shuffle_jax.nn.factors import FactorGenerator, Factors

N, C, P, Q, COPIES = 6, 24, 3, 4, 2
rng = np.random.default_rng(0)
IMAGES = rng.standard_normal((N, 3, 2, C)).astype(np.float32)
IMAGES[3] = IMAGES[1]  # The same image has the same permutations.
HIDDEN = 4
compiled = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})  # Half the compilation.


def draw(dynamic=True, spread=0.7):
    """Parameters near the start "identity", so far from it that some images have other permutations and some none."""
    start = np.tile(np.concatenate([4 * np.eye(size).ravel() for size in (P, Q)]), COPIES)
    generator = np.random.default_rng(3)
    if not dynamic:
        return {"params": {"static_logits": np.float32(start + spread * generator.standard_normal(start.shape))}}
    layers = {
        "hidden": {"kernel": generator.standard_normal((C, HIDDEN)), "bias": generator.standard_normal(HIDDEN)},
        "logits": {"kernel": spread * generator.standard_normal((HIDDEN, start.size)), "bias": start},
    }
    return {"params": jax.tree.map(np.float32, layers)}


def run(module, variables, images=IMAGES, **options):
    """Compiled as a whole, which takes less than op by op, and once for each module and options."""
    options = {name: tuple(value) if isinstance(value, list) else value for name, value in options.items()}
    return applied(module, tuple(options.items()))(variables, images)


@cache
def applied(module, options):
    return compiled(partial(module.apply, **dict(options)))


def make(**options):
    return FactorGenerator(**{"sizes": (P, Q), "copies": COPIES} | options)


def exponentials(params, images, temperature=1.0):
    """``exp(logits / T)`` of both factors as the docstring's formula reads, in float64."""
    params = jax.tree.map(np.float64, params)
    if "hidden" in params:
        pooled = np.float64(images).mean((1, 2))
        y = np.maximum(pooled @ params["hidden"]["kernel"] + params["hidden"]["bias"], 0)
        logits = y @ params["logits"]["kernel"] + params["logits"]["bias"]
    else:
        logits = params["static_logits"][None]
    outer, inner = np.split(np.exp(logits.reshape(len(logits), COPIES, -1) / temperature), [P * P], axis=-1)
    return outer.reshape(-1, COPIES, P, P), inner.reshape(-1, COPIES, Q, Q)


def normalized(matrix, *axes):
    """Divided by the sums along each axis in turn."""
    for axis in axes:
        matrix = matrix / matrix.sum(axis, keepdims=True)
    return matrix


def expected_factors(params, images, temperature=1.0):
    return [normalized(matrix, -1) for matrix in exponentials(params, images, temperature)]


def pair(factors):
    return factors.outer, factors.inner


def size_of(variables):
    return sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))


@pytest.mark.parametrize(
    ("channels", "sizes", "copies", "hidden", "width"),
    [(24, (3, 4), 1, None, 4), (96, (6, 8), 2, None, 6), (116, (2, 29), 1, None, 7), (24, (1, 6), 4, 9, 9)],
)
def test_parameters_are_those_of_two_layers_or_the_logits_alone(channels, sizes, copies, hidden, width):
    x, (p, q) = jnp.zeros((2, 3, 3, channels)), sizes
    entries = copies * (p * p + q * q)
    for dynamic in (True, False):
        module = FactorGenerator(sizes, copies, dynamic=dynamic, hidden=hidden)
        shapes = jax.eval_shape(module.init, jax.random.key(0), x)
        assert size_of(shapes) == (channels * width + width + (width + 1) * entries if dynamic else entries)
        assert {leaf.dtype for leaf in jax.tree.leaves(shapes)} == {jnp.dtype(jnp.float32)}
        assert set(shapes) == {"params"}  # nothing is sown at initialisation


@pytest.mark.parametrize("dynamic", [True, False])
def test_factors_are_a_softmax_of_the_head_for_every_image(dynamic):
    variables = draw(dynamic)
    factors = run(make(dynamic=dynamic), variables, IMAGES)
    expected = expected_factors(variables["params"], IMAGES)
    for actual, wanted in zip(pair(factors), expected, strict=True):
        np.testing.assert_allclose(actual, np.float32(wanted), rtol=1e-4, atol=1e-6, strict=True)
    assert not factors.frozen
    assert len(factors.outer) == (N if dynamic else 1)


@pytest.mark.parametrize("dynamic", [True, False])
def test_starts_at_the_identity_whatever_the_image(dynamic):
    module = make(dynamic=dynamic)
    params = {"params": compiled(module.init)(jax.random.key(5), IMAGES)["params"]}
    for images in (IMAGES, -1e6 * IMAGES, np.zeros_like(IMAGES)):
        for factor, size in zip(pair(run(module, params, images)), (P, Q), strict=True):
            softmax = jax.nn.softmax(4 * jnp.eye(size))
            np.testing.assert_array_equal(factor, np.broadcast_to(softmax, factor.shape))
            np.testing.assert_array_equal(factor.argmax(-1), np.broadcast_to(np.arange(size), factor.shape[:-1]))
            np.testing.assert_allclose(factor[0, 0, 0, 0], np.exp(4) / (np.exp(4) + size - 1), rtol=1e-6)


def test_a_random_start_is_another_for_every_image_and_key():
    module = make(start="random")
    first, second = (compiled(module.init)(jax.random.key(k), IMAGES)["params"] for k in (0, 1))
    found = run(module, {"params": first}, IMAGES)
    assert np.abs(found.outer[0] - found.outer[1]).max() > 0.01
    assert np.abs(found.inner - run(module, {"params": second}, IMAGES).inner).max() > 0.1
    assert (found.inner.argmax(-1) != np.arange(Q).reshape(1, 1, Q)).any()
    np.testing.assert_array_equal(found.outer[3], found.outer[1])
    static = compiled(make(dynamic=False, start="random").init)(jax.random.key(0), IMAGES)["params"]["static_logits"]
    assert np.unique(static).size == COPIES * (P * P + Q * Q)


def test_half_precision_images_have_float32_factors_of_rows_that_sum_to_one():
    half = jnp.asarray(IMAGES, jnp.bfloat16)
    variables = draw()
    factors, sown = run(make(), variables, half, mutable=[PENALTIES, DIAGNOSTICS, FACTORS])
    expected = expected_factors(variables["params"], half)
    for factor, wanted in zip(pair(factors), expected, strict=True):
        assert factor.dtype == jnp.float32
        np.testing.assert_allclose(factor.sum(-1), 1, atol=1e-6)
        np.testing.assert_allclose(factor, wanted, rtol=1e-4, atol=1e-6)  # The mean was not taken in bfloat16.
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
                entropy -= sum(value * np.log(value) for value in factor.ravel()) / np.log(size)
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


@pytest.mark.parametrize("dynamic", [True, False])
def test_penalty_and_diagnostics_are_counted_by_hand(dynamic):
    variables = draw(dynamic)
    factors, sown = run(make(dynamic=dynamic), variables, IMAGES, mutable=[PENALTIES, DIAGNOSTICS, FACTORS])
    expected = told_of(expected_factors(variables["params"], IMAGES), N)
    assert sorted(sown[DIAGNOSTICS]) == sorted(expected)
    for name, value in expected.items():
        np.testing.assert_allclose(sown[DIAGNOSTICS][name], value, rtol=1e-4, err_msg=name)
    np.testing.assert_allclose(sown[PENALTIES]["orthogonality"], expected["regulariser"], rtol=1e-4)
    np.testing.assert_array_equal(sown[FACTORS]["outer"], factors.outer)
    np.testing.assert_array_equal(sown[FACTORS]["inner"], factors.inner)
    if dynamic:
        assert 0 < expected["invalid"] < 1
        assert 1 / N < expected["distinct"] <= 1 - 1 / N
    else:
        assert sown[DIAGNOSTICS]["distinct"] == np.float32(1 / N)


def test_a_value_sown_before_is_replaced():
    variables = draw()
    _, first = run(make(), variables, IMAGES, mutable=[PENALTIES, DIAGNOSTICS, FACTORS])
    _, again = run(make(), {**variables, **first}, IMAGES, mutable=[PENALTIES, DIAGNOSTICS, FACTORS])
    jax.tree.map(np.testing.assert_array_equal, first, again)


def test_nothing_is_sown_or_computed_unless_it_is_asked_for():
    module, variables = make(), draw()
    silent = jax.make_jaxpr(lambda x: module.apply(variables, x))(IMAGES)
    asked = jax.make_jaxpr(lambda x: module.apply(variables, x, mutable=[DIAGNOSTICS]))(IMAGES)
    assert " sort[" in str(asked)  # of the index vectors, to see whether they are permutations
    assert " sort[" not in str(silent)
    for collection, names in ((PENALTIES, {"orthogonality"}), (FACTORS, {"outer", "inner"}), ("batch_stats", set())):
        _, sown = jax.eval_shape(partial(module.apply, mutable=[collection]), variables, IMAGES)
        assert set(sown) <= {collection}
        assert set(sown.get(collection, {})) == names
    assert isinstance(module.apply(variables, IMAGES), Factors)


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


def test_a_temperature_divides_the_logits():
    variables = draw()
    for actual, wanted in zip(
        pair(run(make(temperature=2.5), variables, IMAGES)),
        expected_factors(variables["params"], IMAGES, 2.5),
        strict=True,
    ):
        np.testing.assert_allclose(actual, wanted, rtol=1e-4, atol=1e-6)


def test_the_temperature_falls_geometrically_with_the_progress_and_ends_where_nobody_tells_it():
    module, variables = make(temperature=4.0, end_temperature=0.25), draw()
    for share, temperature in ((0.0, 4.0), (0.25, 2.0), (0.5, 1.0), (1.0, 0.25), (None, 0.25)):
        told = {} if share is None else {PROGRESS: {"share": jnp.float32(share)}}
        expected = expected_factors(variables["params"], IMAGES, temperature)
        for actual, wanted in zip(pair(run(module, variables | told, IMAGES)), expected, strict=True):
            np.testing.assert_allclose(actual, wanted, rtol=1e-4, atol=1e-6, err_msg=str(share))


def test_only_a_temperature_that_moves_asks_for_the_progress():
    moving = jax.eval_shape(make(end_temperature=0.5).init, jax.random.key(0), IMAGES)
    assert jax.tree.structure(moving[PROGRESS]) == jax.tree.structure({"share": 0})
    assert PROGRESS not in jax.eval_shape(make().init, jax.random.key(0), IMAGES)


def test_sinkhorn_normalises_rows_and_columns_in_turn():
    module, variables = make(normalization="sinkhorn", temperature=0.5), draw()
    found, start = run(module, variables, IMAGES), exponentials(variables["params"], IMAGES, 0.5)
    for actual, matrix in zip(pair(found), start, strict=True):
        np.testing.assert_allclose(actual, normalized(matrix, *[-2, -1] * 20), rtol=1e-3, atol=1e-5)
    started = {"params": compiled(module.init)(jax.random.key(0), IMAGES)["params"]}
    for factor, size in zip(pair(run(module, started, IMAGES)), (P, Q), strict=True):
        np.testing.assert_array_equal(factor.argmax(-1), np.broadcast_to(np.arange(size), factor.shape[:-1]))


@pytest.mark.parametrize(
    "options",
    [{"temperature": 0.0}, {"temperature": -1.0}, {"end_temperature": 0.0}, {"start_logit": 0}, {"hidden": 0}],
)
def test_what_is_not_positive_is_refused(options):
    ((name, value),) = options.items()
    with pytest.raises(ValueError, match=rf"^{name} must be positive, got {value}"):
        jax.eval_shape(make(**options).init, jax.random.key(0), IMAGES)
