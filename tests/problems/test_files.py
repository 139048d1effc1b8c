"""Files as they circulate are read, what is odd about them is noted, and what is broken is said in one line."""

from __future__ import annotations

import io
import itertools

import numpy as np
import pytest

from shuffle_jax.problems.files import read_graphs, read_matrix, read_qaplib

A = np.array([[0, 3, 1, 0], [2, 0, 5, 4], [7, 6, 0, 9], [8, 2, 1, 0]])
B = np.array([[0, 10, 20, 50], [11, 0, 31, 80], [13, 12, 0, 70], [91, 62, 43, 0]])
P = np.array([2, 0, 3, 1])
"""Its own inverse it is not: exchanging the matrices matters."""
INVERSE = np.array([1, 3, 0, 2])

DAT = "4\n\n" + "\n".join(" ".join(map(str, row)) for matrix in (A, B) for row in [*matrix.tolist(), []])


def value(p):
    return sum(A[i, k] * B[p[i], p[k]] for i, k in itertools.product(range(4), repeat=2))


FORWARD, BACKWARD = value(P), value(INVERSE)
LESS, ITS_VALUE = (P, FORWARD) if FORWARD < BACKWARD else (INVERSE, BACKWARD)
EXCHANGED = "the solution's value holds with the matrices exchanged: its inverse is kept"
BETTER = "the permutation is better with the matrices exchanged: its inverse is kept"


@pytest.fixture
def qaplib(tmp_path):
    """A function that writes a problem and its solution, and reads them."""

    def write(solution=None, problem=DAT):
        path = tmp_path / "some4.dat"
        path.write_bytes(problem if isinstance(problem, bytes) else problem.encode())
        beside = path.with_suffix(".sln")
        beside.unlink(missing_ok=True)
        if solution is not None:
            beside.write_bytes(solution if isinstance(solution, bytes) else solution.encode())
        return read_qaplib(path)

    return write


def shown(p, first=1, separator=" "):
    return separator.join(str(i + first) for i in p)


@pytest.mark.parametrize("problem", [DAT, " ".join(DAT.split()), "\r\n".join(DAT.split()), "\ufeff" + DAT + "\n \n"])
def test_numbers_may_be_broken_over_lines_in_any_way(qaplib, problem):
    instance = qaplib(problem=problem)
    assert (instance.name, instance.goal, instance.best, instance.solution) == ("some4", "assignment", None, None)
    assert (instance.a.tolist(), instance.b.tolist(), instance.notes) == (A.tolist(), B.tolist(), ())


@pytest.mark.parametrize(
    ("solution", "kept", "best", "notes"),
    [
        (f" 4  {FORWARD}\n{shown(P)}\n", P, FORWARD, ()),
        (f"4,{FORWARD},\n{shown(P[:2], separator=', ')},\r\n\n {shown(P[2:], separator=' , ')},", P, FORWARD, ()),
        (f"4 {FORWARD}.0 {shown(P)}", P, FORWARD, ()),
        (f"{FORWARD} {shown(P)}", P, FORWARD, ()),
        (f"{FORWARD} 4 {shown(P)}", P, FORWARD, ()),
        (f"n = 4; OPT: {FORWARD}\n{shown(P)}", P, FORWARD, ("the .sln holds words, passed over: 'n OPT'",)),
        (f"4 {FORWARD} {shown(P, first=0)}", P, FORWARD, ("the .sln counts from 0",)),
        (f"4 {BACKWARD} {shown(P)}", INVERSE, BACKWARD, (EXCHANGED,)),
        (f"4 {FORWARD} {shown(INVERSE)}", P, FORWARD, (EXCHANGED,)),
        (
            f"4 17 {shown(LESS)}",
            LESS,
            ITS_VALUE,
            (f"the stated value 17 is not the value {ITS_VALUE} of its permutation",),
        ),
        (
            f"4 17 {shown(np.argsort(LESS))}",
            LESS,
            ITS_VALUE,
            (BETTER, f"the stated value 17 is not the value {ITS_VALUE} of its permutation"),
        ),
        (f"{shown(LESS)}", LESS, ITS_VALUE, ("the .sln states no value",)),
        (f"4 {shown(np.argsort(LESS))}", LESS, ITS_VALUE, ("the .sln states no value", BETTER)),
        ("4 17 1 3 3 2", None, 17, ("the .sln is no permutation: 3 occurs twice; its value is kept as it is stated",)),
        (
            "4 17 2 2 2 2",
            None,
            17,
            ("the .sln is no permutation: 2 occurs 4 times; its value is kept as it is stated",),
        ),
        (
            "4 17 1 3 5 2",
            None,
            17,
            ("the .sln is no permutation: 5 is outside of 1 to 4; its value is kept as it is stated",),
        ),
        (
            "4 17 0 1 4 2",
            None,
            17,
            ("the .sln is no permutation: both 0 and 4 occur; its value is kept as it is stated",),
        ),
        ("1 3 3 2", None, None, ("the .sln states no value", "the .sln is no permutation: 3 occurs twice")),
    ],
)
def test_solutions_as_they_circulate(qaplib, solution, kept, best, notes):
    instance = qaplib(solution)
    assert instance.notes == notes
    assert instance.best == best
    if kept is None:
        assert instance.solution is None
    else:
        assert instance.solution.tolist() == kept.tolist()
        assert instance.value(instance.solution) == best


def test_decimal_values_are_compared_as_they_were_rounded_and_whole_ones_exactly(qaplib):
    third = DAT.replace(" 3 ", " 3.33333 ")
    exact = value(P) + 0.33333 * B[P[0], P[1]]
    instance = qaplib(f"4 {exact:.7g} {shown(P)}", third)
    assert instance.notes == ()
    assert instance.best == pytest.approx(exact, rel=1e-14)
    assert (
        qaplib(f"4 {FORWARD - 1} {shown(P)}").notes[-1].startswith(f"the stated value {FORWARD - 1} is not the value")
    )


def test_a_problem_of_size_one(qaplib):
    instance = qaplib("1 6 1", "1 2 3")
    assert (instance.best, instance.solution.tolist(), instance.notes) == (6, [0], ())


@pytest.mark.parametrize(
    ("problem", "message"),
    [
        ("", "is empty: a .dat file holds n and then two matrices of n x n numbers"),
        ("4 " + "1 " * 31, "is cut short: behind n = 4 stand 31 numbers and two matrices have 32: get it again"),
        ("4 " + "1 " * 33, "holds too much: behind n = 4 stand 33 numbers and two matrices have 32: get it again"),
        ("0", "begins with 0: a .dat file begins with the size n of its two matrices"),
        ("2.5 1 1", "begins with 2.5: a .dat file begins with the size n of its two matrices"),
        ("2 1 1 1 x1 1 1 1 1", ": 'x1' is no finite number: correct it, or get the file again"),
        ("2 1 1 1 nan 1 1 1 1", ": 'nan' is no finite number: correct it, or get the file again"),
        ("2 1 1 1 1_0 1 1 1 1", ": '1_0' is no finite number: correct it, or get the file again"),
        (b"\x1f\x8b\x08" + bytes(200), " is no text but a binary file: give one with numbers written out"),
        (b"\xff\xfe" + DAT.encode("utf-16-le"), " is no text but a binary file: give one with numbers written out"),
        ("<!DOCTYPE html><title>Not found</title>", ": '<!DOCTYPE' is no finite number: "),
        ("2 1 1 1 1 1 1 1 1e200", "matrix b holds 1e+200 in row 1, column 1"),
    ],
)
def test_broken_problems_are_said_in_one_line(qaplib, tmp_path, problem, message):
    with pytest.raises(ValueError) as error:
        qaplib(problem=problem)
    assert message in str(error.value)
    assert "some4" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("solution", "message"),
    [
        (
            "1 2 3",
            "holds 3 numbers, and the solution of a problem of size 4 has 6, its size, a value and a permutation: ",
        ),
        ("", "holds 0 numbers, and the solution of a problem of size 4 has 6"),
        ("5 17 1 2 3 4 5", "holds 7 numbers, and the solution of a problem of size 4 has 6"),
        ("3 17 1 2 3 4", "states the size 3, and its problem has 4: get it again, or move it away"),
        ("4 17 1 2 3.5 4", "holds numbers that are not whole where its permutation stands"),
        (bytes(64), "is no text but a binary file"),
    ],
)
def test_broken_solutions_are_said_in_one_line(qaplib, solution, message):
    with pytest.raises(ValueError) as error:
        qaplib(solution)
    assert message in str(error.value)
    assert "some4.sln" in str(error.value)
    assert "\n" not in str(error.value)


def edges(tmp_path, text, name="some.txt"):
    path = tmp_path / name
    path.write_text(text)
    return path


PATH = [[0, 1, 0], [1, 0, 1], [0, 1, 0]]
"""Three nodes in a row."""


@pytest.mark.parametrize(
    "text", ["1 2\n2 3\n", "0 1\n1 2", "# a path\n\n 2,1 # there\n1 2\n3\t2 1.0\n", "1 2 1e0\r\n2 3 +1\r\n"]
)
def test_edge_lists_in_their_forms(tmp_path, text):
    assert read_matrix(edges(tmp_path, text)).tolist() == PATH


def test_weights_loops_and_nodes_without_edges(tmp_path):
    matrix = read_matrix(edges(tmp_path, "1 1 0.5\n5 2 -3\n"))
    expected = np.zeros((5, 5))
    expected[0, 0], expected[1, 4], expected[4, 1] = 0.5, -3, -3
    assert np.array_equal(matrix, expected)


def test_two_graphs_are_an_instance_and_the_smaller_one_is_filled_up(tmp_path):
    first, second = edges(tmp_path, "1 2\n2 3", "first.txt"), edges(tmp_path, "0 3\n3 1", "second.edges")
    instance = read_graphs(first, second)
    assert (instance.name, instance.goal, instance.size, instance.best) == ("first-second", "matching", 4, None)
    assert instance.notes == (
        "the nodes of second.edges are counted from 0",
        "first.txt has 3 nodes: 1 without edges were added",
    )
    assert [p for p in itertools.permutations(range(4)) if instance.recovered(p)] == [(0, 3, 1, 2), (1, 3, 0, 2)]
    assert read_graphs(first, second, "assignment").goal == "assignment"


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.int16, bool])
def test_matrices_of_numpy(tmp_path, dtype):
    path = tmp_path / "some.npy"
    np.save(path, np.array(PATH, dtype))
    assert read_matrix(path).tolist() == PATH
    assert read_graphs(path, path).value([2, 1, 0]) == 0


def in_npy(array):
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=True)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("some.txt", b"1 2\n1 x\n", "some.txt, line 2: '1 x' is no edge: write two nodes, counted from 0 or 1"),
        ("some.txt", b"1 2\n3\n", "some.txt, line 2: '3' is no edge: "),
        ("some.txt", b"1 2 3 4", "some.txt, line 1: '1 2 3 4' is no edge: "),
        ("some.txt", b"-1 2", "some.txt, line 1: '-1 2' is no edge: "),
        ("some.txt", b"1 2.0", "some.txt, line 1: '1 2.0' is no edge: "),
        ("some.txt", b"1 2 inf", "some.txt, line 1: 'inf' is no finite number: correct it"),
        (
            "some.txt",
            b"1 2 3\n2 1 4",
            "some.txt, line 2: the edge 1 2 weighs 3 before and 4 here: edges have no direction",
        ),
        ("some.txt", b"# nothing\n", "some.txt holds no edges: write one a line"),
        ("some.txt", b"1 20000000", "some.txt names a node 20000000: number at most 10,000 nodes, without gaps"),
        ("some.txt", b"x" * 500, "xxx...' is no edge"),
        ("some.txt", bytes(9), "some.txt is no text but a binary file"),
        ("some.npy", b"", "some.npy is no .npy file of numbers: "),
        ("some.npy", b"1 2\n", "some.npy is no .npy file of numbers: "),
        ("some.npy", in_npy(np.zeros((2, 2)))[:-8], "some.npy is no .npy file of numbers: "),
        ("some.npy", in_npy(np.array([None])), "some.npy is no .npy file of numbers: Object arrays cannot be loaded"),
        ("some.npy", in_npy(np.zeros((2, 3))), "some.npy: matrix a has the shape (2, 3): give (n, n)"),
        ("some.npy", in_npy(np.full((2, 2), np.nan)), "some.npy: matrix a holds nan in row 0, column 0"),
        ("some.npy", in_npy(np.ones((2, 2), complex)), "some.npy: matrix a holds complex128: give real numbers"),
    ],
)
def test_broken_matrices_are_said_in_one_line(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError) as error:
        read_matrix(tmp_path / name)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_files_that_are_not_there_are_errors_of_the_disk(tmp_path):
    for read in (read_qaplib, read_matrix):
        for name in ("some.dat", "some.npy"):
            with pytest.raises(FileNotFoundError, match=name):
                read(tmp_path / name)
    with pytest.raises(IsADirectoryError):
        read_qaplib(tmp_path)
