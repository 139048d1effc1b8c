"""What is computed again gives the same numbers, is computed again indeed, and keeps its arguments alone."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from shuffle_jax.ops.remat import recomputed

X = jnp.asarray(np.random.default_rng(0).normal(size=(4, 8)), jnp.float32)
KERNEL = jnp.asarray(np.random.default_rng(1).normal(size=(8, 8)), jnp.float32)


def layer(x, kernel):
    return jnp.tanh(jnp.tanh(x @ kernel) @ kernel)


def loss(function, x, kernel):
    return jnp.square(function(x, kernel)).sum()


@pytest.mark.parametrize("transform", [lambda f: f, jax.jit], ids=["eager", "jit"])
def test_values_and_gradients_are_the_same(transform):
    plain, again = (
        transform(jax.value_and_grad(partial(loss, function), (0, 1)))(X, KERNEL)
        for function in (layer, recomputed(layer))
    )
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), again, plain)


def kept_numbers(function):
    """How many numbers a gradient keeps of a forward pass."""
    vjp = jax.eval_shape(lambda x, kernel: jax.vjp(function, x, kernel)[1], X, KERNEL)
    return sum(leaf.size for leaf in jax.tree.leaves(vjp))


def test_a_gradient_keeps_the_arguments_alone():
    assert kept_numbers(recomputed(layer)) == X.size + KERNEL.size < kept_numbers(layer)


def test_the_compiled_program_computes_it_again():
    def units(wrap):
        def chain(x):
            for _ in range(6):
                x = wrap(lambda x: jnp.sin(jnp.cos(jnp.sin(jnp.cos(x) @ KERNEL) @ KERNEL)))(x)
            return x.sum()

        program = jax.jit(jax.grad(chain)).lower(jax.ShapeDtypeStruct((4096, 8), jnp.float32)).compile()
        return program.memory_analysis().temp_size_in_bytes

    assert units(recomputed) <= 0.7 * units(lambda unit: unit)


def test_random_numbers_are_drawn_once_and_python_runs_once():
    runs = []

    def dropped(x, key):
        runs.append(key)
        return jnp.where(jax.random.bernoulli(key, 0.5, x.shape), x, 0) ** 2

    key = jax.random.key(0)
    again = jax.grad(lambda x: recomputed(dropped)(x, key).sum())(X)
    assert len(runs) == 1
    np.testing.assert_array_equal(again, jax.grad(lambda x: dropped(x, key).sum())(X))


def test_what_is_closed_over_has_its_gradient():
    def closing(wrap, kernel):
        return jnp.square(wrap(lambda x: jnp.tanh(x @ kernel))(X)).sum()

    plain, again = (jax.grad(partial(closing, wrap))(KERNEL) for wrap in (lambda f: f, recomputed))
    np.testing.assert_array_equal(again, plain)


def test_pytrees_whole_numbers_and_several_results_pass():
    def function(x, others):
        return {"y": x * others["scale"], "n": others["n"] + 1}, x.sum()

    others = {"scale": jnp.float32(3), "n": jnp.int32(2)}
    (result, total), vjp = jax.vjp(lambda x: recomputed(function)(x, others), X)
    assert int(result["n"]) == 3 and total.shape == ()
    zero = np.zeros((), jax.dtypes.float0)
    np.testing.assert_array_equal(vjp(({"y": jnp.ones_like(X), "n": zero}, jnp.float32(1)))[0], jnp.full_like(X, 4))


@pytest.mark.parametrize("result", [lambda x: x.sum(), lambda x: x.sum(0), lambda x: x[:, :, None]])
def test_any_shape_of_the_result(result):
    plain, again = (jax.grad(lambda x, f=f: (f(x) ** 3).sum())(X) for f in (result, recomputed(result)))
    np.testing.assert_array_equal(again, plain)


def test_reverse_over_reverse():
    def slope(function):
        inner = jax.grad(lambda x: loss(function, x, KERNEL))
        return jax.grad(lambda x: jnp.square(inner(x)).sum())(X)

    np.testing.assert_allclose(slope(recomputed(layer)), slope(layer), rtol=1e-5, atol=1e-5)


def test_mapped():
    gradient = jax.vmap(jax.grad(partial(loss, recomputed(layer))), (0, None))(X[:, None], KERNEL)
    np.testing.assert_allclose(gradient[:, 0], jax.grad(partial(loss, layer))(X, KERNEL), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("axis", [AxisType.Auto, AxisType.Explicit])
def test_split_over_devices_without_waiting_for_another(axis):
    mesh = jax.make_mesh((2,), ("batch",), axis_types=(axis,))
    split, whole = (NamedSharding(mesh, spec) for spec in (PartitionSpec("batch"), PartitionSpec()))
    slope = jax.jit(jax.grad(partial(loss, recomputed(layer)), 0))
    arguments = jax.device_put(X, split), jax.device_put(KERNEL, whole)
    expected = jax.grad(partial(loss, layer))(X, KERNEL)
    np.testing.assert_allclose(slope(*arguments), expected, rtol=1e-5, atol=1e-6)
    text = slope.lower(*arguments).compile().as_text()
    assert not any(f"all-{what}" in text or "collective" in text for what in ("gather", "reduce", "to-all"))


def test_in_shard_map_the_gradient_of_a_kernel_is_that_of_all_devices():
    mesh = jax.make_mesh((2,), ("batch",), axis_types=(AxisType.Auto,))
    batch, whole = PartitionSpec("batch"), PartitionSpec()

    def own(x, kernel):
        return jax.grad(partial(loss, recomputed(layer)), (0, 1))(x, kernel)

    found = jax.shard_map(own, mesh=mesh, in_specs=(batch, whole), out_specs=(batch, whole))(X, KERNEL)
    expected = jax.grad(partial(loss, layer), (0, 1))(X, KERNEL)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)


def test_elsewhere_a_barrier_keeps_the_two_apart():
    text = jax.export.export(jax.jit(jax.grad(partial(loss, recomputed(layer)))), platforms=["cuda"])(X, KERNEL)
    assert "optimization_barrier" in text.mlir_module()
