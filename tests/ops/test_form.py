"""The native form on request: the same numbers, other programs, and never one out of the cache of the other."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import jaxprs_in_params

from shuffle_jax.ops import convolution, mixing, pooling, rolling_pointwise, shifted_pointwise
from shuffle_jax.ops.form import by_platform, is_native, native

RNG = np.random.default_rng(0)


def drawn(*shape):
    return jnp.asarray(RNG.standard_normal(shape), jnp.float32)


CASES = {  # A function of images with 8 channels, and what its native form is made of.
    "pointwise": (partial(convolution.pointwise, kernel=drawn(1, 1, 8, 4)), {"conv_general_dilated": 1}),
    "rotated": (
        partial(convolution.pointwise, kernel=drawn(1, 1, 8, 4), rotation=3),
        {"conv_general_dilated": 1, "dot_general": 0},
    ),
    "grouped": (partial(convolution.pointwise, kernel=drawn(1, 1, 4, 6), groups=2), {"conv_general_dilated": 1}),
    "depthwise": (partial(convolution.depthwise, kernel=drawn(3, 3, 1, 8), stride=2), {"conv_general_dilated": 1}),
    "1x1": (partial(convolution.convolution, kernel=drawn(1, 1, 8, 4), stride=2), {"conv_general_dilated": 1}),
    "groups": (partial(convolution.convolution, kernel=drawn(3, 3, 4, 6), groups=2), {"conv_general_dilated": 1}),
    "permute": (partial(mixing.permute, permutation=jnp.array([3, 1, 0, 2, 7, 5, 6, 4])), {"gather": 1}),
    "largest": (pooling.largest, {"reduce_window_max": 1}),
    "rolling": (
        partial(rolling_pointwise.rolling_pointwise, kernel=drawn(1, 1, 4, 8), groups=2),
        {"conv_general_dilated": 1, "dot_general": 0},
    ),
    "shifted": (
        partial(shifted_pointwise.shifted_pointwise, kernel=drawn(1, 1, 2, 4), groups=4, boundary="wrap"),
        {"conv_general_dilated": 1},
    ),
}


def primitives(jaxpr):
    for equation in jaxpr.eqns:
        yield equation.primitive.name
        for inner in jaxprs_in_params(equation.params):
            yield from primitives(inner)


@pytest.mark.parametrize("name", CASES)
def test_the_native_form_is_one_operation_on_every_platform_and_the_same_function(name):
    apply, wanted = CASES[name]
    x = drawn(2, 5, 4, 8)
    with native():
        found = list(primitives(jax.make_jaxpr(apply)(x).jaxpr))
        y = jax.jit(apply)(x)
    assert "platform_index" not in found and {kind: found.count(kind) for kind in wanted} == wanted
    np.testing.assert_allclose(y, jax.jit(apply)(x), rtol=1e-5, atol=1e-5)


def test_what_was_compiled_in_one_form_is_not_taken_for_the_other():
    form = jax.jit(lambda x: by_platform(x, cpu=lambda x: x + 1, default=lambda x: x + 2))
    x = jnp.zeros(())
    assert (form(x), is_native()) == (1, False)
    with native():
        assert (form(x), is_native()) == (2, True)
    assert (form(x), is_native()) == (1, False)
    with pytest.raises(KeyError), native():
        raise KeyError
    assert not is_native()
