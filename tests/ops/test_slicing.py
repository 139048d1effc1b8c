"""Strided slices are those of indexing, with its gradient; and with an open number of images no layer is a gather."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

from shuffle_jax import nn
from shuffle_jax.ops import convolution, pooling
from shuffle_jax.ops.slicing import strided, thinned

X = np.random.default_rng(0).normal(size=(2, 7, 9, 4)).astype(np.float32)


@pytest.mark.parametrize(
    ("rows", "columns"), [(range(0, 7, 2), range(1, 9, 3)), (range(3, 4), range(9)), (range(2, 2), range(0, 9, 10))]
)
def test_they_are_those_of_indexing_with_its_gradient(rows, columns):
    expected, back = jax.vjp(
        lambda x: x[:, rows.start : rows.stop : rows.step][:, :, slice(columns.start, columns.stop, columns.step)], X
    )
    found, own = jax.vjp(partial(strided, rows=rows, columns=columns), X)
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(own(2 * found)[0], back(2 * expected)[0])


@pytest.mark.parametrize("stride", [1, 2, 4])
def test_every_so_many_rows_and_columns(stride):
    np.testing.assert_array_equal(thinned(jnp.asarray(X), stride), X[:, ::stride, ::stride])


def of(module):
    """The module as a function of images of 8 channels."""
    variables = module.init(jax.random.key(0), jnp.ones((1, 8, 8, 8)))
    return lambda x: module.apply(variables, x)


LAYERS = {
    "depthwise": lambda: partial(convolution.depthwise, kernel=jnp.ones((3, 3, 1, 8)), stride=2),
    "stem": lambda: lambda x: convolution.convolution(x[..., :3], jnp.ones((3, 3, 3, 4)), stride=2),
    "1x1": lambda: partial(convolution.convolution, kernel=jnp.ones((1, 1, 8, 4)), stride=2),
    "grouped 1x1": lambda: partial(convolution.convolution, kernel=jnp.ones((1, 1, 4, 4)), stride=2, groups=2),
    "average": lambda: pooling.halve,
    "largest": lambda: pooling.largest,
    "polyphase": lambda: lambda x: of(nn.PolyphaseSampling())(x)[0],
    "contextual": lambda: of(nn.ContextualDepthwise(stride=2)),
    "address shift": lambda: of(nn.AddressShift(stride=2)),
    "channel shift": lambda: of(nn.ChannelShift()),
    "decomposed": lambda: of(nn.DynamicConv(8, kernel_size=(3, 3), stride=2)),
}


@pytest.mark.parametrize("layer", LAYERS)
def test_a_layer_exported_for_any_number_of_images_gathers_nothing(layer):
    function = LAYERS[layer]()
    images = jax.ShapeDtypeStruct((*export.symbolic_shape("n"), 8, 8, 8), jnp.float32)
    program = export.deserialize(export.export(jax.jit(function), platforms=("cpu", "cuda"))(images).serialize())
    x = jnp.asarray(np.random.default_rng(1).normal(size=(2, 8, 8, 8)), jnp.float32)
    compiled = jax.jit(program.call).lower(x).compile()
    assert " gather(" not in compiled.as_text()
    np.testing.assert_allclose(compiled(x), function(x), rtol=1e-5, atol=1e-6)
