"""Compares variants of a training over several seeds: `python -m experiments.compare COMPARISON.toml`.

The file names the variants, each by its command line of experiments.train, and the seeds. Every variant is trained with
every seed into its own run under --out; what is finished there is kept, what was stopped goes on. So after Ctrl-C the
same command goes on as well. From the folders of the runs alone it then writes results.json, table.md and figure.png:
accuracies, what dynamic layers do, and what each network costs; and curves.png: training loss and test accuracy over
the epochs. --into also replaces the part of a document between `<!-- begin compare: NAME -->` and `<!-- end compare:
NAME -->`.
"""

from __future__ import annotations

import json
import os
import platform
import re
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import tyro

from experiments.cli import keep_programs, main, parse, quiet_libraries
from experiments.comparison.curves import curves, has_curves
from experiments.comparison.figure import figure
from experiments.comparison.plan import Comparison, Planned, about_files, naming, plan, read
from experiments.comparison.runs import run_result
from experiments.comparison.table import Results, block, remarks, table
from shuffle_jax.files import replace_file
from shuffle_jax.records import read_records
from shuffle_jax.run import Run, resume_command
from shuffle_jax.signals import heard


@dataclass(frozen=True)
class Arguments:
    """What to compare, and where to keep it."""

    comparison: Annotated[Path | None, tyro.conf.Positional] = None
    """File with the title, the text, the seeds and the variants, such as experiments/comparisons/digits.toml."""

    out: Path | None = None
    """Folder of the runs and the results; runs/compare/NAME by default, NAME being that of the file."""

    into: Path | None = None
    """Document between whose markers the results are written as well."""

    results: Path | None = None
    """Train nothing: write table, figure and curves, to --out and --into, from this results.json."""


def run(arguments: Sequence[str] | None = None) -> None:
    """Parses the command line, trains what is missing, and writes the results."""
    about = f"{__doc__}\n{about_files()}"
    options = parse(Arguments, arguments, prog="python -m experiments.compare", description=about)
    quiet_libraries()
    keep_programs()
    if options.comparison is None or options.results is not None:
        if options.results is None or options.comparison is not None:
            raise ValueError("name either the .toml file of a comparison or, with --results, a results.json")
        results = json.loads(options.results.read_text(encoding="utf-8"))
        inserted(options.into, results["name"], "")
        write(results, options.out, options.into)
        return
    comparison = read(options.comparison)
    out = options.out or Path("runs") / "compare" / comparison.name
    planned = plan(comparison, out)
    inserted(options.into, comparison.name, "")
    check(planned)
    failures = train_missing(planned, out)
    results = collect(comparison, planned, failures, out)
    replace_file(out / "results.json", as_json(results).encode())
    write(results, out, options.into)


def check(planned: Sequence[Planned]) -> None:
    """Looks for what would stop a run only when its turn comes.

    Raises:
        ValueError: a folder holds something else, the data cannot be read, or a network cannot be built.
    """
    from shuffle_jax.runs import check_resumable
    from shuffle_jax.train.begin import check_config
    from shuffle_jax.train.experiment import prepare

    built = set()
    for one in planned:
        folder = Run(one.path)
        if folder.exists():
            check_config(folder, one.config)  # to the epoch: no run of a comparison is another one made longer
            if not (finished(one.path) or folder.is_barely_begun()):
                check_resumable(folder, resume_command(one.path))
        else:
            folder.check_free()
        if one.label not in built and not finished(one.path):
            with naming(one.label):
                prepare(one.config, one.devices).state_shapes()
            built.add(one.label)


def finished(path: Path) -> bool:
    """Whether the run there has its results."""
    metrics = Run(path).metrics
    return metrics.exists() and run_result(read_records(metrics)) is not None


def train_missing(planned: Sequence[Planned], out: Path) -> dict[Path, str]:
    """Trains what is not finished, one run after another.

    Args:
        planned: the runs.
        out: gets the names of the devices.

    Returns:
        The message of each run that failed by its numbers, by its folder.
    """
    missing = [one for one in planned if not finished(one.path)]
    if not missing:
        return {}
    import jax

    from shuffle_jax.train.loop import Stopped, train
    from shuffle_jax.train.metrics import NonFiniteLoss

    out.mkdir(parents=True, exist_ok=True)
    note_device(out)
    failures = {}
    # A run does not heed a signal that comes after its last step, and the next must not start then.
    signals: list[int] = []
    with heard(signals.append):
        for number, one in enumerate(missing, start=1):
            resume = Run(one.path).exists()
            print(f"[{number}/{len(missing)}] {one.label}, seed {one.seed}, in {one.path}", flush=True)
            try:
                train(one.config, one.path, resume=resume, afresh=resume, devices=one.devices)
                late = next((number for number in signals if number in (signal.SIGINT, signal.SIGTERM)), None)
                if late is not None and number < len(missing):
                    raise Stopped(f"stopped after {one.path}", late, "")
            except NonFiniteLoss as error:
                failures[one.path] = str(error).partition(";")[0]  # the rest is advice
                print(f"failed: {error}", file=sys.stderr, flush=True)
            except Stopped as stopped:
                print(f"{stopped}; the same command goes on", file=sys.stderr, flush=True)
                sys.exit(128 + stopped.signal)
            jax.clear_caches()  # Each run has jitted functions of its own.
    return failures


def note_device(out: Path) -> None:
    """Adds a line on this machine's devices to devices.txt, if it is not there yet."""
    import jax

    devices = jax.devices()
    line = f"{len(devices)} x {devices[0].device_kind}"
    if devices[0].platform == "cpu":
        line = f"{os.cpu_count()} cores, {platform.processor() or platform.machine()}"
    file = out / "devices.txt"
    known = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
    if line not in known:
        file.write_text("".join(f"{each}\n" for each in [*known, line]), encoding="utf-8")


def collect(comparison: Comparison, planned: Sequence[Planned], failures: dict[Path, str], out: Path) -> Results:
    """The results of all runs, as results.json holds them: see experiments.comparison.table."""
    variants: dict[str, dict[str, Any]] = {
        label: {"label": label, "command": command, **costs(label, planned), "runs": []}
        for label, command in comparison.variants.items()
    }
    versions: dict[str, set[str]] = {}
    written = []
    for one in planned:
        said = {"failed": failures[one.path]} if one.path in failures else None
        said = said or run_result(read_records(Run(one.path).metrics)) or {"failed": "not finished"}
        variants[one.label]["runs"].append({"seed": one.seed, **said})
        for name, text in Run(one.path).versions().items():
            versions.setdefault(name, set()).add(text)
        written.append(Run(one.path).metrics.stat().st_mtime)
    return {
        "name": comparison.name,
        "title": comparison.title,
        "text": comparison.text,
        "command": f"python -m experiments.compare experiments/comparisons/{comparison.name}.toml",
        "each_seed": comparison.each_seed,
        "seeds": list(comparison.seeds),
        "versions": {name: " and ".join(sorted(texts)) for name, texts in versions.items()},
        "devices": (out / "devices.txt").read_text(encoding="utf-8").splitlines(),
        "date": datetime.fromtimestamp(max(written), UTC).date().isoformat(),
        "variants": list(variants.values()),
    }


def costs(label: str, planned: Sequence[Planned]) -> dict[str, int]:
    """What the network of a variant costs, for the classes and the images that its runs keep.

    Args:
        label: of the variant.
        planned: all runs, started.

    Returns:
        ``parameters``, and ``multiply_adds`` of one image, both after hardening. Neither if that cannot be said, as of
        runs of an early version, or if seeds have networks of different costs: then one line on standard error.
    """
    from shuffle_jax.analysis.count import Count, Known, count
    from shuffle_jax.models import build

    known: Known = {}
    found: set[Count] = set()
    try:
        for one in planned:
            if one.label == label:
                folder = Run(one.path)
                network = build(one.config.network, len(folder.classes()))
                found.add(count(network, folder.preprocessing().shape, known=known))
        if len(found) != 1:
            raise ValueError(f"its seeds have networks of {len(found)} different costs")
    except ValueError as error:
        print(f"no parameters and multiply-adds of {label!r}: {error}", file=sys.stderr, flush=True)
        return {}
    (cost,) = found
    return {"parameters": cost.parameters, "multiply_adds": cost.multiply_adds}


def as_json(results: Results) -> str:
    """Results as lines of JSON, lists of numbers each on a single one."""

    def joined(found: re.Match[str]) -> str:
        return " ".join(found[0].split()).replace("[ ", "[").replace(" ]", "]")

    # A string holds no line break of its own, so that what begins with one and has no quote is layout and numbers.
    return re.sub(r"\[\n[^{}\"]*\]", joined, json.dumps(results, indent=1, ensure_ascii=False)) + "\n"


def write(results: Results, out: Path | None, into: Path | None) -> None:
    """Prints the table, and writes it with the figures to a folder and with all there is to say to a document."""
    print(f"\n{results['title']}\n\n{table(results)}", end="")
    for line in remarks(results):
        print(f"\n{line}")
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        (out / "table.md").write_text(table(results), encoding="utf-8")
        if any("failed" not in one for variant in results["variants"] for one in variant["runs"]):
            figure(results).savefig(out / "figure.png")
        if has_curves(results):
            curves(results).savefig(out / "curves.png")
        print(f"\nresults, table{', figure and curves' if has_curves(results) else ' and figure'} in {out}")
    if into is not None:
        replace_file(into, inserted(into, results["name"], block(results)).encode())


def inserted(document: Path | None, name: str, content: str) -> str:
    """The text of a document with ``content`` between the markers of a comparison.

    Raises:
        ValueError: the document has not exactly one pair of markers.
    """
    if document is None:
        return ""
    begin, end = f"<!-- begin compare: {name} -->", f"<!-- end compare: {name} -->"
    text = document.read_text(encoding="utf-8")
    if text.count(begin) != 1 or text.count(end) != 1 or text.index(begin) > text.index(end):
        raise ValueError(f"{document} has not one pair of lines {begin} and {end}: put them where the results belong")
    before, rest = text.split(begin)
    return f"{before}{begin}\n{content}{end}{rest.split(end)[1]}"


if __name__ == "__main__":
    main(run)
