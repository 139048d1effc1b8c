"""Experiment trackers beside the files of a run: Weights & Biases, MLflow and Trackio.

The files are what counts. A tracker gets the same numbers under the names that TensorBoard shows, the configuration,
and at the end the figures and the hardened permutations; what it cannot do is said in one line, and the run goes on
without it. Where the numbers go is chosen as the users of each tracker know it, by its environment variables.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import os
import re
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

from shuffle_jax.files import replace_file
from shuffle_jax.records import Record, numbers
from shuffle_jax.run import Run

TrackerName = Literal["wandb", "mlflow", "trackio"]

PROJECT = "shuffle_jax"
"""Where runs are collected if ``WANDB_PROJECT``, ``MLFLOW_EXPERIMENT_NAME`` or ``TRACKIO_PROJECT`` names nothing."""


class Backend(Protocol):
    """What a tracker is made to do."""

    key: str

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Adds numbers by name."""

    def keep(self, figures: Sequence[Path], files: Sequence[Path]) -> None:
        """Adds what a finished run has drawn and learned."""

    def close(self, finished: bool) -> None:
        """Ends the tracking, of a run that is done or that goes on another time."""


def check_tracker(name: TrackerName | None) -> None:
    """Raises a ValueError, one line, if the library of a tracker is not installed."""
    if name is not None and importlib.util.find_spec(name) is None:
        raise ValueError(f"--track {name} needs the package {name}, which is not installed: pip install {name}")


class Tracker:
    """One run in a tracker, which never ends the run: what fails is said on standard error, once, and is the last.

    Args:
        name: of the tracker; None for none, when nothing here does anything.
        run: the run; a resumed one goes on in the tracker as well.
        config: its configuration as plain values.
    """

    def __init__(self, name: TrackerName | None, run: Run, config: Mapping[str, Any]) -> None:
        self.name, self._run = name, run
        self._backend: Backend | None = None
        if name is None:
            return
        starts: dict[TrackerName, Callable[..., Backend]] = {"wandb": _Wandb, "mlflow": _MLflow, "trackio": _Trackio}

        def start() -> None:
            known = json.loads(run.tracking.read_text(encoding="utf-8")) if run.tracking.exists() else {}
            self._backend = starts[name](run.path.resolve().name, known.get(name), flat(config))
            replace_file(run.tracking, json.dumps(known | {name: self._backend.key}).encode() + b"\n")

        self._try(start)

    def write(self, record: Record) -> None:
        """Adds the numbers of a record."""
        self._do(lambda backend: backend.log(int(record["step"]), numbers(record)))

    def close(self) -> None:
        """Adds figures and permutations, if the run has come so far, and ends."""
        self._do(self._end)
        self._backend = None

    def _end(self, backend: Backend) -> None:
        permutations, run = self._run.permutations_file, self._run
        done = permutations.exists() or run.recorded("result") > 0
        if done:
            backend.keep(sorted(run.figures.glob("*.png")), [permutations] if permutations.exists() else [])
        backend.close(done)

    def _do(self, what: Callable[[Backend], None]) -> None:
        if (backend := self._backend) is not None:
            self._try(lambda: what(backend))

    def _try(self, what: Callable[[], None]) -> None:
        try:
            with contextlib.redirect_stdout(io.StringIO()):  # the console is the run's
                what()
        except (Exception, SystemExit) as error:
            self._backend = None
            reason = next(iter(str(error).strip().splitlines()), "") or type(error).__name__
            print(f"warning: {self.name}: {reason}; the run goes on without it", file=sys.stderr, flush=True)


def flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A nested configuration under the names of the command line.

    >>> flat({"network": {"mixer": "auto", "auto": {"candidates": 4}}, "seed": 0})
    {'network.mixer': 'auto', 'network.auto.candidates': 4, 'seed': 0}
    """
    found: dict[str, Any] = {}
    for name, value in config.items():
        found |= flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return found


class _Wandb:
    """Weights & Biases; WANDB_MODE=offline keeps everything in the folder that WANDB_DIR names."""

    def __init__(self, title: str, key: str | None, config: Mapping[str, Any]) -> None:
        import wandb

        project = os.environ.get("WANDB_PROJECT", PROJECT)
        settings = wandb.Settings(console="off", silent=True)  # our lines are for the terminal alone
        self._library = wandb
        self._run = wandb.init(
            project=project, name=title, id=key, resume="allow", config=dict(config), settings=settings
        )
        self.key: str = self._run.id

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def keep(self, figures: Sequence[Path], files: Sequence[Path]) -> None:
        self._run.log({f"figures/{path.stem}": self._library.Image(str(path)) for path in figures})
        for path in files:
            artifact = self._library.Artifact(f"{path.stem}-{self.key}", type=path.stem)
            artifact.add_file(str(path))
            self._run.log_artifact(artifact)

    def close(self, finished: bool) -> None:
        self._run.finish(exit_code=0)


class _MLflow:
    """MLflow; MLFLOW_TRACKING_URI names the server, the data base or the folder."""

    def __init__(self, title: str, key: str | None, config: Mapping[str, Any]) -> None:
        import mlflow
        from mlflow.entities import Metric, Param

        self._client, self._metric = mlflow.MlflowClient(), Metric
        if key is not None:
            self.key = key
            self._client.update_run(key, status="RUNNING")
            return
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        known = self._client.get_experiment_by_name(name)
        experiment = self._client.create_experiment(name) if known is None else known.experiment_id
        self.key = str(self._client.create_run(experiment, run_name=title).info.run_id)
        params = [Param(_plain(name), str(value)) for name, value in config.items()]
        for start in range(0, len(params), 100):  # as many as a server takes at a time
            self._client.log_batch(self.key, params=params[start : start + 100])

    def log(self, step: int, values: Mapping[str, float]) -> None:
        now = round(1000 * time.time())
        metrics = [self._metric(_plain(name), value, now, step) for name, value in values.items()]
        self._client.log_batch(self.key, metrics=metrics)

    def keep(self, figures: Sequence[Path], files: Sequence[Path]) -> None:
        for path in figures:
            self._client.log_artifact(self.key, str(path), "figures")
        for path in files:
            self._client.log_artifact(self.key, str(path))

    def close(self, finished: bool) -> None:
        self._client.set_terminated(self.key, "FINISHED" if finished else "KILLED")


class _Trackio:
    """Trackio, in the folder that TRACKIO_DIR names."""

    def __init__(self, title: str, key: str | None, config: Mapping[str, Any]) -> None:
        import trackio

        self.key = key or f"{title}-{time.time_ns() // 1000:x}"  # runs are known by their name, of which there is one
        project = os.environ.get("TRACKIO_PROJECT", PROJECT)
        plain = {name: value if isinstance(value, str | int | float) else str(value) for name, value in config.items()}
        quiet: dict[str, Any] = {"embed": False, "auto_log_gpu": False, "auto_log_cpu": False}
        self._library = trackio
        self._run = trackio.init(project=project, name=self.key, config=plain, resume="allow", **quiet)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def keep(self, figures: Sequence[Path], files: Sequence[Path]) -> None:
        self._run.log({f"figures/{path.stem}": self._library.Image(path) for path in figures})
        for path in files:
            self._run.log_artifact(path, name=f"{path.stem}-{self.key}", type=path.stem)

    def close(self, finished: bool) -> None:
        self._run.finish()


def _plain(name: str) -> str:
    """A name of the characters that MLflow takes."""
    return re.sub(r"[^\w./: -]", "_", name)
