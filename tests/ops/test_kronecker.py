"""The factored mixers equal the one large matrix that they never form, forward and backward, on every platform."""

from __future__ import annotations

import math
import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax
from jax.test_util import check_grads

from shuffle_jax.ops import kronecker, mixing, permutation, rounding
from shuffle_jax.ops.form import native

CASES = {  # images, positions, groups, (p', p), (q', q), leading axes of the outer and of the inner factor
    "one pair for all": (2, (2, 3), 2, (3, 3), (4, 4), (), ()),
    "a pair for each image and group": (2, (2, 2), 3, (2, 2), (3, 3), (2, 3), (2, 3)),
    "a pair for each group": (2, (3,), 3, (2, 2), (3, 3), (1, 3), (1, 3)),
    "leading axes that differ": (2, (3,), 3, (2, 2), (3, 3), (2, 1), (1, 3)),
    "rectangular": (2, (2, 2), 2, (3, 2), (4, 5), (2,), ()),
    "rectangular for each group": (2, (2,), 2, (1, 4), (2, 3), (), (2, 2)),
    "no outer, no position": (2, (), 2, (1, 1), (4, 4), (2,), (2,)),
    "no inner": (2, (2,), 2, (4, 4), (1, 1), (2,), (2,)),
    "one channel in a group": (2, (2,), 4, (1, 1), (1, 1), (2, 4), (2, 4)),
    "one image, one position": (1, (1, 1), 2, (2, 2), (3, 3), (1, 2), (1,)),
    "correlated by a product": (2, (2,), 2, (5, 5), (2, 2), (2,), (2,)),
    "too large to unroll": (2, (2,), 1, (17, 17), (2, 2), (2,), (2,)),
}


def wide(factor, images, groups):
    """The factor of every image and group, from leading axes that may be missing or of length 1."""
    factor = factor.reshape(factor.shape[:-2] + (1,) * (4 - factor.ndim) + factor.shape[-2:])
    return factor * np.ones((images, groups, 1, 1), factor.dtype)


def oracle(x, outer, inner, groups):
    """``S_G (I_G kron A kron B) x`` with the matrices written out, group by group of every image."""
    images = []
    for image, *factors in zip(x, wide(outer, len(x), groups), wide(inner, len(x), groups), strict=True):
        parts = zip(np.split(image, groups, axis=-1), *factors, strict=True)
        mixed = np.stack([part @ np.kron(a, b).T for part, a, b in parts], axis=-1)
        images.append(mixed.reshape(*image.shape[:-1], -1))
    return np.stack(images)


def dense(x, outer, inner, groups):
    """The same as one einsum, which autodiff differentiates."""
    tables = x.reshape(len(x), -1, groups, outer.shape[-1], inner.shape[-1])
    y = jnp.einsum("nsgab,ngia,ngjb->nsijg", tables, wide(outer, len(x), groups), wide(inner, len(x), groups))
    return y.reshape(*x.shape[:-1], -1)


def normal(*shapes):
    rng = np.random.default_rng(0)
    return [rng.standard_normal(shape) for shape in shapes]


def draw(name):
    """Features, both factors and a cotangent of one case in float64, and its number of groups."""
    n, space, groups, (rows, p), (columns, q), outer, inner = CASES[name]
    features = (n, *space, groups * p * q), (n, *space, groups * rows * columns)
    return *normal(features[0], (*outer, rows, p), (*inner, columns, q), features[1]), groups


def permutations(*shape):
    rng = np.random.default_rng(shape[-1])
    return rng.permuted(np.broadcast_to(np.arange(shape[-1], dtype=np.int32), shape), axis=-1)


def matrix_of(index):
    return np.eye(index.shape[-1])[index]


def relaxed(index):
    """Matrices whose row-argmax is the index."""
    return matrix_of(index) + 0.6 * np.random.default_rng(1).uniform(size=(*index.shape, index.shape[-1]))


def with_gradients(op, cotangent, *args):
    y, pull_back = jax.vjp(op, *args)
    return (y, *pull_back(cotangent))


def assert_close(actual, expected, tolerance=1e-12):
    for a, b in zip(actual, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)


@pytest.fixture(params=["on CPU", "elsewhere"])
def form(request, monkeypatch):
    """Runs the test in the form that CPU takes, or in the form of all other platforms."""
    forms = {"on CPU": lambda *args, cpu, default: cpu(*args), "elsewhere": lambda *args, cpu, default: default(*args)}
    monkeypatch.setattr(lax, "platform_dependent", forms[request.param])


EVERYWHERE = [("on CPU", name) for name in CASES] + [("elsewhere", name) for name in list(CASES)[3:6]]


@pytest.mark.parametrize(("form", "name"), EVERYWHERE, indirect=["form"])
@pytest.mark.fast_cases(6)
def test_mix_equals_its_matrix_and_its_gradients_those_of_a_dense_einsum(form, name):
    x, outer, inner, cotangent, groups = draw(name)

    @jax.jit
    def both(*args):
        return [with_gradients(partial(op, groups=groups), *args) for op in (kronecker.mix, dense)]

    with jax.enable_x64(True):
        actual, expected = both(cotangent, x, outer, inner)
    assert_close([actual[0], *actual], [oracle(x, outer, inner, groups), *expected])


STRAIGHT = [
    "one pair for all",
    "a pair for each image and group",
    "leading axes that differ",
    "no outer, no position",
    "one channel in a group",
    "correlated by a product",
    "too large to unroll",
]
"""Cases that differ in what is hard about a factor: how its axes lie, and its form."""


@pytest.mark.parametrize(
    ("form", "name"), [("on CPU", name) for name in STRAIGHT] + [("elsewhere", STRAIGHT[2])], indirect=["form"]
)
def test_straight_through_is_permute_with_the_gradients_of_mix_at_the_hard_factors(form, name):
    x, outer, inner, cotangent, groups = draw(name)

    def soft(x, outer, inner):
        hard = (rounding.straight_through(factor, rounding.argmax(factor)) for factor in (outer, inner))
        return kronecker.mix(x, *hard, groups)

    @jax.jit
    def three(cotangent, chosen, *args):
        permuted = with_gradients(lambda x: kronecker.permute(x, *chosen, groups), cotangent, args[0])
        straight = partial(kronecker.straight_through, groups=groups)
        return permuted, *(with_gradients(op, cotangent, *args) for op in (straight, soft))

    for spoilt in (None, 0, 1):
        chosen = permutations(*outer.shape[:-1]), permutations(*inner.shape[:-1])
        if spoilt is not None:
            chosen[spoilt].flat[:2] = 0  # two equal rows in one factor of the whole batch
        with jax.enable_x64(True):
            permuted, actual, expected = three(cotangent, chosen, x, *map(relaxed, chosen))
        np.testing.assert_array_equal(actual[0], permuted[0])
        assert_close([actual[0], *actual], [oracle(x, *map(matrix_of, chosen), groups), *expected])
        assert_close([permuted[1]], [expected[1]], 0 if spoilt is None else 1e-12)  # a gather by the inverse, or sums


def test_the_gradients_equal_finite_differences_in_float32():
    *arrays, groups = draw("rectangular")
    *args, cotangent = (array.astype(np.float32) for array in arrays)
    loss = jax.jit(lambda *args: (kronecker.mix(*args, groups) * cotangent).sum())
    check_grads(loss, args, order=1, modes=["rev"], eps=0.1, atol=1e-2, rtol=1e-2)
    repeated = jax.jit(lambda x: kronecker.permute(x, np.array([0, 0]), np.array([1, 0, 2])))  # drops three channels
    check_grads(repeated, (args[0][..., :6],), order=2, modes=["rev"], eps=0.1, atol=1e-2, rtol=1e-2)


@settings(max_examples=8)
@given(*[st.integers(1, 3)] * 4, st.integers(1, 2), st.sampled_from([(1,), (2,), (2, 3)]), *[st.integers(0, 2)] * 2)
def test_mix_equals_its_matrix_in_every_small_shape(rows, p, columns, q, groups, places, outer_axes, inner_axes):
    leads = (places[0], groups)[:outer_axes], (places[0], groups)[:inner_axes]
    x, *factors = normal((*places, groups * p * q), (*leads[0], rows, p), (*leads[1], columns, q))
    with jax.enable_x64(True):
        y = jax.jit(kronecker.mix, static_argnums=3)(x, *factors, groups)
    np.testing.assert_allclose(y, oracle(x, *factors, groups), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("groups", [1, 2, 6])
def test_identities_are_the_fixed_shuffle_exactly(groups):
    (p, q), x = kronecker.group_factors(24, groups), normal((2, 3, 24))[0].astype(np.float32)
    eyes, still = [np.eye(size, dtype=np.float32) for size in (p, q)], [np.arange(size) for size in (p, q)]

    @jax.jit
    def every(x):
        mixed = [op(x, *eyes, groups) for op in (kronecker.mix, kronecker.straight_through)]
        return [*mixed, kronecker.permute(x, *still, groups)], mixing.shuffle(x, groups)

    results, shuffled = every(x)
    for result in results:
        np.testing.assert_array_equal(result, shuffled)
    np.testing.assert_array_equal(kronecker.index(*still, groups), permutation.channel_shuffle(24, groups))


def test_kronecker_products_multiply_and_pass_through_the_shuffle():
    @jax.jit
    def sides(x, a, b, c, d, e, f):
        product = kronecker.mix(kronecker.mix(x, c, d), a, b), kronecker.mix(x, a @ c, b @ d)
        after = kronecker.mix(mixing.shuffle(x, 2), jnp.kron(e, f), jnp.eye(2, dtype=x.dtype))
        return product, (kronecker.mix(x, e, f, 2), after)  # S (I_G kron K) = (K kron I_G) S

    with jax.enable_x64(True):
        first, second = sides(*normal((2, 3, 24), (3, 2), (2, 5), (2, 6), (5, 4), (4, 3), (1, 4)))
    assert_close(*zip(first, second, strict=True))


@pytest.mark.parametrize(("p", "q", "groups"), [(1, 1, 1), (1, 4, 3), (3, 1, 2), (3, 4, 2)])
def test_index_is_the_permutation_of_the_matrix_and_what_permute_does_to_integers(p, q, groups):
    chosen = permutations(5, p), permutations(5, q)
    chosen[1][0] = 0  # without a gradient, indices may repeat
    channels = np.tile(np.arange(groups * p * q, dtype=np.int32), (5, 1))
    permute = jax.jit(partial(kronecker.permute, groups=groups))
    index = jax.jit(kronecker.index, static_argnums=2)(*chosen, groups)
    np.testing.assert_array_equal(index, oracle(channels, *map(matrix_of, chosen), groups))
    assert index.dtype == permute(channels, *chosen).dtype == jnp.int32
    np.testing.assert_array_equal(permute(channels, *chosen), index)


@pytest.mark.parametrize("leads", [((5,), (5,)), ((5, 2), (5, 1)), ((5, 2), (1, 2))])
def test_on_cpu_the_index_of_many_positions_is_a_product(leads):
    """The same index, forward and backward, as behind a barrier, which XLA may drop there."""
    chosen = [permutations(*lead, size) for lead, size in zip(leads, (3, 4), strict=True)]
    x, cotangent = normal((5, 6, 24), (5, 6, 24))

    def permuted(x, *chosen):
        y, gradient = jax.vjp(lambda x: kronecker.permute(x, *chosen, 2), x)
        return y, gradient(cotangent)[0]

    def run():
        forward = jax.jit(partial(kronecker.permute, groups=2)).lower(x, *chosen)
        return forward.as_text().count("dot_general"), jax.jit(permuted)(x, *chosen)

    products, found = run()
    with native():
        plain, expected = run()
    assert (products, plain) == (1, 0)
    for actual, wanted in zip(found, expected, strict=True):
        np.testing.assert_array_equal(actual, wanted)


def permute_by_argmax(x, outer, inner, groups):
    return kronecker.permute(x, rounding.argmax(outer), rounding.argmax(inner), groups)


OPS = {"mix": kronecker.mix, "permute": permute_by_argmax, "straight_through": kronecker.straight_through}


@pytest.mark.parametrize("name", OPS)
def test_eager_jit_and_vmap_agree(name):
    chosen = permutations(3, 2, 2), permutations(3, 3)
    chosen[0][1, 0] = chosen[0][1, 1]  # the second of the three takes the other branch of straight_through
    args = [array.astype(np.float32) for array in (*normal((3, 2, 2, 12), (3, 2, 2, 12)), *map(relaxed, chosen))]
    run = partial(with_gradients, partial(OPS[name], groups=2))
    mapped, alone = jax.jit(jax.vmap(run))(*args), jax.jit(run)
    for i in range(3):
        assert_close([array[i] for array in mapped], alone(*(array[i] for array in args)), 1e-5)
    assert_close([OPS[name](*(jnp.asarray(array[2]) for array in args[1:]), 2)], [mapped[0][2]], 1e-5)


@pytest.mark.parametrize("op", [kronecker.mix, kronecker.straight_through])
def test_half_precision_features_keep_the_type_of_the_factors_and_of_their_gradients(form, op):
    cotangent, x = np.random.default_rng(0).integers(-3, 4, (2, 2, 2, 12)).astype(np.float64)  # no sum is ever rounded
    hard = [matrix_of(permutations(2, size)) for size in (2, 3)]
    args = [a.astype(jnp.bfloat16) for a in (cotangent, x)] + [a.astype(np.float32) for a in hard]
    actual = jax.jit(partial(with_gradients, partial(op, groups=2)))(*args)
    assert [array.dtype for array in actual] == [jnp.bfloat16, jnp.bfloat16, jnp.float32, jnp.float32]
    with jax.enable_x64(True):
        expected = jax.jit(partial(with_gradients, partial(dense, groups=2)))(cotangent, x, *hard)
    assert_close([array.astype(jnp.float32) for array in actual], expected, tolerance=0)


def equations(jaxpr):
    """All equations, those of functions and branches too."""
    for equation in jaxpr.eqns:
        yield equation
        for part in jax.tree.leaves(list(equation.params.values())):
            if hasattr(part := getattr(part, "jaxpr", part), "eqns"):
                yield from equations(part)


def largest(function, *args):
    jaxpr = jax.make_jaxpr(function)(*args).jaxpr
    return max(math.prod(value.aval.shape) for step in equations(jaxpr) for value in step.outvars)


@pytest.mark.parametrize("name", OPS)
@pytest.mark.parametrize("lead", [(), (0,), (0, 2)])
def test_no_images_become_none(name, lead):
    shapes = (0, 3, 12), (0, 3, 12), (*lead, 2, 2), (*lead, 3, 3)
    given = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    made = jax.eval_shape(partial(with_gradients, partial(OPS[name], groups=2)), *given)
    assert [array.shape for array in made] == list(shapes)


@pytest.mark.parametrize("name", OPS)
@pytest.mark.parametrize("lead", [(), (2,), (2, 2)])
def test_no_array_is_larger_than_the_features(name, lead):
    x, *factors = (np.zeros(shape, np.float32) for shape in ((2, 3, 84), (*lead, 6, 6), (*lead, 7, 7)))
    assert largest(jax.jit(partial(with_gradients, partial(OPS[name], groups=2))), x, x, *factors) == x.size
    # The matrix would be 14 times as large, and would be seen.
    formed = jax.jit(lambda x, *factors: mixing.mix(x, jnp.kron(jnp.eye(2), jnp.kron(*factors))))
    assert largest(formed, x, *(factor.reshape(-1, *factor.shape[-2:])[0] for factor in factors)) == 84**2


@pytest.mark.parametrize(("name", "cpu"), [("mix", (3, 4, 6)), ("permute", (1, 1, 2)), ("straight_through", (6, 8, 9))])
def test_a_small_outer_factor_is_no_product_cpu_and_no_platform_scatters(name, cpu):
    # Three products for B (in straight_through three in either branch), and three more for A where it is not unrolled.
    # Permute has one for each in its gradient, for indices that are no permutation.
    for size, products in zip((4, 5, 17), cpu, strict=True):
        x, *factors = (np.zeros(shape, np.float32) for shape in ((2, 3, 6 * size), (2, size, size), (2, 3, 3)))
        traced = jax.jit(partial(with_gradients, partial(OPS[name], groups=2))).trace(x, x, *factors)
        for platform, expected in [("cpu", products), ("cuda", cpu[-1]), ("tpu", cpu[-1])]:
            program = traced.lower(lowering_platforms=(platform,)).as_text()
            assert program.count("stablehlo.dot_general") == expected, (platform, size)
            assert "scatter" not in program


def test_multiply_adds_are_those_of_the_program(form):
    x, outer, inner = (np.zeros(shape, np.float32) for shape in ((2, 5, 24), (2, 2, 2, 3), (2, 2, 7, 4)))
    total = 0
    for step in equations(jax.make_jaxpr(partial(kronecker.mix, groups=2))(x, outer, inner).jaxpr):
        results = math.prod(step.outvars[0].aval.shape)
        if step.primitive.name == "dot_general":
            (axes, _), _ = step.params["dimension_numbers"]
            total += results * math.prod(step.invars[0].aval.shape[axis] for axis in axes)
        elif step.primitive.name == "mul":
            total += results
    # B makes 3 rows of 7 out of 4, that is 84; A makes 2 rows of 7 out of 3, that is 42.
    assert total == 2 * 5 * kronecker.multiply_adds(2, (2, 3), (7, 4)) == 2 * 5 * 2 * (84 + 42)


def test_the_factors_of_a_group_are_the_pair_nearest_to_each_other():
    for size in range(1, 61):
        pairs = [(p, size // p) for p in range(1, size + 1) if size % p == 0]
        nearest = min(pairs, key=lambda pair: (abs(pair[1] - pair[0]), pair))  # of (p, q) and (q, p) the first
        assert kronecker.factor_pair(size) == kronecker.group_factors(3 * size, 3) == nearest
        assert all(kronecker.group_factors(3 * size, 3, pair) == pair for pair in pairs)


def test_errors_name_value_limit_and_remedy():
    zeros = partial(np.zeros, dtype=np.float32)
    for message, *shapes in [
        ("5 and 4 do not make the 12 channels of a group: choose one of [(1, 12), (2, 6), (3, 4)", (5, 5), (4, 4)),
        ("factors for 3 images and 1 groups do not fit 2 images in 2 groups: give one pair", (3, 3, 3), (2, 4, 4)),
        ("factors for 2 images and 3 groups do not fit 2 images in 2 groups: give one pair", (3, 3), (2, 3, 4, 4)),
        ("for images and one for groups, not the shape (1, 2, 2, 3, 3)", (1, 2, 2, 3, 3), (4, 4)),
    ]:
        for op in (kronecker.mix, kronecker.straight_through):
            with pytest.raises(ValueError, match=re.escape(message)):
                op(zeros((2, 24)), *map(zeros, shapes), 2)
        with pytest.raises(ValueError, match=re.escape(message.replace("3, 3)", "3)"))):
            kronecker.permute(zeros((2, 24)), *(np.zeros(shape[:-1], np.int32) for shape in shapes), 2)
    with pytest.raises(ValueError, match=r"features of shape \(24,\) have no axis of images: give \(n, ..., c\)"):
        kronecker.mix(zeros((24,)), zeros((3, 3)), zeros((4, 4)), 2)
    with pytest.raises(ValueError, match="24 channels cannot be split into 5 groups: choose one of"):
        kronecker.mix(zeros((2, 24)), zeros((3, 3)), zeros((4, 4)), 5)
    with pytest.raises(ValueError, match=r"a factor of shape \(2, 3\) has no permutation: give a square one"):
        kronecker.straight_through(zeros((2, 24)), zeros((2, 3)), zeros((4, 4)), 2)
    with pytest.raises(ValueError, match="0 has no pair of factors: give a whole number from 1"):
        kronecker.factor_pair(0)
