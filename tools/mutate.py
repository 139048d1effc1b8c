"""Changes one small thing in the library at a time, and shows which changes no test notices.

    python tools/mutate.py --count 150 --seed 0 --out mutants.json

A mutant is one operator, comparison, constant or call exchanged for another in `ops`, `nn`, `deploy` or `constraint`.
It is run, in a copy of the repository, against the doctests of its module and the tests that name what the module
defines, the test file of the same name first. A mutant under which one of them fails or hangs is killed; one under
which all pass survives, and is either equivalent to the original or a gap in the tests.

Mutants are drawn by a hash of the seed and of the line, not of its place: the same line in another version of the
library, or in another file, is drawn again. What --out holds already is not run again, so a stopped run goes on.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

PACKAGE = "shuffle_jax"
MUTATED = ("ops", "nn", "deploy", "constraint.py")
TESTED_BY = ("ops", "nn", "deploy", "models", "problems", "test_constraint.py")

COMPARISONS = {
    ast.Lt: "<=",
    ast.LtE: "<",
    ast.Gt: ">=",
    ast.GtE: ">",
    ast.Eq: "!=",
    ast.NotEq: "==",
    ast.In: "not in",
    ast.NotIn: "in",
    ast.Is: "is not",
    ast.IsNot: "is",
}
OPERATORS = {ast.Add: "-", ast.Sub: "+", ast.Mult: "/", ast.Div: "*", ast.FloorDiv: "*", ast.Mod: "+", ast.Pow: "*"}
CALLS = {
    "min": "max",
    "max": "min",
    "minimum": "maximum",
    "maximum": "minimum",
    "sum": "mean",
    "mean": "sum",
    "any": "all",
    "all": "any",
    "argmax": "argmin",
    "argmin": "argmax",
    "floor": "ceil",
    "ceil": "floor",
    "exp": "log",
    "zeros": "ones",
    "ones": "zeros",
    "zeros_like": "ones_like",
    "ones_like": "zeros_like",
}


@dataclass(frozen=True)
class Mutant:
    """One change of one file.

    Attributes:
        path: of the file, from the root of the repository.
        line: its number, from 1.
        start: where the changed text begins, in bytes of the file.
        stop: where it ends.
        old: the text.
        new: what stands there instead.
        key: what it is drawn by: the function, the line and the change, without the place.
    """

    path: str
    line: int
    start: int
    stop: int
    old: str
    new: str
    key: str


class _Finder(ast.NodeVisitor):
    """Finds every mutant of a file. Annotations, docstrings, messages and imports stay as they are."""

    def __init__(self, path: str, source: bytes) -> None:
        self.path, self.source = path, source
        self.lines = source.splitlines(keepends=True)
        self.begins = [0]
        for text in self.lines:
            self.begins.append(self.begins[-1] + len(text))
        self.inside: list[str] = []
        self.found: list[Mutant] = []
        self.seen: dict[str, int] = {}

    def at(self, line: int, column: int) -> int:
        return self.begins[line - 1] + column

    def start(self, node: ast.expr | ast.stmt) -> int:
        return self.at(node.lineno, node.col_offset)

    def stop(self, node: ast.expr | ast.stmt) -> int:
        assert node.end_lineno is not None and node.end_col_offset is not None  # as in all code that was parsed
        return self.at(node.end_lineno, node.end_col_offset)

    def add(self, node: ast.expr | ast.stmt, start: int, stop: int, new: str) -> None:
        old, line = self.source[start:stop].decode(), self.lines[node.lineno - 1].strip().decode()
        key = f"{'.'.join(self.inside)}|{line}|{old}|{new}"
        self.seen[key] = self.seen.get(key, 0) + 1
        self.found.append(Mutant(self.path, node.lineno, start, stop, old, new, f"{key}|{self.seen[key]}"))

    def between(self, node: ast.expr | ast.stmt, left: ast.expr, right: ast.expr, new: str) -> None:
        """Exchanges the operator between two operands."""
        start, stop = self.stop(left), self.start(right)
        match = re.search(rb"not\s+in|is\s+not|and|or|in|is|[<>=!]=|//|\*\*|[<>+\-*/%]", self.source[start:stop])
        if match and b"#" not in self.source[start:stop]:
            self.add(node, start + match.start(), start + match.end(), new)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        self.inside.append(node.name)
        for part in (*node.args.defaults, *(d for d in node.args.kw_defaults if d), *node.body):
            self.visit(part)
        self.inside.pop()

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        self.inside.append(node.name)
        for part in node.body:
            self.visit(part)
        self.inside.pop()

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        if node.value:
            self.visit(node.value)

    def visit_Raise(self, node: ast.Raise) -> None:
        pass

    def visit_Subscript(self, node: ast.Subscript) -> None:
        if not (isinstance(node.value, ast.Name) and node.value.id[:1].isupper()):  # a type: Float[Array, "n c"]
            self.generic_visit(node)

    def visit_keyword(self, node: ast.keyword) -> None:
        if node.arg != "strict":  # of zip: a guard against mistakes of ours
            self.generic_visit(node)

    def visit_JoinedStr(self, node: ast.JoinedStr) -> None:
        pass

    def visit_If(self, node: ast.If) -> None:
        if isinstance(node.test, ast.Call | ast.Name | ast.Attribute):
            start = self.at(node.test.lineno, node.test.col_offset)
            self.add(node.test, start, start, "not ")
        self.generic_visit(node)

    def visit_BinOp(self, node: ast.BinOp) -> None:
        if type(node.op) in OPERATORS:
            self.between(node, node.left, node.right, OPERATORS[type(node.op)])
        self.generic_visit(node)

    def visit_Compare(self, node: ast.Compare) -> None:
        for operator, left, right in zip(node.ops, [node.left, *node.comparators], node.comparators, strict=False):
            self.between(node, left, right, COMPARISONS[type(operator)])
        self.generic_visit(node)

    def visit_BoolOp(self, node: ast.BoolOp) -> None:
        for left, right in zip(node.values, node.values[1:], strict=False):
            self.between(node, left, right, "or" if isinstance(node.op, ast.And) else "and")
        self.generic_visit(node)

    def visit_UnaryOp(self, node: ast.UnaryOp) -> None:
        if isinstance(node.op, ast.USub | ast.Not):
            start = self.start(node)
            self.add(node, start, self.start(node.operand), "")
        self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> None:
        name = node.func
        text = name.attr if isinstance(name, ast.Attribute) else name.id if isinstance(name, ast.Name) else ""
        if text in CALLS:
            stop = self.stop(name)
            self.add(node, stop - len(text), stop, CALLS[text])
        self.generic_visit(node)

    def visit_Constant(self, node: ast.Constant) -> None:
        value = node.value
        if isinstance(value, bool):
            new = str(not value)
        elif isinstance(value, int):
            new = str(value + 1)
        elif isinstance(value, float):
            new = repr(2 * value if value else 1.0)
        else:
            return
        self.add(node, self.start(node), self.stop(node), new)


def mutants(root: Path) -> list[Mutant]:
    """Every mutant of the mutated part of the library."""
    found = []
    for place in MUTATED:
        path = root / PACKAGE / place
        for file in [path] if path.suffix else sorted(path.rglob("*.py")):
            finder = _Finder(str(file.relative_to(root)), file.read_bytes())
            finder.visit(ast.parse(finder.source))
            found += finder.found
    return found


def draw(found: list[Mutant], count: int, seed: int) -> list[Mutant]:
    """The mutants with the least hashes, in the order of their files."""
    ranked = sorted(found, key=lambda mutant: hashlib.sha256(f"{seed}|{mutant.key}".encode()).digest())
    return sorted(ranked[:count], key=lambda mutant: (mutant.path, mutant.start))


def _defined(path: Path) -> set[str]:
    """The public names that a module defines."""
    names = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
    return {name for name in names if not name.startswith("_")}


def selection(root: Path, path: str) -> list[str]:
    """The test files that concern a module, the most telling first.

    They name what the module defines, or what a module that imports it defines. What a package keeps to itself is
    tested through its face: every test of deploy concerns every module there.
    """
    module = Path(path)
    dotted = ".".join(module.with_suffix("").parts)
    importers = [
        file
        for file in (root / PACKAGE).rglob("*.py")
        if re.search(rf"(from|import) {re.escape(dotted)}\b", file.read_text()) and file.name != "__init__.py"
    ]
    own, theirs = _defined(root / path), set().union(*(_defined(file) for file in importers))
    stems = {file.stem for file in importers}
    scores = {}
    for place in TESTED_BY:
        folder = root / "tests" / place
        for file in [folder] if folder.suffix else sorted(folder.glob("test_*.py")):
            text = file.read_text() if file.exists() else ""
            words = set(re.findall(r"\w+", text))
            score = 10 * len(own & words) + len(theirs & words)
            score += 1000 * (file.stem == f"test_{module.stem}")
            score += 100 * (file.stem.removeprefix("test_") in stems)
            score += 50 * (dotted in text)
            score += 20 * (place == module.parts[1])
            if own & words or theirs & words or score >= 1000 or (place == module.parts[1] == "deploy"):
                scores[str(file.relative_to(root))] = score
    return sorted(scores, key=lambda name: -scores[name])


def _pytest(root: Path, files: list[str], limit: float) -> tuple[str, float, str]:
    """Runs tests up to the first failure: the verdict, the seconds of processor time, and the failed test."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "--no-header", "--tb=no", "-rfE"]
    command += ["-n", "0", "--durations=0", "-p", "no:cacheprovider", *files]
    environment = {**os.environ, "PYTHONPATH": str(root), "CI": "1", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    process = subprocess.Popen(
        command, cwd=root, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True
    )
    try:
        output, _ = process.communicate(timeout=limit)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        return "killed", limit, "timeout"
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    text = output.decode(errors="replace")
    failed = re.search(r"^(?:FAILED|ERROR) (\S+)", text, re.MULTILINE)
    if process.returncode in (0, 5):
        return "survived", seconds, ""
    return "killed", seconds, failed.group(1) if failed else f"exit code {process.returncode}"


def run(root: Path, drawn: list[Mutant], out: Path, seconds: float) -> dict:
    """Runs the mutants that have no verdict yet, and writes the report after each."""
    report = json.loads(out.read_text()) if out.exists() else {"files": {}, "mutants": {}}
    for number, mutant in enumerate(drawn, start=1):
        if mutant.key in report["mutants"]:
            continue
        chosen, spent = [mutant.path], 0.0
        for name in selection(root, mutant.path):
            if name not in report["files"]:  # unchanged: the tests pass, and what they compile is kept
                verdict, used, test = _pytest(root, [name], 1800)
                report["files"][name] = {"seconds": round(used, 1), "passes": verdict == "survived", "failed": test}
                print(f"      {used:6.1f} s  {name}  {test or 'passes'}", flush=True)
            known = report["files"][name]
            if known["passes"] and (len(chosen) == 1 or spent + known["seconds"] <= seconds):
                chosen.append(name)
                spent += known["seconds"]
        path = root / mutant.path
        source = path.read_bytes()
        try:
            path.write_bytes(source[: mutant.start] + mutant.new.encode() + source[mutant.stop :])
            began = time.monotonic()
            verdict, used, test = _pytest(root, chosen, 600 + 20 * spent)
        finally:
            path.write_bytes(source)
        report["mutants"][mutant.key] = {
            **asdict(mutant),
            "verdict": verdict,
            "by": test,
            "tests": chosen,
            "seconds": round(used, 1),
            "wall": round(time.monotonic() - began, 1),
        }
        out.write_text(json.dumps(report, indent=1))
        change = f"{mutant.old!r} -> {mutant.new!r}"
        print(f"{number:4d}  {verdict:8s}  {mutant.path}:{mutant.line}  {change}  {test}", flush=True)
    return report


def table(report: dict, drawn: list[Mutant]) -> Iterator[str]:
    """The survivors, and how many there are of how many."""
    rows = [report["mutants"][mutant.key] for mutant in drawn]
    survivors = [row for row in rows if row["verdict"] == "survived"]
    for row in survivors:
        text = row["key"].split("|")[1]
        yield f"| {row['path']}:{row['line']} | `{text}` | `{row['old']}` -> `{row['new']}` |"
    yield f"{len(survivors)} of {len(rows)} survive"


def main() -> None:
    """Draws, runs and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=150, help="how many mutants to draw")
    parser.add_argument("--seed", type=int, default=0, help="of the draw")
    parser.add_argument("--seconds", type=float, default=60, help="of the tests that a mutant meets, unchanged")
    parser.add_argument("--root", type=Path, default=Path(__file__).parents[1], help="the repository")
    parser.add_argument("--out", type=Path, default=Path("mutants.json"), help="the report")
    parser.add_argument("--copy", type=Path, help="a folder for the copy, kept with what it compiled")
    parser.add_argument("--list", action="store_true", help="print the mutants and run nothing")
    options = parser.parse_args()
    found = mutants(options.root)
    drawn = draw(found, options.count, options.seed)
    if options.list:
        for mutant in drawn:
            print(f"{mutant.path}:{mutant.line}  {mutant.key.split('|')[1]}  {mutant.old!r} -> {mutant.new!r}")
        print(f"{len(drawn)} of {len(found)}")
        return
    with tempfile.TemporaryDirectory(prefix="mutants_") as folder:
        copy = options.copy or Path(folder) / "copy"
        skipped = shutil.ignore_patterns(".git", ".venv*", ".*_cache", ".hypothesis", "runs", "__pycache__", "build")
        shutil.copytree(options.root, copy, ignore=skipped, dirs_exist_ok=True)
        report = run(copy, drawn, options.out, options.seconds)
    print(*table(report, drawn), sep="\n")


if __name__ == "__main__":
    main()
