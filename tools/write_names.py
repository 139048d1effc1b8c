"""Writes docs/names.md, what each package exports with one line each: `python tools/write_names.py`."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

PAGE = Path(__file__).parents[1] / "docs" / "names.md"

PACKAGES = {
    "ops": "import module by module, `from shuffle_jax.ops import mixing`, and call `mixing.shuffle(x, groups=2)`",
    "nn": "`from shuffle_jax.nn import AutoShuffle`",
    "models": "`from shuffle_jax.models import ShuffleNetV2`",
    "train": "`from shuffle_jax.train import recipe`; [a loop of your own](own_network.md) uses them",
    "deploy": "`from shuffle_jax.deploy import harden`; [from trained to used](deploy.md) tells their order",
}

HEAD = """# Names

What each package exports, by one import each. The [API](api/index.md) has the equations, shapes and errors of each.
"""


def line(member: Any) -> str:
    """The first line of a docstring as Markdown."""
    text = (inspect.getdoc(member) or "").partition("\n")[0]
    text = re.sub(r":\w+:`~?(?:shuffle_jax\.)?([^`]+)`", r"`\1`", text)
    return text.replace("``", "`").replace("|", "\\|")


def members(module: ModuleType) -> Iterator[tuple[str, Any]]:
    """The public functions and classes that a module defines."""
    for name, member in vars(module).items():
        if not name.startswith("_") and callable(member) and getattr(member, "__module__", None) == module.__name__:
            yield name, member


def rows() -> Iterator[str]:
    """The lines of the page."""
    yield HEAD
    for package, how in PACKAGES.items():
        module = import_module(f"shuffle_jax.{package}")
        exported = [(name, getattr(module, name)) for name in module.__all__]
        yield f"## {package}\n\n{line(module)}\n\nUse: {how}.\n"
        for name, member in exported:
            if isinstance(member, ModuleType):
                yield f"### {package}.{name}\n\n{line(member)}\n\n| | |\n|---|---|"
                yield from (f"| `{name}.{inner}` | {line(what)} |" for inner, what in members(member))
                yield ""
        plain = [(name, member) for name, member in exported if not isinstance(member, ModuleType)]
        if plain:
            yield "| | |\n|---|---|"
            yield from (f"| `{name}` | {line(member)} |" for name, member in plain)
            yield ""


def page() -> str:
    """The text of the page."""
    return "\n".join(rows()).rstrip() + "\n"


if __name__ == "__main__":
    PAGE.write_text(page())
