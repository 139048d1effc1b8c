"""What the benchmark measures of input pipelines: the training step that they feed, and they alone."""

from __future__ import annotations

import importlib.util
import itertools
import tempfile
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.benchmark.cases import CLASSES, Workload, random_batch, shufflenet, train_step
from experiments.benchmark.effort import Effort, Times
from shuffle_jax.data import AugmentConfig, Batch, Batches, Dataset
from shuffle_jax.data.encoded import Encoded, Record
from shuffle_jax.data.pipelines import InputConfig, make_batches
from shuffle_jax.data.stream_batches import MOST_READERS
from shuffle_jax.sharding import data_mesh
from shuffle_jax.train.optimizer import OptimizerConfig, make_optimizer
from shuffle_jax.train.state import init_state

PIPELINES = {
    "device": InputConfig("device"),
    "memory": InputConfig("memory"),
    "stream, threads": InputConfig("stream", workers=0),
    "stream, 1 process": InputConfig("stream", workers=1),
    "stream, 2 processes": InputConfig("stream", workers=2),
}

ALONE = "one batch again and again"

PICTURES = {32: (32, 32), 224: (400, 500)}
"""Height and width of the pictures that give images of a size."""

BATCHES = {32: 64, 224: 16}
"""Images of a batch where a pipeline is measured alone."""

SMALLEST = 0.08
"""Of the area: what a random resized crop keeps at least, at 224 pixels."""

WARM, TIMED = MOST_READERS + 4, 24
"""Batches before the clock starts, more than readers hold, and batches that are timed."""

MOST_ROUNDS = 5
"""Readers are started anew in every round, which takes seconds."""

Feed = Callable[[], Generator[object]]
"""Begins what is measured; each item is one batch through it."""


def training_times(work: Workload, effort: Effort) -> dict[str, Times]:
    """Seconds of the training step on a batch that stays on the device, and of the same step behind each pipeline."""
    network = shufflenet(work, "shuffle")
    optimizer = make_optimizer(OptimizerConfig(), optax.constant_schedule(1e-3))
    images = jnp.zeros((1, work.image_size, work.image_size, 3))
    state = jax.jit(lambda: init_state(jax.random.key(0), network, images, optimizer))()
    step = train_step(network)

    def steps(batches: Iterator[Batch]) -> Generator[object]:
        now = jax.tree.map(jnp.copy, state)  # steps donate their state
        for batch in batches:
            now, _ = jax.block_until_ready(step(now, batch))
            yield None

    def behind(source: Batches) -> Generator[object]:
        return steps(source.train(0))

    with pictures(work.image_size, work.batch_size) as dataset:
        feeds: dict[str, Feed] = {ALONE: lambda: steps(itertools.repeat(random_batch(work)))}
        for name, config in available().items():
            source = make_batches(dataset, work.batch_size, data_mesh(jax.devices()[:1]), input=config)
            feeds[name] = partial(behind, source)
        return {"seconds": measure_feeds(feeds, effort)}


def input_times(size: int, effort: Effort) -> dict[str, Times]:
    """Seconds of each pipeline alone for a batch of ``BATCHES[size]`` images, until it is on the device.

    At 224 pixels the streams cut random resized crops out of pictures of 400 x 500; what the others keep is whole.
    """

    def batches(source: Batches) -> Generator[object]:
        yield from map(jax.block_until_ready, source.train(0))

    with pictures(size, BATCHES[size]) as dataset:
        feeds: dict[str, Feed] = {}
        for name, config in available().items():
            mesh = data_mesh(jax.devices()[:1])
            crop = AugmentConfig(resized_crop=SMALLEST if size == 224 else 0.0)
            source = make_batches(dataset, BATCHES[size], mesh, input=config, augment=crop)
            feeds[name] = partial(batches, source)
        return {"seconds": measure_feeds(feeds, effort)}


def measure_feeds(feeds: dict[str, Feed], effort: Effort) -> Times:
    """Seconds for a batch of each feed in each round, the feeds in turn.

    A feed is begun for each of its turns and ended after it: batches that were made while nobody waited would cost
    nothing, and readers that go on would disturb what is measured next. There are at most ``MOST_ROUNDS`` rounds.
    """
    times: Times = {name: [] for name in feeds}
    for _ in range(min(effort.rounds, MOST_ROUNDS)):
        for name, feed in feeds.items():
            effort.left()
            items = feed()
            for _ in range(WARM):
                next(items)
            started = time.perf_counter()
            for _ in range(TIMED):
                next(items)
            times[name].append((time.perf_counter() - started) / TIMED)
            items.close()
    return times


def available() -> dict[str, InputConfig]:
    """The pipelines that can be measured: streams need grain."""
    if importlib.util.find_spec("grain") is not None:
        return PIPELINES
    print("grain is not installed, so there are no streams: pip install -c constraints.txt -e '.[tfds]' adds it")
    return {name: config for name, config in PIPELINES.items() if config.pipeline != "stream"}


@contextmanager
def pictures(size: int, batch_size: int) -> Iterator[Dataset]:
    """Four batches of JPEG files of random pictures, for images of a size, in a folder that is removed afterwards.

    The pictures are smooth, with some noise, so that a file has about as many bytes for its pixels as a photograph.
    """
    from PIL import Image

    rng = np.random.default_rng(0)
    height, width = PICTURES.get(size, (size, size))
    with tempfile.TemporaryDirectory() as folder:
        records = []
        for number in range(4 * batch_size):
            path = Path(folder) / f"{number}.jpg"
            coarse = rng.integers(0, 256, (-(-height // 10), -(-width // 10), 3), np.uint8)
            smooth = np.asarray(Image.fromarray(coarse).resize((width, height)), np.float32)
            noisy = smooth + rng.normal(0, 8, smooth.shape)
            Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(path, quality=90)
            records.append(Record(path.name, path, number % CLASSES))
        split = Encoded(records, size)
        test = Encoded(records[:batch_size], size)
        yield Dataset("random pictures", tuple(str(k) for k in range(CLASSES)), split, test)
