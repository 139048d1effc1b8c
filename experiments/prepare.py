"""Prepares a data set of tensorflow-datasets for training: `python -m experiments.prepare NAME`.

It is downloaded where that is possible, and written in a format that is read at random. Training then needs neither
TensorFlow nor a network: the folder may be copied to where there is none. A builder of your own is prepared with
`--module`, by the name of its class in snake case. The builders that come with tensorflow-datasets need TensorFlow for
this: pip install 'shuffle_jax[prepare]'.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import inspect
import io
import logging
import os
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from experiments.cli import main, nearest, parse, quiet_libraries
from experiments.cli.command import NO_ROOM
from shuffle_jax.data.prepared import default_data_dir, import_tfds, need_extra, parse_name

RETRIES = 4
"""Times that a connection is tried again, within some 3 seconds; tensorflow-datasets tries for more than 3 minutes."""


@dataclass(frozen=True)
class Arguments:
    """What to prepare, and where."""

    name: Annotated[str, tyro.conf.Positional]
    """The data set: cifar10, cifar10:3.0.2 or imagenet_resized/64x64."""

    data_dir: Path | None = None
    """The folder of all prepared sets; by default $TFDS_DATA_DIR, or ~/tensorflow_datasets."""

    module: str | None = None
    """A module to import first, which defines a builder of your own, such as my_package.my_builder."""

    manual_dir: Path | None = None
    """Where the files are that you have to download yourself; by default DATA_DIR/downloads/manual."""


def run(arguments: Sequence[str] | None = None) -> None:
    """Parses the command line, prepares the set, and says where it lies and what it holds."""
    options = parse(Arguments, arguments, prog="python -m experiments.prepare", description=__doc__)
    quiet_libraries()
    parse_name(options.name)
    data_dir = (options.data_dir or default_data_dir()).expanduser()
    data_dir.mkdir(parents=True, exist_ok=True)
    builder = _builder(options, data_dir)
    folder = Path(builder.data_path)
    if folder.exists():
        _check_format(builder, folder)
        print(f"{options.name} is already prepared in {folder}")
    else:
        _prepare(builder, options, data_dir)
        print(f"{options.name} is prepared in {folder}")
    splits = ", ".join(f"{name} {split.num_examples:,}" for name, split in builder.info.splits.items())
    print(f"examples: {splits}; {builder.info.dataset_size / 1e6:,.1f} MB")
    where = "" if data_dir == default_data_dir() else f" --data.data-dir {shlex.quote(str(data_dir))}"
    print(f"train with: python -m experiments.train PRESET --data.name {options.name}{where}")


def _builder(options: Arguments, data_dir: Path) -> Any:
    """The builder of a data set, by name."""
    tfds = import_tfds()
    if options.module is not None:
        if not all(part.isidentifier() for part in options.module.split(".")):
            raise ValueError(f"{options.module!r} is no module: give its dotted name, such as my_package.my_builder")
        try:
            importlib.import_module(options.module)
        except ImportError as error:
            if error.name is not None and error.name.partition(".")[0] == "tensorflow":
                raise _need_tensorflow(options.name) from error
            raise ValueError(f"cannot import {options.module}: {error}; give the dotted name of a module") from error
    name, config, version = parse_name(options.name)
    known = tfds.list_builders(with_community_datasets=False)
    if name not in known:
        incomplete = _incomplete(options.module, name)
        unknown = f"there is no data set {name}; near: {nearest(name, known)}; a builder of your own needs --module"
        raise ValueError(incomplete or unknown)
    kind = tfds.builder_cls(name)
    if config is not None and config not in kind.builder_configs:
        configs = ", ".join(f"{name}/{near}" for near in kind.builder_configs) or f"it has none: use {name}"
        raise ValueError(f"{name} has no configuration {config!r}: {configs}")
    try:
        return kind(data_dir=data_dir, config=config, version=version)
    except AssertionError as error:  # of a version
        raise ValueError(f"{options.name}: {_line(error)}; leave the version out for the newest") from error


def _incomplete(module: str | None, name: str) -> str | None:
    """What a builder of that name in a module lacks, which is why it is not known; None if there is none."""
    for found in vars(sys.modules[module]).values() if module else ():
        if inspect.isabstract(found) and getattr(found, "name", None) == name:
            return f"{module}.{found.__name__} has no {' and no '.join(sorted(found.__abstractmethods__))}: add it"
    return None


def _check_format(builder: Any, folder: Path) -> None:
    formats = {form.value for form in builder.info.available_file_formats()}
    if "array_record" not in formats:
        raise ValueError(
            f"{folder} is prepared as {', '.join(sorted(formats))}, which cannot be read at random: move it away, or "
            "choose another --data-dir"
        )


def _prepare(builder: Any, options: Arguments, data_dir: Path) -> None:
    import requests
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core.download import downloader
    from tensorflow_datasets.core.download.download_manager import NonMatchingChecksumError

    if type(builder).__module__.startswith("tensorflow_datasets.") and importlib.util.find_spec("tensorflow") is None:
        raise _need_tensorflow(options.name)
    manual = (options.manual_dir or data_dir / "downloads" / "manual").expanduser()
    if builder.MANUAL_DOWNLOAD_INSTRUCTIONS is not None and not (manual.is_dir() and any(manual.iterdir())):
        raise ValueError(
            f"{options.name} has files that you download yourself: put them into {manual}, or give --manual-dir; "
            f"its instructions: {' '.join(builder.MANUAL_DOWNLOAD_INSTRUCTIONS.split())}"
        )
    downloader.MAX_RETRIES = RETRIES
    logging.getLogger("urllib3").setLevel(logging.ERROR)
    if not sys.stderr.isatty():
        tfds.disable_progress_bar()
    elsewhere = f"run this where there is a network, and copy {data_dir / builder.name} here"
    try:
        with contextlib.redirect_stdout(sys.stderr if sys.stderr.isatty() else io.StringIO()):
            builder.download_and_prepare(
                file_format="array_record",
                download_config=tfds.download.DownloadConfig(manual_dir=manual, try_download_gcs=False),
            )
    except requests.RequestException as error:
        address = getattr(error.request, "url", None) or "its files"
        raise ValueError(f"{options.name}: cannot download {address} ({_cause(error)}); {elsewhere}") from error
    except (tfds.download.DownloadError, NonMatchingChecksumError) as error:
        raise ValueError(f"{options.name}: {_line(error)}; {elsewhere}") from error
    except ImportError as error:
        if "tensorflow'" in str(error):
            raise _need_tensorflow(options.name) from error
        raise ValueError(f"{options.name}: {_cause(error)}; install what its builder needs") from error
    except AssertionError as error:  # of files that must be downloaded by hand
        raise ValueError(f"{options.name}: {_line(error)}") from error
    except RuntimeError as error:  # of the library that writes the records
        full = next((number for number in NO_ROOM if os.strerror(number) in str(error)), None)
        if full is None:
            raise
        raise OSError(full, os.strerror(full), os.fspath(data_dir)) from error


def _need_tensorflow(name: str) -> ValueError:
    return need_extra(ModuleNotFoundError(name=f"TensorFlow, which prepares {name},"), "prepare")


def _line(error: Exception) -> str:
    return " ".join(str(error).split()).rstrip(".")


def _cause(error: BaseException) -> str:
    """The innermost reason of an error."""
    while (inner := error.__cause__ or error.__context__) is not None:
        error = inner
    return _line(error) if isinstance(error, Exception) else type(error).__name__


if __name__ == "__main__":
    main(run)
