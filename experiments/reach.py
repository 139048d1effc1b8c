"""How many units until every channel reaches every other: `python -m experiments.reach`.

A grouped convolution sees its own group alone, so the mixer decides. Each row is a mixer in one stage of a network,
after the unit in which the stage begins: how many units it takes until every channel out depends on every channel in,
and the share of such pairs after one unit and after all of the stage. With --match the rows are networks of the
catalogue, each followed to its end from its first unit and from within each stage. No value of a weight matters, and
the numbers are exact. Permutations that are not trained yet are relaxed and connect all that they do not multiply by 0.

With --field they say how much a channel sees, a metric of this project: how many rows, columns and channels of the
input, the box of the three and how many of its cells, and with --network what each layer gains for its cost.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from experiments.cli import (
    check_figure_file,
    main,
    network_named,
    networks_with,
    parse,
    print_rows,
    quiet_libraries,
    save_figure,
)
from shuffle_jax.naming import some

if TYPE_CHECKING:
    import flax.linen as nn

    from shuffle_jax.analysis.channel_reach import Reach, Rules
    from shuffle_jax.models.catalogue import Entry
    from shuffle_jax.typing import PyTree

    Lines = dict[str, list[Reach]]
    Measure = Callable[[nn.Module, PyTree, tuple[int, ...], Rules], Any]  # of one stage

MIXERS: tuple[str, ...] = (
    "network",
    "mixer",
    "start",
    "channels",
    "units",
    "units_to_full",
    "percent_after_1",
    "percent_at_end",
)
UNITS: tuple[str, ...] = ("start", "unit", "channels_in", "channels_out", "percent")

NETWORKS = ("shufflenet_v1_g8_0.5x", "addressnet32_32")
"""Those of the catalogue in which mixers are compared."""

STAGE = "stage3"
"""Where they are: in every family with mixers no stage has more units."""

FIXED = {
    "shuffle": "channel shuffle",
    "random": "random permutations",
    "shift": "channel shift",
    "identity": "no mixer",
}
LEARNED = {"auto": "learned permutations", "factors": "learned factors"}
"""Mixers by their names in a configuration; the learned ones are hardened."""

Row = tuple[str | int, ...]


@dataclass(frozen=True)
class Arguments:
    """What to look at, and how to print it."""

    csv: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Print comma-separated values with a header, for programs, and not a table."""

    match: Annotated[str | None, tyro.conf.arg(metavar="TEXT")] = None
    """Networks of the catalogue with this text in their name, as they are; each takes seconds."""

    network: Annotated[str | None, tyro.conf.arg(metavar="NAME")] = None
    """Every unit of this one network of the catalogue."""

    run: Annotated[tuple[Path, ...], tyro.conf.arg(metavar="RUN")] = ()
    """Folders of runs, as experiments.train writes them: what they learned, beside other mixers in the same network."""

    shortcuts: bool = True
    """Count what goes past the weights of a unit, such as an identity; --no-shortcuts leaves it out."""

    field: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """The receptive field over rows, columns and channels instead: box, exact, fill, and gain."""

    figure: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """Also draw the comparison of mixers into this file: .png, .pdf or .svg."""


def run(arguments: Sequence[str] | None = None) -> None:
    """Parses the command line, follows the channels and prints."""
    options = parse(Arguments, arguments, prog="python -m experiments.reach", description=__doc__)
    chosen = [f"--{name}" for name in ("match", "network", "run") if getattr(options, name) not in (None, ())]
    if len(chosen) > 1:
        raise ValueError(f"{' and '.join(chosen)} are different tables: give one of them")
    if options.figure is not None and (options.match is not None or options.network is not None):
        raise ValueError(f"--figure compares mixers and {chosen[0]} does not: leave one of them out")
    if options.field and (options.figure is not None or not options.shortcuts):
        raise ValueError("--field draws no figure and counts shortcuts: leave out --figure and --no-shortcuts")
    check_figure_file(options.figure)
    quiet_libraries()
    if options.field:
        return print_rows(*field_rows(options), options.csv)
    from shuffle_jax.analysis.channel_reach import Rules

    rules = Rules(shortcuts=options.shortcuts)
    if options.network is not None:
        columns, rows = UNITS, rows_of_units(options.network, rules)
    elif options.match is not None:
        columns, rows = MIXERS, rows_of_networks(options.match, rules)
    else:
        panels = compare(options.run, rules)
        rows = [row(network, mixer, reaches) for network, lines in panels.items() for mixer, reaches in lines.items()]
        columns = MIXERS
        if options.figure is not None:
            draw(panels, options.figure)
    print_rows(columns, rows, options.csv)


def field_rows(options: Arguments) -> tuple[tuple[str, ...], list[Row]]:
    """The columns and rows of --field."""
    from experiments.reaching import field
    from shuffle_jax.analysis.channel_reach import DEFAULT
    from shuffle_jax.models.catalogue import catalogue

    if options.network is not None:
        return field.LAYERS, field.of_layers(options.network, network_named(options.network, catalogue()))
    if options.match is not None:
        return field.NETWORKS, field.of_networks(networks_with(options.match, catalogue()))
    return field.MIXERS, field.of_mixers(compare(options.run, DEFAULT, partial(field.in_stage, STAGE)))


def compare(runs: Sequence[Path], rules: Rules, measure: Measure | None = None) -> dict[str, dict[str, Any]]:
    """By network and mixer, how far channels come in one stage: in the networks of runs, or in :data:`NETWORKS`.

    Args:
        runs: folders of runs.
        rules: what counts as reaching.
        measure: of a network in one stage, by default :func:`in_stage`.

    Raises:
        ValueError: there is no run in a folder, or its network has no place for a mixer or depends on the image.
    """
    from shuffle_jax.models.catalogue import Entry, catalogue
    from shuffle_jax.train.trained import load_trained

    entries, measure = catalogue(), measure or in_stage
    if not runs:
        return {title(built(entries[name])): with_fixed_mixers(entries[name], rules, measure) for name in NETWORKS}
    panels: dict[str, dict[str, Any]] = {}
    for path in runs:
        trained = load_trained(path)
        config, shape, classes = trained.config.network, trained.preprocessing.shape, len(trained.classes)
        name = title(trained.network)
        name = name if name not in panels else f"{name} ({path})"
        try:
            panels[name] = with_fixed_mixers(Entry(config, shape, classes), rules, measure)
            mixer: str = config.mixer
            if mixer not in FIXED:
                learned = measure(trained.network, trained.variables, shape, rules)
                panels[name][LEARNED.get(mixer, mixer)] = learned
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None
    return panels


def with_fixed_mixers(entry: Entry, rules: Rules, measure: Measure) -> dict[str, Any]:
    """How far channels come in one stage of a network, with each mixer of :data:`FIXED` that fits it."""
    lines: dict[str, Any] = {}
    for mixer, label in FIXED.items():
        network = built(entry._replace(config=replace(entry.config, mixer=mixer)))
        try:
            lines[label] = measure(network, {}, entry.image_shape, rules)
        except ValueError as error:
            if mixer != "shift":  # Twice the groups do not divide the channels of every network.
                raise
            print(f"{title(network)} goes without the {label}: {error}", file=sys.stderr)
    return lines


def in_stage(network: nn.Module, variables: PyTree, image_shape: tuple[int, ...], rules: Rules) -> list[Reach]:
    """How far channels come in the units of one stage that have as many channels out as in."""
    from shuffle_jax.analysis.channel_reach import default_starts, reach, unit_links

    links = unit_links(network, variables, image_shape, rules, match=f"{STAGE}_")
    start = default_starts(links)[-1]
    return reach(links[[link.unit for link in links].index(start) :])


def rows_of_networks(match: str, rules: Rules) -> list[Row]:
    """One row for each start in each network of the catalogue with ``match`` in its name.

    Raises:
        ValueError: there is none, or what each of them connects depends on the image.
    """
    from shuffle_jax.analysis.channel_reach import ImageDependent
    from shuffle_jax.models.catalogue import catalogue

    entries = networks_with(match, catalogue())
    rows: list[Row] = []
    left_out: list[str] = []
    for name, entry in entries.items():
        try:
            found = reaches_of(entry, rules)
        except ImageDependent as error:
            if len(entries) == 1:
                raise ValueError(f"{name}: {error}") from None
            left_out.append(name)
            continue
        rows += [row(name, entry.config.mixer, reaches) for reaches in found.values()]
    if not rows:
        raise ValueError(f"what {some(entries)} connect depends on the image: --match networks of which it does not")
    if left_out:
        print(f"left out, as what they connect depends on the image: {some(left_out)}", file=sys.stderr)
    return rows


def rows_of_units(name: str, rules: Rules) -> list[Row]:
    """One row for each start in a network and each unit from there on.

    Raises:
        ValueError: there is no such network, or what it connects depends on the image.
    """
    from shuffle_jax.models.catalogue import catalogue

    entry = network_named(name, catalogue())
    try:
        found = reaches_of(entry, rules)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None
    return [
        (start, one.unit, one.channels_in, one.channels_out, percent(one.share))
        for start, reaches in found.items()
        for one in reaches
    ]


def reaches_of(entry: Entry, rules: Rules) -> dict[str, list[Reach]]:
    """How far channels come in a network of the catalogue, by the start."""
    from shuffle_jax.analysis.channel_reach import channel_reach

    return channel_reach(built(entry), {}, entry.image_shape, rules=rules)


def built(entry: Entry) -> nn.Module:
    """The network of an entry of the catalogue."""
    from shuffle_jax.models import build

    return build(entry.config, entry.classes)


def row(network: str, mixer: str, reaches: Sequence[Reach]) -> Row:
    """One line of the table of mixers."""
    from shuffle_jax.analysis.channel_reach import units_to_full

    first, last, full = reaches[0], reaches[-1], units_to_full(reaches)
    shares = percent(first.share), percent(last.share)
    return network, mixer, first.unit, first.channels_in, len(reaches), "-" if full is None else str(full), *shares


def percent(share: float) -> str:
    """Rounded down, so that 100 means all."""
    return f"{math.floor(1e4 * share) / 100:g}"


def title(network: nn.Module) -> str:
    """A network for people: its class, with its depth, width and groups if it has such fields."""
    depth, width, groups = (getattr(network, name, None) for name in ("depth", "width", "groups"))
    name = f"{'Enhanced ' if getattr(network, 'shortcut', None) == 'shift' else ''}{type(network).__name__}"
    if depth is not None and (width is not None or getattr(network, "stem", "small") == "small"):
        name = f"{name}-{depth}"  # AddressNet for large images has one depth
    name = name if width is None else f"{name} {width}x"
    return name if groups in (None, 1) else f"{name}, {groups} groups"


def draw(panels: dict[str, Lines], path: Path) -> None:
    """Writes the figure, whole or not at all."""
    from shuffle_jax.analysis.reach_figure import reach_figure

    stage = STAGE.replace("stage", "stage ")
    titled = {f"{name}: {stage}": lines for name, lines in panels.items()}
    save_figure(reach_figure(titled), path)


if __name__ == "__main__":
    main(run)
