"""Networks of the catalogue, as a person names them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from experiments.cli.nearest import nearest

if TYPE_CHECKING:
    from shuffle_jax.models.catalogue import Entry


def network_named(name: str, entries: Mapping[str, Entry]) -> Entry:
    """The network of the catalogue with this name, or with this one of torchvision's.

    Raises:
        ValueError: there is none; with the nearest.
    """
    from shuffle_jax.models.catalogue import TORCHVISION

    name = TORCHVISION.get(name, name)
    if name not in entries:
        raise ValueError(f"there is no network {name!r}; near: {nearest(name, entries)} (all: experiments.count)")
    return entries[name]


def networks_with(text: str, entries: Mapping[str, Entry]) -> dict[str, Entry]:
    """The networks of the catalogue with this text in their names.

    Raises:
        ValueError: there is none; with the nearest.
    """
    found = {name: entry for name, entry in entries.items() if text in name}
    if not found:
        raise ValueError(f"no network has {text!r} in its name; near: {nearest(text, entries)}")
    return found
