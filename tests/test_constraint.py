"""The last link of a chain turns any optimiser's step into the normalisation of that step, on the leaves given."""

from __future__ import annotations

import subprocess
import sys
from functools import partial
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shuffle_jax.constraint import RELAXED, keep_bistochastic
from shuffle_jax.ops import relaxation


def bistochastic(seed, size):
    matrix = np.random.default_rng(seed).random((size, size))
    for _ in range(20):
        matrix /= matrix.sum(0)
        matrix /= matrix.sum(1, keepdims=True)
    return matrix.astype(np.float32)


ONE = jnp.asarray(bistochastic(1, 5))
TREE = {
    "one": ONE,
    "layers": ({"batch": jnp.stack([ONE, ONE[::-1]])}, [ONE.astype(jnp.bfloat16)]),
    "absent": None,
}
"""Matrices as a user's tree may hold them: nested, batched, in half precision, and a place that is empty."""


@pytest.fixture(autouse=True)
def standard_promotion():
    """Optax's Adam takes powers of a float to an integer, which strict promotion refuses."""
    with jax.numpy_dtype_promotion("standard"):
        yield


def definition(matrix):
    """One clamp-column-row pass in float64."""
    matrix = np.maximum(np.asarray(matrix, np.float64), 0)
    for axis in (-2, -1):
        total = matrix.sum(axis, keepdims=True)
        matrix = matrix / np.where(total > 0, total, 1)
    return matrix


def projected(direction):
    """What is left of a direction when it changes no sum, ``(I - J / c) D (I - J / c)``, in float64."""
    size = direction.shape[-1]
    centre = np.eye(size) - 1 / size
    return centre @ np.asarray(direction, np.float64) @ centre


def gradient(tree, seed):
    return jax.tree.map(lambda leaf: jnp.asarray(np.random.default_rng(seed).normal(size=leaf.shape), leaf.dtype), tree)


@partial(jax.jit, static_argnums=0)
def first_update(link, step, matrix):
    """What a link makes of a step, as an optimiser calls it."""
    return link.update(step, link.init(matrix), matrix)[0]


def assert_normalized(found, free):
    """Leaf by leaf: what was reached is the normalisation of where the optimiser alone would have gone."""
    assert jax.tree.structure(found) == jax.tree.structure(free)
    for reached, aim in zip(jax.tree.leaves(found), jax.tree.leaves(free), strict=True):
        # Half precision rounds the aim here, the sum inside the link, and the result.
        atol = 2e-6 if reached.dtype == jnp.float32 else 3e-2
        assert float(reached.min()) >= 0
        np.testing.assert_allclose(reached.astype(jnp.float32), definition(aim.astype(jnp.float32)), atol=atol)


OPTIMIZERS = {
    "sgd": lambda *end: optax.chain(optax.sgd(0.1, momentum=0.9), *end),
    "adam": lambda *end: optax.chain(optax.adam(0.1), *end),
    "inject_hyperparams": lambda *end: optax.inject_hyperparams(
        lambda learning_rate: optax.chain(optax.adam(learning_rate), *end)
    )(learning_rate=optax.linear_schedule(0.1, 0.2, 3)),
    "multi_steps": lambda *end: optax.MultiSteps(optax.chain(optax.sgd(0.1), *end), every_k_schedule=2),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_step_is_the_normalisation_of_the_optimisers_own(name):
    free, kept = OPTIMIZERS[name](), OPTIMIZERS[name](keep_bistochastic(every=True))
    params, state, free_state = TREE, kept.init(TREE), free.init(TREE)
    update, free_update = jax.jit(kept.update), jax.jit(free.update)
    for seed in range(3):
        step, state = update(gradient(TREE, seed), state, params)
        aim, free_state = free_update(gradient(TREE, seed), free_state, params)
        before, params = params, optax.apply_updates(params, step)
        if name == "multi_steps" and seed % 2 == 0:  # gradients are being gathered: nothing may move
            jax.tree.map(np.testing.assert_array_equal, params, before)
        else:
            assert_normalized(params, optax.apply_updates(before, aim))


def test_along_takes_the_tangent_part_of_the_optimisers_step():
    free, kept = optax.adam(0.1), optax.chain(optax.adam(0.1), keep_bistochastic(along=True, every=True))
    params, state, free_state = TREE, kept.init(TREE), free.init(TREE)
    update = jax.jit(kept.update)
    for seed in range(3):
        step, state = update(gradient(TREE, seed), state, params)
        aim, free_state = free.update(gradient(TREE, seed), free_state, params)
        before, params = params, optax.apply_updates(params, step)
        wide = [jax.tree.map(lambda leaf: leaf.astype(jnp.float32), tree) for tree in (before, aim)]
        assert_normalized(params, jax.tree.map(lambda m, u: (m + projected(u)).astype(jnp.float32), *wide))


@pytest.mark.parametrize("constrain", [relaxation.clamp_normalize, relaxation.balance])
def test_what_changes_sums_alone_moves_nothing_along(constrain):
    rows, columns = np.random.default_rng(2).normal(size=(2, 5)).astype(np.float32)
    step = np.float32(0.05) * (rows[:, None] + columns[None, :])
    moved = {}
    for along in (True, False):
        moved[along] = np.abs(first_update(keep_bistochastic(constrain, along), step, ONE)).max()
    assert moved[True] < 2e-5 and moved[False] > 1e-2


def test_one_pass_stands_still_where_nothing_is_stationary_and_along_moves_on():
    # f = sum_ij w_j M_ij^2 / 2 has the slope M_ij w_j, and a pass divides the columns of M - r M w by 1 - r w_j: every
    # M is a fixed point of it. f has one minimum, J / c by its convexity and the symmetry of its rows.
    weights = jnp.array([[1.0, 2.0, 3.0, 4.0, 5.0]])
    reached = {}
    for along in (True, False):
        optimizer = optax.chain(optax.sgd(0.1), keep_bistochastic(along=along))
        matrix, update = ONE, jax.jit(optimizer.update)
        for _ in range(200):
            step, _ = update(weights * matrix, optimizer.init(matrix), matrix)
            matrix = optax.apply_updates(matrix, step)
        reached[along] = matrix
    assert float(np.abs(projected(weights * ONE)).max()) > 0.1  # a step along the constraint set goes down
    np.testing.assert_allclose(reached[False], ONE, atol=1e-4)
    np.testing.assert_allclose(reached[True], 0.2, atol=1e-4)


def test_along_may_stand_still_too_where_entries_are_zero():
    # f = tr M - |M|^2 / 2 falls towards the ends of this edge of the polytope; its slope I - M is tangent already. The
    # clamp cuts the diagonal off, and the normalisation undoes what is left, M (1 + r).
    matrix = jnp.array([[0.0, 0.3, 0.7], [0.7, 0.0, 0.3], [0.3, 0.7, 0.0]])
    step = 0.1 * (matrix - jnp.eye(3))
    np.testing.assert_allclose(projected(step), step, atol=1e-7)
    for constrain in (relaxation.clamp_normalize, relaxation.balance):
        np.testing.assert_allclose(first_update(keep_bistochastic(constrain, along=True), step, matrix), 0, atol=1e-5)


MATRIX_AND_KERNEL = {"mixer": ONE, "conv": {"kernel": jnp.ones((3, 5)), "bias": jnp.ones(5)}}
IS_MATRIX = {"mixer": True, "conv": {"kernel": False, "bias": False}}
LABELS = {"mixer": "relaxed", "conv": "other"}


@pytest.mark.parametrize(
    "optimizer",
    [
        optax.chain(optax.sgd(0.1), optax.masked(keep_bistochastic(), IS_MATRIX)),
        optax.multi_transform(
            {"relaxed": optax.chain(optax.sgd(0.1), keep_bistochastic()), "other": optax.sgd(0.1)}, LABELS
        ),
    ],
    ids=["masked", "multi_transform"],
)
def test_only_the_selected_leaves_are_constrained(optimizer):
    slope = gradient(MATRIX_AND_KERNEL, 0)
    step, _ = jax.jit(optimizer.update)(slope, optimizer.init(MATRIX_AND_KERNEL), MATRIX_AND_KERNEL)
    moved = optax.apply_updates(MATRIX_AND_KERNEL, step)
    assert_normalized(moved["mixer"], ONE - 0.1 * slope["mixer"])
    for name in ("kernel", "bias"):
        np.testing.assert_allclose(moved["conv"][name], 1 - 0.1 * slope["conv"][name], rtol=1e-6)


@pytest.mark.parametrize("constrain", [relaxation.clamp_normalize, relaxation.balance])
def test_rows_sum_to_one_and_columns_as_the_normalisation_says(constrain):
    optimizer = optax.chain(optax.adam(0.1), keep_bistochastic(constrain))
    params, state, update = ONE, optimizer.init(ONE), jax.jit(optimizer.update)
    worst = 0.0
    for seed in range(5):
        step, state = update(gradient(ONE, seed), state, params)
        params = optax.apply_updates(params, step)
        np.testing.assert_allclose(params.sum(-1), 1, atol=1e-5)
        worst = max(worst, float(jnp.abs(params.sum(0) - 1).max()))
    assert (worst <= 1.01e-2) == (constrain is relaxation.balance)  # one pass leaves the columns loose


def test_vmap_equals_one_after_the_other():
    batch = TREE["layers"][0]["batch"]
    link = keep_bistochastic(partial(relaxation.balance, tolerance=1e-5))
    step = jax.jit(jax.vmap(partial(first_update, link)))(gradient(batch, 0), batch)
    for i, matrix in enumerate(batch):
        np.testing.assert_allclose(step[i], first_update(link, gradient(batch, 0)[i], matrix), atol=1e-4)


LINKS = {along: keep_bistochastic(along=along) for along in (False, True)}


@given(
    st.sampled_from([1, 2, 6]),
    st.sampled_from([jnp.float32, jnp.bfloat16]),
    st.integers(0, 99),
    st.floats(-3, 3),
    st.booleans(),
)
def test_no_step_leaves_the_nonnegative_matrices_or_makes_nan(size, dtype, seed, scale, along):
    matrix = bistochastic(seed, size).astype(dtype)
    step = (10.0**scale * np.random.default_rng(seed + 1).normal(size=matrix.shape)).astype(dtype)
    change = first_update(LINKS[along], step, matrix)
    moved = matrix + np.asarray(change)
    assert change.dtype == dtype and moved.min() >= 0
    sums = moved.astype(np.float32).sum(-1)
    alive = sums > 0  # a row whose every entry was clamped stays at zero; along, no row loses what it sums to
    assert not along or alive.all()
    np.testing.assert_allclose(sums[alive], 1, atol=size * float(jnp.finfo(dtype).eps))


def test_half_precision_is_normalised_in_float32():
    matrix = jnp.full((300, 300), 1 / 300, jnp.bfloat16)  # a sum of 300 such terms in bfloat16 would be off
    seen = []

    def spy(matrix):
        seen.append(matrix.dtype)
        return relaxation.clamp_normalize(matrix)

    link = keep_bistochastic(spy)
    step, _ = link.update(jnp.zeros((300, 300)), link.init(matrix), matrix)  # the update may have another type
    assert seen == [jnp.float32] and step.dtype == jnp.bfloat16
    np.testing.assert_allclose((matrix + step).astype(jnp.float32), 1 / 300, rtol=2**-8)


def test_what_is_not_square_is_named():
    link = keep_bistochastic(every=True)
    for leaf, name, shape in [
        ({"conv": ({"kernel": jnp.ones((3, 5))},)}, "conv/0/kernel", r"\(3, 5\)"),
        ({"bias": jnp.ones(5)}, "bias", r"\(5,\)"),
        (jnp.ones(()), "the parameter", r"\(\)"),
        ({"index": jnp.ones((4, 4), jnp.int32)}, "index", r"\(4, 4\) and type int32"),
    ]:
        with pytest.raises(ValueError, match=rf"^{name} of shape {shape}.*by optax.masked$"):
            link.update(leaf, link.init(leaf), leaf)


SQUARE = {"kernel": 1.0 + jnp.eye(5).reshape(1, 1, 5, 5)}
"""A 1x1 convolution with as many channels out as in, which has the shape of a relaxed permutation."""


class Held(NamedTuple):
    relaxed_permutation: jax.Array


@pytest.mark.parametrize("mixer", [{RELAXED: ONE}, Held(ONE), {RELAXED: nn.Partitioned(ONE, (None, None))}])
def test_of_a_network_relaxed_permutations_alone_are_constrained_and_no_square_kernel(mixer):
    params = {"dense": {"kernel": 2 * ONE}, "conv": SQUARE, "mixer": mixer}
    link, slope = optax.chain(optax.sgd(0.1), keep_bistochastic()), gradient(params, 0)
    moved = optax.apply_updates(params, link.update(slope, link.init(params), params)[0])
    free = jax.tree.map(lambda p, g: p - 0.1 * g, params, slope)
    assert_normalized(moved.pop("mixer"), free.pop("mixer"))
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-6), moved, free)


def test_a_tree_without_relaxed_permutations_is_constrained_on_request_alone():
    link = keep_bistochastic()
    for params, name in (({"conv": SQUARE}, "conv/kernel"), ({"left": [ONE]}, "left/0")):
        with pytest.raises(ValueError, match=rf"^no leaf is named {RELAXED} .*got {name}: .*every=True"):
            link.update(params, link.init(params), params)
    assert_normalized(*(optax.apply_updates([ONE], u) for u in (link.update([ONE], None, [ONE])[0], [ONE])))


def test_the_parameters_are_needed():
    link = keep_bistochastic(every=True)
    with pytest.raises(ValueError, match=r"pass them to optimizer.update\(..., params\)"):
        link.update(TREE, link.init(TREE))


def test_it_costs_no_network_library():
    program = """
import sys
import shuffle_jax.constraint
assert not {"flax", "orbax", "matplotlib"} & set(sys.modules), "imported"
"""
    subprocess.run([sys.executable, "-c", program], check=True)
