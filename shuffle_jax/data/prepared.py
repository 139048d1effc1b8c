"""What tensorflow-datasets has prepared on this machine: the names of data sets, and their folders."""

from __future__ import annotations

import os
import re
import shlex
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

from shuffle_jax.naming import some

_NAME = re.compile(r"(?P<name>\w+)(?:/(?P<config>[^/:\s]+))?(?::(?P<version>\d+\.\d+\.\d+))?")
_VERSION = re.compile(r"\d+\.\d+\.\d+")
_NAMED = 5
"""How many prepared sets a message names."""


class Name(NamedTuple):
    """The parts of a data set's name."""

    name: str
    config: str | None
    version: str | None


def parse_name(text: str) -> Name:
    """The parts of ``name``, ``name:1.0.0``, ``name/config`` or ``name/config:1.0.0``.

    Raises:
        ValueError: it is none of them.
    """
    found = _NAME.fullmatch(text)
    if found is None:
        raise ValueError(f"name must be such as cifar10, cifar10:3.0.2 or imagenet_resized/64x64, got {text!r}")
    return Name(found["name"], found["config"], found["version"])


def default_data_dir() -> Path:
    """The folder of tensorflow-datasets, $TFDS_DATA_DIR or ~/tensorflow_datasets."""
    return Path(os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets").expanduser()


def find_prepared(name: str, data_dir: Path) -> Path:
    """The folder of a prepared set, ``data_dir/name/[config]/version``.

    Raises:
        ValueError: it is not there.
    """
    wanted = parse_name(name)
    top = data_dir / wanted.name
    if wanted.config is not None:
        top = top / wanted.config
    elif not _versions(top):
        top = top / (_default_config(top) or "")
    versions = _versions(top)
    if not versions:
        near = _near(data_dir, wanted)
        there = some(near, _NAMED) or "nothing"
        raise ValueError(
            f"{name} is not prepared in {data_dir} (there is {there}): run `{prepare_command(name, data_dir)}` where "
            f"there is a network, and copy {data_dir / wanted.name} here if that is elsewhere"
        )
    if wanted.version is None:
        return top / max(versions, key=lambda version: [int(part) for part in version.split(".")])
    if wanted.version not in versions:
        raise ValueError(f"{top} has the versions {', '.join(versions)}, not {wanted.version}; use one of them")
    return top / wanted.version


def prepare_command(name: str, data_dir: Path) -> str:
    """The command that prepares a set in a folder."""
    where = "" if data_dir == default_data_dir() else f" --data-dir {shlex.quote(str(data_dir))}"
    return f"python -m experiments.prepare {name}{where}"


def import_tfds() -> ModuleType:
    """tensorflow-datasets, which with all that it needs to read and write is an extra.

    Raises:
        ValueError: it is not installed, or not all of it.
    """
    try:
        import array_record.python.array_record_module  # noqa: F401
        import importlib_resources  # noqa: F401 (tensorflow-datasets needs it and does not say so)
        import tensorflow_datasets
    except ImportError as error:
        raise need_extra(error) from error
    return tensorflow_datasets


def need_extra(error: ImportError, extra: str = "tfds") -> ValueError:
    """The one line that says what to install."""
    return ValueError(f"{error.name or error} is not installed: pip install 'shuffle_jax[{extra}]'")


def _versions(folder: Path) -> list[str]:
    """The complete versions in a folder: features.json is of the last that are written."""
    if not folder.is_dir():
        return []
    return sorted(p.name for p in folder.iterdir() if _VERSION.fullmatch(p.name) and (p / "features.json").is_file())


def _default_config(folder: Path) -> str | None:
    """The only prepared configuration of a set.

    Raises:
        ValueError: there are several.
    """
    configs = sorted(p.name for p in folder.iterdir() if _versions(p)) if folder.is_dir() else []
    if len(configs) > 1:
        raise ValueError(f"{folder.name} is prepared as {some(configs)}: name one, as in {folder.name}/{configs[0]}")
    return configs[0] if configs else None


def _near(data_dir: Path, wanted: Name) -> list[str]:
    """Names of prepared sets, of this one's other configurations before all."""
    if not data_dir.is_dir():
        return []
    sets = {}
    for folder in sorted(p for p in data_dir.iterdir() if p.is_dir()):
        configs = [p.name for p in sorted(folder.iterdir()) if _versions(p)]
        sets[folder.name] = [folder.name] if _versions(folder) else [f"{folder.name}/{config}" for config in configs]
    return sets.get(wanted.name) or [name for names in sets.values() for name in names]
