"""Checkpoints of the training state, by orbax: asynchronous, atomic, the newest few and the best."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers as policies

from shuffle_jax.distributed import barrier, is_lead, is_lost
from shuffle_jax.files import disk_errors, holder
from shuffle_jax.nn.collections import PERMUTATIONS, PROGRESS
from shuffle_jax.run import Run
from shuffle_jax.runs import next_free
from shuffle_jax.train.content import STATE, Content, arrays, inspect, look, top1_of
from shuffle_jax.train.early import hardened
from shuffle_jax.train.state import TrainState

ATTEMPTS = 5
"""How often a checkpoint is chosen anew when the one before was removed by a training that goes on."""

COLLECTIONS = {"batch_stats": "statistics", PERMUTATIONS: "permutations", PROGRESS: "progress"}
"""The names under which collections of the library's own modules are saved; others stand below "collections"."""

OWN = {theirs: ours for ours, theirs in COLLECTIONS.items()}
"""The inverse of ``COLLECTIONS``."""


class Checkpoints:
    """The checkpoints of one run, each under its step.

    Saving returns as soon as the arrays are copied; files appear under a temporary name and are renamed when complete,
    so that a crash leaves the previous checkpoints as they were. What is there already is read through first; a
    checkpoint that is damaged all the same is passed over, with one line on standard error, and moved to the folder
    ``damaged`` beside this one unless ``read_only``, so that its step can be saved again.

    Args:
        folder: where they are kept; made if missing.
        keep: how many of the newest are kept, beside the one with the best ``top1``.
        read_only: leave the folder as it is, also while the run is being trained and its checkpoints come and go.

    Raises:
        ValueError: there are checkpoints and every one is damaged; all are left where they are.
        OSError: the folder cannot be made or read.
    """

    def __init__(self, folder: Path | str, keep: int = 2, read_only: bool = False) -> None:
        self._folder = Path(folder).resolve()
        self._whole, self._damaged = look(self._folder, self._is_live if read_only else lambda: False)
        self._manager: ocp.CheckpointManager | None = None
        if read_only:
            self._pass_over(read_only)
            return
        barrier("checkpoints are read")  # before one process moves what is damaged
        self._pass_over(read_only)
        barrier("damaged checkpoints are moved")
        best = policies.BestN(get_metric_fn=top1_of, n=1, keep_checkpoints_without_metrics=False)
        options = ocp.CheckpointManagerOptions(
            best_fn=top1_of,  # without it orbax does not write the metrics down
            cleanup_tmp_directories=True,  # of a save that a full disk or a crash cut short
            preservation_policy=policies.AnyPreservationPolicy([policies.LatestN(keep), best]),
        )
        with disk_errors(self._folder):
            self._manager = ocp.CheckpointManager(self._folder, options=options)

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
            arguments = ocp.args.StandardSave(_saved(state))
            with disk_errors(self._folder):
                self._manager.save(step, args=arguments, metrics=dict(metrics) if metrics else None)

    def restore(self, like: TrainState, step: int | str | None = None) -> TrainState:
        """Reads a state.

        Args:
            like: a state of the same run, or its shapes; gives types, shapes and shardings.
            step: which one, a number or "last" or "best"; the newest by default.

        Raises:
            FileNotFoundError: there is no checkpoint, or none of that step.
            ValueError: the step is none of these, or the checkpoint is damaged, or of another network than ``like``.
        """
        self.wait()
        for _ in range(ATTEMPTS):
            chosen = self._chosen(step)
            folder = self._folder / str(chosen)
            content = self._whole.get(chosen) or inspect(folder)
            if not any(name.startswith("average_stats.") for name in content.shapes):  # an earlier version wrote it
                like = like.replace(average_stats=None)
            if like.settling is not None and not any(name.startswith("settling.") for name in content.shapes):
                like = hardened(like)
            self._check_network(like, chosen, content)
            abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, _saved(like))
            try:
                with ocp.StandardCheckpointer() as checkpointer:
                    return _restored(like, checkpointer.restore(folder / STATE, abstract))
            except Exception:
                if self._manager is not None or (folder.exists() and not self._is_live()):
                    raise
            self._whole, self._damaged = look(self._folder, self._is_live)  # it was removed while it was read
        raise FileNotFoundError(f"the checkpoints in {self._folder} are removed as fast as they are read: try again")

    def _chosen(self, step: int | str | None) -> int:
        """The step of a checkpoint that is there and whole."""
        chosen, steps = check_name(step), self.steps()
        if not steps:
            raise FileNotFoundError(f"there is no checkpoint in {self._folder}")
        if chosen is None:
            chosen = (self.best() if step == "best" else None) or steps[-1]
        if chosen in self._damaged:
            raise ValueError(
                f"checkpoint {chosen} in {self._folder} is damaged ({self._damaged[chosen]}): choose one of {steps}"
            )
        if chosen not in steps:
            raise FileNotFoundError(f"{self._folder} has no checkpoint of step {chosen}: choose one of {steps}")
        return chosen

    def variables(self, step: int | str | None = None) -> dict[str, dict[tuple[str, ...], np.ndarray]]:
        """The variables of a network as they are evaluated, of whatever network: arrays by path, by collection.

        Args:
            step: see :meth:`restore`.
        """
        found: dict[str, dict[tuple[str, ...], np.ndarray]] = {}
        for (part, *path), array in arrays(self._folder / str(self._chosen(step))):
            name, *rest = path if part == "collections" else (part, *path)
            found.setdefault(OWN.get(name, name), {})[tuple(rest)] = array
        averaged = {"params": found.pop("average", {}), "batch_stats": found.pop("average_stats", {})}
        return {**found, **{name: leaves for name, leaves in averaged.items() if leaves}}

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
            with disk_errors(self._folder):
                self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits, and closes."""
        if self._manager is not None:
            with disk_errors(self._folder):
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

    def _is_live(self) -> bool:
        """Whether the run is being trained, so that checkpoints come and go."""
        return holder(Run(self._folder.parent).lock) is not None

    def _pass_over(self, read_only: bool) -> None:
        """Says which checkpoints are damaged, if any, and moves them out of the way."""
        if not self._damaged:
            return
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


def check_name(checkpoint: int | str | None) -> int | None:
    """The step that names a checkpoint, None for "last" and "best"; raises ValueError for a text that is neither."""
    if checkpoint in (None, "last", "best"):
        return None
    if not str(checkpoint).isdigit():
        raise ValueError(f'checkpoint must be "last", "best" or a step, got {checkpoint!r}')
    return int(checkpoint)


def _saved(state: TrainState) -> dict[str, Any]:
    """A state as it is saved since the first version: what is empty stands there, but for what came later."""
    kept = dict(state.collections)
    ours = {theirs: kept.pop(name, {}) for name, theirs in COLLECTIONS.items()}
    later = {"progress": ours.pop("progress"), "average_stats": state.average_stats, "collections": kept}
    later["settling"] = state.settling
    later = {name: tree for name, tree in later.items() if tree}
    fields = {name: getattr(state, name) for name in ("step", "params", "opt_state", "average", "key")}
    return {**fields, **ours, **later}


def _restored(like: TrainState, saved: dict[str, Any]) -> TrainState:
    """The inverse of :func:`_saved`."""
    found = {**saved.pop("collections", {}), **{name: saved.pop(theirs, {}) for name, theirs in COLLECTIONS.items()}}
    return like.replace(**saved, collections={name: found[name] for name in like.collections})


def _shapes(state: TrainState) -> dict[str, tuple[int, ...]]:
    """The shape of each array as it is saved, by its path; a random key as the numbers behind it."""

    def shape(leaf: jax.Array | jax.ShapeDtypeStruct) -> tuple[int, ...]:
        is_key = jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        return jax.eval_shape(jax.random.key_data, leaf).shape if is_key else leaf.shape

    leaves = jax.tree_util.tree_leaves_with_path(_saved(state))
    return {jax.tree_util.keystr(path, simple=True, separator="."): shape(leaf) for path, leaf in leaves}
