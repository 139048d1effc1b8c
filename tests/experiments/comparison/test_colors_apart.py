"""The layer that keeps colours apart."""

from __future__ import annotations

import itertools

import jax
import numpy as np

from experiments.comparison.colors_apart import FilteredColors


def test_an_order_of_the_colours_is_that_order_in_each_group_of_three():
    images = np.random.default_rng(0).normal(size=(2, 4, 4, 3)).astype(np.float32)
    layer = FilteredColors(2)
    variables = jax.eval_shape(layer.init, jax.random.key(0), images)
    kernel = np.random.default_rng(1).normal(size=variables["params"]["kernels"]["kernel"].shape).astype(np.float32)
    filtered = jax.jit(lambda x: layer.apply({"params": {"kernels": {"kernel": kernel}}}, x))
    groups = np.asarray(filtered(images)).reshape(2, 4, 4, 2, 3)
    for order in itertools.permutations(range(3)):
        expected = groups[..., order].reshape(2, 4, 4, 6)
        np.testing.assert_array_equal(filtered(images[..., order]), expected)
    by_hand = (np.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)))[0, 1:4, 2:5, 2] * kernel[:, :, 0, 1]).sum()
    np.testing.assert_allclose(groups[0, 1, 2, 1, 2], by_hand, rtol=1e-5)
