"""Files as they circulate are read, what is odd about them is noted, and what is broken is said in one line."""

from __future__ import annotations

import io
import itertools

import numpy as np
import pytest

from shuffle_jax.problems.files import read_graph, read_graphs, read_matrix, read_qaplib

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
    ("first", "best", "notes"),
    [
        ("4 17", 17, ()),
        ("4, 17,", 17, ()),
        ("# the name\n\n4 17 17 # n, optimum, best\n% flows", 17, ()),
        ("c the name\n! of it\n* and more\n4 17 // best", 17, ()),
        ("4 0 17", 17, ("the stated optimum 0 is taken for unknown, and 17 for the best value",)),
        ("4 17 19", 17, ("the optimum 17 and the best value 19 are stated: the smaller one is kept",)),
    ],
)
@pytest.mark.parametrize("separator", [" ", ", ", ";"])
def test_the_first_line_of_a_problem_may_state_its_best_value(qaplib, first, best, notes, separator):
    rows = [separator.join(map(str, row)) for matrix in (A, B) for row in matrix.tolist()]
    instance = qaplib(problem="\n".join([first, *rows]))
    assert (instance.a.tolist(), instance.b.tolist()) == (A.tolist(), B.tolist())
    assert (instance.best, instance.notes) == (best, notes)


def test_of_two_files_the_smaller_best_value_is_kept(qaplib):
    problem, solution = DAT.replace("4\n", "4 17\n", 1), f"4 {FORWARD} {shown(P)}"
    instance = qaplib(solution, problem)
    assert instance.best == 17 and instance.solution.tolist() == P.tolist()
    assert instance.notes == (f"the .dat states 17 and the .sln {FORWARD}: the smaller value is kept",)
    assert qaplib(solution, DAT.replace("4\n", f"4 {FORWARD}\n", 1)).notes == ()


@pytest.mark.parametrize(
    ("solution", "kept", "best", "notes"),
    [
        (f"4 17 {FORWARD} {shown(P)}", P, FORWARD, ()),
        (f"4 {FORWARD} {FORWARD}\n{shown(P)}", P, FORWARD, ()),
        (f"4 {BACKWARD} 17 {shown(P)}", INVERSE, BACKWARD, (EXCHANGED,)),
        (
            f"4 17 18 {shown(LESS)}",
            LESS,
            ITS_VALUE,
            (f"the stated value 17 and 18 is not the value {ITS_VALUE} of its permutation",),
        ),
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
        (
            "4 17\n" + "1 " * 31,
            "can be read in two ways: its first line is '4 17', and 31 numbers follow where two matr",
        ),
        ("4 17\n" + "1 " * 30, "is cut short: behind n = 4 stand 30 numbers and two matrices have 32: get it again"),
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
        ("5 17 1 2 3 4 5", "states the size 5, and its problem has 4: get it again, or move it away"),
        ("5 17 19 1 2 3 4 5", "states the size 5, and its problem has 4: get it again, or move it away"),
        ("4 17 18 19 1 2 3 4", "holds 8 numbers, and the solution of a problem of size 4 has 6"),
        ("4 17 19 1 3 3 2", "states 17 and 19, and no permutation (3 occurs twice) that tells which is the best value"),
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


NAMED = ("ann", "ben", "cid")
HEADER = "the first line of some.txt names its columns: "


@pytest.mark.parametrize(
    ("text", "names", "notes"),
    [
        ("ann ben {}\nben cid {}\n", NAMED, ()),  # as networkx writes them
        ("ann ben {'weight': 1.0, 'since': 'May'}\nben cid {\"weight\": 1}\n", NAMED, ()),
        ("ann\tben\t1.0\nben\tcid\t1\n", NAMED, ()),
        ('"ann","ben"\n"ben","cid"\n', NAMED, ()),
        ("ann of york, ben of ely\nben of ely, cid\n", ("ann of york", "ben of ely", "cid"), ()),
        ("% a comment\n// another\nann ben\nben cid # a third", NAMED, ()),
        ("Source,Target,Type,Weight\nann,ben,x y,1\nben,cid,z,1\n", NAMED, (f"{HEADER}'Source,Target,Type,Weight'",)),
        ("from to\n7 8\n8 19999\n", ("7", "8", "19999"), (f"{HEADER}'from to'",)),
        ("a b\n01 02\n02 3\n", ("1", "2", "3"), ("the first line of some.txt is passed over: 'a b'",)),
        ("3\n1 2\n2 3\n", ("1", "2", "3"), ("the first line of some.txt says that there are 3 nodes",)),
    ],
)
def test_edge_lists_as_programs_write_them(tmp_path, text, names, notes):
    graph = read_graph(edges(tmp_path, text))
    assert graph.matrix.tolist() == PATH
    assert (graph.names, graph.notes) == (names, notes)


def test_a_first_line_of_sizes_is_told_from_an_edge(tmp_path):
    ring = "0 1\n1 2\n2 3\n3 0\n0 2\n"
    plain, sized = (read_graph(edges(tmp_path, text)) for text in (ring, f"4 5\n{ring}"))
    assert np.array_equal(sized.matrix, plain.matrix)
    assert sized.notes[0] == "the first line of some.txt says: 4 nodes, 5 edges"
    more = read_graph(edges(tmp_path, f"6\n{ring}"))
    assert more.names == tuple("012345") and not more.matrix[4:].any()
    # A ring that is written down from its end, and a path with its sizes: both can be meant.
    unsure = read_graph(edges(tmp_path, "4 3\n3 2\n2 1\n1 4\n"))
    assert unsure.matrix.sum() == 8
    assert unsure.notes == (
        "the first line of some.txt, '4 3', is read as an edge: remove it if it counts the nodes and the edges",
    )


def test_edges_with_a_direction_and_nodes_alone(tmp_path):
    graph = read_graph(edges(tmp_path, "a b 2\nb a 3\nc\n"), directed=True)
    assert graph.names == ("a", "b", "c")
    assert graph.matrix.tolist() == [[0, 2, 0], [3, 0, 0], [0, 0, 0]]
    with pytest.raises(ValueError, match="the edge a b weighs 2 before and 3 here: keep one"):
        read_graph(edges(tmp_path, "a b 2\na b 3\n"), directed=True)


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
        "second.edges has 1 nodes that no line names: 2",
        "first.txt has 3 nodes: 1 without edges were added",
    )
    assert [p for p in itertools.permutations(range(4)) if instance.recovered(p)] == [(0, 3, 1, 2), (1, 3, 0, 2)]
    assert read_graphs(first, second, "assignment").goal == "assignment"
    assert instance.pairs([0, 3, 1, 2]) == [("1", "0"), ("2", "3"), ("3", "1"), (None, "2")]


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
        ("some.txt", b"a 2\nb 2.5\n", "some.txt, line 2: 'b 2.5' is no edge: "),
        ("some.txt", b"a b\na b c d\n", "some.txt, line 2: 'a b c d' is no edge: "),
        ("some.txt", b"a b friend\n", "some.txt, line 1: 'friend' is no finite number: correct it"),
        ("some.txt", b"a b {'weight': 'x'}\n", "some.txt, line 1: 'x' is no finite number: correct it"),
        ("some.txt", b"a b {weight: 1}\n", "some.txt, line 1: '{weight: 1}' are no attributes, such as {'weight': 2.0"),
        ("some.txt", b"1 2 3 4", "some.txt, line 1: '1 2 3 4' is no edge: "),
        ("some.txt", b"-1 2", "some.txt, line 1: '-1 2' is no edge: "),
        ("some.txt", b"1 2.0", "some.txt, line 1: '1 2.0' is no edge: "),
        ("some.txt", b"1 2 inf", "some.txt, line 1: 'inf' is no finite number: correct it"),
        (
            "some.txt",
            b"1 2 3\n2 1 4",
            "some.txt, line 2: the edge 2 1 weighs 3 before and 4 here: edges have no direction, keep one, or read",
        ),
        ("some.txt", b"# nothing\n", "some.txt holds no edges: write one a line"),
        (
            "some.txt",
            b"".join(b"a b%d\n" % i for i in range(10_000)),
            "some.txt names 10,001 nodes: give a graph of at",
        ),
        ("some.txt", b"x" * 500, "some.txt holds no edges: write one a line"),
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
