"""The bench of permutations for each image: what it draws and counts, keeps, prints and draws, and who solves it."""

from __future__ import annotations

import csv
from itertools import permutations, product
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from experiments import alignment as command
from experiments.aligning import training
from experiments.aligning.counts import Counts, count, worst
from experiments.aligning.figure import alignment_figure
from experiments.aligning.methods import METHODS
from experiments.aligning.results import read_results, row, solved, write_results
from experiments.aligning.task import balanced_numbers, draw, mixer_index, pictures
from experiments.aligning.training import Record, Setting
from shuffle_jax.ops.kronecker import group_factors, index

ROOT = Path(__file__).parents[3]


def undoing(orders, groups, copies):
    """For each order the factors whose permutation puts it back, the only ones among all."""
    channels = orders.shape[-1]
    sides = [list(permutations(range(size))) for size in group_factors(channels, groups)]
    every = product(*(product(side, repeat=copies) for side in sides))
    outer, inner = (np.array(side) for side in zip(*every, strict=True))
    together = orders[:, mixer_index(outer, inner, groups)]
    which, hits = np.nonzero((together == np.arange(channels)).all(-1))
    assert which.tolist() == list(range(len(orders)))
    return outer[hits], inner[hits]


@pytest.mark.parametrize(("channels", "groups", "copies"), [(6, 1, 1), (12, 2, 1), (8, 2, 2)])
def test_factors_that_undo_their_orders_align_all_images_and_the_fixed_shuffle_one_order_of_them(
    channels, groups, copies
):
    drawn = draw(3, channels, 4, groups=groups, copies=copies, depth=2)
    assert drawn["orders"].shape == (2, 4, channels) and drawn["offsets"].shape == (2, channels)
    for orders in drawn["orders"]:
        assert len(np.unique(orders, axis=0)) == 4
        outer, inner = undoing(orders, groups, copies)
        numbers = balanced_numbers(10, 4)
        assert sorted(np.bincount(numbers)) == [2, 2, 3, 3]
        assert count(outer[numbers], inner[numbers], orders, numbers, groups) == Counts(4, 1.0, 1.0)
        # One permutation more for all images is another common order.
        turned = inner[numbers][..., ::-1]
        assert count(outer[numbers], turned, orders, numbers, groups) == Counts(4, 1.0, 1.0)
        same = count(outer[:1], inner[:1], orders, numbers, groups)
        assert same == Counts(1, 1.0, 0.3)
        # Two orders under one wrong permutation: the third and fourth are as they should be.
        two = np.where(numbers < 2, 2, numbers)
        mixed = count(outer[two], inner[two], orders, numbers, groups)
        assert (mixed.distinct, mixed.valid, mixed.aligned) == (2, 1.0, np.mean(numbers >= 2))


def test_repeated_channels_are_not_valid_and_several_mixers_are_as_good_as_the_worst():
    orders, numbers = np.array([[0, 1, 2, 3], [1, 0, 3, 2]]), np.array([0, 1, 0, 1])
    outer, inner = np.array([[[0, 1]], [[0, 0]], [[0, 1]], [[1, 0]]]), np.tile([0, 1], (4, 1, 1))
    np.testing.assert_array_equal(mixer_index(outer, inner, 1), index(outer[:, 0], inner[:, 0]))
    found = count(outer, inner, orders, numbers, 1)
    assert found == Counts(3, 0.75, 0.5)
    assert worst([found, Counts(2, 1.0, 0.75)]) == Counts(2, 0.75, 0.5)


def test_a_seed_draws_the_same_again_and_more_orders_than_there_are_is_a_mistake(mistake):
    first, again, other = (draw(seed, 12, 4) for seed in (0, 0, 1))
    assert all(np.array_equal(first[name], again[name]) for name in first)
    assert not np.array_equal(first["orders"], other["orders"])
    for arguments, message in (
        (["--channels", "2", "--orders", "3"], "factors of 1 and 2 have 2 different orders, got 3: lower --orders"),
        (["--orders", "0"], "orders must be at least 1, got 0"),
        (["--steps", "0"], "steps must be at least 1, got 0"),
        (["--seeds", "1", "1"], "seeds must be different and at least 0, got 1 1"),
        (["--channels", "12", "--groups", "5"], "12 channels cannot be split into 5 groups"),
        (["--methods", "dynamik"], "there is no method 'dynamik': choose all, or some of dynamic, "),
        (["--methods", "per-group"], "per-group is for 2 groups or more: add --groups 2"),
        (["--results", "a.csv"], "the name of the results must end with .json, got 'a.csv'"),
        (["--figure", "a.jpg"], "the name of a figure must end with .png, .pdf, .svg, got 'a.jpg'"),
    ):
        assert mistake(command.run, arguments).startswith(message)


def test_made_up_images_have_classes_that_a_mean_does_not_tell_and_a_neighbour_does():
    images, labels, test_images, test_labels = pictures("seed")
    assert images.shape == (1440, 8, 8, 1) and images.dtype == np.uint8 and len(test_images) == len(test_labels) == 360
    flat, test = (some.reshape(len(some), -1).astype(np.float32) for some in (images, test_images))
    nearest = (np.square(flat).sum(-1)[None] - 2 * test @ flat.T).argmin(1)
    assert np.mean(labels[nearest] == test_labels) > 0.9
    level = np.abs(test.mean(1)[:, None] - flat.mean(1)[None]).argmin(1)
    assert np.mean(labels[level] == test_labels) < 0.5


@pytest.fixture
def quick(monkeypatch):
    """No training: seeds end aligned, all but seed 1."""
    calls = []

    def train(method, setting, images, seeds, records=2):
        calls.append(tuple(seeds))
        for step in (setting.steps // 2, setting.steps):
            yield {
                seed: Record(step, 4, 1.0, 0.5 if seed == 1 or step < setting.steps else 1.0, 0.9 + seed / 100)
                for seed in seeds
            }

    monkeypatch.setattr(training, "train", train)
    return calls


def test_what_is_there_is_not_trained_again_and_the_table_and_figure_show_what_was_asked_for(quick, capsys, tmp_path):
    results, figure = tmp_path / "new" / "alignment.json", tmp_path / "alignment.png"
    words = ["--results", str(results), "--csv", "--methods"]
    command.run([*words, "dynamic", "--seeds", "0", "1"])
    command.run([*words, "dynamic", "hard", "--seeds", "1", "2", "--figure", str(figure)])
    command.run([*words, "dynamic", "--seeds", "2", "--orders", "2"])
    assert quick == [(0, 1), (2,), (1, 2), (2,)]
    _, first, _, *second, _, third = csv.reader(capsys.readouterr().out.splitlines())
    assert first == ["dynamic", "2", "1", "4", "1.00", "0.75 (0.50 to 1.00)", "0.905 (0.900 to 0.910)"]
    assert [line[:3] for line in second] == [["dynamic", "2", "1"], ["hard", "2", "1"]]
    assert third[:3] == ["dynamic", "1", "1"]
    assert np.asarray(Image.open(figure).convert("RGB")).min() < 255
    kept = read_results(results)
    assert {(setting.orders, name): sorted(seeds) for (setting, name), seeds in kept.items()} == {
        (4, "dynamic"): [0, 1, 2],
        (4, "hard"): [1, 2],
        (2, "dynamic"): [2],
    }
    before = results.read_text()
    write_results(results, kept)
    assert results.read_text() == before


def test_results_of_something_else_are_a_mistake(mistake, tmp_path):
    for text in ("{", '{"a": 1}', '[{"setting": {"orders": 2, "more": 1}, "method": "hard", "seeds": {}}]'):
        (tmp_path / "other.json").write_text(text)
        said = mistake(command.run, ["--results", tmp_path / "other.json"])
        assert said.startswith(f"{tmp_path / 'other.json'} holds no results of experiments.alignment: ")


def test_a_seed_is_solved_by_permutations_that_align_all_images_but_one_in_two_hundred():
    assert solved(Record(9, 4, 1.0, 358 / 359, 0.0)) and not solved(Record(9, 4, 1.0, 0.99, 1.0))
    assert not solved(Record(9, 4, 0.99, 1.0, 1.0))
    seeds = {1: [Record(9, 4, 1.0, 1.0, 0.5)], 0: [Record(4, 1, 0, 0, 0), Record(9, 3, 1.0, 0.5, 0.25)]}
    assert row("some", seeds) == ("some", 2, 1, "4 (3 to 4)", "1.00", "0.75 (0.50 to 1.00)", "0.375 (0.250 to 0.500)")
    with pytest.raises(ValueError, match="from 1 to 6 methods, got 0"):
        alignment_figure({}, 4)


def test_tables_of_the_page_are_those_of_the_results():
    kept = read_results(ROOT / "experiments/comparisons/alignment.json")
    known = set()
    for (_, method), seeds in kept.items():
        for some in (seeds, {seed: records for seed, records in seeds.items() if seed < 105}):
            _, count, found, *others = row(method, some)
            known.add((f"{found} of {count}", *others))
    with (ROOT / "experiments/comparisons/alignment_explained.csv").open() as file:
        explained = list(csv.reader(file))[1:]
    page = (ROOT / "docs/results/dynamic_shuffle.md").read_text()
    bench, why = page.split("## The bench")[1].split("## What dynamic layers cost")[0].split("## Why it collapses")
    stated = [line.strip("| ").split(" | ") for line in bench.splitlines() if " of " in line and line.startswith("| ")]
    assert len(stated) > 30 and {tuple(line[1:]) for line in stated} <= known
    table = [line.strip("| ").split(" | ") for line in why.splitlines() if line.startswith("| ")][1:]
    assert table == explained


@pytest.mark.slow
def test_dynamic_shuffles_learn_to_undo_four_orders():
    images = pictures("digits")
    *_, last = training.train(METHODS["dynamic"], Setting(), images, (100, 101), records=2)
    assert all(solved(record) and record.distinct == 4 for record in last.values())
    *_, last = training.train(METHODS["hard"], Setting(steps=220), images, (100,), records=1)
    assert last[100].aligned == pytest.approx(0.25, abs=0.02)  # whatever a permutation for all images is
