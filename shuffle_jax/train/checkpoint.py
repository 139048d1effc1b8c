"""Checkpoints of the training state, by orbax: asynchronous, atomic, the newest few and the best."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers as policies

from shuffle_jax.distributed import barrier, is_lead, is_lost
from shuffle_jax.train.integrity import STATE, Content, Damaged, inspect, steps_in
from shuffle_jax.train.run import next_free
from shuffle_jax.train.state import TrainState


class Checkpoints:
    """The checkpoints of one run, each under its step.

    Saving returns as soon as the arrays are copied; files appear under a temporary name and are renamed when complete,
    so that a crash leaves the previous checkpoints as they were. What is there already is read through first; a
    checkpoint that is damaged all the same is passed over, with one line on standard error, and moved to the folder
    ``damaged`` beside this one unless ``read_only``, so that its step can be saved again.

    Args:
        folder: where they are kept; made if missing.
        keep: how many of the newest are kept, beside the one with the best ``top1``.
        read_only: leave the folder as it is.

    Raises:
        ValueError: there are checkpoints and every one is damaged; all are left where they are.
        OSError: the folder cannot be made or read.
    """

    def __init__(self, folder: Path | str, keep: int = 2, read_only: bool = False) -> None:
        self._folder = Path(folder).resolve()
        self._whole: dict[int, Content] = {}
        self._damaged: dict[int, str] = {}
        for step in steps_in(self._folder):
            try:
                self._whole[step] = inspect(self._folder / str(step))
            except Damaged as error:
                self._damaged[step] = str(error)
        if not read_only:
            barrier("checkpoints are read")  # before one process moves what is damaged
        if self._damaged:
            self._pass_over(read_only)
        if not read_only:
            barrier("damaged checkpoints are moved")
        self._manager: ocp.CheckpointManager | None = None
        if not read_only:
            newest = policies.LatestN(keep)
            best = policies.BestN(get_metric_fn=_top1, n=1, keep_checkpoints_without_metrics=False)
            with self._disk_errors():
                self._manager = ocp.CheckpointManager(
                    self._folder,
                    options=ocp.CheckpointManagerOptions(
                        best_fn=_top1,  # without it orbax does not write the metrics down
                        cleanup_tmp_directories=True,  # of a save that a full disk or a crash cut short
                        preservation_policy=policies.AnyPreservationPolicy([newest, best]),
                    ),
                )

    def save(self, state: TrainState, metrics: Mapping[str, float] | None = None) -> None:
        """Saves a state, if its step is not saved yet.

        Args:
            state: may be donated to the next step as soon as this returns.
            metrics: of the evaluation at this step, with ``top1``; without them it is never the best.

        Raises:
            OSError: this one or the one before could not be written; those before are as they were.
        """
        step = int(state.step)
        assert self._manager is not None, "these checkpoints are read only"
        if step not in self._manager.all_steps():
            with self._disk_errors():
                self._manager.save(
                    step, args=ocp.args.StandardSave(_saved(state)), metrics=dict(metrics) if metrics else None
                )

    def restore(self, like: TrainState, step: int | None = None) -> TrainState:
        """Reads a state.

        Args:
            like: a state of the same run, or its shapes; gives types, shapes and shardings.
            step: which one; the newest by default.

        Raises:
            FileNotFoundError: there is no checkpoint, or none of that step.
            ValueError: the checkpoint is damaged, or of another network than ``like``.
        """
        self.wait()
        steps = self.steps()
        if not steps:
            raise FileNotFoundError(f"there is no checkpoint in {self._folder}")
        step = steps[-1] if step is None else step
        if step in self._damaged:
            raise ValueError(
                f"checkpoint {step} in {self._folder} is damaged ({self._damaged[step]}): choose one of {steps}"
            )
        if step not in steps:
            raise FileNotFoundError(f"{self._folder} has no checkpoint of step {step}: choose one of {steps}")
        folder = self._folder / str(step)
        self._check_network(like, step, self._whole.get(step) or inspect(folder))
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, _saved(like))
        with ocp.StandardCheckpointer() as checkpointer:
            return like.replace(**checkpointer.restore(folder / STATE, abstract))

    def steps(self) -> list[int]:
        """The steps that are saved and whole, ascending."""
        return sorted(self._whole if self._manager is None else self._manager.all_steps())

    def best(self) -> int | None:
        """The step with the best ``top1``, the later of equals; None if none was evaluated."""
        if self._manager is not None:
            return self._manager.best_step()
        scores = [(content.top1, step) for step, content in self._whole.items() if content.top1 is not None]
        return max(scores)[1] if scores else None

    def wait(self) -> None:
        """Waits until everything saved is on disk.

        Raises:
            OSError: something could not be written.
        """
        if self._manager is not None:
            with self._disk_errors():
                self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits, and closes."""
        if self._manager is not None:
            with self._disk_errors():
                self._manager.close()

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, Exception) and jax.process_count() > 1 and is_lost(error):
            return  # a save would wait for the process that is gone
        # What went wrong first is what counts.
        with contextlib.suppress(Exception) if kind is not None else contextlib.nullcontext():
            self.close()

    def _pass_over(self, read_only: bool) -> None:
        """Says which checkpoints are damaged, and moves them out of the way."""
        found = "; ".join(f"{step}: {what}" for step, what in self._damaged.items())
        if not self._whole:
            raise ValueError(
                f"every checkpoint in {self._folder} is damaged ({found}) and left where it is: "
                "restore one from a copy, or start another run"
            )
        where = "left out"
        if not is_lead():
            return
        if not read_only:
            aside = self._folder.parent / "damaged"
            aside.mkdir(exist_ok=True)
            for step in self._damaged:
                (self._folder / str(step)).rename(next_free(aside / str(step)))
            where = f"moved to {aside}"
        newest = f"the newest whole one is {max(self._whole)}"
        print(f"warning: damaged checkpoints in {self._folder} ({found}) {where}; {newest}", file=sys.stderr)

    def _check_network(self, like: TrainState, step: int, content: Content) -> None:
        """Raises ValueError unless the arrays of a checkpoint are those of a state."""
        wanted, found = _shapes(like), content.shapes
        odd = [
            f"{name} is {found.get(name, 'missing')} and should be {wanted.get(name, 'absent')}"
            for name in dict.fromkeys([*wanted, *found])
            if wanted.get(name) != found.get(name)
        ]
        if odd:
            raise ValueError(
                f"checkpoint {step} in {self._folder} is of another network than the run's config.json says ({odd[0]}; "
                f"{len(odd)} arrays differ): put back the configuration it was trained with, or name another run"
            )

    @contextlib.contextmanager
    def _disk_errors(self) -> Iterator[None]:
        """Errors of the disk, which come as many kinds of exceptions, as OSError with the name of the folder."""
        try:
            yield
        except Exception as error:
            number = _error_number(error)
            if number is None:
                raise
            raise OSError(number, os.strerror(number), str(self._folder)) from error


def _saved(state: TrainState) -> dict[str, Any]:
    """The fields of a state as they are saved: without ``progress`` where it is empty, as before there was any."""
    fields = {field.name: getattr(state, field.name) for field in dataclasses.fields(state)}
    return {name: value for name, value in fields.items() if name != "progress" or value}


def _top1(metrics: Mapping[str, float]) -> float:
    return float(metrics["top1"])


def _shapes(state: TrainState) -> dict[str, tuple[int, ...]]:
    """The shape of each array as it is saved, by its path; a random key as the numbers behind it."""

    def shape(leaf: jax.Array | jax.ShapeDtypeStruct) -> tuple[int, ...]:
        is_key = jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        return jax.eval_shape(jax.random.key_data, leaf).shape if is_key else leaf.shape

    leaves = jax.tree_util.tree_leaves_with_path(state)
    return {jax.tree_util.keystr(path, simple=True, separator="."): shape(leaf) for path, leaf in leaves}


def _error_number(error: BaseException | None) -> int | None:
    """The system's error behind an exception: an OSError's, or the one in a message of tensorstore."""
    while error is not None:
        if isinstance(error, OSError) and error.errno is not None:
            return error.errno
        told = re.search(r"os_error_code='(\d+)'", str(error))
        if told:
            return int(told[1])
        error = error.__cause__ or error.__context__
    return None
