"""Permutations of another run: by their place, and refused where there are none."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.comparison.handed import Handed
from shuffle_jax.run import Run

LEARNED = {"unit/mixer": np.array([2, 0, 1]), "mixer": np.array([1, 2, 0])}


class Unit(nn.Module):
    """A mixer inside a unit."""

    mixer: object

    @nn.compact
    def __call__(self, x):
        return self.mixer(name="mixer")(x)


class Mixed(nn.Module):
    """Two mixers, one of them inside a unit."""

    mixer: object

    @nn.compact
    def __call__(self, x):
        return self.mixer(name="mixer")(Unit(self.mixer, name="unit")(x))


@pytest.fixture
def run(tmp_path):
    (tmp_path / "run").mkdir()
    Run(tmp_path / "run").save_permutations(LEARNED)
    return tmp_path / "run"


def init(folder, channels=3):
    network = Mixed(lambda name: Handed(run=str(folder), name=name))
    x = jnp.arange(float(channels)).reshape(1, 1, 1, -1)
    return network.init_with_output(jax.random.key(0), x)


def test_every_layer_has_the_permutation_of_its_place(run):
    y, variables = init(run)
    found = variables["permutations"]
    assert found["mixer"]["index"].tolist() == [1, 2, 0] and found["unit"]["mixer"]["index"].tolist() == [2, 0, 1]
    assert y.ravel().tolist() == np.arange(3.0)[LEARNED["unit/mixer"]][LEARNED["mixer"]].tolist()


def test_a_run_without_them_or_of_another_width_is_refused(run, tmp_path):
    with pytest.raises(ValueError, match="none must have a hardened permutation of unit/mixer, and has none: name a"):
        init(tmp_path / "none")
    with pytest.raises(ValueError, match="run has a permutation of 3 channels in unit/mixer, and 4 are to be permuted"):
        init(run, channels=4)
