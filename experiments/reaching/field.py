"""The receptive field in three dimensions, as tables: of mixers in a stage, of networks, and of the layers of one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from shuffle_jax.naming import some

if TYPE_CHECKING:
    import flax.linen as nn

    from shuffle_jax.analysis.channel_reach import Rules
    from shuffle_jax.analysis.receptive_field import Field
    from shuffle_jax.models.catalogue import Entry
    from shuffle_jax.typing import PyTree

SEEN: tuple[str, ...] = ("rows", "columns", "reach", "box", "exact", "percent_filled")
MIXERS = ("network", "mixer", "start", "units", *SEEN)
NETWORKS = ("network", "mixer", "parameters", "multiply_adds", *SEEN)
LAYERS = ("layer", "kind", *SEEN, "gain", "parameters", "multiply_adds", "gain_per_1000_parameters", "gain_per_million")
"""Columns. The last two of a layer are its gain over its parameters and its multiply-adds; "-" where it has none."""

Row = tuple[str | int, ...]


def in_stage(
    stage: str, network: nn.Module, variables: PyTree, image_shape: tuple[int, ...], rules: Rules
) -> list[Field]:
    """Behind each unit of a stage, what is seen of the input of the first with as many channels out as in."""
    from shuffle_jax.analysis.channel_reach import default_starts, unit_links
    from shuffle_jax.analysis.receptive_field import receptive_field

    begin = default_starts(unit_links(network, variables, image_shape, rules, match=f"{stage}_"))[-1]
    return receptive_field(network, variables, image_shape, begin, match=f"{stage}_")


def of_mixers(panels: Mapping[str, Mapping[str, list[Field]]]) -> list[Row]:
    """By network and mixer, what is seen at the end of a stage."""
    return [
        (network, mixer, fields[0].name, len(fields), *seen(fields[-1]))
        for network, lines in panels.items()
        for mixer, fields in lines.items()
    ]


def of_networks(entries: Mapping[str, Entry]) -> list[Row]:
    """What the last unit of each network sees of the image.

    Raises:
        ValueError: none of them can be told.
    """
    from shuffle_jax.analysis.count import count
    from shuffle_jax.analysis.receptive_field import receptive_field
    from shuffle_jax.models import build

    rows: list[Row] = []
    for name, entry in entries.items():
        network = build(entry.config, entry.classes)
        try:
            field = receptive_field(network, {}, entry.image_shape)[-1]
        except ValueError as error:
            raise ValueError(f"{name} of {some(entries)}: {error}") from None
        cost = count(network, entry.image_shape)
        rows.append((name, entry.config.mixer, cost.parameters, cost.multiply_adds, *seen(field)))
    return rows


def of_layers(name: str, entry: Entry) -> list[Row]:
    """What each layer and each unit of a network sees of the image, and what it gains.

    Raises:
        ValueError: it cannot be told.
    """
    from shuffle_jax.analysis.receptive_field import layer_fields
    from shuffle_jax.models import build

    try:
        found = layer_fields(build(entry.config, entry.classes), {}, entry.image_shape)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None
    rows: list[Row] = []
    for layer, field in found:
        cost = field.cost
        parameters = cost.parameters + cost.training_only_parameters
        work = cost.multiply_adds + cost.training_only_multiply_adds
        gains = (per(field.gain, 1e3, parameters), per(field.gain, 1e6, work))
        rows.append((layer.path, layer.kind, *seen(field), f"{field.gain:.4g}", parameters, work, *gains))
    return rows


def seen(field: Field) -> Row:
    """The columns of :data:`SEEN`."""
    numbers = (f"{value:.10g}" for value in (field.reach, field.box, field.exact))
    return field.rows, field.columns, *numbers, f"{100 * field.fill:.4g}"


def per(gain: float, many: float, amount: int) -> str:
    """A gain for so many of what it costs."""
    return f"{many * gain / amount:.4g}" if amount else "-"
