"""A task that needs a permutation for each image, and who solves it: `python -m experiments.alignment`.

The channels of each image arrive in one of K orders, which their means reveal; a mixer that gives every image the right
permutation puts all of them into one common order, and the layers behind it, which treat each channel in their own way,
see the same network for all. Each row is a method of mixing over several seeds, which draw the orders, the start and
the batches: how many seeds it solves (all images aligned by permutations, but for one in 200), and of the test images
how many different permutations they get, the share of valid ones, the share brought into one common order, and the
accuracy; means, and smallest and largest. Beside them stand the fixed shuffle, and an oracle whose images come in one
order. Methods are: {methods}.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from experiments.cli import check_figure_file, keep_programs, main, parse, print_rows, quiet_libraries, save_figure

if TYPE_CHECKING:
    from experiments.aligning.results import Results
    from experiments.aligning.training import Setting

DEFAULT = ("dynamic", "hard", "static", "oracle")


@dataclass(frozen=True)
class Arguments:
    """Which task, which methods, and where to keep what comes out."""

    methods: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME")] = DEFAULT
    """Rows of the table; "all" for every one that fits the groups."""

    images: Literal["digits", "seed"] = "digits"
    """Scikit-learn's digits, or as many that are made up: ten smooth patterns, moved, faint and noisy."""

    orders: int = 4
    """K, different orders of the channels."""

    channels: int = 12
    """At the mixer. Its factors make groups of them."""

    groups: int = 1
    """Of the mixer."""

    depth: int = 1
    """Mixers one after the other, before each of which the channels are put into orders of its own."""

    steps: int = 900
    """Of 64 images, in whole epochs of 22."""

    seeds: tuple[int, ...] = (0, 1, 2)
    """Each draws orders, start and batches."""

    results: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """Keep what comes out in this .json, and do not train again what is there."""

    csv: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Print comma-separated values with a header, for programs, and not a table."""

    explain: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Train the preset digits-dynamic instead, with the recipe of before and that of now, for --steps and the first
    seed, and show what the gradients of the heads are made of."""

    figure: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """Also draw permutations, alignment and validity of the first six methods over the steps: .png, .pdf or .svg."""


def run(arguments: Sequence[str] | None = None) -> None:
    """Parses the command line, trains what is missing and prints."""
    from experiments.aligning.methods import METHODS

    text = __doc__.format(methods="; ".join(f"{name}, {method.text}" for name, method in METHODS.items()))
    options = parse(Arguments, arguments, prog="python -m experiments.alignment", description=text)
    methods = check(options)
    quiet_libraries()
    keep_programs()
    if options.explain:
        from experiments.aligning import explained

        print_rows(explained.COLUMNS, explained.explain(options.steps, options.seeds[0]), options.csv)
        return
    from experiments.aligning.results import COLUMNS, read_results, row

    results = {} if options.results is None else read_results(options.results)
    setting = setting_of(options)
    try:
        for method in methods:
            complete(results, setting, method, options)
    finally:  # Ctrl-C too: what is there is shown
        done = {name: shown for name in methods if (shown := chosen(results, setting, name, options.seeds))}
        if done:
            print_rows(COLUMNS, [row(name, seeds) for name, seeds in done.items()], options.csv)
    if options.figure is not None:
        from experiments.aligning.figure import STYLES, alignment_figure

        save_figure(alignment_figure(dict(list(done.items())[: len(STYLES)]), options.orders), options.figure)


def check(options: Arguments) -> list[str]:
    """The methods to run.

    Raises:
        ValueError: something cannot be run, before anything is.
    """
    from experiments.aligning.methods import METHODS
    from experiments.aligning.task import draw

    for name in ("orders", "channels", "groups", "depth", "steps"):
        if getattr(options, name) < 1:
            raise ValueError(f"{name} must be at least 1, got {getattr(options, name)}")
    if not options.seeds or len(set(options.seeds)) < len(options.seeds) or min(options.seeds) < 0:
        raise ValueError(f"seeds must be different and at least 0, got {' '.join(map(str, options.seeds)) or 'none'}")
    if options.results is not None and options.results.suffix != ".json":
        raise ValueError(f"the name of the results must end with .json, got {options.results.name!r}")
    check_figure_file(options.figure)
    sizes = {"groups": options.groups, "depth": options.depth}
    draw(options.seeds[0], options.channels, options.orders, **sizes)
    if options.methods == ("all",):
        return [name for name, method in METHODS.items() if options.groups > 1 or not method.per_group]
    for name in options.methods:
        if name not in METHODS:
            raise ValueError(f"there is no method {name!r}: choose all, or some of {', '.join(METHODS)}")
        if METHODS[name].per_group and options.groups == 1:
            raise ValueError(f"{name} is for 2 groups or more: add --groups 2")
    return list(dict.fromkeys(options.methods))


def setting_of(options: Arguments) -> Setting:
    """What of the options the numbers depend on, beside method and seed."""
    from dataclasses import fields

    from experiments.aligning.training import Setting

    return Setting(**{field.name: getattr(options, field.name) for field in fields(Setting)})


def complete(results: Results, setting: Setting, method: str, options: Arguments) -> None:
    """Trains the seeds of one method that are missing, and keeps them."""
    from experiments.aligning.methods import METHODS
    from experiments.aligning.results import write_results
    from experiments.aligning.task import pictures
    from experiments.aligning.training import Record, train

    known = results.get((setting, method), {})
    missing = [seed for seed in options.seeds if seed not in known]
    if not missing:
        return
    curves: dict[int, list[Record]] = {seed: [] for seed in missing}
    for records in train(METHODS[method], setting, pictures(options.images), missing):
        for seed, record in records.items():
            curves[seed].append(record)
        mean = sum(record.aligned for record in records.values()) / len(records)
        if sys.stderr.isatty():  # the table comes at the end
            step = next(iter(records.values())).step
            line = f"{method}, {len(missing)} seeds: step {step} of {setting.steps}, aligned {mean:.2f}"
            print(f"\r\033[K{line}", end="", file=sys.stderr, flush=True)
    if sys.stderr.isatty():
        print("\r\033[K", end="", file=sys.stderr)
    results.setdefault((setting, method), {}).update(curves)
    if options.results is not None:
        write_results(options.results, results)


def chosen(results: Results, setting: Setting, method: str, seeds: Sequence[int]) -> dict[int, list]:
    """Of the seeds asked for those that are there."""
    found = results.get((setting, method), {})
    return {seed: found[seed] for seed in seeds if seed in found}


if __name__ == "__main__":
    main(run)
