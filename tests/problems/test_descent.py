"""The descent is the written iteration, from every start; the penalty recovers what the relaxation alone does not."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import get_args

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from shuffle_jax.ops import penalty, rounding
from shuffle_jax.ops.quadratic_assignment import matches
from shuffle_jax.problems import descent
from shuffle_jax.problems.descent import DescentConfig, PenaltyKind, RelaxationKind, descend, recorded_steps
from shuffle_jax.problems.generators import erdos_renyi, moebius_ladder, relabelled

KINDS = get_args(RelaxationKind)
STARTS = 3
FEW = DescentConfig(steps=3, records=3)
STILL = DescentConfig(learning_rate=1e-30, adam_learning_rate=1e-30, steps=2, records=3)
"""Nothing moves: the start, and what temperature makes of it, can be seen."""

PERMUTATION = np.array([2, 0, 3, 1])
TARGET = jnp.asarray(np.eye(4, dtype=np.float32)[PERMUTATION])


def distance(matrix, target):
    return jnp.square(matrix - target).sum()


def mismatch(matrix, graphs):
    a, b = graphs
    return jnp.square(a @ matrix - matrix @ b).sum()


def toward_target(kind, config, seed=0):
    """One problem for many tests: it is compiled once for each relaxation."""
    return descend(distance, TARGET, 4, jax.random.key(seed), STARTS, replace(config, relaxation=kind))


def nothing(matrix, _):
    return 0 * matrix.sum()


def several(matrix, _):
    return matrix.sum(0)


def from_all_starts(instance, config, starts=16):
    """Matches a relabelled graph: what was reached, and which starts found the permutation."""
    pair = jnp.asarray(instance.a, jnp.float32), jnp.asarray(instance.b, jnp.float32)
    scale = np.linalg.norm(instance.a, 2).item() ** 2
    found = descend(mismatch, pair, instance.size, jax.random.key(0), starts, config, scale)
    return found, int(matches(rounding.assignment(found.matrix), pair).sum())


def normalized(matrix):
    matrix = np.maximum(matrix, 0)
    matrix = matrix / matrix.sum(0)
    return matrix / matrix.sum(1, keepdims=True)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.fast_cases(4)
def test_every_relaxation_comes_to_the_nearest_permutation(kind):
    found = toward_target(kind, DescentConfig(steps=300, records=3))
    assert found.matrix.shape == (STARTS, 4, 4) and found.objective.shape == found.penalty.shape == (STARTS, 3)
    np.testing.assert_array_equal(found.matrix.argmax(-1), np.broadcast_to(PERMUTATION, (STARTS, 4)))
    assert np.all(found.objective[:, -1] < 0.1 * found.objective[:, 0])
    assert float(found.matrix.min()) >= 0
    sums = np.stack([found.matrix.sum(-1), found.matrix.sum(-2)])
    np.testing.assert_allclose(found.residual, np.abs(sums - 1).max((0, 2)), atol=1e-6)
    # The last record is of the matrices returned.
    np.testing.assert_allclose(found.objective[:, -1], jax.vmap(distance, (0, None))(found.matrix, TARGET), atol=1e-5)
    np.testing.assert_allclose(found.penalty[:, -1], penalty.normalized_l1_minus_l2(found.matrix), atol=1e-5)


SMALLEST = [*((kind, 1) for kind in KINDS if kind not in ("softmax", "gumbel")), ("tangent", 2)]


@pytest.mark.parametrize(("kind", "size"), SMALLEST)  # softmax is half of sinkhorn, gumbel sinkhorn with noise
@pytest.mark.fast_cases(3)
def test_one_and_two_points_and_no_edges_give_no_nan(kind, size):
    config = DescentConfig(relaxation=kind, steps=20, records=2)
    found = descend(mismatch, (jnp.zeros((size, size)),) * 2, size, jax.random.key(1), 2, config, scale=0.0)
    assert all(np.isfinite(field).all() for field in found)
    np.testing.assert_allclose(found.matrix.sum(-1), 1, atol=1e-5)


@pytest.mark.parametrize("kind", ["tangent", "clamp"])
def test_the_iteration_is_the_one_written_down(kind):
    rng = np.random.default_rng(0)
    a, b = (m + m.T for m in rng.standard_normal((2, 5, 5)))
    graphs, key, scale = (jnp.asarray(a, jnp.float32), jnp.asarray(b, jnp.float32)), jax.random.key(3), 7.0
    still, few = (replace(config, relaxation=kind) for config in (STILL, replace(FEW, weight=0.5, learning_rate=0.03)))
    matrices = np.asarray(descend(mismatch, graphs, 5, key, STARTS, still, scale).matrix, np.float64)
    found = descend(mismatch, graphs, 5, key, STARTS, few, scale).matrix
    centre = np.eye(5) - 0.2
    for start, reached in zip(matrices, found, strict=True):
        matrix = start
        for step in range(3):
            difference = a @ matrix - matrix @ b
            slope = 2 * (a.T @ difference - difference @ b.T)
            rows, columns = np.linalg.norm(matrix, axis=1, keepdims=True), np.linalg.norm(matrix, axis=0)
            slope += 0.5 * scale * step / 3 * (2 - matrix / rows - matrix / columns)
            if kind == "tangent":
                slope = centre @ slope @ centre
            matrix = normalized(matrix - 0.03 / scale * slope)
        np.testing.assert_allclose(reached, matrix, atol=1e-5)


def test_a_problem_in_other_units_is_the_same_problem():
    graphs = tuple(jax.random.normal(key, (5, 5)) for key in jax.random.split(jax.random.key(0)))
    scaled = tuple(4 * graph for graph in graphs)
    one, other = (
        descend(mismatch, data, 5, jax.random.key(2), STARTS, replace(FEW, steps=20), scale)
        for data, scale in ((graphs, 30.0), (scaled, 16 * 30.0))
    )
    np.testing.assert_allclose(other.matrix, one.matrix, atol=1e-5)
    np.testing.assert_allclose(other.objective, 16 * one.objective, rtol=1e-4)


@pytest.mark.parametrize("kind", ["tangent", "gumbel", "soft_sort", "orthogonal"])
def test_starts_differ_and_the_key_decides_them(kind):
    first, again, other = (toward_target(kind, STILL, seed).matrix for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    everything = np.concatenate([first, other])
    gaps = np.abs(everything[:, None] - everything[None]).max((-1, -2))
    assert np.all(gaps[~np.eye(len(everything), dtype=bool)] > 0.01)


def test_temperature_falls_geometrically_to_the_final_one():
    annealed, middle, constant = (
        toward_target("softmax", replace(STILL, temperature=start, final_temperature=end))
        for start, end in ((4.0, 1.0), (2.0, 2.0), (1.0, 1.0))
    )
    np.testing.assert_allclose(annealed.matrix, constant.matrix, atol=1e-6)
    np.testing.assert_allclose(annealed.penalty[:, 1], middle.penalty[:, 0], rtol=1e-5)
    np.testing.assert_allclose(annealed.penalty[:, 2], constant.penalty[:, 0], rtol=1e-5)
    assert np.all(np.diff(annealed.penalty, axis=1) < 0)


def test_gumbel_noise_moves_the_parameters_and_is_not_in_the_result():
    still, noisy_still = (toward_target(kind, STILL).matrix for kind in ("sinkhorn", "gumbel"))
    np.testing.assert_array_equal(noisy_still, still)
    moved, noisy_moved = (
        toward_target(kind, replace(FEW, adam_learning_rate=0.5)).matrix for kind in ("sinkhorn", "gumbel")
    )
    assert np.all(np.abs(noisy_moved - moved).max((-1, -2)) > 1e-3)


@pytest.mark.parametrize("kind", get_args(PenaltyKind))
def test_penalties_alone_lead_to_a_permutation_and_none_leads_nowhere(kind):
    config = DescentConfig(penalty=kind, weight=1.0, steps=1000, records=3)
    found = descend(nothing, (), 4, jax.random.key(0), STARTS, config)
    assert np.all(found.penalty[:, 0] > 0.3)
    if kind == "none":
        np.testing.assert_allclose(found.penalty[:, -1], found.penalty[:, 0], rtol=1e-5)
    else:
        assert np.all(found.penalty[:, -1] < 0.02) and np.all(found.residual < 0.02)


def test_penalties_have_one_range():
    centre = jnp.full((5, 5), 0.2)
    for kind in get_args(PenaltyKind)[1:]:
        assert float(descent._penalize(kind, centre)) == pytest.approx(penalty.max_l1_minus_l2(5), rel=1e-5)
        assert float(descent._penalize(kind, jnp.eye(5)[::-1])) == pytest.approx(0, abs=1e-5)


@pytest.mark.slow
def test_the_penalty_recovers_a_moebius_ladder_and_the_relaxation_does_not():
    ladder = relabelled(moebius_ladder(16), seed=1)
    _, with_penalty = from_all_starts(ladder, DescentConfig(steps=2000, records=2))
    found, without = from_all_starts(ladder, DescentConfig(penalty="none", steps=2000, records=2))
    # J / c solves the relaxation of a vertex-transitive graph, and there it ends.
    assert float(found.objective[:, -1].max()) < 1e-3 and float(found.penalty[:, -1].min()) > 0.97
    assert with_penalty >= 12 and without <= 4


@pytest.mark.slow
def test_the_tangent_step_recovers_a_random_graph_from_every_start_and_one_pass_does_not():
    graph = relabelled(erdos_renyi(10, seed=1), seed=1)
    config = DescentConfig(relaxation="tangent", penalty="none", steps=600, records=2)
    along, recovered = from_all_starts(graph, config)
    one_pass, recovered_by_one_pass = from_all_starts(graph, replace(config, relaxation="clamp"))
    assert recovered == 16 and recovered_by_one_pass <= 8
    # The relaxation is convex: what depends on the start is no minimum.
    assert np.ptp(along.objective[:, -1]) < 0.1 < 1 < np.ptp(one_pass.objective[:, -1])
    assert float(along.objective[:, -1].max()) < 0.5 * float(one_pass.objective[:, -1].min())


def test_numbers_and_data_do_not_compile_again():
    toward_target("tangent", FEW)
    compiled = descent._descents._cache_size()
    changed = replace(FEW, steps=7, weight=0.3, learning_rate=0.2, temperature=0.5)
    descend(distance, jnp.ones((4, 4)), 4, jax.random.key(1), STARTS, changed, scale=3.0)
    assert descent._descents._cache_size() == compiled


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "mebibytes"), [("tangent", 32), ("sinkhorn", 64)])
def test_64_starts_of_100_points_fit_in_far_less_than_a_gigabyte(kind, mebibytes):
    config = DescentConfig(relaxation=kind)
    graphs = (jax.ShapeDtypeStruct((100, 100), jnp.float32),) * 2
    program = jax.jit(lambda graphs, key: descend(mismatch, graphs, 100, key, 64, config)).lower(
        graphs, jax.eval_shape(jax.random.key, 0)
    )
    memory = program.compile().memory_analysis()
    assert memory.temp_size_in_bytes + memory.output_size_in_bytes < mebibytes * 2**20


def test_half_precision_is_widened_and_double_kept():
    found = descend(distance, TARGET.astype(jnp.bfloat16), 4, jax.random.key(0), STARTS, FEW)
    assert {field.dtype for field in found} == {jnp.dtype("float32")}
    with jax.enable_x64(True):
        found = descend(distance, np.eye(3), 3, jax.random.key(0), 1, replace(FEW, steps=2000, learning_rate=0.2))
        assert {field.dtype for field in found} == {jnp.dtype("float64")}
        assert np.abs(np.asarray(found.matrix[0]) - np.eye(3)).max() < 1e-9


def test_records_are_evenly_spaced_from_the_start_to_the_end():
    assert recorded_steps(DescentConfig(steps=3000)).tolist()[:2] == [0, 51]
    for steps, records in ((1, 2), (7, 8), (100, 3)):
        found = recorded_steps(DescentConfig(steps=steps, records=records))
        assert found[0] == 0 and found[-1] == steps and np.ptp(np.diff(found)) <= 1 and np.all(np.diff(found) > 0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"learning_rate": 0.0}, "learning_rate is 0.0: give a finite number above 0"),
        ({"final_temperature": float("nan")}, "final_temperature is nan: give a finite number above 0"),
        ({"weight": -1.0}, "weight is -1.0: give 0 or more, or penalty 'none'"),
        ({"steps": 0}, "steps is 0: give 1 or more"),
        ({"records": 1}, r"records is 1: give 2, the start and the end, to steps \+ 1 = 3001"),
        ({"steps": 4, "records": 6}, r"records is 6: give 2, the start and the end, to steps \+ 1 = 5"),
    ],
)
def test_what_cannot_be_run_is_said(change, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        DescentConfig(**change)


def test_a_wrong_call_is_said():
    for size, starts, name in ((0, 1, "size"), (3, 0, "starts")):
        with pytest.raises(ValueError, match=f"{name} is 0: give 1 or more"):
            descend(nothing, (), size, jax.random.key(0), starts)
    for scale in (-1.0, float("inf"), float("nan"), 1e60):
        with pytest.raises(
            ValueError, match=rf"^scale is {re.escape(str(scale))}: give a finite number, 0 or more; .*$"
        ):
            descend(nothing, (), 3, jax.random.key(0), 1, scale=scale)
    with pytest.raises(ValueError, match=r"the objective of a \(3, 3\) matrix returns .*: return one real number$"):
        descend(several, (), 3, jax.random.key(0), 1)
