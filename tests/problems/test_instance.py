"""An instance evaluates permutations exactly, and says what it cannot take."""

from __future__ import annotations

import dataclasses
import itertools

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shuffle_jax.problems.instance import Instance

LARGE = 2**25


def integers(seed, size, largest=9):
    return np.random.default_rng(seed).integers(-largest, largest + 1, (2, size, size))


@given(size=st.integers(1, 6), seed=st.integers(0, 99), dtype=st.sampled_from(["int8", "float32", "bfloat16"]))
@settings(max_examples=15)
def test_values_equal_those_of_the_matrix_products(size, seed, dtype):
    a, b = (jnp.asarray(matrix).astype(dtype) for matrix in integers(seed, size))
    permutation = np.random.default_rng(seed).permutation(size)
    p = np.eye(size)[permutation]
    assignment, matching = (Instance("x", a, b, goal) for goal in ("assignment", "matching"))
    exact_a, exact_b = (np.asarray(matrix.astype(jnp.float32), np.float64) for matrix in (a, b))
    assert assignment.value(permutation) == np.vdot(exact_a, p @ exact_b @ p.T)
    assert matching.value(jnp.asarray(permutation)) == np.square(exact_a @ p - p @ exact_b).sum()


def test_values_are_exact_where_sums_in_floating_point_are_not():
    a, b = (LARGE * matrix + 1 for matrix in integers(0, 12, largest=1))  # products of two stay below 2^53
    p = np.random.default_rng(1).permutation(12)
    pairs = list(itertools.product(range(12), repeat=2))
    # Python's integers have no end.
    exact = sum(int(a[i, k]) * int(b[p[i], p[k]]) for i, k in pairs)
    assert Instance("x", a, b, "assignment").value(p) == float(exact)
    exact = sum((int(a[i, k]) - int(b[p[i], p[k]])) ** 2 for i, k in pairs)
    assert Instance("x", a, b, "matching").value(p) == float(exact)
    cancelling = np.array([[1e30, 1.0], [-1e30, 1.0]])
    assert Instance("x", cancelling, np.ones((2, 2)), "assignment").value([0, 1]) == 2


def test_exactly_the_relabelling_recovers():
    a = np.random.default_rng(0).standard_normal((5, 5))
    p = np.array([3, 0, 4, 1, 2])
    b = np.empty_like(a)
    b[np.ix_(p, p)] = a
    instance = Instance("x", a, b, "matching", best=0.0, solution=p)
    recovering = [q for q in itertools.permutations(range(5)) if instance.recovered(np.array(q))]
    assert recovering == [tuple(p)] == [tuple(instance.solution.tolist())]
    assert instance.value(p) == 0
    rounded = dataclasses.replace(instance, b=b.round(3))
    assert not rounded.recovered(p)
    assert rounded.recovered(p, tolerance=5.01e-4)


@pytest.mark.parametrize("size", [1, 2])
def test_the_smallest_sizes_and_matrices_of_zeros(size):
    zeros = np.zeros((size, size))
    for goal in ("matching", "assignment"):
        instance = Instance("x", zeros, zeros, goal)
        assert instance.size == size
        assert (instance.value(np.arange(size)), instance.recovered(np.arange(size))) == (0, True)


def test_what_was_given_is_copied_and_cannot_be_written_to():
    a, solution = np.zeros((2, 2)), np.array([1, 0])
    instance = Instance("x", a, a, "matching", solution=solution)
    a[0, 0], solution[0] = 5, 0
    assert instance.a[0, 0] == 0
    assert (instance.solution.dtype, instance.solution.tolist()) == (np.int32, [1, 0])
    for array in (instance.a, instance.b, instance.solution):
        with pytest.raises(ValueError, match="read-only"):
            array[...] = 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"a": np.zeros((2, 3))}, r"some: matrix a has the shape (2, 3): give (n, n), n at least 1"),
        ({"b": np.zeros(4)}, r"some: matrix b has the shape (4,): give (n, n), n at least 1"),
        ({"a": np.zeros((0, 0))}, r"some: matrix a has the shape (0, 0): give (n, n), n at least 1"),
        ({"b": np.zeros((3, 3))}, "some: a is 2 x 2 and b is 3 x 3: give both the same size, the smaller one"),
        ({"a": [[0, 1], [np.nan, 0]]}, "some: matrix a holds nan in row 1, column 0: give finite numbers up to 1e+100"),
        ({"b": [[0, np.inf], [0, 0]]}, "some: matrix b holds inf in row 0, column 1: give finite numbers up to 1e+100"),
        ({"b": [[0, 0], [0, -1e101]]}, "some: matrix b holds -1e+101 in row 1, column 1: give finite numbers"),
        ({"a": np.ones((2, 2), complex)}, "some: matrix a holds complex128: give real numbers"),
        ({"a": [["a", "b"], ["c", "d"]]}, "some: matrix a holds <U1: give real numbers"),
        ({"goal": "match"}, "some: there is no goal 'match': choose matching or assignment"),
        ({"best": float("nan")}, "some: the best value is nan: give a finite number, or None"),
        ({"solution": [0, 0]}, "some: [0, 0] is no permutation: give each of 0 to 1 once, as integers"),
        ({"solution": [0.0, 1.0]}, "some: [0.0, 1.0] is no permutation: give each of 0 to 1 once, as integers"),
        ({"solution": [0, 1, 2]}, "some: a permutation has the shape (3,): give (2,)"),
    ],
)
def test_what_makes_no_instance_is_said_in_one_line(changes, message):
    good = {"a": np.zeros((2, 2)), "b": np.zeros((2, 2)), "goal": "matching"}
    with pytest.raises(ValueError) as error:
        Instance("some", **{**good, **changes})
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)


def test_what_is_no_permutation_has_no_value():
    instance = Instance("some", np.zeros((3, 3)), np.zeros((3, 3)), "matching")
    for permutation in ([1, 2, 3], [0, 0, 1], [[0, 1, 2]], [-1, 0, 1], [True, False, True]):
        for question in (instance.value, instance.recovered):
            with pytest.raises(ValueError, match=r"^some: .*: give "):
                question(permutation)
    with pytest.raises(ValueError, match="some: the tolerance is -1: give 0 or more"):
        instance.recovered([0, 1, 2], tolerance=-1)
