"""The folder of a run: where each file is, and whether a configuration belongs to it.

::

    run/
      config.json         the configuration, the class names, the preprocessing, the pipeline, the versions
      metrics.jsonl       every number, one JSON object a line
      tensorboard/        the same for TensorBoard
      checkpoints/<step>/
      snapshots/<step>.npz    relaxed matrices by layer: at the start, in the middle, at the end
      dynamic/<step>.npz      the permutations that dynamic layers give to test images, at the same moments
      permutations.npz    hardened index vectors by layer
      damaged/<step>/     checkpoints that could not be read when the run was resumed
      figures/*.png
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from shuffle_jax import __version__
from shuffle_jax.data.batches import Pipeline
from shuffle_jax.data.preprocessing import Preprocessing, preprocessing_from_json
from shuffle_jax.files import replace_file, replacing, temporary
from shuffle_jax.models.config import AttentionConfig, DecompositionConfig, DynamicConfig, ShiftConfig
from shuffle_jax.train.config import TrainConfig, differences, from_json, to_json

ADDED: dict[str, dict[str, Any]] = {
    "AugmentConfig": {
        "mixup_epochs": 0.0,
        "resized_crop": 0.0,
        "jitter": 0.0,
        "random_operations": 0,
        "random_magnitude": 9.0,
        "erasing": 0.0,
        "cutmix": 0.0,
    },
    "FolderConfig": {"broken": "stop", "per_class": None, "test_per_class": None, "crop": 1.0},
    "NetworkConfig": {
        "pointwise": "plain",
        "depth": 18,
        "head": "plain",
        "dropout": 0.0,
        "dynamic": to_json(DynamicConfig()),
        "dcd": to_json(DecompositionConfig()),
        "attention": to_json(AttentionConfig()),
        "spatial": "depthwise",
        "shift": to_json(ShiftConfig()),
    },
    "OptimizerConfig": {"nesterov": True},
}
"""Fields that earlier versions did not write, by type, with the value that says what those versions did."""


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
    def figures(self) -> Path:
        """The folder of the figures."""
        return self.path / "figures"

    def exists(self) -> bool:
        """Whether a run was ever started here."""
        return self._config.exists()

    def start(
        self,
        config: TrainConfig,
        classes: Sequence[str],
        preprocessing: Preprocessing,
        pipeline: Pipeline = "device",
    ) -> None:
        """Makes the folder of a new run.

        Args:
            config: of the run.
            classes: the class names in the order of their labels.
            preprocessing: from pictures to normalised images.
            pipeline: how the images reach the devices.

        Raises:
            ValueError: the folder holds something already.
        """
        self.check_free()
        self.path.mkdir(parents=True, exist_ok=True)
        about = {
            "config": to_json(config),
            "classes": list(classes),
            "preprocessing": preprocessing.to_json(),
            "pipeline": pipeline,
            "versions": _versions(),
        }
        replace_file(self._config, json.dumps(about, indent=2).encode() + b"\n")

    def config(self) -> TrainConfig:
        """The configuration the run was started with.

        Raises:
            ValueError: there is no run here, or it is of another version.
        """
        return from_json(TrainConfig, self._about()["config"])

    def classes(self) -> tuple[str, ...]:
        """The class names in the order of their labels."""
        return tuple(self._about()["classes"])

    def pipeline(self) -> Pipeline:
        """How the images reached the devices when the run was started."""
        found: Pipeline = self._about()["pipeline"]
        return found

    def preprocessing(self) -> Preprocessing:
        """What a picture goes through before the network sees it.

        Raises:
            ValueError: there is no run here, or a version wrote it that did not keep this.
        """
        found = self._about()["preprocessing"]
        if not found:
            raise ValueError(f"{self._config} does not say how pictures are prepared: an earlier version wrote it")
        return preprocessing_from_json(found)

    def keeps_preprocessing(self) -> bool:
        """Whether the run says what a picture goes through; earlier versions did not write it."""
        return bool(self._about()["preprocessing"])

    def check_free(self) -> None:
        """Raises a ValueError if there is anything in the folder, so that nothing is overwritten."""
        # A run that was killed before its configuration was whole has left nothing else, and nothing of worth.
        unfinished = temporary(self._config)
        if self.path.exists() and (not self.path.is_dir() or any(p != unfinished for p in self.path.iterdir())):
            raise ValueError(f"{self.path} exists and is not empty: continue it with --resume, or name another --run")

    def check(self, config: TrainConfig) -> None:
        """Raises a ValueError that shows the difference unless ``config`` is the run's own."""
        different = differences(self._about()["config"], json.loads(json.dumps(to_json(config))))
        if different:
            raise ValueError(
                f"{self.path} was started with another configuration ({'; '.join(different)}): "
                "resume it with its own, or name another --run"
            )

    def save_snapshot(self, step: int, matrices: Mapping[str, np.ndarray]) -> None:
        """Keeps the relaxed matrices of one step."""
        _save_arrays(self._snapshots / f"{step:08d}.npz", matrices)

    def save_dynamic(self, step: int, arrays: Mapping[str, np.ndarray]) -> None:
        """Keeps the permutations of test images at one step, see shuffle_jax.train.probe."""
        _save_arrays(self._dynamic / f"{step:08d}.npz", arrays)

    def save_permutations(self, permutations: Mapping[str, np.ndarray]) -> None:
        """Keeps the hardened index vectors."""
        _save_arrays(self.path / "permutations.npz", permutations)

    def forget_after(self, step: int) -> None:
        """Removes the snapshots of later steps, which a resumed run makes again."""
        for path in [*self._snapshots.glob("*.npz"), *self._dynamic.glob("*.npz")]:
            if int(path.stem) > step:
                path.unlink()

    @property
    def _config(self) -> Path:
        return self.path / "config.json"

    @property
    def _snapshots(self) -> Path:
        return self.path / "snapshots"

    @property
    def _dynamic(self) -> Path:
        return self.path / "dynamic"

    def _about(self) -> dict[str, Any]:
        if not self._config.exists():
            raise ValueError(f"there is no run in {self.path}: it has no config.json")
        try:
            about = json.loads(self._config.read_text(encoding="utf-8"))
            return {
                "config": completed(about["config"]),
                "classes": [str(name) for name in about["classes"]],
                "preprocessing": dict(about.get("preprocessing", {})),  # earlier versions did not write it
                "pipeline": about.get("pipeline", "device"),  # the only one that they had
            }
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"{self._config} does not hold the configuration and the classes of a run ({error!r}): "
                "restore it from a copy, or start another run"
            ) from error


def completed(value: Any) -> Any:
    """A configuration as plain values, with the fields that the version which wrote it did not have yet.

    >>> completed({"type": "FolderConfig", "root": "images"})
    {'broken': 'stop', 'per_class': None, 'test_per_class': None, 'crop': 1.0, 'type': 'FolderConfig', 'root': 'images'}
    """
    if isinstance(value, Mapping):
        return {**ADDED.get(value.get("type", ""), {}), **{name: completed(item) for name, item in value.items()}}
    return value


def next_free(path: Path) -> Path:
    """The path itself if nothing is there, else the first of ``path-2``, ``path-3``, ... that is free."""
    number, candidate = 1, path
    while candidate.exists():
        number += 1
        candidate = path.with_name(f"{path.name}-{number}")
    return candidate


def newest(path: Path) -> Path | None:
    """The run that was started last among ``path``, ``path-2``, ...; None if there is none."""
    runs = [p.parent for p in path.parent.glob(f"{path.name}*/config.json") if _is_numbered(p.parent.name, path.name)]
    return max(runs, key=lambda run: (run / "config.json").stat().st_mtime_ns, default=None)


def _is_numbered(name: str, stem: str) -> bool:
    return name == stem or (name.startswith(f"{stem}-") and name[len(stem) + 1 :].isdigit())


def _save_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    with replacing(path) as partial, partial.open("wb") as file:
        np.savez_compressed(file, allow_pickle=False, **arrays)


def _versions() -> dict[str, str]:
    return {"shuffle_jax": __version__, **{name: version(name) for name in ("jax", "flax", "optax", "numpy")}}
