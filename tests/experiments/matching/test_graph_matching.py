"""The command for matchings and assignments: its tables against known answers, its files, figures and mistakes."""

from __future__ import annotations

import csv
import io
import json

import numpy as np
import pytest

from experiments import graph_matching
from experiments.matching import tables
from experiments.matching.answers import write_pairs
from experiments.matching.methods import Outcome, all_methods
from shuffle_jax.problems.files import read_qaplib
from shuffle_jax.problems.instance import Instance

FAST = ["--solver.threads", "1", "--solver.searches", "4", "--seconds", "0.3", "--starts", "4"]
SHORT = ["--descent.steps", "40", "--descent.records", "5"]
CYCLE = "0 1\n1 2\n2 3\n3 4\n4 5\n5 0\n0 2\n"  # one chord, so that one reflection is all the symmetry there is


def rows(capsys, *arguments):
    graph_matching.run([*arguments, "--csv"])
    return list(csv.DictReader(io.StringIO(capsys.readouterr().out)))


def write_qaplib(folder, name, a, b, solution=None):
    n = len(a)
    lines = [str(n), *(" ".join(map(str, row)) for row in (*a, *b))]
    (folder / f"{name}.dat").write_text("\n".join(lines))
    if solution is not None:
        value = int((a * b[np.ix_(solution, solution)]).sum())
        (folder / f"{name}.sln").write_text(f"{n} {value}\n{' '.join(str(i + 1) for i in solution)}\n")


def best_of(a, b):
    from itertools import permutations

    best = min(permutations(range(len(a))), key=lambda p: (a * b[np.ix_(p, p)]).sum())
    return np.array(best)


@pytest.fixture
def qaplib(tmp_path):
    folder = tmp_path / "qaplib"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for name, size in (("one", 6), ("two", 6)):
        a, b = rng.integers(0, 9, (2, size, size))
        write_qaplib(folder, name, a, b, best_of(a, b))
    return folder


@pytest.mark.slow
def test_assignments_are_solved_and_compared_in_the_same_table(qaplib, tmp_path, capsys):
    out = tmp_path / "out"
    graph_matching.run(["--qaplib", str(qaplib), "--methods", "solver", "faq", "faq+2opt", "--out", str(out), *FAST])
    text = capsys.readouterr().out
    found = list(csv.DictReader((out / "results.csv").read_text().splitlines()))
    assert [(row["instance"], row["method"]) for row in found] == [
        (name, method) for name in ("one", "two") for method in ("solver", "faq", "faq+2opt")
    ]
    for row in found:
        assert float(row["value"]) >= float(row["best_known"])
        gap = 100 * (float(row["value"]) / float(row["best_known"]) - 1)
        assert float(row["gap_percent"]) == pytest.approx(gap, abs=6e-4)
    assert all(row["gap_percent"] == "0.000" for row in found if row["method"] == "solver")
    solver = next(line.split() for line in text.splitlines() if line.startswith("solver "))
    assert solver == ["solver", "2", "2", "0.000", "0.000"]


@pytest.mark.slow
def test_relaxations_on_assignments_have_a_gap_which_exchanges_lower(qaplib, capsys):
    arguments = ["--qaplib", str(qaplib / "one.dat"), "--methods", "clamp+l1_minus_l2", *FAST, *SHORT]
    found = rows(capsys, *arguments)
    assert [row["method"] for row in found] == ["clamp+l1_minus_l2"]
    assert all(float(row["gap_percent"]) >= 0 and row["starts"] == "4" for row in found)
    lower = rows(capsys, *arguments, "--exchange")
    assert all(float(one["value"]) <= float(other["value"]) for one, other in zip(lower, found, strict=True))


@pytest.mark.slow
def test_without_files_relabelled_matrices_are_recovered(tmp_path, capsys):
    methods = ("tangent", "tangent+l1_minus_l2", "faq", "solver")
    out = tmp_path / "new" / "out"
    names = ["--embedded", "gaussian-6", "moebius-6", "--relabellings", "1", "--methods", *methods]
    found = rows(capsys, *names, "--out", str(out), *FAST, "--descent.steps", "300")
    assert {(row["instance"], row["method"]) for row in found} == {
        (name, method) for name in ("gaussian-6 (0)", "moebius-6 (0)") for method in methods
    }
    by_name = {(row["instance"], row["method"]): row for row in found}
    # A Gaussian matrix is recovered by the relaxation alone; the solver recovers both.
    assert by_name["gaussian-6 (0)", "tangent"]["recovered"] == "4"
    assert all(by_name[name, "solver"]["recovered"] == "yes" for name in ("gaussian-6 (0)", "moebius-6 (0)"))
    assert all(int(row["by_argmax"]) <= int(row["recovered"]) for row in found if row["by_argmax"] != "-")
    written = {path.name for path in out.iterdir()}
    assert written == {"results.csv", "recovery.png", "descent-gaussian-6-0.png", "descent-moebius-6-0.png"}


def test_graphs_from_edge_lists_and_arrays(tmp_path, capsys):
    (tmp_path / "a.txt").write_text(CYCLE)
    relabelling = [3, 5, 1, 0, 4, 2]
    edges = [line.split() for line in CYCLE.splitlines()]
    (tmp_path / "b.txt").write_text("".join(f"{relabelling[int(i)]} {relabelling[int(k)]}\n" for i, k in edges))
    (row,) = rows(capsys, "--graphs", str(tmp_path / "a.txt"), str(tmp_path / "b.txt"), "--methods", "solver", *FAST)
    assert (row["instance"], row["n"], row["recovered"], row["best_value"]) == ("a-b", "6", "yes", "0")
    weights = np.random.default_rng(1).standard_normal((2, 6, 6))
    for name, matrix in zip("ab", weights, strict=True):
        np.save(tmp_path / f"{name}.npy", matrix)
    (row,) = rows(capsys, "--graphs", str(tmp_path / "a.npy"), str(tmp_path / "b.npy"), "--methods", "solver", *FAST)
    assert row["recovered"] == "no" and float(row["best_value"]) > 0


NAMED = "ann ben {'weight': 1.0}\nben cid {}\ncid dan {}\ndan eve {}\neve fay {}\nfay ann {}\nann cid {}\n"


def test_two_graphs_are_answered_by_the_pairs_of_their_nodes(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.txt").write_text(CYCLE)
    (tmp_path / "b.txt").write_text(NAMED)
    graph_matching.run(["--graphs", "a.txt", "b.txt", "--pairs", "pairs.json", "--out", "out"])
    heading, *lines = capsys.readouterr().out.splitlines()
    assert heading.split() == ["a.txt", "b.txt"]
    assert lines[-1] == "exact: each of the 7 edges of a.txt is one of b.txt, and the other way round"
    pairs = dict(line.split() for line in lines[:-1])
    wanted = {tuple(sorted(line.split()[:2])) for line in NAMED.splitlines()}
    assert {tuple(sorted(pairs[node] for node in line.split())) for line in CYCLE.splitlines()} == wanted
    written = json.loads((tmp_path / "pairs.json").read_text())
    assert dict(written.pop("pairs")) == pairs
    assert written == {
        "instance": "a-b",
        "goal": "matching",
        "columns": ["a.txt", "b.txt"],
        "value": 0,
        "best_known": None,
        "edges": {"exact": True, "first": 7, "second": 7, "both": 7},
    }
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["results.csv"]


def test_an_answer_for_programs_and_nodes_without_a_partner(tmp_path, capsys):
    (tmp_path / "a.txt").write_text(CYCLE)
    (tmp_path / "b.txt").write_text(f"{NAMED}gus\n")
    files = [str(tmp_path / name) for name in ("a.txt", "b.txt", "pairs.csv")]
    graph_matching.run(["--graphs", *files[:2], "--pairs", files[2], "--csv"])
    printed = capsys.readouterr()
    assert printed.out == (tmp_path / "pairs.csv").read_text() and printed.out.startswith("a.txt,b.txt\n")
    assert printed.out.endswith("\n,gus\n") and printed.out.count("\n") == 8
    assert "a-b: a.txt has 6 nodes: 1 without edges were added" in printed.err and "exact: each of" in printed.err


def test_ctrl_c_shows_the_near_match(tmp_path, capsys, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("shuffle_jax.problems.matching.solve", interrupted)
    (tmp_path / "a.txt").write_text(f"{CYCLE}5 6\n6 7\n")
    (tmp_path / "b.txt").write_text(f"{CYCLE}5 6\n0 7\n")
    with pytest.raises(KeyboardInterrupt):
        graph_matching.run(["--graphs", str(tmp_path / "a.txt"), str(tmp_path / "b.txt")])
    printed = capsys.readouterr()
    assert "a near match is off by |A - P B P^T|^2 = " in printed.err
    assert "not exact: of the 9 edges of a.txt and the 9 of b.txt " in printed.out and printed.out.count("\n") == 10


def test_how_near_a_match_is_and_in_which_direction(tmp_path, capsys):
    """The directed ring is not the one with an edge turned round, but is without directions."""
    (tmp_path / "a.txt").write_text("0 1\n1 2\n2 3\n3 0\n")
    (tmp_path / "b.txt").write_text("0 1\n1 2\n2 3\n0 3\n")
    files = ["--graphs", str(tmp_path / "a.txt"), str(tmp_path / "b.txt")]
    graph_matching.run(files)
    assert "exact: each of the 4 edges" in capsys.readouterr().out
    graph_matching.run([*files, "--directed"])
    *_, last = capsys.readouterr().out.splitlines()
    assert last.startswith("not exact: of the 4 edges of a.txt and the 4 of b.txt 3 lie over each other; ")
    assert last.endswith(" = 2 is the least there is")


def test_the_pairs_of_an_assignment_and_of_a_comparison(tmp_path):
    solution = [2, 0, 3, 1]
    write_qaplib(tmp_path, "four", *np.random.default_rng(0).integers(1, 9, (2, 4, 4)), solution)
    instance = read_qaplib(tmp_path / "four.dat")
    write_pairs(tmp_path / "pairs.csv", instance, np.array(solution), ("facility", "location"))
    assert (tmp_path / "pairs.csv").read_text() == "facility,location\n1,3\n2,1\n3,4\n4,2\n"


def test_what_is_odd_about_an_instance_is_said(tmp_path, capsys):
    a, b = np.random.default_rng(2).integers(0, 9, (2, 6, 6))
    write_qaplib(tmp_path, "odd", a, b)
    (tmp_path / "odd.sln").write_text("6 123\n1 2 3 3 5 6\n")
    graph_matching.run(["--qaplib", str(tmp_path / "odd.dat"), "--methods", "solver", *FAST])
    assert "odd: " in (captured := capsys.readouterr()).err and "3" in captured.err


def test_gaps_where_the_best_is_zero_or_unknown():
    zero = np.zeros((2, 2))
    best = Instance("best", zero, zero, "assignment", best=0.0)
    unknown = Instance("unknown", zero, zero, "assignment")
    reached, missed = (Outcome(np.arange(2), value, None, 1, None, 0.0) for value in (0.0, 3.0))
    assert tables.gap_percent(best, reached) == 0
    assert tables.gap_percent(best, missed) is None
    assert tables.gap_percent(unknown, reached) is None
    negative = Instance("negative", zero, zero, "assignment", best=-10.0)
    worse, better = (Outcome(np.arange(2), value, None, 1, None, 0.0) for value in (-9.0, -11.0))
    assert tables.gap_percent(negative, worse) == pytest.approx(10)
    assert tables.gap_percent(negative, better) == pytest.approx(-10)


def test_where_no_best_value_is_known_there_is_no_gap_and_no_summary(tmp_path, capsys):
    for name in "ab":
        write_qaplib(tmp_path, name, *np.random.default_rng(3).integers(0, 9, (2, 6, 6)))
    graph_matching.run(["--qaplib", str(tmp_path), "--methods", "solver", *FAST])
    _, *lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:3] + line.split()[4:6] for line in lines] == [[n, "6", "solver", "-", "-"] for n in "ab"]


def test_ctrl_c_shows_what_is_there(qaplib, capsys, monkeypatch):
    run_method = graph_matching.run_method

    def interrupted(method, instance, settings):
        if instance.name == "two":
            raise KeyboardInterrupt
        return run_method(method, instance, settings)

    monkeypatch.setattr(graph_matching, "run_method", interrupted)
    with pytest.raises(KeyboardInterrupt):
        graph_matching.run(["--qaplib", str(qaplib), "--methods", "solver", *FAST])
    assert "one" in capsys.readouterr().out


def test_method_names():
    names = all_methods()
    assert len(names) == len(set(names)) == 3 + 8 * 4
    assert {*graph_matching.ON_GRAPHS, *graph_matching.ON_ASSIGNMENTS} <= set(names)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--starts", "0"], "starts must be at least 1, got 0"),
        (["--seconds", "0"], "seconds must be positive, got 0.0"),
        (["--methods", "sinkhorn+l1"], "there is no method 'sinkhorn[+]l1'; near: sinkhorn"),
        (
            ["--embedded", "moebius"],
            "the name of a matrix must be a kind and a size, such as moebius-16, got 'moebius'",
        ),
        (["--embedded", "moebius-7"], "a Moebius ladder cannot have 7 nodes"),
        (["--embedded", "ring-7"], "there is no kind of matrix 'ring': choose moebius, erdos-renyi or gaussian"),
        (["--pairs", "pairs.txt"], "the name of a file of pairs must end with .csv or .json, got 'pairs.txt'"),
        (["--pairs", "pairs.csv"], "--pairs takes the answer to one problem, there are 5: name one file"),
        (["--graphs", "a.txt"], "--graphs takes two files, one for each graph, got 1"),
        (["--graphs", "a", "b", "--qaplib", "c"], "--qaplib and --graphs are different problems"),
        (["--descent.steps", "0"], "steps is 0: give 1 or more"),
        (["--solver.searches", "0"], "searches is 0: give 1 or more"),
    ],
)
def test_mistakes_are_one_line(arguments, message):
    with pytest.raises(ValueError, match=message) as error:
        graph_matching.run(arguments)
    assert "\n" not in str(error.value)


def test_files_that_are_not_there_or_no_instances(tmp_path):
    with pytest.raises(FileNotFoundError):
        graph_matching.run(["--qaplib", str(tmp_path / "none.dat")])
    with pytest.raises(
        ValueError, match=r"there is no \.dat file in .*: name a folder of QAPLIB's instances, or the files"
    ):
        graph_matching.run(["--qaplib", str(tmp_path)])
    (tmp_path / "torn.dat").write_text("3\n1 2 3")
    with pytest.raises(ValueError, match=r"torn.dat is cut short"):
        graph_matching.run(["--qaplib", str(tmp_path / "torn.dat")])
