"""Permutations that match two matrices: `python -m experiments.graph_matching --graphs a.txt b.txt`.

With two files of edges it answers which node of the one is which of the other: exactly where the graphs are the same,
else as well as --seconds allow; --pairs FILE.csv keeps the answer. With --methods it compares methods instead. Without
files it relabels Moebius ladders, Erdos-Renyi graphs and Gaussian matrices, made by seed, and counts from how
many random starts each relaxation, with and without a penalty, recovers the permutation. With --qaplib it solves
quadratic assignment problems within --seconds each, beside scipy's Frank-Wolfe (FAQ) in the same time on the same
cores. Minimised is |A M - M B|^2 for graphs and <A, P B P^T> for assignments, where (P B P^T)[i, k] = B[p[i], p[k]].
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from experiments.cli import keep_programs, main, parse, print_rows, print_table, quiet_libraries
from experiments.matching.answers import check_pairs_file, show_pairs, write_pairs
from experiments.matching.methods import Outcome, Settings, check
from experiments.matching.methods import run as run_method
from experiments.matching.tables import ASSIGNMENT, MATCHING, SUMMARY, Results, save, summary, table
from shuffle_jax.problems.descent import DescentConfig
from shuffle_jax.problems.solver import SolverConfig

if TYPE_CHECKING:
    from shuffle_jax.problems.instance import Instance
    from shuffle_jax.problems.solver import Solution

LARGE = 500
"""Nodes from which on the start of a matching is told, as its end comes seconds later."""

EMBEDDED = ("moebius-16", "moebius-32", "erdos-renyi-16", "erdos-renyi-32", "gaussian-32")

ON_GRAPHS = (
    "clamp",
    "clamp+l1_minus_l2",
    "tangent",
    "tangent+l1_minus_l2",
    "sinkhorn",
    "sinkhorn+l1_minus_l2",
    "softmax",
    "softmax+l1_minus_l2",
    "orthogonal",
    "orthogonal+l1_minus_l2",
    "gumbel",
    "soft_sort",
    "faq",
    "solver",
)
ON_ASSIGNMENTS = ("solver", "faq", "faq+2opt")


@dataclass(frozen=True)
class Arguments:
    """What to match, how, and where to put the results."""

    qaplib: Annotated[tuple[Path, ...], tyro.conf.arg(metavar="PATH")] = ()
    """Quadratic assignment problems: .dat files of QAPLIB, or folders of them, each with its .sln beside it if any."""

    graphs: Annotated[tuple[Path, ...], tyro.conf.arg(metavar="FILE")] = ()
    """Two files of one graph each, to be matched: edge lists (`i j`, `i j weight`, `i j {...}` as networkx writes them;
    nodes are numbers or names), or matrices as .npy."""

    directed: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Edges of these have a direction, from the first node of a line to the second."""

    pairs: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """Also write which node (of --qaplib: facility) goes with which into this file: .csv or .json."""

    embedded: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME")] = EMBEDDED
    """Made by seed where no file is given: moebius-N, erdos-renyi-N, gaussian-N."""

    relabellings: int = 1
    """How many relabellings of each embedded one."""

    methods: Annotated[tuple[str, ...] | None, tyro.conf.arg(metavar="NAME")] = None
    """solver, scipy's faq and faq+2opt, and relaxations such as sinkhorn or clamp+l1_minus_l2, in one table. By default
    a choice, and none of them for two graphs of one's own, which are matched."""

    starts: int = 32
    """Random starts of each relaxation, all in one compiled loop, and of faq on graphs."""

    seconds: float = 3.0
    """For an answer, the solver, and faq and faq+2opt on assignments, after compilation."""

    exchange: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Improve every rounded start of a relaxation by exchanges of two, until none helps."""

    seed: int = 0
    """Of everything random."""

    descent: DescentConfig = field(default_factory=DescentConfig)
    """Of the relaxations; each method sets its own relaxation and penalty."""

    solver: SolverConfig = field(default_factory=SolverConfig)
    """Of the solver."""

    csv: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Print comma-separated values with a header, for programs, and not a table."""

    out: Annotated[Path | None, tyro.conf.arg(metavar="FOLDER")] = None
    """Also write results.csv and figures into this folder: what was recovered, and the first six descents."""


def run(arguments: Sequence[str] | None = None) -> None:
    """Parses the command line, runs every method on every instance and prints."""
    options = parse(Arguments, arguments, prog="python -m experiments.graph_matching", description=__doc__)
    for name in ("starts", "relabellings"):
        if getattr(options, name) < 1:
            raise ValueError(f"{name} must be at least 1, got {getattr(options, name)}")
    if not options.seconds > 0:
        raise ValueError(f"seconds must be positive, got {options.seconds}")
    check_pairs_file(options.pairs)
    quiet_libraries()
    keep_programs()
    instances = load(options)
    goal = instances[0].goal
    if options.pairs is not None and len(instances) > 1:
        raise ValueError(f"--pairs takes the answer to one problem, there are {len(instances)}: name one file")
    methods = options.methods or (ON_ASSIGNMENTS if goal == "assignment" else ON_GRAPHS)
    for method in methods:
        check(method)
    for instance in instances:
        for note in instance.notes:
            print(f"{instance.name}: {note}", file=sys.stderr)
    results: Results = {}
    if options.graphs and options.methods is None:
        results[instances[0].name] = {"answer": answer(instances[0], options)}
        if options.out is not None:
            save(options.out, MATCHING, table(results, instances), results, goal)
    else:
        try:
            compare(instances, methods, options, results)
        finally:  # Ctrl-C too: what is there is shown
            if results:
                show(options, results, instances)
    if options.pairs is not None:
        best = min(results[instances[0].name].values(), key=lambda outcome: outcome.value)
        write_pairs(options.pairs, instances[0], best.permutation, columns(options))


def load(options: Arguments) -> list[Instance]:
    """The instances that the options ask for.

    Raises:
        ValueError: both kinds of files are given, there are none in a folder, or a name or file is no instance.
    """
    from shuffle_jax.problems.files import read_graphs, read_qaplib

    if options.qaplib and options.graphs:
        raise ValueError("--qaplib and --graphs are different problems: give one of them")
    if options.qaplib:
        return [read_qaplib(path) for path in instance_files(options.qaplib)]
    if options.graphs:
        if len(options.graphs) != 2:
            raise ValueError(f"--graphs takes two files, one for each graph, got {len(options.graphs)}")
        return [read_graphs(*options.graphs, directed=options.directed)]
    return [embedded(name, seed) for name in options.embedded for seed in range(options.relabellings)]


def instance_files(paths: Sequence[Path]) -> list[Path]:
    """Files as they are, and the .dat files of folders."""
    files: list[Path] = []
    for path in paths:
        inside = sorted(path.glob("*.dat")) if path.is_dir() else [path]
        if not inside:
            raise ValueError(f"there is no .dat file in {path}: name a folder of QAPLIB's instances, or the files")
        files += inside
    return files


def embedded(name: str, seed: int) -> Instance:
    """A matrix by its name, and one of its relabellings; both from the seed.

    Raises:
        ValueError: there is no such kind of matrix, or none of this size.
    """
    from shuffle_jax.problems import generators

    kind, _, size = name.rpartition("-")
    if not size.isdecimal():
        raise ValueError(f"the name of a matrix must be a kind and a size, such as moebius-16, got {name!r}")
    match kind:
        case "moebius":
            matrix = generators.moebius_ladder(int(size))
        case "erdos-renyi":
            matrix = generators.erdos_renyi(int(size), seed=seed)
        case "gaussian":
            matrix = generators.gaussian(int(size), seed=seed)
        case _:
            raise ValueError(f"there is no kind of matrix {kind!r}: choose moebius, erdos-renyi or gaussian")
    return generators.relabelled(matrix, seed=seed + 1000, name=f"{name} ({seed})")


def answer(instance: Instance, options: Arguments) -> Outcome:
    """Matches two graphs and shows which node is which; Ctrl-C shows what is there."""
    from shuffle_jax.problems.matching import match

    known: list[Solution] = []

    def near(found: Solution, seconds: float) -> None:
        known.append(found)
        about = f"a near match is off by |A - P B P^T|^2 = {found.value:g}"
        print(
            f"{instance.name}: {about}; compiles a search from there, of {seconds:.1f} s", file=sys.stderr, flush=True
        )

    if instance.size > LARGE:
        print(f"{instance.name}: matches {instance.size:,} nodes", file=sys.stderr, flush=True)
    try:
        known.append(match(instance, options.seconds, options.seed, options.solver, near))
    finally:
        if known:
            show_pairs(instance, known[-1], columns(options), options.csv)
    found = known[-1]
    return Outcome(found.permutation, found.value, None, 1, None, found.history[-1].seconds)


def columns(options: Arguments) -> tuple[str, str]:
    """What the two sides of a pair are called."""
    if options.qaplib:
        return "facility", "location"
    if len(options.graphs) != 2:
        return "first", "second"
    first, second = options.graphs
    return (str(first), str(second)) if first.name == second.name else (first.name, second.name)


def compare(instances: Sequence[Instance], methods: Sequence[str], options: Arguments, results: Results) -> None:
    """Runs every method on every instance, one after the other, into ``results``."""
    from experiments.matching.baselines import workers
    from shuffle_jax.sharding import cores

    processes = options.solver.threads or cores()
    needed = processes if any(method.startswith("faq") for method in methods) else 0
    with workers(needed) as pool:
        settings = Settings(
            seed=options.seed,
            starts=options.starts,
            seconds=options.seconds,
            descent=options.descent,
            solver=options.solver,
            exchange=options.exchange,
            pool=pool,
            processes=processes,
        )
        for instance in instances:
            for method in methods:
                if sys.stderr.isatty():
                    print(f"\r\033[K{instance.name}: {method}", end="", file=sys.stderr, flush=True)
                results.setdefault(instance.name, {})[method] = run_method(method, instance, settings)
    if sys.stderr.isatty():
        print("\r\033[K", end="", file=sys.stderr)


def show(options: Arguments, results: Results, instances: Sequence[Instance]) -> None:
    """Prints the table, and writes it and the figures if a folder is given."""
    goal = instances[0].goal
    headings, rows = ASSIGNMENT if goal == "assignment" else MATCHING, table(results, instances)
    print_rows(headings, rows, options.csv)
    if not options.csv and goal == "assignment" and (totals := summary(results, instances)):
        print()
        print_table(SUMMARY, totals)
    if options.out is not None:
        save(options.out, headings, rows, results, goal)


if __name__ == "__main__":
    main(run)
