"""Every pipeline gives the same batches, on any number of devices and by any number of workers."""

from __future__ import annotations

import itertools
import threading

import jax
import numpy as np
import pytest

from shuffle_jax.data import AugmentConfig, Dataset, DeviceBatches, Split, batches, pipelines
from shuffle_jax.data.batches import prefetch
from shuffle_jax.data.memory_batches import MemoryBatches
from shuffle_jax.data.pipelines import InputConfig, choose, make_batches
from shuffle_jax.data.stream_batches import StreamBatches
from shuffle_jax.sharding import batch_sharding, data_mesh

SIZES = {"batch_size": 4, "seed": 5, "test_batch_size": 6}
STEPS = 5  # of an epoch of 22 pictures


def mesh(devices: int):
    return data_mesh(jax.devices()[:devices])


def take(source, start: int, count: int) -> list:
    steps = source.train(start)
    found = [jax.device_get(batch) for batch in itertools.islice(steps, count)]
    steps.close()
    return found


def assert_equal(left: list, right: list) -> None:
    for one, two in zip(left, right, strict=True):
        jax.tree.map(np.testing.assert_array_equal, one, two)


@pytest.fixture(scope="module")
def reference(pictures):
    """The first 12 training batches and those of the test split, kept on one device."""
    source = make_batches(pictures, mesh=mesh(1), input=InputConfig("device"), **SIZES)
    assert isinstance(source, DeviceBatches)
    return take(source, 0, 12), jax.device_get(list(source.test()))


@pytest.mark.parametrize(
    ("config", "kind", "devices"),
    [
        (InputConfig("device"), DeviceBatches, 2),
        (InputConfig("memory"), MemoryBatches, 1),
        (InputConfig("memory", buffer=5), MemoryBatches, 2),
        (InputConfig("stream", workers=0), StreamBatches, 2),
        pytest.param(InputConfig("stream", workers=1, buffer=1), StreamBatches, 1, marks=pytest.mark.slow),
        pytest.param(InputConfig("stream", workers=2), StreamBatches, 2, marks=pytest.mark.slow),
    ],
)
def test_all_pipelines_give_the_same_batches(pictures, reference, config, kind, devices):
    pytest.importorskip("grain")
    train, test = reference
    source = make_batches(pictures, mesh=mesh(devices), input=config, **SIZES)
    assert type(source) is kind
    assert (source.batch_size, source.steps_per_epoch) == (4, STEPS)
    starts = [3] if config.workers else [0, 3, 5, 11]  # inside of an epoch and over its end; processes start slowly
    for start in starts:
        assert_equal(take(source, start, 12 - start), train[start:])
    found = list(source.test())
    assert_equal(jax.device_get(found), test)
    for array in found[0]:
        assert array.sharding == batch_sharding(mesh(devices))


def test_of_the_test_split_each_picture_counts_once(pictures, reference):
    _, test = reference
    weight = np.concatenate([batch.weight for batch in test])
    images = np.concatenate([batch.images for batch in test])
    np.testing.assert_array_equal(weight, [1] * 10 + [0] * 2)
    np.testing.assert_array_equal(images[weight == 1], pictures.test.take(np.arange(10))[0])


def test_small_images_are_kept_on_the_device_by_default(pictures):
    assert isinstance(make_batches(pictures, mesh=mesh(1), **SIZES), DeviceBatches)


@pytest.mark.parametrize(("pipeline", "left"), [("device", 0.3), ("memory", 0.3), ("stream", 0.0)])
def test_a_crop_of_random_size_is_left_to_the_step_by_all_but_streams(pictures, pipeline, left):
    if pipeline == "stream":
        pytest.importorskip("grain")
    augment = AugmentConfig(resized_crop=0.3, flip=True)
    source = make_batches(pictures, mesh=mesh(1), input=InputConfig(pipeline), augment=augment, **SIZES)
    assert source.augment == AugmentConfig(resized_crop=left, flip=True)


@pytest.mark.parametrize(
    ("device", "host", "pipeline"),
    [(400, 200, "device"), (399, 200, "memory"), (400, 199, "stream"), (0, 200, "memory"), (1e9, 0, "stream")],
)
def test_the_choice_at_its_limits(device, host, pipeline):
    assert choose(100, device, host) == pipeline


def in_memory(data: Dataset) -> Dataset:
    return data.in_memory()


@pytest.mark.parametrize(
    ("prepared", "free", "config", "kind"),
    [
        (lambda data: data, (1e9, 1e9), InputConfig(), DeviceBatches),
        (lambda data: data, (1e3, 1e9), InputConfig(), MemoryBatches),
        (lambda data: data, (1e9, 1e3), InputConfig(), StreamBatches),
        (in_memory, (1e9, 1e3), InputConfig(), DeviceBatches),  # what is in memory needs no room there
        (in_memory, (1e3, 1e3), InputConfig(), MemoryBatches),
        (in_memory, (1e3, 1e3), InputConfig("memory"), MemoryBatches),
    ],
)
def test_what_fits_nowhere_is_streamed(pictures, monkeypatch, prepared, free, config, kind):
    pytest.importorskip("grain")
    monkeypatch.setattr(pipelines, "_free_memory", lambda mesh: free)
    assert type(make_batches(prepared(pictures), mesh=mesh(1), input=config, **SIZES)) is kind


@pytest.mark.parametrize(
    ("pipeline", "free", "message"),
    [
        (
            "device",
            (1024.0, 1e9),
            'pictures has 0.0 GiB of images and a device 0.0 GiB of free memory: use the pipeline "memory" or '
            '"stream", or smaller or fewer images',
        ),
        ("device", (1e9, 1024.0), 'images and the host 0.0 GiB of free memory: use the pipeline "stream", or smaller'),
        ("memory", (1e9, 1024.0), 'images and the host 0.0 GiB of free memory: use the pipeline "stream", or smaller'),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_decoded(pictures, monkeypatch, pipeline, free, message):
    monkeypatch.setattr(pipelines, "_free_memory", lambda mesh: free)
    monkeypatch.setattr(Dataset, "in_memory", lambda self: pytest.fail("decoded"))
    assert pictures.nbytes == 32 * 4 * 4 * 3 > 1024
    with pytest.raises(ValueError) as error:
        make_batches(pictures, mesh=mesh(1), input=InputConfig(pipeline), **SIZES)
    assert message in str(error.value)


@pytest.mark.parametrize("pipeline", ["auto", "device", "memory", "stream"])
def test_sizes_are_refused_before_anything_is_decoded(pictures, monkeypatch, pipeline):
    monkeypatch.setattr(Dataset, "in_memory", lambda self: pytest.fail("decoded"))
    for size, test_size, message in [
        (24, 4, "^batch_size must be at most 22, the images of the training split, got 24$"),
        (3, 4, "^batch_size must be a positive multiple of the 2 devices, got 3$"),
        (0, 4, "^batch_size must be a positive multiple of the 2 devices, got 0$"),
        (4, 3, "^test_batch_size must be a positive multiple of the 2 devices, got 3$"),
    ]:
        with pytest.raises(ValueError, match=message):
            make_batches(pictures, size, mesh(2), input=InputConfig(pipeline), test_batch_size=test_size)


def test_images_in_memory_are_not_streamed(pictures):
    data = Dataset("m", tuple("abcdefg"), *(Split(np.zeros((4, 2, 2, 3), np.uint8), np.zeros(4, np.int32)),) * 2)
    with pytest.raises(ValueError, match=r'^m is in memory already: use the pipeline "device" or "memory"$'):
        make_batches(data, 2, mesh(1), input=InputConfig("stream"))
    with pytest.raises(ValueError, match=r"^only images in memory can be gathered from it: use Dataset.in_memory\(\)$"):
        MemoryBatches(pictures, 2, mesh(1))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"workers": -1}, "workers must be at least 0, or None for a number by the cores, got -1"),
        ({"buffer": 0}, "buffer must be at least 1, got 0"),
        ({"pipeline": "memory", "workers": 2}, 'the pipeline "memory" has no workers: set workers to None, or use "st'),
    ],
)
def test_what_makes_no_sense_is_refused(values, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        InputConfig(**values)


def test_one_device_of_two_is_given_half_of_each_batch():
    np.testing.assert_array_equal(batches.rows_here(mesh(2), 6), np.arange(6))
    np.testing.assert_array_equal(batches.rows_here(mesh(1), 5), np.arange(5))


def test_a_thread_runs_ahead_by_as_many_as_asked_and_no_further():
    made, wait = [], threading.Event()

    def items():
        for number in range(9):
            made.append(number)
            if number == 4:
                wait.set()
            yield number

    found = prefetch(items(), count=3)
    assert made == []
    assert [next(found), next(found)] == [0, 1]
    assert wait.wait(10)  # one is in use, three are ahead of it
    assert list(found) == list(range(2, 9))
    assert made == list(range(9))


@pytest.mark.parametrize("how", ["closed", "dropped", "exhausted", "broken"])
def test_the_thread_ends_with_the_iterator(how):
    closed = threading.Event()

    def items():
        try:
            yield from range(3)
            if how == "broken":
                raise ValueError("broken")
            yield from range(3, 6 if how == "exhausted" else 10**9)
        finally:
            closed.set()

    before = set(threading.enumerate())
    found = prefetch(items(), count=2)
    assert next(found) == 0
    started = set(threading.enumerate()) - before
    assert len(started) == 1
    match how:
        case "closed":
            found.close()
        case "dropped":
            del found
        case "exhausted":
            assert list(found) == [1, 2, 3, 4, 5]
        case "broken":
            with pytest.raises(ValueError, match=r"^broken$"):
                list(found)
    assert closed.wait(10)
    for thread in started:
        thread.join(10)
        assert not thread.is_alive()


@pytest.mark.parametrize(("hosts", "share"), [([7, 7, 7, 7], 4), ([7, 8], 1)])
def test_processes_of_one_host_share_its_memory(monkeypatch, hosts, share):
    from jax.experimental import multihost_utils

    def gathered(values):
        return np.stack([values] * len(hosts)) if values.dtype == np.float32 else np.array(hosts, np.uint32)[:, None]

    monkeypatch.setattr(pipelines.jax, "process_count", lambda: len(hosts))
    monkeypatch.setattr(pipelines.zlib, "crc32", lambda name: 7)
    monkeypatch.setattr(multihost_utils, "process_allgather", gathered)
    monkeypatch.setattr(pipelines, "free_host_memory", lambda: 4096)
    monkeypatch.setattr(pipelines, "free_device_memory", lambda mesh: 2048)
    assert pipelines._free_memory(data_mesh(jax.devices()[:1])) == (2048 / share, 4096 / share)
