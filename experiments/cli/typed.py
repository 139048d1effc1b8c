"""Messages of the library as a person at a command line reads them: fields by the options that one types."""

from __future__ import annotations

import re
from collections.abc import Sequence

GROUPS = "data|network|augment|optimizer|penalty|input|distributed"
"""The configurations within that of a run, by whose fields the library names others than a function's own."""


def as_typed(message: str, words: Sequence[str] = ()) -> str:
    """A message that names fields by their options.

    The library knows no command line: it says ``warmup_share must be ...`` of a configuration's own field, and
    ``optimizer.warmup_epochs must be ...`` of one within another.

    Args:
        message: in one line.
        words: of the command line, which tell options of the same last name apart.

    >>> as_typed("optimizer.warmup_epochs must be less than the training")
    '--optimizer.warmup-epochs must be less than the training'
    >>> as_typed("Error parsing config.penalty: start must be below end", ["--penalty.start", "2"])
    '--penalty.start must be below end'
    >>> as_typed("Error parsing config.augment: of resized_crop and crop_padding one must be 0")
    'of --augment.resized-crop and --augment.crop-padding one must be 0'
    >>> as_typed("temperature must be positive, got 0", ["--network.dynamic.temperature=0"])
    '--network.dynamic.temperature must be positive, got 0'
    >>> as_typed("batch_size must be a multiple of 2, got 45")
    '--batch-size must be a multiple of 2, got 45'
    """
    typed = [word.partition("=")[0].replace("_", "-") for word in words if word.startswith("--")]
    message = re.sub(
        rf"(?<![\w./-])({GROUPS})((?:\.[a-z][a-z_]*)+)\b(?!\.)(?<!\.jax|\.npz)(?<!\.json)",
        lambda found: f"--{found[1]}{found[2].replace('_', '-')}",
        message,
    )
    parsed = re.search(r"Error parsing (?:config\.)?([\w.]+): ", message)
    if parsed:  # what a configuration says of its own fields, where the parser makes it
        before, rest = message[: parsed.start()], message[parsed.end() :]
        option = f"--{parsed[1].replace('_', '-')}."
        return before + re.sub(
            r"(?<![\w./-])[a-z]+(?:_[a-z]+)*\b(?![./-])",
            lambda name: _option(name[0], option, typed),
            rest,
        )
    return re.sub(r"^[a-z]+(?:_[a-z]+)*(?= (?:must|is) )", lambda name: _ending(name[0], typed), message)


def _option(name: str, before: str, typed: Sequence[str]) -> str:
    option = before + name.replace("_", "-")
    return option if "_" in name or option in typed else name


def _ending(name: str, typed: Sequence[str]) -> str:
    """The option that was typed whose last part is a name; one of underscores is an option anyway."""
    option = name.replace("_", "-")
    for word in typed:
        if re.split(r"[.]", word.removeprefix("--"))[-1] == option:
            return word
    return f"--{option}" if "_" in name else name
