"""Streams: crops by place in the training, broken images in one line, and readers that end with what they read for."""

from __future__ import annotations

import itertools
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from shuffle_jax.data import AugmentConfig, Dataset, stream_batches
from shuffle_jax.data.encoded import Encoded, Record
from shuffle_jax.data.resized_crop import random_window
from shuffle_jax.data.sampler import epoch_order
from shuffle_jax.data.stream_batches import StreamBatches
from shuffle_jax.sharding import data_mesh

pytest.importorskip("grain")

MESH = data_mesh(jax.devices()[:1])


def take(source: StreamBatches, start: int, count: int) -> list:
    steps = source.train(start)
    found = [jax.device_get(batch) for batch in itertools.islice(steps, count)]
    steps.close()
    return found


def children(parent: int) -> list[int]:
    """The processes of a parent that read images: those that multiprocessing spawned."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit() and int(folder.name) != parent:
            try:
                its_parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
                spawned = b"spawn_main" in (folder / "cmdline").read_bytes()
            except (OSError, IndexError):
                continue
            if its_parent == parent and spawned:
                found.append(int(folder.name))
    return found


def ended(processes: list[int], seconds: float = 20) -> bool:
    """Whether all of them are gone in time; one that nobody waited for counts as gone."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        states = []
        for process in processes:
            try:
                states.append(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0])
            except OSError:
                continue
        if all(state == "Z" for state in states):
            return True
        time.sleep(0.05)
    return False


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_crop_is_that_of_its_place_in_the_training(pictures, workers):
    source = StreamBatches(pictures, 4, MESH, seed=5, workers=workers, augment=AugmentConfig(resized_crop=0.3))
    for step, batch in enumerate(take(source, 3, 4), start=3):  # over the end of an epoch
        epoch, index = divmod(step, 5)
        for row in range(4):
            place = 4 * index + row
            position = int(epoch_order(5, epoch, 22)[place])
            image, label = pictures.train.read(
                position, lambda height, width, at=(5, epoch, place, 0.3): random_window(*at, height, width)
            )
            np.testing.assert_array_equal(batch.images[row], image)
            assert batch.labels[row] == label
        assert batch.weight.tolist() == [1.0] * 4


def test_test_pictures_are_not_cropped(pictures):
    source = StreamBatches(pictures, 4, MESH, workers=0, augment=AugmentConfig(resized_crop=0.3), test_batch_size=10)
    (batch,) = source.test()
    np.testing.assert_array_equal(batch.images, pictures.test.take(np.arange(10))[0])


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_a_broken_image_is_one_line_that_names_it_and_ends_the_readers(pictures, tmp_path, workers):
    from PIL import Image

    torn = tmp_path / "torn.jpg"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)).save(torn)
    torn.write_bytes(torn.read_bytes()[:900])
    records = [*pictures.train.records[:9], Record(str(torn), torn, 0)]
    data = Dataset("torn", pictures.classes, Encoded(records, 4), Encoded(records, 4))
    source = StreamBatches(data, 2, MESH, workers=workers)
    with pytest.raises(ValueError) as error:
        list(source.test() if workers else itertools.islice(source.train(0), 5))
    assert str(error.value).startswith(f"cannot read image {torn}: ")
    assert "\n" not in str(error.value)
    assert error.value.__suppress_context__
    assert children(os.getpid()) == []


@pytest.mark.slow
def test_workers_end_when_the_iterator_is_dropped(pictures):
    steps = StreamBatches(pictures, 4, MESH, workers=2).train(0)
    next(steps)
    found = children(os.getpid())
    assert len(found) == 2
    del steps
    assert ended(found)


@pytest.mark.slow
def test_a_worker_that_is_killed_is_one_line(pictures):
    steps = StreamBatches(pictures, 4, MESH, workers=1).train(0)
    next(steps)
    (worker,) = children(os.getpid())
    os.kill(worker, signal.SIGKILL)
    with pytest.raises(ValueError, match=r"^a process that decodes images ended with exit code -9; .* smaller batch$"):
        for _ in range(100):
            next(steps)


@pytest.mark.slow
def test_without_room_in_shared_memory_batches_go_through_pipes(pictures, monkeypatch):
    expected = take(StreamBatches(pictures, 4, MESH, workers=0), 0, 3)
    monkeypatch.setattr(stream_batches.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**6, 10**6, 0))
    monkeypatch.setattr(stream_batches, "_LARGE", 0)
    for one, two in zip(take(StreamBatches(pictures, 4, MESH, workers=1), 0, 3), expected, strict=True):
        jax.tree.map(np.testing.assert_array_equal, one, two)


def test_workers_by_the_cores(monkeypatch):
    for number, workers in [(1, 0), (2, 0), (3, 2), (8, 7), (200, 16)]:
        monkeypatch.setattr(stream_batches, "cores", lambda number=number: number)
        assert stream_batches.default_workers() == workers


def test_without_grain_the_extra_is_named(pictures, monkeypatch):
    monkeypatch.setattr(stream_batches.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        ValueError, match=r"^grain, which streams images, is not installed: pip install 'shuffle_jax\[t"
    ):
        StreamBatches(pictures, 4, MESH)


PARENT = """
import sys, time
from pathlib import Path
import jax
from shuffle_jax.data import Dataset
from shuffle_jax.data.encoded import Encoded, Record
from shuffle_jax.data.stream_batches import StreamBatches
from shuffle_jax.sharding import data_mesh

def main():
    paths = sorted(Path(sys.argv[1]).iterdir())
    split = Encoded([Record(path.name, path, 0) for path in paths], 4)
    data, mesh = Dataset("pictures", ("a",), split, split), data_mesh(jax.devices()[:1])
    steps = StreamBatches(data, 4, mesh, workers=2).train(0)
    next(steps)
    try:
        print("ready", flush=True)
        time.sleep(60)
    except KeyboardInterrupt:
        next(steps)
        print("goes on", flush=True)

if __name__ == "__main__":
    main()
"""


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_no_worker_outlives_its_parent(pictures, tmp_path, how):
    script = tmp_path / "parent.py"
    script.write_text(PARENT)
    folder = pictures.train.records[0].content.parent
    command = [sys.executable, str(script), str(folder)]
    # A session of its own: as at a terminal, Ctrl-C goes to the workers too.
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as parent:
        try:
            assert parent.stdout.readline() == "ready\n"
            found = children(parent.pid)
            assert len(found) == 2
            if how == signal.SIGINT:
                os.killpg(parent.pid, how)
            else:
                os.kill(parent.pid, how)
            output, errors = parent.communicate(timeout=60)
        finally:
            parent.kill()
    assert ended(found)
    if how == signal.SIGINT:  # the workers leave it to the parent, which reads on and ends as it likes
        assert (output, errors, parent.returncode) == ("goes on\n", "", 0)
