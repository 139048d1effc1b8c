"""What the test run itself checks: arrays are of the shapes and kinds that annotations say."""

from __future__ import annotations

import inspect
import runpy
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from shuffle_jax.nn import Identity
from shuffle_jax.ops import mixing
from shuffle_jax.typing import Array, Float

checked = runpy.run_path(str(Path(__file__).parent / "annotations.py"))["checked"]


@checked
def scaled(x: Float[Array, "n c"], scale: Float[Array, " c"], turned: bool = False) -> Float[Array, "n c"]:
    if x.shape[1] == 1:
        raise ValueError("two channels at least")
    return (x * scale[None]).T if turned else x * scale[None]


def test_what_fits_passes_traced_or_not_of_jax_or_numpy():
    x, scale = np.ones((2, 3), np.float32), np.full(3, 2.0, np.float32)
    np.testing.assert_array_equal(scaled(x, scale), 2 * x)
    np.testing.assert_array_equal(jax.jit(scaled)(jnp.asarray(x), scale), 2 * x)


@pytest.mark.parametrize(
    ("x", "scale", "turned", "name"),
    [
        (np.ones((2, 3), np.float32), np.ones(1, np.float32), False, "scale"),
        (np.ones((2, 3), np.int32), np.ones(3, np.float32), False, "x"),
        (np.ones((2, 3), np.float32), np.ones(3, np.float32), True, "return"),
    ],
)
def test_another_size_or_kind_is_named(x, scale, turned, name):
    with pytest.raises(AssertionError, match=rf"test_annotations.scaled: {name} is annotated as .*Float.*, and is "):
        scaled(x, scale, turned)


def test_the_functions_own_refusal_comes_first():
    with pytest.raises(ValueError, match="two channels at least"):
        scaled(np.ones((2, 1), np.int32), np.ones(3, np.float32))


def test_the_library_is_checked_in_this_run():
    assert inspect.unwrap(mixing.shuffle) is not mixing.shuffle
    with pytest.raises(AssertionError, match=r"Identity.__call__: x is annotated as"):
        Identity().apply({}, jnp.ones((2, 3)))
