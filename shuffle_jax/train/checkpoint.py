"""Checkpoints of the training state, by orbax: asynchronous, atomic, the newest few and the best."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers as policies

from shuffle_jax.train.state import TrainState


class Checkpoints:
    """The checkpoints of one run, each under its step.

    Saving returns as soon as the arrays are copied; files appear under a temporary name and are renamed when complete,
    so that a crash leaves the previous checkpoints as they were.

    Args:
        folder: where they are kept; made if missing.
        keep: how many of the newest are kept, beside the one with the best ``top1``.
        read_only: leave the folder as it is; it must exist.
    """

    def __init__(self, folder: Path | str, keep: int = 2, read_only: bool = False) -> None:
        newest = policies.LatestN(keep)
        best = policies.BestN(get_metric_fn=_top1, n=1, keep_checkpoints_without_metrics=False)
        self._manager = ocp.CheckpointManager(
            Path(folder).resolve(),
            options=ocp.CheckpointManagerOptions(
                read_only=read_only,
                create=not read_only,
                best_fn=_top1,  # without it orbax does not write the metrics down
                preservation_policy=policies.AnyPreservationPolicy([newest, best]),
            ),
        )

    def save(self, state: TrainState, metrics: Mapping[str, float] | None = None) -> None:
        """Saves a state, if its step is not saved yet.

        Args:
            state: may be donated to the next step as soon as this returns.
            metrics: of the evaluation at this step, with ``top1``; without them it is never the best.
        """
        step = int(state.step)
        if step not in self._manager.all_steps():
            self._manager.save(step, args=ocp.args.StandardSave(state), metrics=dict(metrics) if metrics else None)

    def restore(self, like: TrainState, step: int | None = None) -> TrainState:
        """Reads a state.

        Args:
            like: a state of the same run, or its shapes; gives types, shapes and shardings.
            step: which one; the newest by default.

        Raises:
            FileNotFoundError: there is no checkpoint, or none of that step.
        """
        steps = self.steps()
        if not steps:
            raise FileNotFoundError(f"there is no checkpoint in {self._manager.directory}")
        if step is not None and step not in steps:
            raise FileNotFoundError(
                f"{self._manager.directory} has no checkpoint of step {step}: choose one of {steps}"
            )
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
        return self._manager.restore(steps[-1] if step is None else step, args=ocp.args.StandardRestore(abstract))

    def steps(self) -> list[int]:
        """The steps that are saved, ascending."""
        return sorted(self._manager.all_steps())

    def best(self) -> int | None:
        """The step with the best ``top1``, the later of equals; None if none was evaluated."""
        return self._manager.best_step()

    def wait(self) -> None:
        """Waits until everything saved is on disk."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits, and closes."""
        self._manager.close()

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _top1(metrics: Mapping[str, float]) -> float:
    return float(metrics["top1"])
