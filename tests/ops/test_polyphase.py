"""Sampling equals the authors' figures and its equation, and follows every circular shift, whatever the type."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shuffle_jax.ops import polyphase

FIGURES = np.load(Path(__file__).parents[1] / "fixtures" / "aps.npz")
CASES = {name: case for name, case in json.loads(str(FIGURES["manifest"])).items() if case["kind"] == "pool"}
NAMES = {"l2": "l2", "l1": "l1", "l_infty": "largest", "l2_min": "smallest_l2"}

MEASURES = {
    "l2": lambda p: np.square(p).sum(),
    "l1": lambda p: np.abs(p).sum(),
    "largest": lambda p: np.abs(p).max(),
    "largest_signed": lambda p: p.max(),
    "smallest_l2": lambda p: -np.square(p).sum(),
    "smallest_l1": lambda p: -np.abs(p).sum(),
}


def last(x):
    return np.moveaxis(x, 1, -1)


def case(name):
    made = CASES[name]
    given = made["given"] if made["given"] is None else np.asarray(made["given"], np.int32)
    sample = partial(
        polyphase.sample, choice=given, criterion=NAMES[made["criterion"]], size=made["filter"], select=made["select"]
    )
    return sample, last(FIGURES[f"{name}/x"])


def oracle(x, criterion, size):
    """Blurred and sampled by the equation, one sample at a time."""
    row = np.array([1.0])
    for _ in range(size - 1):
        row = np.convolve(row, [0.5, 0.5])
    taps = [(a - (size - 1) // 2, b - (size - 1) // 2, row[a] * row[b]) for a in range(size) for b in range(size)]
    blurred = sum(w * np.roll(x, (-a, -b), (1, 2)) for a, b, w in taps)
    even = np.concatenate([blurred, blurred[:, : x.shape[1] % 2]], 1)
    even = np.concatenate([even, even[:, :, : x.shape[2] % 2]], 2)
    found = []
    for one in even:
        parts = [one[r::2, c::2] for c in range(2) for r in range(2)]
        found.append(parts[int(np.argmax([MEASURES[criterion](p) for p in parts]))])
    return np.stack(found)


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_the_figures_of_the_authors(name):
    sample, x = case(name)
    y, choice = jax.jit(sample)(x)
    np.testing.assert_allclose(y, last(FIGURES[f"{name}/y"]), atol=1e-6)
    if CASES[name]["given"] is None:
        np.testing.assert_array_equal(choice, FIGURES[f"{name}/index"])
    for k, shift in enumerate(FIGURES.get(f"{name}/shifts", ())):
        y, choice = sample(np.roll(x, shift, (1, 2)))
        np.testing.assert_allclose(y, last(FIGURES[f"{name}/y_shifted"][k]), atol=1e-6)
        np.testing.assert_array_equal(choice, FIGURES[f"{name}/index_shifted"][k])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("size", "shape"), [(1, (1, 1, 1, 2)), (4, (2, 3, 4, 3)), (5, (2, 2, 5, 1)), (3, (3, 6, 4, 2))]
)
def test_equals_its_equation_by_every_criterion(size, shape):
    x = np.random.default_rng(size).normal(size=shape)
    with jax.enable_x64(True):
        found = jax.jit(lambda x: [polyphase.sample(x, criterion=name, size=size)[0] for name in MEASURES])(x)
    for y, criterion in zip(found, MEASURES, strict=True):
        np.testing.assert_allclose(y, oracle(x, criterion, size), atol=1e-12)


def test_the_choice_and_the_values_follow_a_shift_as_the_law_says_and_so_does_the_gradient():
    x = np.random.default_rng(0).normal(size=(2, 4, 6, 3)).astype(np.float32)

    @jax.jit
    def sampled(x):
        def loss(x):
            y, choice = polyphase.sample(x, size=2)
            return jnp.square(y).sum(), (y, choice)

        gradient, found = jax.grad(loss, has_aux=True)(x)
        return *found, gradient

    y, choice, gradient = map(np.asarray, sampled(x))
    for a, b in [(1, 0), (0, 1), (3, 2)]:
        found, other, slope = map(np.asarray, sampled(np.roll(x, (a, b), (1, 2))))
        for n, j in enumerate(choice):
            r, s = j % 2, j // 2
            assert other[n] == (r + a) % 2 + 2 * ((s + b) % 2)
            by = (r + a - other[n] % 2) // 2, (s + b - other[n] // 2) // 2
            np.testing.assert_array_equal(found[n], np.roll(y[n], by, (0, 1)))
        np.testing.assert_allclose(slope, np.roll(gradient, (a, b), (1, 2)), atol=1e-6)


@pytest.mark.slow
def test_near_ties_are_told_apart_alike_in_half_precision_and_a_batch_is_its_images():
    """One value in ten thousand is a hundredth larger in one component: the sum says so wherever the image stands."""
    rng = np.random.default_rng(1)
    values = rng.permutation(np.abs(rng.normal(size=(16 * 16 * 40))).astype(jnp.bfloat16))
    parts = np.stack([rng.permutation(values) for _ in range(4)]).reshape(2, 2, 16, 16, 40)
    parts[1, 0, 3, 4, 5] *= 1.01
    x = parts.transpose(2, 0, 3, 1, 4).reshape(1, 32, 32, 40)
    expected = int(np.argmax(np.square(parts.astype(np.float64)).sum((2, 3, 4)).T.ravel()))
    sample = jax.jit(polyphase.choose)
    for a, b in np.ndindex(8, 8):
        (found,) = np.asarray(sample(np.roll(x, (a, b), (1, 2))))
        assert found == (expected % 2 + a) % 2 + 2 * ((expected // 2 + b) % 2)
    both = np.concatenate([x, np.roll(x, (1, 0), (1, 2))])
    assert np.asarray(sample(both)).tolist() == [int(sample(one[None])[0]) for one in both]


@pytest.mark.slow
def test_the_gradient_is_that_of_finite_differences_and_equal_components_take_the_first():
    x = np.random.default_rng(2).normal(size=(2, 3, 4, 2))
    direction, step = np.random.default_rng(3).normal(size=x.shape), 1e-6

    def loss(x):
        return (polyphase.sample(x, size=3)[0] ** 3).sum()

    with jax.enable_x64(True):
        slope = float((jax.jit(jax.grad(loss))(x) * direction).sum())
        both = [float(jax.jit(loss)(x + sign * step * direction)) for sign in (1, -1)]
    assert slope == pytest.approx((both[0] - both[1]) / (2 * step), rel=1e-6)
    assert np.asarray(polyphase.choose(jnp.ones((1, 4, 4, 2)))).tolist() == [0]


@pytest.mark.slow
@given(h=st.integers(1, 9), w=st.integers(1, 9), size=st.integers(1, 5), half=st.booleans())
def test_every_size_is_halved_and_keeps_its_type(h, w, size, half):
    x = jax.ShapeDtypeStruct((3, h, w, 2), jnp.bfloat16 if half else jnp.float32)
    y, choice = jax.eval_shape(partial(polyphase.sample, size=size), x)
    assert (y.shape, y.dtype, choice.shape, choice.dtype) == ((3, -(-h // 2), -(-w // 2), 2), x.dtype, (3,), jnp.int32)


@pytest.mark.slow
def test_the_poolings_that_are_sampled_are_those_of_strides_at_the_first_component():
    x = np.random.default_rng(4).normal(size=(2, 6, 4, 3)).astype(np.float32)
    rows, columns = (np.arange(n)[:, None] + np.arange(-1, 2) for n in x.shape[1:3])
    windows = x[:, rows % 6][:, :, :, columns % 4].transpose(0, 1, 3, 2, 4, 5)
    mean, largest = jax.jit(lambda x: (polyphase.mean_around(x), polyphase.largest_ahead(x)))(x)
    np.testing.assert_allclose(mean, windows.mean((3, 4)), atol=1e-6)
    np.testing.assert_array_equal(largest, windows[:, :, :, 1:, 1:].max((3, 4)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 6}, r"no blur of size 6: choose one of \[1, 2, 3, 4, 5\]"),
        ({"criterion": "l3"}, "no criterion 'l3': choose one of .*'l2', 'l1'"),
        ({"select": "both"}, "no 'both' image to select by: choose one of .*'blurred', 'unblurred'"),
    ],
)
def test_what_there_is_not_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        polyphase.sample(jnp.ones((1, 2, 2, 1)), **options)
