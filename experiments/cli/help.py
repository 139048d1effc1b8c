"""Pages of help: everyday options first, all of them with ``--help-all``, presets by what they are for."""

from __future__ import annotations

import io
import itertools
import os
import re
import sys
import textwrap
from collections.abc import Collection, Iterator, Mapping

ALL = "--help-all"
"""The option that shows what ``--help`` leaves out."""

_OPTION = re.compile(r"(?<![\w-])--[a-z][\w-]*(?:\.[\w-]+)*")
_ENTRY = re.compile(r"(│ |  )-{1,2}[a-z]")
_RULE = re.compile(r" -{10,} ?$")


class Page(io.StringIO):
    """What is printed into a page of help, with the colours and the frames that standard output would get."""

    def __init__(self) -> None:
        super().__init__()
        self._output = sys.stdout

    def isatty(self) -> bool:
        """Whether there are colours."""
        return self._output.isatty() and not os.environ.get("NO_COLOR")

    @property
    def encoding(self) -> str:  # type: ignore[override]
        """Whether there are frames."""
        return getattr(self._output, "encoding", None) or "utf-8"


def option_names(page: str) -> dict[str, None]:
    """Every option that a page names, in their order."""
    return dict.fromkeys(_OPTION.findall(plain(page)))


def shortened(page: str, everyday: Collection[str] | None, command: str) -> str:
    """A page without the options that a person rarely needs, and how to see them.

    Args:
        page: with all options, as tyro prints it.
        everyday: the options to keep; None for those without a dot, which are not about a part of the whole, and those
            that say where the data is.
        command: what shows all of them.
    """
    lines = page.rstrip("\n").splitlines()
    kept, left_out = [], 0
    for block in _blocks(lines):
        entries = [i for i, line in enumerate(block) if _ENTRY.match(plain(line))]
        if not entries:
            kept += block
            continue
        end = len(block) - 1  # the frame's last line, or an empty one
        own: list[str] = []
        for start, after in zip(entries, [*entries[1:], end], strict=True):
            names = _OPTION.findall(plain(block[start]))
            if any(name in everyday if everyday is not None else _is_everyday(name) for name in names):
                own += block[start:after]
            else:
                left_out += 1
        kept += [*block[: entries[0]], *own, block[end]] if own else []
    if left_out:
        kept += ["", f"{left_out} more options: {command} {ALL}"]
    return "\n".join(kept) + "\n"


def overview(presets: Mapping[str, str], prog: str, description: str, width: int) -> str:
    """The page that stands before a preset is chosen: what the command does, examples, the presets by their data.

    Args:
        presets: the line on each, "NETWORK on DATA."
        prog: the command.
        description: what it does.
        width: of the terminal.
    """
    by_data: dict[str, list[tuple[str, str]]] = {}
    for name, line in presets.items():
        network, _, data = line.rstrip(".").rpartition(" on ")
        by_data.setdefault(data, []).append((name, network.rstrip(",")))
    column = max(map(len, presets)) + 6
    first = next(iter(presets))
    lines = [f"usage: {prog} PRESET [OPTIONS]", ""]
    paragraphs = [" ".join(text.split()) for text in description.strip().split("\n\n")]
    wrapped = [[*textwrap.wrap(text, width, break_on_hyphens=False), ""] for text in paragraphs]
    lines += [
        *wrapped[0],
        "examples:",
        f"  {prog} {first} --network.mixer shuffle --epochs 20",
        f"  {prog} folder --data.root pictures/ --batch-size 32",
        f"  {prog} --resume runs/{first}",
        f"  {prog} {first} --help",
        "",
        *itertools.chain(*wrapped[1:]),
        f"PRESET --help shows the everyday options of a preset, PRESET {ALL} every one.",
        "",
        "presets, by their data:",
    ]
    for data, entries in by_data.items():
        lines += ["", f"  {data}"]
        for name, network in entries:
            text = textwrap.wrap(network, max(width - column, 20), break_on_hyphens=False)
            lines += [f"    {name:<{column - 4}}{text[0]}", *(" " * column + more for more in text[1:])]
    return "\n".join(lines) + "\n"


def _is_everyday(name: str) -> bool:
    return "." not in name or name in ("--data.root", "--data.data-dir")


def _blocks(lines: list[str]) -> Iterator[list[str]]:
    """The groups of options, in a frame or under a rule, and what stands between them."""
    block: list[str] = []
    for line, after in zip(lines, [*lines[1:], ""], strict=True):
        bare = plain(line)
        if block and (bare.startswith("╭") or _RULE.match(plain(after))):
            yield block
            block = []
        block.append(line)
        if bare.startswith("╰"):
            yield block
            block = []
    if block:
        yield block


def plain(text: str) -> str:
    """A text without colours."""
    return re.sub(r"\x1b\[[0-9;]*m", "", text)
