"""What is decided before processes talk to each other; tests/train/test_processes.py has two that do."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys

import jax
import pytest

from shuffle_jax import distributed
from shuffle_jax.distributed import Agreement, DistributedConfig, ProcessLost, connect, is_lead
from shuffle_jax.sharding import data_mesh, first_devices, replicate

SLURM = {"SLURM_STEP_NODELIST": "node[01-02]", "SLURM_NTASKS": "2"}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"coordinator": "a:1"}, "go together: distributed.processes and distributed.index is missing"),
        ({"processes": 2, "index": 0}, "go together: distributed.coordinator is missing"),
        (
            {"coordinator": "a", "processes": 2, "index": 0},
            "coordinator must be HOST:PORT, such as node0:",
        ),
        ({"coordinator": "a:1", "processes": 0, "index": 0}, "processes must be at least 1, got 0"),
        (
            {"coordinator": "a:1", "processes": 2, "index": 2},
            "index must be from 0 to 1, another one for each",
        ),
        ({"timeout": 0}, "timeout must be at least 1 second, got 0"),
    ],
)
def test_numbers_that_do_not_fit_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        DistributedConfig(**fields)


@pytest.mark.parametrize(
    ("environment", "several"),
    [
        ({}, False),
        (SLURM, True),
        ({**SLURM, "SLURM_NTASKS": "1"}, False),
        ({"SLURM_NTASKS": "2", "SLURM_JOB_ID": "7"}, False),  # the script of a batch, outside of srun
        ({"OMPI_COMM_WORLD_SIZE": "4"}, True),
        ({"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, False),  # a notebook in a pod
        ({"KUBERNETES_SERVICE_HOST": "10.0.0.1", "JOB_COMPLETION_INDEX": "0"}, True),
        ({"TPU_WORKER_HOSTNAMES": "localhost"}, False),
        ({"TPU_WORKER_HOSTNAMES": "t0,t1"}, True),
    ],
)
def test_a_cluster_is_asked_where_it_runs_several_tasks(environment, several):
    assert distributed._detects("auto", environment) is several
    assert distributed._detects("always", environment) and not distributed._detects("never", environment)


def test_a_process_alone_stays_as_it_is(monkeypatch):
    for name in ("SLURM_STEP_NODELIST", "OMPI_COMM_WORLD_SIZE", "JOB_COMPLETION_INDEX", "TPU_WORKER_HOSTNAMES"):
        monkeypatch.delenv(name, raising=False)
    connect(DistributedConfig())
    assert not jax.distributed.is_initialized() and is_lead()
    distributed.barrier("nobody to wait for")
    distributed.same("whatever it is", 1)
    distributed.shutdown()
    with pytest.raises(SystemExit, match="3"):
        distributed.exit_process(3)
    agreement = Agreement(data_mesh())
    assert [agreement.largest(value) for value in (0, 15, 0)] == [0, 15, 0]  # at once
    assert first_devices() == jax.devices() and first_devices(1) == jax.devices()[:1]


def test_arrays_are_put_whole_on_every_device():
    mesh = data_mesh()
    tree = replicate({"a": jax.numpy.arange(3), "b": [2.5]}, mesh)
    assert tree["a"].sharding.is_fully_replicated and len(tree["a"].addressable_shards) == len(jax.devices())
    assert tree["a"].tolist() == [0, 1, 2] and float(tree["b"][0]) == 2.5


def test_a_lost_process_is_told_from_other_errors():
    gone = ValueError("UNKNOWN: Gloo all-reduce failed: Connection closed by peer [127.0.0.1]:13457\nmore")
    assert distributed.is_lost(gone) and not distributed.is_lost(ValueError("a batch of 44 cannot be split"))
    named = distributed.lost(gone)
    assert isinstance(named, ProcessLost) and "\n" not in str(named) and "Connection closed by peer" in str(named)
    assert distributed.lost(named) is named


@pytest.mark.slow
@pytest.mark.parametrize("abort", [True, False])
def test_a_process_that_the_runtime_ends_has_left_its_last_words(abort):
    end = "os.abort()" if abort else "distributed._watchdog.stop()"
    code = (
        f"import os; from shuffle_jax import distributed; distributed._watchdog.start('continue with --resume'); {end}"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == (-signal.SIGABRT if abort else 0)
    assert ("continue with --resume" in done.stderr) is abort, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("index", [0, 1])
def test_a_process_that_finds_no_other_says_so_last(index):
    config = f"DistributedConfig('localhost:{free_port()}', 2, {index})"
    code = (
        "from shuffle_jax import distributed; from shuffle_jax.distributed import DistributedConfig; "
        f"distributed.STARTUP = 2; distributed.connect({config})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode != 0
    assert "the other processes could not be connected at localhost:" in done.stderr.splitlines()[-1], done.stderr


def free_port():
    with socket.socket() as server:
        server.bind(("localhost", 0))
        return server.getsockname()[1]
