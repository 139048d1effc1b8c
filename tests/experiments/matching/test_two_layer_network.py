"""The command of the two-layer network: what it finds, prints and draws, and what it says to mistakes."""

from __future__ import annotations

import csv
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from experiments import two_layer_network as command

METHODS = [f"{name}, {penalty}" for name in ("clamp", "tangent", "Sinkhorn") for penalty in ("no penalty", "penalty")]
draw_teacher, loss = jax.jit(command.draw_teacher, static_argnums=(1, 2, 3)), jax.jit(command.loss)
SMALL = ["--channels", "3", "--widths", "5", "--teachers", "3", "--starts", "4", "--steps", "300"]


@pytest.fixture
def one_method(monkeypatch):
    """The paper's method alone: each one costs a compilation."""
    every = command.methods
    name = "clamp, penalty"
    monkeypatch.setattr(command, "methods", lambda weights, steps: {name: every(weights, steps)[name]})


def table(capsys):
    header, *body = csv.reader(capsys.readouterr().out.splitlines())
    return [dict(zip(header, row, strict=True)) for row in body]


@pytest.mark.slow
def test_the_table_and_the_figure_of_one_method(one_method, capsys, tmp_path):
    path = tmp_path / "new" / "two_layer.png"
    command.run([*SMALL, "--csv", "--figure", str(path)])
    (row,) = table(capsys)
    assert tuple(row) == command.COLUMNS
    assert (row["width"], row["method"], row["teachers"]) == ("5", "clamp, penalty", "3")
    # Three inputs behind five units: the penalty cannot but find the six permutations apart.
    assert row["recovered"] == "3"
    assert float(row["loss"]) < 0.05
    assert float(row["starts_percent"]) <= float(row["certified_percent"]) <= 100
    assert os.listdir(path.parent) == ["two_layer.png"]
    assert np.asarray(Image.open(path).convert("RGB")).min() < 255


def test_recovered_are_those_whose_rounded_loss_is_zero_and_a_seed_repeats_itself(one_method):
    options = command.Arguments(widths=(5,), channels=3, teachers=3, starts=4, steps=1)
    ((width, method, found),) = command.train(options)
    ((_, _, again),) = command.train(options)
    ((_, _, other),) = command.train(command.Arguments(widths=(5,), channels=3, teachers=3, starts=4, steps=1, seed=1))
    assert (width, method, found.recovered.shape) == (5, "clamp, penalty", (3, 4))
    assert np.array_equal(found.recovered, found.rounded < 1e-6)
    assert not found.recovered.all()  # after a single step
    assert not found.certified.any()
    assert all(np.array_equal(a, b) for a, b in zip(found, again, strict=True))
    assert not np.isin(found.loss, other.loss).any()


def test_a_teacher_has_loss_zero_at_its_permutation_alone():
    teacher = draw_teacher(jax.random.key(0), "gaussian", 2, 4)
    eye = np.eye(4, dtype=np.float32)
    swapped = np.asarray(teacher.permutation)[[1, 0, 2, 3]]
    matrices = jnp.asarray(np.stack([eye[np.asarray(teacher.permutation)], eye[swapped]]))
    losses = loss(matrices, teacher)
    assert abs(losses[0]) < 1e-6 < losses[1]
    others = draw_teacher(jax.random.key(1), "gaussian", 2, 4)
    assert not np.isin(teacher.weights, others.weights).any()


@pytest.mark.slow
def test_identity_weights_are_learned_near_enough_to_be_certified(one_method, capsys):
    command.run(["--weights", "identity", "--widths", "3", "--teachers", "3", "--starts", "4", "--csv"])
    (row,) = table(capsys)
    assert (row["width"], row["certified_percent"]) == ("3", "100")
    assert float(row["loss_rounded"]) < 0.1


def test_identity_weights_have_one_input_a_unit_and_outputs_that_all_differ():
    teacher = draw_teacher(jax.random.key(0), "identity", 5, 5)
    assert np.array_equal(teacher.weights, np.eye(5))
    np.testing.assert_allclose(teacher.outputs, [1, 1.25, 1.5, 1.75, 2])
    eye = np.eye(5, dtype=np.float32)
    right = np.asarray(teacher.permutation)
    # In W = I the output of an input alone tells it from the others: the nearer two are, the less their order matters.
    near, far = right[[1, 0, 2, 3, 4]], right[[4, 1, 2, 3, 0]]
    losses = loss(jnp.asarray(np.stack([eye[right], eye[near], eye[far]])), teacher)
    assert abs(losses[0]) < 1e-6 < losses[1] < losses[2]


def test_the_best_start_is_the_one_of_least_loss_after_rounding():
    outcome = command.Outcome(
        loss=np.array([[0.5, 0.1, 0.3], [0.2, 0.2, 0.2]]),
        rounded=np.array([[0.5, 0.4, 0.0], [0.3, 0.2, 0.1]]),
        recovered=np.array([[False, False, True], [True, False, False]]),
        certified=np.array([[False, True, True], [True, True, True]]),
    )
    assert command.row(4, "some", outcome) == (4, "some", 2, 1, "33.3", "83.3", "0.25", "0.25")


@pytest.mark.parametrize("weights", ["gaussian", "identity"])
def test_methods_differ_in_what_they_say_and_share_their_steps(weights):
    found = command.methods(weights, 70)
    assert list(found) == METHODS
    assert {config.steps for config in found.values()} == {70}
    for name, config in found.items():
        assert (config.relaxation == "sinkhorn") == name.startswith("Sinkhorn")
        assert (config.penalty == "none") == name.endswith("no penalty")
    assert len({config.learning_rate for name, config in found.items() if "Sinkhorn" not in name}) == 1


def test_mistakes_are_one_line_and_code_2(mistake):
    for arguments, message in (
        (["--teachers", "0"], "teachers must be at least 1, got 0"),
        (["--starts", "-1"], "starts must be at least 1, got -1"),
        (["--steps", "0"], "steps must be at least 1, got 0"),
        (["--channels", "1"], "there must be at least 2 channels to permute, got 1"),
        (["--widths", "4", "0"], "widths must be different and at least 1, got 4 0"),
        (["--widths", "4", "4"], "widths must be different and at least 1, got 4 4"),
        (["--widths"], "widths must be different and at least 1, got none"),
        (
            ["--weights", "identity", "--channels", "8"],
            "with identity weights there are as many channels as units: leave out --channels 8",
        ),
        (["--weights", "identity", "--widths", "1", "4"], "there must be at least 2 channels to permute, got 1"),
        (["--seed", "-1"], "the seed must be from 0 to 4294967295, got -1"),
        (["--figure", "a.jpg"], "the name of a figure must end with .png, .pdf, .svg, got 'a.jpg'"),
        (["--width", "4"], "there is no option --width; near: --widths, "),
    ):
        assert mistake(command.run, arguments).startswith(message)
