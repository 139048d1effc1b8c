"""What holds of every layer: op by op it is what it is compiled, an image does not see the rest of its batch, types."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from shuffle_jax.nn import (
    AddressShift,
    AutoShuffle,
    BatchNorm,
    ChannelShift,
    ChannelShuffle,
    CondConv,
    Conv,
    DepthwiseConv,
    DYConv,
    DynamicConv,
    DynamicShuffle,
    FactorGenerator,
    FixedPermutation,
    GridShift,
    HardDynamicShuffle,
    Identity,
    PointwiseConv,
    ShiftedPointwise,
    SqueezeExcitation,
    StaticDynamicShuffle,
)
from shuffle_jax.nn.collections import collections_of

X = np.random.default_rng(0).standard_normal((2, 3, 2, 8)).astype(np.float32)
compiled = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})  # Half the compilation.
SOFT = partial(FactorGenerator, hidden=4)
LAYERS = {  # With how many parameters for 8 channels.
    "identity": (Identity(), 0),
    "shuffle": (ChannelShuffle(4), 0),
    "channel shift": (ChannelShift(), 0),
    "random": (FixedPermutation(), 0),
    "auto": (AutoShuffle(), 64),
    "dynamic": (DynamicShuffle(2, generator=SOFT), 2 * 8 + 8 * 4 + 4 + 5 * (4 + 4)),
    "dynamic, soft": (HardDynamicShuffle(2, evaluation="soft"), 8 * 4 + 4 + 5 * (4 + 4)),
    "squeeze": (SqueezeExcitation(2), 8 * 4 + 4 + 4 * 8 + 8),
    "address shift": (AddressShift(boundary="zero"), 0),
    "grid shift": (GridShift(), 0),
    "norm": (BatchNorm(), 16),
    "conv": (Conv(6, use_bias=True), 9 * 8 * 6 + 6),
    "conv in groups": (Conv(6, 3, 2, groups=2), 9 * 4 * 6),
    "depthwise": (DepthwiseConv(), 9 * 8),
    "pointwise": (PointwiseConv(6, 2), 4 * 6),
    "step": (ShiftedPointwise(4), 2 * 4),
    "static-dynamic": (StaticDynamicShuffle(8, 2, generator=SOFT), 2 * 8 + (8 * 4 + 4 + 5 * 8) + 2 * 4),
    "decomposed": (DynamicConv(6, latent=4, hidden=2), 8 * 2 + 2 * 2 + 2 * 16 + 2 * 6 + 8 * 6 + 8 * 4 + 4 * 6 + 16),
    "weighted": (CondConv(6, count=2), 8 * 2 + 2 + 2 * 8 * 6),
    "attended": (DYConv(6, 3, groups=2, count=2), 8 * 4 + 4 + 4 * 2 + 2 + 2 * 9 * 4 * 6),
}


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.fast_cases(9)
def test_op_by_op_is_compiled_and_one_image_is_a_batch(name, draw):
    layer, _ = LAYERS[name]
    variables = draw(layer, X.shape[1:])
    y = compiled(layer.apply)(variables, X)
    np.testing.assert_allclose(layer.apply(variables, jnp.asarray(X)), y, rtol=1e-4, atol=1e-5)
    alone = compiled(layer.apply)(variables, X[1:])
    np.testing.assert_allclose(alone[0], y[1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", LAYERS)
def test_parameters_are_counted_in_float32_and_the_output_has_the_type_of_the_computation(name):
    layer, parameters = LAYERS[name]
    for train in (False, True):
        start = partial(layer.init_with_output, train=train)
        y, variables = jax.eval_shape(start, jax.random.key(0), jnp.zeros(X.shape, jnp.bfloat16))
        assert y.dtype == jnp.bfloat16
        kept = {name: tree for name, tree in variables.items() if name != "permutations"}
        assert {leaf.dtype for leaf in jax.tree.leaves(kept)} <= {jnp.dtype("float32")}
        assert sum(leaf.size for leaf in jax.tree.leaves(variables.get("params", {}))) == parameters
    if hasattr(layer, "dtype"):
        half = layer.clone(dtype=jnp.dtype("bfloat16"))
        y, _ = jax.eval_shape(half.init_with_output, jax.random.key(0), jnp.zeros(X.shape))
        assert y.dtype == jnp.bfloat16


@pytest.mark.parametrize("name", LAYERS)
def test_of_no_images_a_layer_makes_none_or_says_that_it_needs_a_mean_of_them(name):
    layer, _ = LAYERS[name]
    variables = jax.eval_shape(layer.init, jax.random.key(0), X)
    for train in (False, True):
        run = partial(
            jax.eval_shape, partial(layer.apply, train=train, mutable=["batch_stats", "penalties"]), variables
        )
        if "dynamic" in name or (train and name in ("norm", "decomposed")):
            with pytest.raises(ValueError, match=r"a batch of shape \(0, 3, 2, \d\) holds no values"):
                run(X[:0])
        else:
            y, (one, _) = run(X[:0])[0], run(X)
            assert y.shape == (0, *one.shape[1:])


@pytest.mark.parametrize("name", LAYERS)
def test_every_layer_is_one_of_flax_nnx_by_its_bridge(name):
    layer, parameters = LAYERS[name]

    def evaluated_and_trained():
        model = nnx.bridge.ToNNX(layer, rngs=nnx.Rngs(0)).lazy_init(jnp.asarray(X))
        before = collections_of(model, "test")
        y = model(jnp.asarray(X))
        return before, y, model(jnp.asarray(X), train=True, mutable=[*before, "penalties"]), nnx.state(model, nnx.Param)

    before, y, trained, params = jax.eval_shape(evaluated_and_trained)
    assert before == jax.eval_shape(layer.init, jax.random.key(0), X)
    assert y == trained == jax.eval_shape(layer.apply, before, X)
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == parameters


def trained(layer, variables, x):
    """What a layer gives in training and evaluation, and the gradient by its parameters and images."""
    rest = {name: tree for name, tree in variables.items() if name != "params"}

    def loss(params, x, train):
        y, updated = layer.apply({**rest, "params": params}, x, train=train, mutable=["batch_stats", "penalties"])
        return y.sum() + sum(jax.tree.leaves(updated.get("penalties", {})), jnp.zeros((), y.dtype)), (y, updated)

    by_both = jax.value_and_grad(loss, (0, 1), has_aux=True)
    return [by_both(variables.get("params", {}), x, train) for train in (False, True)]


@pytest.mark.parametrize("name", [*reversed(LAYERS)])
@pytest.mark.fast_cases(3)
def test_types_are_the_same_where_float64_is_the_default(name):
    layer, _ = LAYERS[name]

    def program(x):
        variables = layer.init(jax.random.key(0), x)
        return variables, trained(layer, variables, x)

    with jax.enable_x64(True):
        made = jax.eval_shape(program, jax.ShapeDtypeStruct(X.shape, jnp.float32))
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(made)} <= {"float32", "int32"}


@pytest.mark.parametrize("name", [*reversed(LAYERS)])
@pytest.mark.fast_cases(3)
def test_values_and_gradients_are_traced_on_explicit_axes_and_in_shard_map(name):
    layer, _ = LAYERS[name]
    auto, explicit = (jax.make_mesh((2,), ("batch",), axis_types=(a,)) for a in (AxisType.Auto, AxisType.Explicit))
    whole, batch = PartitionSpec(), PartitionSpec("batch")
    x = jax.ShapeDtypeStruct(X.shape, jnp.float32)
    variables = jax.eval_shape(layer.init, jax.random.key(0), x)

    def lying(leaf, part):
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=NamedSharding(explicit, part))

    with jax.set_mesh(explicit):
        given = jax.tree.map(partial(lying, part=whole), variables), lying(x, batch)
        jax.eval_shape(partial(trained, layer), *given)

    def local(variables, x):
        return jax.tree.map(lambda leaf: leaf.sum()[None], trained(layer, variables, x))

    jax.eval_shape(jax.shard_map(local, mesh=auto, in_specs=(whole, batch), out_specs=batch), variables, x)
