"""Layers in their native form, and what was asked of a factory."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest


def _native_layer(variables, x, convolution, norm, stride=1, groups=1):
    """A convolution by XLA and its normalisation by running statistics, by the names of their modules."""
    kernel = variables["params"][convolution]["kernel"]
    pads = ((kernel.shape[0] // 2,) * 2,) * 2
    y = jax.lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        pads,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )
    of_batch, own = variables["batch_stats"][norm], variables["params"][norm]
    mean, var, scale, bias = (
        leaf.reshape(1, 1, 1, -1) for leaf in (of_batch["mean"], of_batch["var"], own["scale"], own["bias"])
    )
    return (y - mean) / jnp.sqrt(var + 1e-5) * scale + bias


@pytest.fixture(scope="session")
def native_layer():
    return _native_layer


class Recorder:
    """A factory of modules that keeps the keywords of every call."""

    def __init__(self, make):
        self.make, self.calls = make, []

    def __call__(self, **keywords):
        self.calls.append(keywords)
        return self.make(**keywords)


@pytest.fixture(scope="session")
def recorder():
    return Recorder
