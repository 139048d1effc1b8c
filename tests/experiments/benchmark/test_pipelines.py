"""What the benchmark measures of input pipelines."""

from __future__ import annotations

import flax.linen as nn
import numpy as np
import pytest

from experiments.benchmark import pipelines
from experiments.benchmark.cases import CLASSES, Workload
from experiments.benchmark.effort import Effort
from shuffle_jax.nn import BatchNorm


class Linear(nn.Module):
    """A network that compiles soon."""

    @nn.compact
    def __call__(self, x, train=False):
        return nn.Dense(CLASSES)(BatchNorm()(x, train).mean((1, 2)))


WORK = Workload(batch_size=2, image_size=8, width=0.5)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Few batches, and no processes, which take seconds to start and are tested where they are written."""
    few = {name: config for name, config in pipelines.PIPELINES.items() if not config.workers}
    for name, value in (("PIPELINES", few), ("WARM", 1), ("TIMED", 2), ("BATCHES", {8: 2, 32: 2, 224: 2})):
        monkeypatch.setattr(pipelines, name, value)


def test_a_feed_is_begun_warmed_timed_and_ended_in_each_of_its_turns(monkeypatch):
    clock, events = [0.0], []
    monkeypatch.setattr(pipelines.time, "perf_counter", lambda: clock[0])

    def feed(name, seconds):
        try:
            while True:
                clock[0] += seconds
                events.append(name)
                yield None
        finally:
            events.append("end")

    times = pipelines.measure_feeds({"a": lambda: feed("a", 1.5), "b": lambda: feed("b", 4.0)}, Effort(100))
    assert times == {"a": [1.5] * pipelines.MOST_ROUNDS, "b": [4.0] * pipelines.MOST_ROUNDS}
    assert events == [*"aaa", "end", *"bbb", "end"] * pipelines.MOST_ROUNDS


@pytest.mark.slow
def test_the_step_is_measured_alone_and_behind_every_pipeline(monkeypatch):
    pytest.importorskip("grain")
    monkeypatch.setattr(pipelines, "shufflenet", lambda work, mixer: Linear())
    times = pipelines.training_times(WORK, Effort(1))["seconds"]
    assert list(times) == [pipelines.ALONE, "device", "memory", "stream, threads"]
    assert all(len(values) == 1 and values[0] > 0 for values in times.values())


@pytest.mark.parametrize("size", [32, 224])
def test_every_pipeline_is_measured_alone(size):
    pytest.importorskip("grain")
    times = pipelines.input_times(size, Effort(2))["seconds"]
    assert list(times) == ["device", "memory", "stream, threads"]
    assert all(len(values) == 2 for values in times.values())


def test_without_grain_the_others_are_measured(monkeypatch, capsys):
    monkeypatch.setattr(pipelines.importlib.util, "find_spec", lambda name: None)
    assert list(pipelines.available()) == ["device", "memory"]
    assert "[tfds]" in capsys.readouterr().out


def test_pictures_are_of_their_size_and_read_at_that_of_the_images():
    from PIL import Image

    with pipelines.pictures(224, 2) as dataset:
        files = [record.content for record in dataset.train.records]
        assert len(files) == 8
        with Image.open(files[0]) as picture:
            assert (picture.format, picture.size) == ("JPEG", (500, 400))
        assert 0.5 < 8 * np.mean([file.stat().st_size for file in files]) / (400 * 500) < 6  # bits of a pixel
        images, labels = dataset.train.take(np.arange(3))
        assert images.shape == (3, 224, 224, 3) and labels.tolist() == [0, 1, 2]
    assert not files[0].exists()
