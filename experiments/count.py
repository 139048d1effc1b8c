"""Counts parameters and multiply-adds of every network: `python -m experiments.count`.

Parameters are those of the network in use, with the classifier; relaxed permutations, which hardening turns into
index vectors, are counted as training only. Generators are the heads that make, from each image, the weights of a
dynamic layer: their share stands last. One multiply-add is one product with the addition that follows it: those
of convolutions and dense layers, for one image. Generator parameters are those of them that make the weights of other
layers from each image. Nothing is run, the numbers are exact.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated

import tyro

from experiments.cli import main, nearest, network_named, networks_with, parse, print_rows, quiet_libraries

if TYPE_CHECKING:
    from shuffle_jax.analysis.count import Count, Known, Layer
    from shuffle_jax.models.catalogue import Entry

NETWORK: tuple[str, ...] = (
    "name",
    "input",
    "classes",
    "parameters",
    "training_only_parameters",
    "multiply_adds",
    "generator_parameters",
)
LAYER: tuple[str, ...] = ("layer", "kind", "output", "parameters", "training_only_parameters", "multiply_adds")
GENERATOR = "generator"
"""The name of a module that makes, from each image, the weights of the module it is in."""

Row = tuple[str | int, ...]


@dataclass(frozen=True)
class Arguments:
    """What to count, and how to print it."""

    csv: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Print comma-separated values with a header, for programs, and not a table."""

    layers: Annotated[str | None, tyro.conf.arg(metavar="NAME")] = None
    """Count the layers of this one network."""

    groups: Annotated[int | None, tyro.conf.arg(metavar="G")] = None
    """Groups of dynamic mixers and static-dynamic 1x1 layers; those of each network by default."""

    match: Annotated[str, tyro.conf.arg(metavar="TEXT")] = ""
    """Only networks, or with --layers only layers, with this text in their name."""


def run(arguments: Sequence[str] | None = None) -> None:
    """Parses the command line, counts and prints."""
    options = parse(Arguments, arguments, prog="python -m experiments.count", description=__doc__)
    quiet_libraries()
    if options.layers is None:
        columns, rows = NETWORK, count_networks(options.match, options.groups)
    else:
        columns, rows = LAYER, count_layers_of(options.layers, options.match, options.groups)
    print_rows(columns, rows, options.csv)


def count_networks(match: str, groups: int | None = None) -> list[Row]:
    """One row for each network of the catalogue with ``match`` in its name.

    Raises:
        ValueError: there is none, or the groups do not divide the channels of one.
    """
    from shuffle_jax.analysis.count import inside, total

    rows: list[Row] = []
    known: Known = {}
    for name, entry in networks_with(match, networks(groups)).items():
        _, shape, classes = entry
        layers = layers_of(name, entry, known)
        generated = inside(layers, GENERATOR).parameters
        rows.append((name, size(shape), classes, *in_columns(total(layers)), generated))
    return rows


def count_layers_of(name: str, match: str, groups: int | None = None) -> list[Row]:
    """One row for each layer of a network with ``match`` in its path: of one called in many places, all its work.

    Raises:
        ValueError: there is no such network, or no such layer in it, or the groups do not divide its channels.
    """
    from shuffle_jax.analysis.count import total

    found: dict[str, Layer] = {}
    for layer in layers_of(name, network_named(name, networks(groups)), {}):
        earlier = found.get(layer.path)
        found[layer.path] = layer if earlier is None else earlier._replace(cost=total([earlier, layer]))
    paths = [path for path in found if match in path]
    if not paths:
        raise ValueError(f"no layer of {name} has {match!r} in its name; near: {nearest(match, found)}")
    return [(path, found[path].kind, size(found[path].output_shape), *in_columns(found[path].cost)) for path in paths]


def networks(groups: int | None) -> dict[str, Entry]:
    """The catalogue, with so many groups in all dynamic layers."""
    from shuffle_jax.models.catalogue import catalogue

    entries = catalogue()
    for name, entry in entries.items():
        config = entry.config
        own = {"groups": groups} if config.mixer in ("dynamic", "factors") else {}
        own |= {"blocks": groups} if config.pointwise == "static_dynamic" else {}
        entries[name] = entry._replace(config=replace(config, dynamic=replace(config.dynamic, **own)))
    return entries


def layers_of(name: str, entry: Entry, known: Known) -> list[Layer]:
    """The layers of a network of the catalogue."""
    from shuffle_jax.analysis.count import count_layers
    from shuffle_jax.models import build

    try:
        return count_layers(build(entry.config, entry.classes), entry.image_shape, known=known)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None


def in_columns(cost: Count) -> tuple[int, int, int]:
    """A count as three columns show it."""
    return cost.parameters, cost.training_only_parameters, cost.multiply_adds


def size(shape: Sequence[int]) -> str:
    """A shape as people write it, such as 224x224x3."""
    return "x".join(map(str, shape))


if __name__ == "__main__":
    main(run)
