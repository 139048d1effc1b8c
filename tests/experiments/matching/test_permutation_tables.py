"""The tables of docs/results on permutations alone say what the commands wrote."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs" / "results" / "permutations.md").read_text().splitlines()


def read(name):
    return list(csv.DictReader((ROOT / "experiments" / "comparisons" / name).read_text().splitlines()))


def row_of(*start):
    """The cells of the one row of the page that begins with these."""
    (row,) = (cells for line in PAGE if (cells := [c.strip() for c in line.split("|")])[1 : 1 + len(start)] == [*start])
    return row[1 + len(start) : -1]


def summary(rows):
    gaps = [100 * (float(row["value"]) / float(row["best_known"]) - 1) for row in rows]
    solved = sum(float(row["value"]) <= float(row["best_known"]) for row in rows)
    return [str(solved), f"{sum(gaps) / len(gaps):.3f}", f"{max(gaps):.3f}"]


@pytest.mark.parametrize(
    ("method", "name"),
    [
        ("solver", "`solver`: Frank-Wolfe, tabu search"),
        ("faq", "scipy's FAQ"),
        ("faq+2opt", "scipy's FAQ, then its exchanges of two"),
    ],
)
def test_quadratic_assignment(method, name):
    rows = [row for row in read("qaplib.csv") if row["method"] == method]
    assert len(rows) == 42
    assert row_of(name) == summary(rows)


def test_variants_of_the_solver():
    rows = read("qaplib_variants.csv")
    options = list(dict.fromkeys(row["options"] for row in rows))
    assert len(options) == 8
    for option in options:
        one = [row for row in rows if row["options"] == option]
        (cells,) = ([c.strip() for c in line.split("|")] for line in PAGE if f"`{option}` |" in line)
        assert cells[2:-1] == summary(one)


def test_matchings():
    rows = read("matching.csv")
    methods = list(dict.fromkeys(row["method"] for row in rows))
    instances = list(dict.fromkeys(row["instance"].rpartition(" ")[0] for row in rows))
    for method in methods:
        cells = []
        for instance in instances:
            found = [r for r in rows if r["method"] == method and r["instance"].rpartition(" ")[0] == instance]
            assert len(found) == 2
            cells.append(
                ", ".join(r["recovered"] + ("" if r["by_argmax"] == "-" else f" ({r['by_argmax']})") for r in found)
            )
        assert row_of(f"`{method}`") == cells


def test_two_layer_networks():
    rows = read("two_layer.csv")
    for method in dict.fromkeys(row["method"] for row in rows):
        cells = []
        for width in dict.fromkeys(row["width"] for row in rows):
            one, two = (row for row in rows if row["method"] == method and row["width"] == width)
            assert (one["seed"], two["seed"]) == ("0", "1")
            shares = [(float(one[c]) + float(two[c])) / 2 for c in ("starts_percent", "certified_percent")]
            cells.append((f"{one['recovered']}, {two['recovered']}", *shares))
        shown = [cell.split("; ") for cell in first_row_of(method)]
        assert [cell[0] for cell in shown] == [cell[0] for cell in cells]
        for cell, (_, *shares) in zip(shown, cells, strict=True):
            assert [float(c) for c in cell[1:]] == pytest.approx(shares, abs=0.51)


def test_two_layer_networks_with_identity_weights():
    rows = read("two_layer_identity.csv")
    for method in dict.fromkeys(row["method"] for row in rows):
        shown = [[float(part) for part in cell.split("; ")] for cell in first_row_of(method, table=1)]
        found = [row for row in rows if row["method"] == method]
        keys = ("loss", "loss_rounded", "certified_percent")
        expected = [[float(row[key]) for key in keys] for row in found][-len(shown) :]
        np.testing.assert_allclose(shown, expected, rtol=0.01)


def first_row_of(method, table=0):
    """The cells of the row of a method in the first or the second of the tables that have one."""
    rows = [cells for line in PAGE if (cells := [c.strip() for c in line.split("|")])[1:2] == [method]]
    return rows[table][2:-1]
