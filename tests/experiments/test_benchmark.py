"""The benchmark measures what it says: the same operation in every form, in turn, against the first."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import benchmark

OPTIONS = benchmark.Arguments(rounds=2, batch_size=2, image_size=8)


def test_cases_run_in_turn_after_one_run_each():
    calls = []
    times = benchmark.measure({name: lambda name=name: calls.append(name) for name in "ab"}, rounds=3)
    assert "".join(calls) == "ab" + "ab" * 3
    assert {name: len(values) for name, values in times.items()} == {"a": 3, "b": 3}


def test_ratios_are_taken_round_by_round_against_the_first_case():
    rows = benchmark.summary({"base": [1.0, 2.0, 4.0], "twice": [2.0, 4.0, 12.0]})
    assert rows == [("base", "2000.00", "1.00", "1.00", "1.00"), ("twice", "4000.00", "2.00", "2.00", "3.00")]


@pytest.mark.parametrize("table", [benchmark.depthwise, benchmark.grouped_pointwise])
def test_both_forms_of_a_convolution_compute_the_same_gradients(table):
    first, second = (case() for case in table(OPTIONS).values())
    for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-2)


def test_the_ways_to_permute_agree():
    cases = benchmark.moving_channels(OPTIONS, backward=False)
    for name in ("permute (gather)", "jnp.take"):
        assert bool(jnp.all(cases[name]() == cases["shuffle (reshape)"]()))
