"""Two processes train like one: together, stopped, resumed by another number, and when one of them is killed."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from shuffle_jax.records import read_records
from shuffle_jax.run import Run
from shuffle_jax.train.config import read_config
from shuffle_jax.train.experiment import prepare, read_state

SCRIPT = Path(__file__).with_name("one_of_several.py")
ROOT = Path(__file__).parents[2]
SMALL = (
    "digits --network.family outside_networks:Small --network.mixer identity --data.test-fraction 0.9 "
    "--batch-size 44 --optimizer.warmup-epochs 0.5 --log-every 1 --average-decay 0.9"
)
PATIENCE = 240.0
"""Seconds within which processes must do what is expected of them, on a busy machine."""

TIMEOUT = 20
"""--distributed.timeout of the tests."""

EPOCHS, STEPS = 6, 24

CLUSTER = ("SLURM", "OMPI", "KUBERNETES", "JOB_COMPLETION", "TPU", "MEGASCALE")


class Processes:
    """Processes of one run, started together."""

    def __init__(self, run, count, *words, pause=0.0, environments=None, each=None):
        self.run, self.logs = run, [run.with_name(f"{run.name}.{i}.log") for i in range(count)]
        port = free_port()
        inherited = {k: v for k, v in os.environ.items() if not k.startswith(CLUSTER) and k != "XLA_FLAGS"}
        # Two processes would read entries of the cache that the other one is still writing.
        inherited.pop("JAX_COMPILATION_CACHE_DIR", None)
        self.processes = []
        for index in range(count):
            environment = inherited | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", "PAUSE": str(pause)}
            own = ["--distributed.timeout", str(TIMEOUT)]
            if environments is not None:
                environment |= environments[index]
            elif count > 1:
                own += ["--distributed.coordinator", f"localhost:{port}", "--distributed.processes", str(count)]
                own += ["--distributed.index", str(index)]
            command = [
                sys.executable,
                str(SCRIPT),
                *SMALL.split(),
                "--run",
                str(run),
                *words,
                *own,
                *(each[index] if each else ()),
            ]
            with self.logs[index].open("wb") as log:
                self.processes.append(
                    subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment, cwd=run.parent)
                )

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for process in self.processes:
            if process.poll() is None:
                process.kill()
            process.wait()

    def wait_for(self, event):
        """Waits until a condition holds; all processes live until then."""
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            assert all(process.poll() is None for process in self.processes), self.text()
            if event():
                return
            time.sleep(0.05)
        raise AssertionError(f"waited in vain:\n{self.text()}")

    def trains(self, step):
        """Whether the run has recorded a step."""
        path = self.run / "metrics.jsonl"
        return path.exists() and any(r["kind"] == "train" and r["step"] >= step for r in read_records(path))

    def end(self):
        """The exit codes, when all have ended."""
        try:
            return [process.wait(PATIENCE) for process in self.processes]
        except subprocess.TimeoutExpired:
            raise AssertionError(f"did not end:\n{self.text()}") from None

    def text(self, index=None):
        """What one process said, or all of them."""
        chosen = self.logs if index is None else [self.logs[index]]
        return "\n".join(log.read_text(errors="replace") for log in chosen)


def free_port():
    with socket.socket() as server:
        server.bind(("localhost", 0))
        return server.getsockname()[1]


def trained(run, count, *words, **options):
    with Processes(run, count, *words, **options) as processes:
        assert processes.end() == [0] * count, processes.text()
        return processes


def stopped(run, count, after, *words, receivers):
    """Trains until a step is recorded, sends SIGTERM to some processes in turn, and returns the step of the stop."""
    with Processes(run, count, *words, pause=0.2) as processes:
        processes.wait_for(lambda: processes.trains(after))
        for index in receivers:
            processes.processes[index].send_signal(signal.SIGTERM)
            time.sleep(0.05)  # not at once: the first one stops all
        assert processes.end() == [128 + signal.SIGTERM] * count, processes.text()
        for index in range(count):
            resume = f"python -m experiments.train --resume {run}"
            assert f"and saved in {run}; continue with: {resume}" in processes.text(index)
    return newest(run)


def newest(run):
    return max(int(p.name) for p in (run / "checkpoints").iterdir() if p.name.isdigit())


def state(run):
    """Every array of the newest checkpoint."""
    found = read_state(Run(run), "last", prepare(read_config(Run(run)), devices=1).state_shapes())
    return jax.device_get(found.replace(key=jax.random.key_data(found.key)))


def assert_same_training(one, other):
    """Equal but for the order of sums: the two halves of a batch are added in another order than its images.

    A sum of n float32 numbers in another order differs by about 1e-7 of its size; 24 steps of training, the first of
    them at a rising rate, let that grow, here to 1e-5 at most. Different images in one batch would give 1e-2.
    """
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-4), one, other)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run of one process that nothing disturbs."""
    run = tmp_path_factory.mktemp("alone") / "whole"
    trained(run, 1, "--epochs", str(EPOCHS))
    return run


@pytest.mark.slow
def test_two_tasks_of_slurm_train_like_one_process_and_one_of_them_writes(whole, tmp_path):
    run = tmp_path / "two"
    processes = trained(run, 2, "--epochs", str(EPOCHS), environments=slurm(2))
    assert_same_training(state(whole), state(run))

    theirs, ours = (read_records(path / "metrics.jsonl") for path in (whole, run))
    assert [(r["kind"], r["step"]) for r in theirs] == [(r["kind"], r["step"]) for r in ours]
    for a, b in zip(theirs, ours, strict=True):
        for name in ("loss", "accuracy", "top1", "penalty"):
            if name in a:
                np.testing.assert_allclose(a[name], b[name], rtol=2e-3, atol=1e-2, err_msg=str(a))
    assert sorted(p.name for p in whole.iterdir()) == sorted(p.name for p in run.iterdir())
    assert len(list((run / "tensorboard").iterdir())) == 1
    assert "test images" in processes.text(0) and "test images" not in processes.text(1)
    about = json.loads((run / "config.json").read_text())
    assert "distributed" not in about["config"]  # how many processes there are is no part of a run


@pytest.mark.slow
def test_stopped_as_two_resumed_as_one_and_back(whole, tmp_path):
    run = tmp_path / "changing"
    words = ["--epochs", str(EPOCHS)]
    steps = [stopped(run, 2, 3, *words, receivers=[1])]  # one of them is enough
    steps.append(stopped(run, 1, steps[0] + 3, *words, "--resume", receivers=[0]))
    memory = "--input.pipeline", "memory"  # the same batches by another way
    steps.append(stopped(run, 2, steps[1] + 3, *words, "--resume", *memory, receivers=[1, 0]))
    trained(run, 1, *words, "--resume")
    assert [*steps, newest(run)] == sorted({*steps, STEPS})
    assert_same_training(state(whole), state(run))
    assert [r["step"] for r in read_records(run / "metrics.jsonl") if r["kind"] == "train"] == [*range(1, STEPS + 1)]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("victim", "how"),
    [
        (1, signal.SIGKILL),
        (0, signal.SIGKILL),  # the one that the others talk to
        (1, signal.SIGSTOP),  # alive and silent: a host that hangs, a network that is cut
    ],
)
def test_the_other_process_ends_in_time_when_one_is_lost_and_the_run_goes_on(victim, how, tmp_path):
    run, words = tmp_path / "lost", ["--epochs", str(EPOCHS)]
    with Processes(run, 2, *words, pause=0.5) as processes:
        processes.wait_for((run / "checkpoints" / "8").exists)  # whole: two epochs of 4 steps
        processes.processes[victim].send_signal(how)
        began = time.monotonic()
        code = processes.processes[1 - victim].wait(PATIENCE)
        took = time.monotonic() - began
        assert took < TIMEOUT + 5, took  # the runtime looks every few seconds
        time.sleep(1)  # the last words come after the end
        said = processes.text(1 - victim)
    assert code not in (0, None)
    assert "another process" in said.splitlines()[-1] and "continue with: python" in said.splitlines()[-1], said
    assert newest(run) == 8
    if (victim, how) == (1, signal.SIGKILL):  # whoever coordinates lives and sees it, so Python has the last word
        assert code == 2 and "the last checkpoint is step 8" in said.splitlines()[-1], said
        trained(run, 1, *words, "--resume")
        assert newest(run) == STEPS


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "own", "others"),
    [
        (["--devices", "7"], "--devices must be from 1 to 1, the devices of this machine, got 7", "another process"),
        (["--seed", "1"], *["the command of process 1 differs from that of process 0: start all processes with"] * 2),
    ],
)
def test_a_process_that_differs_tells_why_and_the_other_does_not_wait(words, own, others, tmp_path):
    with Processes(tmp_path / "failed", 2, each=[[], words]) as processes:
        codes = processes.end()
        time.sleep(1)  # the last words come after the end
    assert codes[1] == 2 and processes.text(1).splitlines()[-1].startswith(own), processes.text(1)
    assert codes[0] != 0 and others in processes.text(0).splitlines()[-1], processes.text(0)
    assert not (tmp_path / "failed").exists()


def slurm(count):
    """What srun sets for the tasks of a job on this machine."""
    job = str(int(time.time() * 7) % 4096)  # jax takes the port from it
    return [
        {
            "SLURM_JOB_ID": job,
            "SLURM_STEP_NODELIST": "localhost",
            "SLURM_NTASKS": str(count),
            "SLURM_STEP_NUM_NODES": "1",
            "SLURM_PROCID": str(index),
            "SLURM_LOCALID": str(index),
        }
        for index in range(count)
    ]
