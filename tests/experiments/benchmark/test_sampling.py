"""What is measured of sampling: the same network with each."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from experiments.benchmark import sampling
from experiments.benchmark.cases import CLASSES, Workload


@pytest.mark.slow
def test_a_network_runs_with_each_sampling_and_blur():
    work = Workload(batch_size=2, image_size=8)
    config = replace(sampling.NETWORKS["resnet"], depth=10, width=1 / 16)
    evaluated = {label: case() for label, case in sampling.steps(work, config, training=False).items()}
    assert list(evaluated) == list(sampling.OPTIONS)  # strides are the base of the ratios
    assert {y.shape for y in evaluated.values()} == {(2, CLASSES)}
    assert len({y.tobytes() for y in map(np.asarray, evaluated.values())}) == len(evaluated)
