"""The folder of a run: where each file is, and how it is written and read. Nothing else knows the names in it.

::

    run/
      config.json         the configuration, the class names, the preprocessing, the pipeline, the versions, how many
                          pictures and their digest
      pictures.txt.gz     the names of the pictures of a folder
      metrics.jsonl       every number, one JSON object a line
      tensorboard/        the same for TensorBoard
      checkpoints/<step>/
      snapshots/<step>.npz    relaxed matrices by layer: at the start, in the middle, at the end
      dynamic/<step>.npz      the permutations that dynamic layers give to test images, at the same moments
      permutations.npz    hardened index vectors by layer
      lock                who trains it, as long as somebody does
      damaged/<step>/     checkpoints that could not be read when the run was resumed
      tracking.json       by which name each tracker knows the run
      profile/            a trace of some steps, where one was asked for
      figures/*.png
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from shuffle_jax import __version__
from shuffle_jax.data.batches import Pipeline
from shuffle_jax.data.inventory import Inventory, check_unchanged
from shuffle_jax.data.preprocessing import Preprocessing, preprocessing_from_json
from shuffle_jax.files import holder, load_arrays, replace_file, save_arrays, temporary
from shuffle_jax.records import read_records

Arrays = Mapping[str, np.ndarray]
T = TypeVar("T")

LIBRARIES = ("jax", "flax", "optax", "numpy")
PICTURES = "pictures.txt.gz"


@dataclass(frozen=True)
class Run:
    """One run's folder."""

    path: Path

    @property
    def checkpoints(self) -> Path:
        """The folder of the checkpoints."""
        return self.path / "checkpoints"

    @property
    def metrics(self) -> Path:
        """The file of JSON lines."""
        return self.path / "metrics.jsonl"

    @property
    def tensorboard(self) -> Path:
        """The folder of TensorBoard's files."""
        return self.path / "tensorboard"

    @property
    def profile(self) -> Path:
        """The folder of a trace."""
        return self.path / "profile"

    @property
    def figures(self) -> Path:
        """The folder of the figures."""
        return self.path / "figures"

    @property
    def lock(self) -> Path:
        """The file that whoever trains the run holds."""
        return self.path / "lock"

    @property
    def tracking(self) -> Path:
        """The file of the names by which trackers know the run."""
        return self.path / "tracking.json"

    @property
    def permutations_file(self) -> Path:
        """The file of the hardened index vectors, which a run has at its end if it learns any."""
        return self.path / "permutations.npz"

    def exists(self) -> bool:
        """Whether a run was ever started here."""
        return self._about.exists()

    def steps(self) -> list[int]:
        """The steps of its checkpoints, whole or not, ascending."""
        return steps_in(self.checkpoints)

    def recorded(self, *kinds: str) -> int:
        """How many records of one of these kinds there are."""
        records = read_records(self.metrics) if self.metrics.exists() else []
        return sum(record.get("kind") in kinds for record in records)

    def is_barely_begun(self) -> bool:
        """Whether a run was started here and ended before its first checkpoint, so that nothing of worth is left.

        An evaluation is recorded before the state is saved, which waits until the one before is on the disk: of more
        than two there was a checkpoint, which was taken away.
        """
        if not self.exists() or self.steps() or self.recorded("result"):
            return False
        evaluations = self.recorded("test")
        return evaluations == 0 or (evaluations <= 2 and self.checkpoints.exists())

    def check_free(self, afresh: bool = False) -> None:
        """Raises a ValueError if there is anything in the folder, so that nothing is overwritten.

        Args:
            afresh: a run that ended before its first checkpoint may be there.
        """
        # A run that was killed before its configuration was whole has left nothing else, and nothing of worth.
        worthless = (temporary(self._about), self.lock)
        if not self.path.exists() or (self.path.is_dir() and all(p in worthless for p in self.path.iterdir())):
            return
        if not self.exists():
            raise ValueError(f"{self.path} exists and is not empty: name another --run")
        barely_begun = self.is_barely_begun()
        if afresh and barely_begun:
            return
        self.check_idle()
        how = "start it afresh with: {} --afresh" if barely_begun else "continue it with: {}"
        command = how.format(resume_command(self.path))
        raise ValueError(f"{self.path} exists and is not empty: name another --run, or {command}")

    def check_idle(self) -> None:
        """Raises a ValueError that says who trains the run, if somebody does."""
        if who := holder(self.lock):
            raise ValueError(f"{self.path} is being trained by {who}: wait for it or end it, or name another --run")

    def start(
        self,
        config: Mapping[str, Any],
        classes: Sequence[str],
        preprocessing: Preprocessing,
        pipeline: Pipeline = "device",
        afresh: bool = False,
        data: Inventory | None = None,
    ) -> None:
        """Makes the folder of a new run.

        Args:
            config: the configuration as plain values.
            classes: the class names in the order of their labels.
            preprocessing: from pictures to normalised images.
            pipeline: how the images reach the devices.
            afresh: see :meth:`check_free`.
            data: which pictures it is trained and measured on.

        Raises:
            ValueError: the folder holds something already.
        """
        self.check_free(afresh)
        self.path.mkdir(parents=True, exist_ok=True)
        about = {
            "config": config,
            "classes": list(classes),
            "preprocessing": preprocessing.to_json(),
            "pipeline": pipeline,
            "versions": {"shuffle_jax": __version__, **{name: version(name) for name in LIBRARIES}},
            "data": data.to_json() if data else {},
        }
        self._write(about)
        if data and data.by_name:
            replace_file(self.path / PICTURES, data.packed())

    def check_data(self, now: Inventory, changed: bool = False) -> None:
        """Raises DataChanged, or warns, unless the pictures are those of the run, as far as it says; see inventory."""
        names, kept = self.path / PICTURES, self._read("data", dict, {})
        check_unchanged(now, kept, names.read_bytes() if names.exists() else None, self.path, changed)

    def change(self, config: Mapping[str, Any]) -> None:
        """Gives the run another configuration, of the same network, trained longer or on pictures that were moved."""
        self._write(json.loads(self._about.read_text(encoding="utf-8")) | {"config": config})

    def config(self) -> dict[str, Any]:
        """The configuration as plain values, as the version wrote them that started the run."""
        return self._read("config", dict)

    def classes(self) -> tuple[str, ...]:
        """The class names in the order of their labels."""
        return self._read("classes", lambda names: tuple(map(str, names)))

    def versions(self) -> dict[str, str]:
        """The versions of the libraries that the run was started with."""
        return self._read("versions", dict, {})

    def pipeline(self) -> Pipeline:
        """How the images reached the devices when the run was started."""
        return self._read("pipeline", lambda found: found, "device")  # the only one that earlier versions had

    def preprocessing(self) -> Preprocessing:
        """What a picture goes through before the network sees it.

        Raises:
            ValueError: there is no run here, or a version wrote it that did not keep this.
        """
        if not self.keeps_preprocessing():
            raise ValueError(f"{self._about} does not say how pictures are prepared: an earlier version wrote it")
        return preprocessing_from_json(self._read("preprocessing", dict, {}))

    def keeps_preprocessing(self) -> bool:
        """Whether the run says what a picture goes through; earlier versions did not write it."""
        return self._read("preprocessing", bool, {})

    def save_snapshot(self, step: int, matrices: Arrays) -> None:
        """Keeps the relaxed matrices of one step."""
        save_arrays(self.path / "snapshots" / f"{step:08d}.npz", matrices)

    def save_dynamic(self, step: int, arrays: Arrays) -> None:
        """Keeps the permutations of test images at one step, see :class:`shuffle_jax.analysis.probe.Probe`."""
        save_arrays(self.path / "dynamic" / f"{step:08d}.npz", arrays)

    def save_permutations(self, permutations: Arrays) -> None:
        """Keeps the hardened index vectors."""
        save_arrays(self.permutations_file, permutations)

    def snapshots(self) -> dict[int, Path]:
        """The files of relaxed matrices by step, ascending; read one with :func:`load_arrays`."""
        return _by_step(self.path / "snapshots")

    def dynamic(self) -> dict[int, Path]:
        """The files of permutations of test images by step, ascending; read one with :func:`load_arrays`."""
        return _by_step(self.path / "dynamic")

    def permutations(self) -> dict[str, np.ndarray]:
        """The hardened index vectors by layer; none in a run that has not finished or that learns none."""
        return load_arrays(self.permutations_file) if self.permutations_file.exists() else {}

    def forget_after(self, step: int) -> None:
        """Removes the snapshots of later steps, which a resumed run makes again."""
        for later, path in [*self.snapshots().items(), *self.dynamic().items()]:
            if later > step:
                path.unlink()

    @property
    def _about(self) -> Path:
        return self.path / "config.json"

    def _write(self, about: Mapping[str, Any]) -> None:
        replace_file(self._about, json.dumps(about, indent=2).encode() + b"\n")

    def _read(self, name: str, convert: Callable[[Any], T], default: Any = None) -> T:
        """One entry of config.json; earlier versions did not write those that have a default."""
        if not self.exists():
            raise ValueError(f"there is no run in {self.path}: it has no config.json")
        try:
            about = json.loads(self._about.read_text(encoding="utf-8"))
            return convert(about[name] if default is None else about.get(name, default))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(
                f"{self._about} does not hold the configuration and the classes of a run ({error!r}): "
                "restore it from a copy, or start another run"
            ) from error


def resume_command(
    path: Path, devices: int | None = None, input: object = None, distributed: object = None, track: str | None = None
) -> str:
    """What one types to go on with a run.

    Args:
        path: of the run.
        devices: how many local devices it uses, if not all.
        input: a dataclass, how the images reach the devices, of which is typed what differs from the defaults.
        distributed: the same of the processes.
        track: the tracker.

    >>> resume_command(Path("runs/my digits"), devices=1)
    "python -m experiments.train --resume 'runs/my digits' --devices 1"
    """
    words = ["python", "-m", "experiments.train", "--resume", str(path)]
    for option, value in (("--devices", devices), ("--track", track)):
        words += [] if value is None else [option, str(value)]
    for prefix, config in (("input", input), ("distributed", distributed)):
        for field in () if config is None else fields(config):  # type: ignore[arg-type]
            if (value := getattr(config, field.name)) != field.default:
                words += [f"--{prefix}.{field.name.replace('_', '-')}", str(value)]
    return shlex.join(words)


def steps_in(folder: Path) -> list[int]:
    """The steps of the checkpoints in a folder, whole or not, ascending; none in a folder that does not exist."""
    return sorted(int(path.name) for path in folder.iterdir() if path.name.isdigit()) if folder.exists() else []


def _by_step(folder: Path) -> dict[int, Path]:
    return dict(sorted((int(path.stem), path) for path in folder.glob("*.npz")))
