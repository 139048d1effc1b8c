"""The options of a command, read from the command line: a dataclass by tyro, mistakes in one line."""

from __future__ import annotations

import contextlib
import io
import itertools
import os
import re
import shlex
import shutil
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import tyro

from experiments.cli.command import TRACEBACK
from experiments.cli.help import ALL, Page, option_names, overview, plain, shortened
from experiments.cli.nearest import nearest, nearest_option

HELP = ("-h", "--help", ALL)
NETWORK = "--network."
ABOUT_TRACEBACK = f"{TRACEBACK}, anywhere, shows where in the program a mistake was found."

Options = TypeVar("Options")


def parse(
    kind: type[Options],
    arguments: Sequence[str] | None,
    *,
    prog: str,
    description: str | None,
    default: Options | None = None,
    everyday: Collection[str] | None = None,
) -> Options:
    """Reads the options of a command.

    Args:
        kind: a dataclass, one option a field.
        arguments: the words of the command line; those of this process by default.
        prog: the command as one types it, for ``--help``.
        description: what it does, for ``--help``.
        default: gives the options that are not among the words.
        everyday: the options that ``--help`` shows, by default those without a dot; ``--help-all`` shows all.

    Raises:
        ValueError: the words do not fit; one line that names them, and the nearest that do.
    """
    default = tyro.MISSING_NONPROP if default is None else default
    return _parse(kind, words_of(arguments), prog, description, (), everyday, default)


def parse_preset(
    presets: Mapping[str, tuple[str, Options]],
    arguments: Sequence[str] | None,
    *,
    prog: str,
    description: str,
    everyday: Collection[str] | None = None,
) -> Options:
    """Reads the name of a preset and the options that override its values.

    Args:
        presets: a line of help and the value of each, by name.
        arguments: the words of the command line; those of this process by default.
        prog: the command as one types it, for ``--help``.
        description: what it does, for ``--help``.
        everyday: the options that ``--help`` shows, by default those without a dot; ``--help-all`` shows all.

    Raises:
        ValueError: the words do not fit; one line that names them, and the nearest that do.
    """
    words = words_of(arguments)
    if words and words[0] in HELP:
        about = f"{description.rstrip()}\n\n{ABOUT_TRACEBACK}"
        width = max(shutil.get_terminal_size().columns, 60)
        print(overview({name: text for name, (text, _) in presets.items()}, prog, about, width), end="")
        sys.exit(0)
    if not words:
        few = ", ".join(list(presets)[:3])
        raise ValueError(
            f"no preset is named: choose one of the {len(presets)} that {prog} --help lists, such as {few}"
        )
    if words[0].startswith("-"):
        named = next((word for word in words if word in presets), "PRESET")
        raise ValueError(
            f"the preset must come first, got {words[0]}: {prog} {named} {words[0]} ... (see {prog} --help)"
        )
    if words[0] not in presets:
        raise ValueError(
            f"there is no preset {words[0]!r}; near: {nearest(words[0], presets)} (all of them: {prog} --help)"
        )
    kind = tyro.extras.subcommand_type_from_defaults(
        {name: value for name, (_, value) in presets.items()}, {name: text for name, (text, _) in presets.items()}
    )
    return _parse(kind, words, prog, description, [word for word in words[:1] if word in presets], everyday)


def _parse(
    kind: Any,
    words: Sequence[str],
    prog: str,
    description: str | None,
    before_help: Sequence[str],
    everyday: Collection[str] | None,
    default: Any = tyro.MISSING_NONPROP,
) -> Any:
    """Options by tyro, whose box of several lines becomes one; ``before_help`` leads to the help on the options."""
    text = f"{(description or '').rstrip()}\n\n{ABOUT_TRACEBACK}"

    def read(args: Sequence[str]) -> tuple[Any, list[str]]:
        # No subcommands for the kinds of a field, such as the data: the preset has chosen.
        config = (tyro.conf.AvoidSubcommands,)
        return tyro.cli(
            kind, args=args, prog=prog, description=text, default=default, config=config, return_unknown_args=True
        )

    def names() -> dict[str, None]:
        return option_names(_page(lambda: read([*before_help, HELP[1]]))) | dict.fromkeys(everyday or ())

    command = " ".join([prog, *before_help])
    if any(word in HELP for word in words):
        page = _page(lambda: read([HELP[1] if word in HELP else word for word in words]))
        print(page if ALL in words else shortened(page, everyday, command), end="")
        sys.exit(0)
    box = io.StringIO()
    try:
        with contextlib.redirect_stderr(box), _wide():
            options, unknown = read(words)
    except SystemExit as end:
        if not end.code:  # A shell completion was asked for, and printed.
            raise
        # An argument that may be left out takes an unknown option for its value.
        known, typed = names(), [word.partition("=")[0] for word in words]
        for word in typed:
            if re.match("--[a-z]", word) and word.replace("_", "-") not in known:
                raise ValueError(f"there is no option {word}; near: {nearest_option(word, known)}") from None
        raise ValueError(f"{_first_section(box.getvalue())} (see {command} --help)") from None
    if not unknown:
        return options
    wrong = next((word for word in unknown if word.startswith("-")), None)
    if wrong is None:
        raise ValueError(f"no option takes {' '.join(map(repr, unknown))}: put its option before a value")
    wrong = wrong.partition("=")[0]
    raise ValueError(f"there is no option {wrong}; near: {nearest_option(wrong, names())}")


def _page(show: Callable[[], object]) -> str:
    """What is printed by somebody who ends the process then."""
    page = Page()
    with contextlib.redirect_stdout(page), contextlib.suppress(SystemExit):
        show()
    return re.sub(r"\n{3,}", "\n\n", page.getvalue())


def words_of(arguments: Sequence[str] | None) -> list[str]:
    """The words of the command line, options of earlier versions under the names that they have now.

    For a first word ``@FILE`` stand the words in the file. A word with a space is a value, also if it begins like an
    option, as that of ``--each "--epochs 1"`` does.

    Args:
        arguments: the words; those of this process by default.
    """
    words = [word for word in (sys.argv[1:] if arguments is None else arguments) if word != TRACEBACK]
    if words and words[0].startswith("@"):
        words[:1] = shlex.split(Path(words[0][1:]).read_text(encoding="utf-8"))
    for i in reversed(range(1, len(words))):
        if re.match("-.* ", words[i]) and re.fullmatch("--[^= ]+", words[i - 1]):
            words[i - 1 : i + 1] = [f"{words[i - 1]}={words[i]}"]
    return [_renamed(word) if word.startswith(NETWORK) else word for word in words]


def _renamed(word: str) -> str:
    from shuffle_jax.models.config import RENAMED

    option, equals, value = word.removeprefix(NETWORK).partition("=")
    name = RENAMED.get(option.replace("-", "_"), option)
    return f"{NETWORK}{name.replace('_', '-')}{equals}{value}"


def _first_section(box: str) -> str:
    """What tyro says at the top of its box, in one line; of a choice, what was meant and all there are."""
    # The first line holds the title; where the terminal has no UTF-8, a rule follows instead of a frame around all.
    lines = [line.strip(" │") for line in plain(box).splitlines()[1:]]
    lines = [line for line in lines if line and not line.startswith("╰")]
    sections = [list(part) for is_rule, part in itertools.groupby(lines, _is_rule) if not is_rule]
    text = re.sub(r"__tyro[\w-]*\.", "", " ".join(sections[0]).rstrip(".")) if sections else "wrong options"
    choice = re.fullmatch(r"invalid choice '(.*)' for argument '(.*)'\. Expected one of \((.*)\)", text)
    if choice is None:
        return text
    value, option, choices = choice[1], choice[2], re.findall(r"'([^']*)'", choice[3])
    return f"{option} has no choice {value!r}; near: {nearest(value, choices)} (all of them: {', '.join(choices)})"


def _is_rule(line: str) -> bool:
    return not line.strip("─-")


@contextlib.contextmanager
def _wide() -> Iterator[None]:
    """A terminal so wide that no message is broken in the middle of a word."""
    before = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = "2000"
    try:
        yield
    finally:
        if before is None:
            del os.environ["COLUMNS"]
        else:
            os.environ["COLUMNS"] = before
