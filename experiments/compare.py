"""Compares variants of a training over several seeds: `python -m experiments.compare COMPARISON.toml`.

The file names the variants, each by its command line of experiments.train, and the seeds. Every variant is trained with
every seed into its own run under --out; what is finished there is kept, what was stopped goes on. So after Ctrl-C, a
kill, or the end of --minutes the same command goes on as well. results.json, which holds every finished run with a
digest of its configuration, is written anew after each, and is enough to go on with on another machine: --known. In the
end there are table.md and figure.png: accuracies, what dynamic layers do, and what each network costs; and curves.png:
training loss and accuracy over the epochs. --into also replaces the part of a document between `<!-- begin compare:
NAME -->` and `<!-- end compare: NAME -->`.

Where the file asks questions they decide which run is next, and are answered below the table: the mean difference of
two variants over the seeds that both have, its 95 % interval, and which is ahead, that they are level, or how many
seeds it would take. An interval is that of seeds that were fixed beforehand: stop when they are done, and not at the
first answer that pleases.
"""

from __future__ import annotations

import json
import signal
import sys
import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, NoReturn

import tyro

from experiments.cli import keep_programs, main, parse, quiet_libraries
from experiments.comparison.budget import limited
from experiments.comparison.curves import curves, has_curves
from experiments.comparison.figure import figure
from experiments.comparison.ledger import Ledger
from experiments.comparison.plan import Planned, about_files, naming, plan, read
from experiments.comparison.questions import answer_table, next_run
from experiments.comparison.runs import folder_result
from experiments.comparison.table import Results, block, remarks, table
from shuffle_jax.data import DataConfig, Dataset
from shuffle_jax.files import replace_file
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

    known: Path | None = None
    """A results.json, such as experiments/comparisons/NAME.json, whose runs of the same configuration are taken over
    and not trained again; the results.json in --out is taken in any case."""

    minutes: float | None = None
    """When so many are over no run begins, and the one that trains is saved and stopped; the same command goes on."""

    each: str | None = None
    """More options of experiments.train that every run gets, last, such as "--epochs 1 --data.per-class 16" to try a
    comparison before it takes hours; with an --out of its own."""

    results: Path | None = None
    """Train nothing: write table, figure and curves, to --out and --into, from this results.json."""

    def __post_init__(self) -> None:
        if self.minutes is not None and not 0 < self.minutes < float("inf"):
            raise ValueError(f"minutes must be positive, got {self.minutes}")
        if self.each is not None and self.out is None:
            raise ValueError("--each makes other runs than the file has: give their folder, --out")


def run(arguments: Sequence[str] | None = None) -> None:
    """Parses the command line, trains what is missing, and writes the results."""
    about = f"{__doc__}\n{about_files()}"
    options = parse(Arguments, arguments, prog="python -m experiments.compare", description=about)
    quiet_libraries()
    keep_programs()
    if options.comparison is None or options.results is not None:
        if options.results is None or options.comparison is not None:
            raise ValueError("name either the .toml file of a comparison or, with --results, a results.json")
        if (options.known, options.minutes, options.each) != (None, None, None):
            raise ValueError("leave out --known, --minutes and --each: with --results nothing is trained")
        results = json.loads(options.results.read_text(encoding="utf-8"))
        inserted(options.into, results["name"], "")
        write(results, options.out, options.into)
        return
    comparison = read(options.comparison)
    if options.each is not None:
        comparison = replace(comparison, each_seed=f"{comparison.each_seed} {options.each}")
    out = options.out or Path("runs") / "compare" / comparison.name
    planned = plan(comparison, out)
    inserted(options.into, comparison.name, "")
    ledger = Ledger(comparison, planned, out)
    ledger.gather(options.known)
    with limited(options.minutes) as over:
        loaded = check(planned, ledger.missing())
        train_missing(ledger, over, loaded)
    missing = len(ledger.missing())
    if missing < len(planned):
        ledger.write()
        write(ledger.results(), out, options.into)
    if missing:
        print(f"\n{missing} of {len(planned)} runs are missing; the same command goes on", flush=True)


def check(planned: Sequence[Planned], missing: Sequence[Planned]) -> Mapping[DataConfig, Dataset]:
    """Looks for what would stop a run only when its turn comes.

    Args:
        planned: all runs.
        missing: those that are to be trained.

    Returns:
        The data sets that more than one of them is trained on, which take long to read.

    Raises:
        ValueError: a folder holds something else, the data cannot be read, or a network cannot be built.
    """
    from shuffle_jax.runs import check_resumable
    from shuffle_jax.train.begin import check_config
    from shuffle_jax.train.experiment import prepare

    for one in planned:
        if Run(one.path).exists():
            check_config(Run(one.path), one.config)  # to the epoch: no run of a comparison is another one made longer
    built = set()
    loaded: dict[DataConfig, Dataset] = {}
    for one in missing:
        folder = Run(one.path)
        if not folder.exists():
            folder.check_free()
        elif not folder.is_barely_begun():
            check_resumable(folder, resume_command(one.path))
        if one.label not in built:
            with naming(one.label):
                experiment = prepare(one.config, one.devices, dataset=loaded.get(one.config.data))
                experiment.state_shapes()
            loaded[one.config.data] = experiment.dataset
            built.add(one.label)
    uses = Counter(one.config.data for one in missing)
    return {config: dataset for config, dataset in loaded.items() if uses[config] > 1}


def finished(path: Path) -> bool:
    """Whether the run there has its results."""
    return folder_result(path) is not None


def train_missing(ledger: Ledger, over: threading.Event, loaded: Mapping[DataConfig, Dataset]) -> None:
    """Trains what is not known, one run after another, and writes results.json after each.

    Args:
        ledger: the runs that are known; gets the others, also those that fail by their numbers.
        over: no run begins when it is set, and SIGTERM is nobody's then.
        loaded: data sets that need not be read again.
    """
    missing = {(one.label, one.seed): one for one in ledger.missing()}
    if not missing or over.is_set():
        return
    import jax

    from shuffle_jax.train.loop import Stopped, train
    from shuffle_jax.train.metrics import NonFiniteLoss

    ledger.note_device()
    # A run does not heed a signal that comes after its last step, and the next must not start then.
    signals: list[int] = []

    def hear(number: int) -> None:
        if not over.is_set():
            signals.append(number)

    with heard(hear):
        while not over.is_set() and (chosen := next_run(ledger.results())) is not None:
            one = missing[chosen]
            resume, number = Run(one.path).exists(), len(missing) - len(ledger.missing()) + 1
            dataset = loaded.get(one.config.data)
            print(f"[{number}/{len(missing)}] {one}, in {one.path}", flush=True)
            try:
                train(one.config, one.path, resume=resume, afresh=resume, devices=one.devices, dataset=dataset)
                said = folder_result(one.path) or {"failed": "its records have no result"}
            except NonFiniteLoss as error:
                said = {"failed": str(error).partition(";")[0]}  # the rest is advice
                print(f"failed: {error}", file=sys.stderr, flush=True)
            except Stopped as stopped:
                if over.is_set() and stopped.signal == signal.SIGTERM:
                    print(stopped, file=sys.stderr, flush=True)
                    return
                _end(str(stopped), stopped.signal)
            ledger.add(one, said)
            ledger.write()
            late = next((number for number in signals if number in (signal.SIGINT, signal.SIGTERM)), None)
            if late is not None and ledger.missing():
                _end(f"stopped after {one.path}", late)
            jax.clear_caches()  # Each run has jitted functions of its own.


def _end(message: str, number: int) -> NoReturn:
    """Ends the command as a signal ends it."""
    print(f"{message}; the same command goes on", file=sys.stderr, flush=True)
    sys.exit(128 + number)


def write(results: Results, out: Path | None, into: Path | None) -> None:
    """Prints the tables, and writes them with the figures to a folder and with all there is to say to a document."""
    asked = answer_table(results)
    tables = table(results) + (f"\n{asked}" if asked else "")
    print(f"\n{results['title']}\n\n{tables}", end="")
    for line in remarks(results):
        print(f"\n{line}")
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        (out / "table.md").write_text(tables, encoding="utf-8")
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
