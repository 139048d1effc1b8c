"""A training in flax.nnx is that in linen, and what it trained is hardened, kept and read there."""

from __future__ import annotations

from functools import partial

import flax.linen as linen
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from flax.traverse_util import flatten_dict

from shuffle_jax.deploy.exported import load
from shuffle_jax.deploy.exporting import export
from shuffle_jax.deploy.hardening import harden
from shuffle_jax.nn import AutoShuffle, Conv, Dense, DynamicConv, DynamicShuffle, FactorGenerator, FixedPermutation
from shuffle_jax.nn.bridge import set_progress, set_variables
from shuffle_jax.nn.collections import SOWN, collections_of, penalty_sum, relaxed_permutations, with_progress
from shuffle_jax.ops.penalty import l1_minus_l2
from shuffle_jax.train import recipe

X = np.random.default_rng(0).standard_normal((4, 4, 4, 8)).astype(np.float32)
LABELS = np.array([0, 1, 2, 0])


class Switched(nnx.Module):
    """A linen module that `train()` and `eval()` of flax.nnx switch, as docs/nnx.md has it."""

    def __init__(self, module, x, rngs):
        self.inner = nnx.bridge.ToNNX(module, rngs=rngs).lazy_init(x)
        self.deterministic = False

    def __call__(self, x):
        return self.inner(x) if self.deterministic else self.inner(x, train=True, mutable=["batch_stats", "penalties"])


class Small(linen.Module):
    """One layer that learns a permutation, one that makes them, one that makes kernels."""

    @linen.compact
    def __call__(self, x, train=False):
        x = AutoShuffle(name="auto")(Conv(8, name="conv")(x), train)
        x = DynamicShuffle(generator=partial(FactorGenerator, hidden=4), name="dynamic")(x, train)
        x = DynamicConv(8, name="kernels")(x, train)
        return Dense(3, name="head")(x.mean((1, 2)), train)


STEPS = 4


def trained_in_linen(variables):
    plan = recipe(STEPS)

    @jax.jit
    def step(variables, state, k):
        told = with_progress(variables, plan.progress(k))

        def loss(params):
            logits, new = Small().apply({**told, "params": params}, X, train=True, mutable=["batch_stats", "penalties"])
            entropy = optax.softmax_cross_entropy_with_integer_labels(logits, LABELS).mean()
            return entropy + plan.penalty_weight(k) * penalty_sum(new), new["batch_stats"]

        gradient, statistics = jax.grad(loss, has_aux=True)(variables["params"])
        updates, state = plan.optimizer.update(gradient, state, variables["params"])
        params = optax.apply_updates(variables["params"], updates)
        return {**told, "params": params, "batch_stats": statistics}, state

    state = plan.optimizer.init(variables["params"])
    for k in range(STEPS):
        variables, state = step(variables, state, k)
    return variables


def trained_in_nnx(variables):
    plan, model = recipe(STEPS), Switched(Small(), jnp.asarray(X), nnx.Rngs(0))
    set_variables(model.inner, variables)
    optimizer = nnx.Optimizer(model, plan.optimizer, wrt=nnx.Param)

    @nnx.jit
    def step(model, optimizer, k):
        set_progress(model, plan.progress(k))

        def loss(model):
            entropy = optax.softmax_cross_entropy_with_integer_labels(model(X), LABELS).mean()
            return entropy + plan.penalty_weight(k) * penalty_sum(model)

        optimizer.update(model, nnx.grad(loss)(model))

    for k in range(STEPS):
        step(model, optimizer, k)
    return model


@pytest.mark.slow
def test_a_training_in_nnx_is_that_in_linen_and_hardens_and_is_kept(tmp_path):
    import orbax.checkpoint as ocp

    variables = jax.jit(Small().init)(jax.random.key(0), X)
    expected, model = trained_in_linen(variables), trained_in_nnx(variables)
    found = {name: tree for name, tree in collections_of(model.inner, "test").items() if name not in SOWN}
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5), found, expected)
    (matrix,) = relaxed_permutations(model).values()  # and the constraint held
    np.testing.assert_allclose([matrix.sum(0), matrix.sum(1)], np.ones((2, 8)), atol=0.02)
    assert float(jnp.abs(matrix - relaxed_permutations(variables)["auto"]).max()) > 1e-3

    model.eval()
    statistics = nnx.state(model, nnx.BatchStat)
    hard = harden(model.inner)
    set_variables(model.inner, hard.variables)
    np.testing.assert_allclose(model(X), Small().apply(hard.variables, X), rtol=1e-5, atol=1e-6)
    assert list(relaxed_permutations(model)) == [] and float(penalty_sum(model)) == 0
    jax.tree.map(np.testing.assert_array_equal, nnx.state(model, nnx.BatchStat), statistics)  # evaluation kept them

    graph, state = nnx.split(model)
    with ocp.StandardCheckpointer() as checkpoints:
        checkpoints.save(tmp_path / "model", nnx.to_pure_dict(nnx.filter_state(state, nnx.Not(nnx.RngState))))
        checkpoints.wait_until_finished()
        read = checkpoints.restore(tmp_path / "model")
    other = set_variables(nnx.bridge.ToNNX(Small()), harden(trained_in_linen(variables)).variables)
    nnx.update(other, read["inner"])
    np.testing.assert_array_equal(other(X), model(X))

    classes = {"classes": ["a", "b", "c"], "preprocessing": {}, "about": {}, "platforms": ["cpu"]}
    apply = lambda state, x: nnx.merge(graph, state, copy=True)(x)  # noqa: E731
    export(apply, state, tmp_path / "model.jax", image_shape=(4, 4, 8), **classes)
    np.testing.assert_allclose(load(tmp_path / "model.jax").logits(X), model(X), rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_stacked_layers_run_and_are_hardened_one_by_one():
    @nnx.split_rngs(splits=3)
    @nnx.vmap(in_axes=(0,), out_axes=0)
    def stacked(rngs):
        return Switched(AutoShuffle(), jnp.zeros((1, 1, 1, 8)), rngs)

    @nnx.scan(in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)
    def run(x, layer):
        return layer(x)

    stack, expected = stacked(nnx.Rngs(0)), jnp.asarray(X)
    matrices = relaxed_permutations(stack.inner)
    y = run(expected, stack)
    for matrix in matrices.values():
        expected = AutoShuffle().apply({"params": {"relaxed_permutation": matrix}}, expected)
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)
    each = [float(l1_minus_l2(matrix)) for matrix in matrices.values()]
    np.testing.assert_allclose(penalty_sum(stack), sum(each), rtol=1e-5)
    assert len({tuple(p) for p in harden(stack.inner).permutations.values()}) == len(matrices) == 3


def test_set_progress_reaches_every_layer_and_nothing_else():
    class Own(nnx.Variable):
        """A type that no collection has."""

    class Two(nnx.Module):
        def __init__(self):
            self.one = set_variables(nnx.bridge.ToNNX(DynamicShuffle()), {"progress": {"share": np.float32(1)}})
            self.other = nnx.List([nnx.Param(jnp.ones(2))])
            self.own = Own(jnp.ones(1))

    model = Two()
    set_progress(model, 0.25)
    flat = flatten_dict(collections_of(model, "test"))
    assert {path: float(leaf.sum()) for path, leaf in flat.items()} == {
        ("progress", "one", "share"): 0.25,
        ("params", "other", "0"): 2.0,
        ("Own", "own"): 1.0,
    }


def test_set_variables_replaces_all_and_says_what_it_cannot_hold():
    model = set_variables(nnx.bridge.ToNNX(FixedPermutation()), {"permutations": {"index": np.array([1, 0])}})
    set_variables(model, {"batch_stats": {"norm": {"mean": np.ones(2)}}, "penalties": {"sum": np.ones(())}})
    assert [*flatten_dict(collections_of(model, "test"))] == [("batch_stats", "norm", "mean")]
    with pytest.raises(ValueError, match=r"norm/mean is in two collections, .* leave out one"):
        set_variables(model, {"params": {"norm": {"mean": 1}}, "batch_stats": {"norm": {"mean": 2}}})
    with pytest.raises(ValueError, match=r"takes a module of flax.nnx.bridge.ToNNX, got Linear: go through"):
        set_variables(nnx.Linear(2, 2, rngs=nnx.Rngs(0)), {"params": {}})
    with pytest.raises(ValueError, match=r"set_variables takes all variables of a network by collection"):
        set_variables(model, {"kernel": np.ones(2)})
