"""Sums over images, rows and columns, whatever the height."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from shuffle_jax.ops import reduction
from shuffle_jax.ops.reduction import sums


@pytest.mark.parametrize("height", [1, 17, 34, 48])
def test_sums_are_exact_at_any_height_eagerly_compiled_and_for_a_batch_of_batches(height):
    images = np.random.default_rng(height).integers(-99, 100, (2, 3, 2, height, 5, 4)).astype(np.float32)
    expected = images.sum((2, 3, 4))
    for k in range(2):
        np.testing.assert_array_equal(sums(list(images[k])), expected[k])
    compiled = jax.jit(jax.vmap(lambda *three: jnp.stack(sums(three))))
    np.testing.assert_array_equal(compiled(*images.swapaxes(0, 1)), expected)


def test_blocks_divide_the_height_into_4_to_10_rows_or_are_all_of_it():
    for height in range(1, 300):
        rows = reduction._block(height)
        assert height % rows == 0
        between = [k for k in range(4, 11) if height % k == 0]
        assert rows == max(between, default=height)


def test_one_reduction_reads_all_images():
    images = [np.ones((1, 32, 2, 3), np.float32)] * 9
    text = jax.jit(sums).lower(images).as_text()
    assert text.count("stablehlo.reduce(") == 1 + len(images)  # all over a block, then each over the blocks
