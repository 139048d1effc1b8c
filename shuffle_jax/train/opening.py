"""What a run says and compiles before its first step: its data, its network, its length; the step itself."""

from __future__ import annotations

import time
from concurrent import futures
from pathlib import Path

import jax

from shuffle_jax.data import Batch
from shuffle_jax.nn.collections import RELAXED, STATIC
from shuffle_jax.train.config import TrainConfig
from shuffle_jax.train.experiment import Experiment
from shuffle_jax.train.frozen import frozen
from shuffle_jax.train.size import small_images
from shuffle_jax.train.state import TrainState
from shuffle_jax.train.step import TrainStep
from shuffle_jax.typing import PyTree

SAVED = "/jax/compilation_cache/compile_time_saved_sec"
"""The event by which JAX says how many seconds a program took to compile that it found compiled."""


def reading(config: TrainConfig) -> list[str]:
    """What is said before images are read that may take a while; nothing of those that are embedded."""
    where = getattr(config.data, "root", None) or getattr(config.data, "name", None)
    return [f"reading {where}"] if where else []


def about(experiment: Experiment, params: PyTree) -> list[str]:
    """What is trained on what, for how long and where, a line each.

    Args:
        experiment: the parts of the run.
        params: those of the network, or their shapes.
    """
    config, data, batches = experiment.config, experiment.dataset, experiment.batches
    use = "more held out to validate on" if data.validation else "to test on"
    shape = " x ".join(map(str, data.image_shape))
    sizes = [(getattr(path[-1], "key", ""), leaf.size) for path, leaf in jax.tree_util.tree_leaves_with_path(params)]
    relaxed = sum(size for name, size in sizes if name in (RELAXED, STATIC))
    more = f" and {relaxed:,} more in training" if relaxed else ""
    kind = experiment.mesh.devices.flat[0].device_kind.upper()
    start = [] if experiment.start is None else [f"start: {experiment.taken(experiment.start).said}"]
    if config.optimizer.freeze:
        off = jax.tree.leaves(frozen(params, config.optimizer.freeze))
        start.append(
            f"frozen: {sum(size for (_, size), is_off in zip(sizes, off, strict=True) if is_off):,} parameters"
        )
    return [
        f"data: {data.name}, {len(data.train):,} images to train on, {len(data.test):,} {use}, "
        f"{len(data.classes):,} classes, {shape}",
        *start,
        *small_images(config.network, data.image_shape),
        f"network: {config.network.family}, {sum(size for _, size in sizes) - relaxed:,} parameters{more}",
        f"length: {experiment.steps:,} steps, {_several(config.epochs, 'epoch')} of {batches.steps_per_epoch:,} "
        f"batches of {config.batch_size:,}; on {_several(experiment.mesh.size, 'device')} ({kind})",
    ]


class Compiling:
    """Compiles the step ahead, and times all compilation before the first one and what kept programs save of it."""

    def __init__(self) -> None:
        self._started, self._saved = time.perf_counter(), 0.0
        self._ahead: futures.Future[object] | None = None
        jax.monitoring.register_event_duration_secs_listener(self._listen)

    def begin(self, step: TrainStep, state: TrainState, batch: Batch) -> None:
        """Begins to compile a step, in a thread of its own: the compiler leaves cores idle, and the state is not there.

        A call of the step finds the program, once :meth:`wait` has returned. What cannot be compiled is left to the
        call, which says why.

        Args:
            step: the jitted step.
            state: types, shapes and shardings of its state.
            batch: the first one, of which the step needs the same.
        """
        thread = futures.ThreadPoolExecutor(1, "compiling")
        self._ahead = thread.submit(lambda: step.lower(state, batch).compile())
        thread.shutdown(wait=False)

    def wait(self) -> None:
        """Waits until the step is compiled, or cannot be."""
        futures.wait([] if self._ahead is None else [self._ahead])

    def done(self) -> str:
        """How long it took and what was saved, in one line; to be called once."""
        jax.monitoring.unregister_event_duration_listener(self._listen)
        took = f"compiled in {time.perf_counter() - self._started:.0f} s"
        values = jax.config.values
        folder = values["jax_compilation_cache_dir"] if values["jax_enable_compilation_cache"] else None
        if folder is None:
            return took
        if self._saved >= 1:
            return f"{took}, {self._saved:.0f} s less than without the programs kept in {_short(folder)}"
        return f"{took}; programs are kept in {_short(folder)} for later runs"

    def _listen(self, event: str, duration_secs: float, **kwargs: str | int) -> None:
        if event == SAVED:
            self._saved += max(duration_secs, 0.0)


def _several(number: int, what: str) -> str:
    return f"{number:,} {what}" if number == 1 else f"{number:,} {what}s"


def _short(folder: str) -> str:
    home = str(Path.home())
    return f"~{folder[len(home) :]}" if folder.startswith(f"{home}/") else folder
