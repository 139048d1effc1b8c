"""Layers in their native form, and what was asked of a factory."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest

from shuffle_jax.models import anchored, coresnet, mobilenet_v2, resnet, shufflenet_v1, shufflenet_v2


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


@pytest.fixture
def short(monkeypatch):
    """Networks of few units."""
    monkeypatch.setattr(shufflenet_v1, "UNITS", (2, 1, 1))
    monkeypatch.setattr(shufflenet_v2, "UNITS", (2, 1, 1))
    monkeypatch.setattr(mobilenet_v2, "TABLE", ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 1, 2)))
    monkeypatch.setattr(mobilenet_v2, "LAST", 48)
    monkeypatch.setattr(resnet, "UNITS", {10: (1, 1), 50: (1, 1)})
    monkeypatch.setattr(coresnet, "UNITS", {50: (1, 1)})
    monkeypatch.setattr(coresnet, "CHANNELS", (64, 128))
    monkeypatch.setattr(anchored, "UNITS", {10: (2, 1)})
    monkeypatch.setattr(anchored, "PLAIN_STAGES", ("u", "uu"))
