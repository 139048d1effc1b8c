"""Parts by name: texts such as ``my_module:Butterfly(levels=2)``, which a configuration keeps and finds again."""

from __future__ import annotations

import ast
import dataclasses
import difflib
import importlib
import sys
from collections.abc import Callable, Mapping
from functools import partial, reduce
from typing import Any

import flax.linen as nn

Factory = Callable[..., nn.Module]
"""What makes a module: its class, a function, or a partial of one."""

ELSEWHERE = "put it at the top level of a module file and hand that over, or its name as module:Name"


def spec(thing: object) -> str:
    """The text under which a part is found again: ``module:Name``, or ``module:Name(option=value, ...)``.

    Args:
        thing: such a text; a class or a function at the top level of a module file; a ``functools.partial`` of one with
            plain keyword values; or a linen module, which becomes its class and the fields that are not its defaults.

    Returns:
        The text, for which :func:`load_part` gives the same.

    Raises:
        ValueError: the part cannot be imported, or holds a value that is no Python literal.

    >>> from functools import partial
    >>> from shuffle_jax.nn import ChannelShuffle
    >>> spec(partial(ChannelShuffle, groups=3))
    'shuffle_jax.nn.permutation:ChannelShuffle(groups=3)'
    >>> load_part(spec(ChannelShuffle(groups=3)))()
    ChannelShuffle(
        # attributes
        groups = 3
    )
    """
    if isinstance(thing, str):
        load_part(thing)
        return canonical(thing)
    if isinstance(thing, partial):
        if thing.args:
            raise ValueError(f"{thing.func!r} has positional values {thing.args}: give each by its name")
        return _text(thing.func, thing.keywords)
    if isinstance(thing, nn.Module):
        return _text(type(thing), _changed(thing))
    return _text(thing, {})


def load_part(text: str) -> Factory:
    """What a text of :func:`spec` names: a class or a function, or a ``functools.partial`` of it with the options.

    Raises:
        ValueError: the text is none, its module cannot be imported, or the module has no such part.
    """
    module, name, options = _parsed(text)
    try:
        found = reduce(getattr, name.split("."), importlib.import_module(module))
    except ImportError as error:
        raise ValueError(
            f"cannot import {module} for {text}: {error}; start in the folder that holds the module, or install it"
        ) from error
    except AttributeError:
        near = difflib.get_close_matches(name, dir(sys.modules[module])) if module in sys.modules else []
        raise ValueError(f"{module} has no {name}{'; near: ' if near else ''}{', '.join(near)}") from None
    if not callable(found):
        raise ValueError(f"{text} must name a class or a function, got {found!r}")
    return partial(found, **options) if options else found


def canonical(text: str) -> str:
    """A text of :func:`spec` in its one spelling; nothing is imported.

    >>> canonical("my_module:Butterfly( levels = 2 )")
    'my_module:Butterfly(levels=2)'
    """
    return _rendered(*_parsed(text))


def _text(thing: Any, options: Mapping[str, object]) -> str:
    """The text of a class or function with options, held against what importing it gives."""
    module, name = getattr(thing, "__module__", None), getattr(thing, "__qualname__", None)
    if not callable(thing) or not module or not name:
        raise ValueError(f"a part must be a class, a function, a partial of one or a linen module, got {thing!r}")
    if module == "__main__" or "<" in name:
        raise ValueError(f"{name} of {module} cannot be imported again: {ELSEWHERE}")
    for option, value in options.items():
        if not _is_plain(value):
            raise ValueError(
                f"{option} of {name} must be a number, a string or another Python literal to be kept, got {value!r}: "
                "hand over a function at the top level of a module file that makes the part"
            )
    text = _rendered(module, name, options)
    found = load_part(text)
    if (found.func if isinstance(found, partial) else found) is not thing:
        raise ValueError(f"importing {module}:{name} gives another object than the one handed over: {ELSEWHERE}")
    return text


def _changed(module: nn.Module) -> dict[str, object]:
    """The fields of a module that are not its defaults."""
    fields = [f for f in dataclasses.fields(module) if f.init and f.name not in ("parent", "name")]
    return {f.name: getattr(module, f.name) for f in fields if not _same(getattr(module, f.name), _default(f))}


def _default(field: dataclasses.Field[Any]) -> Any:
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()


def _same(value: object, default: object) -> bool:
    return value is default or (type(value) is type(default) and bool(value == default))


def _is_plain(value: object) -> bool:
    try:
        return bool(ast.literal_eval(repr(value)) == value)
    except (ValueError, SyntaxError, TypeError):
        return False


def _rendered(module: str, name: str, options: Mapping[str, object]) -> str:
    inside = ", ".join(f"{option}={value!r}" for option, value in options.items())
    return f"{module}:{name}({inside})" if options else f"{module}:{name}"


def _parsed(text: str) -> tuple[str, str, dict[str, Any]]:
    """Module, name and options of a text."""
    module, _, rest = text.partition(":")
    try:
        node = ast.parse(rest.strip(), mode="eval").body
        options = {}
        if isinstance(node, ast.Call):
            if node.args or any(word.arg is None for word in node.keywords):
                raise ValueError("options need their names")
            options = {str(word.arg): ast.literal_eval(word.value) for word in node.keywords}
            node = node.func
        name = ast.unparse(node)
        if not all(word.isidentifier() for word in [*module.strip().split("."), *name.split(".")]):
            raise ValueError("these are no names")
    except (ValueError, SyntaxError) as error:
        raise ValueError(
            f"{text!r} names no part ({error.args[0]}): give module:Name, or module:Name(option=value, ...) with plain "
            "values"
        ) from None
    return module.strip(), name, options
