"""Several processes as one program: how they find each other, what they agree on, and how they end together."""

from __future__ import annotations

import hashlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from shuffle_jax.naming import some
from shuffle_jax.sharding import batch_sharding, replicated

STARTUP = 300
"""Seconds that processes wait for each other at the start and at the end, where one of them may still draw figures."""

GRACE = 2.0
"""Seconds that process 0, which the others talk to, waits before it ends by itself: they may have the same reason."""

LOST = r"Gloo|NCCL|coordination service|Connection closed by peer|UNAVAILABLE|DEADLINE_EXCEEDED"
"""How the collectives of each platform say that the other side is gone."""


@dataclass(frozen=True)
class DistributedConfig:
    """The processes of a run, one a host or one a device."""

    coordinator: str | None = None
    """HOST:PORT of process 0, the same for all processes; the port is any free one."""

    processes: int | None = None
    """How many processes there are."""

    index: int | None = None
    """Which of them this is, from 0."""

    detect: Literal["auto", "always", "never"] = "auto"
    """Whether the cluster is asked for the three above: "auto" in a Slurm, Open MPI or Kubernetes job of several
    processes, and where the environment names several TPU hosts; on other TPU pods give "always". Slurm and Open MPI
    give each process one GPU."""

    timeout: int = 60
    """Seconds without a sign of life after which a process counts as lost and the others end."""

    def __post_init__(self) -> None:
        given = {f"distributed.{name}": getattr(self, name) for name in ("coordinator", "processes", "index")}
        missing = [name for name, value in given.items() if value is None]
        if missing and len(missing) < len(given):
            raise ValueError(f"{', '.join(given)} go together: {' and '.join(missing)} is missing")
        if self.coordinator is not None and not self.coordinator.rpartition(":")[2].isdigit():
            raise ValueError(f"coordinator must be HOST:PORT, such as node0:9876, got {self.coordinator!r}")
        if self.processes is not None and self.processes < 1:
            raise ValueError(f"processes must be at least 1, got {self.processes}")
        if self.index is not None and not 0 <= self.index < (self.processes or 0):
            raise ValueError(
                f"index must be from 0 to {(self.processes or 0) - 1}, another one for each process, got {self.index}"
            )
        if self.timeout < 1:
            raise ValueError(f"timeout must be at least 1 second, got {self.timeout}")


_connected: DistributedConfig | None = None


class ProcessLost(ConnectionError):
    """Another process of the run is gone; this one cannot go on alone."""


def connect(config: DistributedConfig, command: str = "its command and --resume") -> None:
    """Makes this process one of several, before anything is computed; a process that is alone stays as it is.

    From then on ``jax.devices()`` are the devices of all processes. A process that is lost ends the others within
    ``config.timeout`` seconds, on CPUs at once. :func:`shutdown` ends the connection when all are done, and
    :func:`exit_process` a process that is not.

    Args:
        config: where the others are.
        command: what one types to go on with what the processes do, if this one is ended from outside.

    Raises:
        ValueError: the others were not found, or the cluster does not say where they are.
    """
    global _connected  # noqa: PLW0603 (a process is connected once)
    if config.coordinator is None and not _detects(config.detect, os.environ):
        return
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.config.update("jax_enable_preemption_service", False)  # it takes SIGTERM away, on which the loop agrees itself
    where = f"at {config.coordinator}" if config.coordinator else "by asking the cluster"
    advice = (
        f"start all within {STARTUP} s, with one --distributed.coordinator, whose port is free, and each with its own "
        "--distributed.index"
    )
    _watchdog.start(f"the other processes could not be connected {where}: {advice}")
    try:
        jax.distributed.initialize(
            config.coordinator,
            config.processes,
            config.index,
            initialization_timeout=STARTUP,
            heartbeat_timeout_seconds=config.timeout,
            shutdown_timeout_seconds=STARTUP,
            # Where the schedulers are asked they choose one GPU for each process.
            cluster_detection_method="deactivate" if config.coordinator else None,
        )
    except (RuntimeError, ValueError) as error:
        reason = _first_line(error)
        raise ValueError(f"the other processes could not be connected {where} ({reason}): {advice}") from error
    finally:
        _watchdog.stop()
    _connected = config
    if jax.process_count() > 1:
        _watchdog.start(
            f"process {jax.process_index()} of {jax.process_count()} was ended: another process ended or was lost, see "
            f"what it says, or this one was killed; continue with: {command}"
        )


def connected() -> DistributedConfig | None:
    """How this process was made one of several; None of one that is alone."""
    return _connected


def is_lead() -> bool:
    """Whether this is the process that writes what all of them know; true of a process that is alone."""
    return jax.process_index() == 0


def barrier(name: str) -> None:
    """Waits until all processes are here.

    Raises:
        ProcessLost: one of them ended.
    """
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        try:
            multihost_utils.sync_global_devices(name)
        except (RuntimeError, ValueError) as error:
            raise lost(error) from error


def is_lost(error: BaseException) -> bool:
    """Whether an exception of a computation means that another process is gone."""
    return isinstance(error, ProcessLost) or re.search(LOST, str(error)) is not None


def lost(error: Exception) -> ProcessLost:
    """What the failure of a collective means, with its first line."""
    return error if isinstance(error, ProcessLost) else ProcessLost(f"another process was lost ({_first_line(error)})")


class Agreement:
    """A number that each process has, and the largest of them, which all of them learn.

    Args:
        mesh: over the devices of all processes.
    """

    def __init__(self, mesh: Mesh) -> None:
        self._mesh = mesh
        self._local = sum(device.process_index == jax.process_index() for device in mesh.devices.flat)
        self._largest = jax.jit(jnp.max, out_shardings=replicated(mesh))
        self._pending: jax.Array | None = None

    def largest(self, value: int) -> int:
        """The largest value of all processes.

        Of several processes it is that of the call before, so that none waits for another: 0 at the first call. On CPUs
        it is that of this call.

        Args:
            value: of this process, at least 0.
        """
        if jax.process_count() == 1:
            return value
        values = np.full(self._local, value, np.int32)
        shared = jax.make_array_from_process_local_data(batch_sharding(self._mesh), values, (self._mesh.size,))
        before, self._pending = self._pending, self._largest(shared)
        if jax.default_backend() == "cpu":  # queued programs can dead-lock in their collectives
            return int(self._pending)
        return 0 if before is None else int(before)


def same(what: str, value: object) -> None:
    """Checks that all processes have the same value, before they compute with it together.

    Args:
        what: the value, for the message.
        value: with a ``repr`` that says all of it.

    Raises:
        ValueError: in all processes, if they do not.
        ProcessLost: one of them ended.
    """
    if jax.process_count() == 1:
        return
    from jax.experimental import multihost_utils

    digest = np.frombuffer(hashlib.sha256(repr(value).encode()).digest(), np.uint8)
    try:
        found = np.asarray(multihost_utils.process_allgather(digest))
    except (RuntimeError, ValueError) as error:
        raise lost(error) from error
    different = np.flatnonzero((found != found[0]).any(axis=1))
    if different.size:
        raise ValueError(
            f"{what} of process {some(different)} differs from that of process 0: start all processes "
            "with the same words, version and data"
        )


def shutdown() -> None:
    """Ends the connection, together with all other processes.

    Raises:
        ProcessLost: one of them ended otherwise.
    """
    if jax.distributed.is_initialized():
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a late one has nothing left to stop
        try:
            jax.distributed.shutdown()
        except (RuntimeError, ValueError) as error:
            raise lost(error) from error
        _watchdog.stop()


def exit_process(code: int) -> None:
    """Ends this process with an exit code; one that still has a connection to others does not wait for them."""
    if jax.distributed.is_initialized():
        if _watchdog.running and jax.process_index() == 0:
            time.sleep(GRACE)
        _watchdog.stop()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)  # an orderly end would wait for processes that wait for this one
    sys.exit(code)


def _detects(detect: str, environment: Mapping[str, str]) -> bool:
    """Whether to ask the cluster; decided by what the schedulers set for the tasks of a job."""
    if detect != "auto":
        return detect == "always"

    def tasks(name: str) -> int:
        value = environment.get(name, "")
        return int(value) if value.isdigit() else 0

    slurm = "SLURM_STEP_NODELIST" in environment and tasks("SLURM_NTASKS") > 1
    mpi = tasks("OMPI_COMM_WORLD_SIZE") > 1
    kubernetes = "KUBERNETES_SERVICE_HOST" in environment and "JOB_COMPLETION_INDEX" in environment
    tpu = "," in environment.get("TPU_WORKER_HOSTNAMES", "") or "MEGASCALE_COORDINATOR_ADDRESS" in environment
    return slurm or mpi or kubernetes or tpu


class _Watchdog:
    """Has a line printed if this process ends without a word of its own.

    JAX's runtime aborts a process that does not find the others, or that lost the one which coordinates them. Python
    does not come to speak then, so another process does, which sees the pipe between them close.
    """

    script = "import sys; sys.stdin.read(1) or print(sys.argv[1], file=sys.stderr)"

    def __init__(self) -> None:
        self._speaker: subprocess.Popen[bytes] | None = None

    @property
    def running(self) -> bool:
        return self._speaker is not None

    def start(self, text: str) -> None:
        command = [sys.executable, "-I", "-S", "-c", self.script, text]
        self._speaker = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)

    def stop(self) -> None:
        if self._speaker is not None:
            self._speaker.communicate(b".")
            self._speaker = None


_watchdog = _Watchdog()


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0].strip().rstrip(".") or type(error).__name__
