"""The options of parts, which are the fields of their modules: names, types, defaults and help are read from these."""

from __future__ import annotations

import dataclasses
import inspect
import re
import types
import typing
from collections.abc import Iterator, Mapping
from dataclasses import make_dataclass
from functools import partial
from typing import Any, Literal, NamedTuple, Union

import flax.linen as nn

from shuffle_jax.models.parts import KINDS, Factory, default_of

COMMON = ("width", "depth", "groups", "stem", "dropout", "sizes", "dtype")
"""Options that all networks share; a network has those of which it has a field."""

GIVEN = {
    *(*COMMON, "classes", "mixer", "pointwise", "conv", "head", "shift", "depthwise", "sampling"),  # to a network
    *("features", "kernel_size", "stride", "padding", "use_bias", "copies", "dynamic", "parent", "name"),  # to a layer
}
"""Fields that whoever makes a module gives: nobody chooses them beside the network. A mixer's groups can be chosen."""


class Option(NamedTuple):
    """A field of a module that a person may choose.

    Attributes:
        name: of the field.
        kind: its type.
        default: its default.
        text: what the class says of it.
    """

    name: str
    kind: Any
    default: Any
    text: str


def options(kind: str, make: Factory) -> dict[str, Option]:
    """What a person may choose of a part: its fields of plain types, and those of the factories in its fields.

    Args:
        kind: a field of :data:`shuffle_jax.models.parts.KINDS`.
        make: the part.
    """
    found: dict[str, Option] = {}
    for name, value in _fields(kind, make):
        for option in options(kind, value).values() if not isinstance(value, Option) else [value]:
            found.setdefault(name if isinstance(value, Option) else option.name, option)
    return found


def with_options(kind: str, make: Factory, values: Mapping[str, Any]) -> Factory:
    """A part with those of the values of which it has an option."""
    chosen: dict[str, Any] = {}
    for name, value in _fields(kind, make):
        if not isinstance(value, Option):
            chosen[name] = with_options(kind, value, values)
        elif name in values:
            chosen[name] = values[name]
    return partial(make, **chosen) if chosen else make


def module_of(make: Factory) -> Any:
    """The class or function behind a part."""
    return module_of(make.func) if isinstance(make, partial) else make


def parameters(make: Factory) -> dict[str, inspect.Parameter]:
    """What a part takes by name, without what is given already."""
    bound = make.keywords if isinstance(make, partial) else {}
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    found = inspect.signature(module_of(make)).parameters
    return {name: one for name, one in found.items() if one.kind in kinds and name not in bound}


def groups() -> dict[str, type]:
    """A frozen dataclass for each group of options, with the options of all its parts and their help as docstring.

    Where parts differ in a default, or the network gives one, it is None: that of the part, or of the network.
    """
    parts: dict[str, dict[str, dict[str, Option]]] = {}
    for kind, table in KINDS.items():
        for name, (make, _, group) in table.items():
            if make is not None and (own := options(kind, make)):
                parts.setdefault(group or name, {})[name] = own
    return {group: _group(group, own) for group, own in parts.items()}


def chosen_options(names: Mapping[str, str]) -> dict[str, dict[str, set[str]]]:
    """For each group, the parts among those chosen that have options there, and which.

    Args:
        names: of the parts by kind; a part from outside has no group.
    """
    found: dict[str, dict[str, set[str]]] = {}
    for kind, name in names.items():
        make, _, group = KINDS[kind].get(name, (None, "", ""))
        if make is not None and (own := options(kind, make)):
            found.setdefault(group or name, {})[name] = set(own)
    return found


def _fields(kind: str, make: Factory) -> Iterator[tuple[str, Option | Factory]]:
    """The fields of a part that are options, and those that hold a factory with options of its own."""
    module = module_of(make)
    if not (isinstance(module, type) and dataclasses.is_dataclass(module)):
        return
    bound = make.keywords if isinstance(make, partial) else {}
    hints, texts = typing.get_type_hints(module), _texts(module)
    for field in dataclasses.fields(module):
        default = bound.get(field.name, default_of(field))
        if kind == "mixer" and field.name == "groups":
            yield "groups", Option("groups", int | None, None, f"{texts['groups']} Those of the network by default.")
        elif field.name in GIVEN or default is dataclasses.MISSING:
            continue
        elif isinstance(inner := module_of(default), type) and issubclass(inner, nn.Module):
            yield field.name, default
        elif _is_plain(hints[field.name]):
            yield field.name, Option(field.name, hints[field.name], default, texts.get(field.name, ""))


def _group(group: str, parts: Mapping[str, Mapping[str, Option]]) -> type:
    names = list(dict.fromkeys(name for own in parts.values() for name in own))
    fields, lines = [], []
    for name in names:
        found = {part: own[name] for part, own in parts.items() if name in own}
        first = next(iter(found.values()))
        kind, default = first.kind, first.default
        for other in found.values():
            kind = Union[kind, other.kind]  # noqa: UP007 (of equal types it is the type)
            if other.default != default:
                kind, default = Union[kind, None], None  # noqa: UP007
        fields.append((name, kind, dataclasses.field(default=default)))
        lines.append(f"    {name}: {first.text}{'' if len(found) == len(parts) else f' Of {_listed(found)}.'}\n")
    made = make_dataclass(f"{group.title().replace('_', '')}Config", fields, frozen=True)
    made.__module__ = __name__
    made.__doc__ = f"Options of {_listed(parts)}.\n\nAttributes:\n{''.join(lines)}"
    return made


def _listed(names: Mapping[str, object]) -> str:
    *most, last = names
    return f"{', '.join(most)} and {last}" if most else last


def _texts(module: type) -> dict[str, str]:
    """What a class and those that it inherits from say of each attribute, each in a line without markup."""
    found: dict[str, str] = {}
    for base in reversed(module.__mro__):
        section = inspect.cleandoc(base.__doc__ or "").partition("\nAttributes:\n")[2]
        for name, text in re.findall(r"^    (\w+): (.*(?:\n {8}.*)*)", section, re.MULTILINE):
            line = re.sub(r":\w+:`~?(?:[\w.]+\.)?(\w+)`", r"\1", " ".join(text.split())).replace("``", "")
            found[name] = line if re.match(r"\w[,;]", line) else line[0].upper() + line[1:]  # not a symbol
    return found


def _is_plain(kind: Any) -> bool:
    if typing.get_origin(kind) in (Union, types.UnionType):
        return all(one is type(None) or _is_plain(one) for one in typing.get_args(kind))
    return kind in (bool, int, float, str) or typing.get_origin(kind) is Literal
