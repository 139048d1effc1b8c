"""What is measured of contextual convolutions: a plain one first, of the same shape."""

from __future__ import annotations

import jax
import pytest

from experiments.benchmark import contextual
from experiments.benchmark.cases import Workload


@pytest.mark.slow
@pytest.mark.parametrize("name", ["narrow-16", "depthwise-58"])
def test_both_layers_run_with_and_without_gradients(name):
    shape = contextual.SHAPES[name]._replace(side=5)
    for backward in (False, True):
        plain, levels = contextual.layer(Workload(batch_size=2), shape, backward).items()
        assert (plain[0], levels[0]) == ("plain", "contextual")
        shapes, others = (jax.tree.map(jax.numpy.shape, case()) for _, case in (plain, levels))
        assert shapes == others
