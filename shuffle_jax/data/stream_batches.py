"""Batches of a set that stays encoded: read, decoded and cropped as they are needed, by threads or by processes.

grain runs the readers and keeps their batches in order. It needs the extra ``tfds``.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import multiprocessing
import os
import re
import shutil
import signal
import sys
import threading
import warnings
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from functools import partial
from multiprocessing import connection, resource_tracker
from pathlib import Path

import jax
import numpy as np
from jax.sharding import Mesh

from shuffle_jax.data.augment import NO_AUGMENTATION, AugmentConfig
from shuffle_jax.data.batches import Batch, Batches, LocalBatch, on_devices, prefetch, rows_here
from shuffle_jax.data.dataset import Dataset
from shuffle_jax.data.encoded import Encoded
from shuffle_jax.data.resized_crop import random_window
from shuffle_jax.data.sampler import Sampler
from shuffle_jax.sharding import cores
from shuffle_jax.typing import Int, UInt8

MOST_READERS = 16
"""Processes, or threads, that decode by default."""

_SHARED = Path("/dev/shm")
_LARGE = 1 << 16
"""Bytes from which an array goes from one process to another in shared memory."""


class StreamBatches(Batches):
    """Batches of images that are read and decoded when they are needed.

    Over several processes each decodes of every batch the rows of its own devices. In memory are two batches of each
    reader, those ``buffer`` ahead on the devices, and nothing else. The readers are started with the first batch of an
    iterator and end with it; a process takes some seconds to start, so the test split is read by no more of them than
    it has batches. For the other arguments see :class:`Batches`.

    Args:
        dataset: the images, both splits encoded.
        augment: of what happens to the training images, the readers cut out ``resized_crop``: a window of the whole
            picture, see :func:`random_window`. It is not left for the step.
        buffer: batches that are put on the devices ahead, at least 1.
        workers: processes that decode, each whole batches; 0 for threads of this process; None for
            :func:`default_workers`. The batches are the same.

    Raises:
        ValueError: as :class:`Batches`, or the images are in memory, or grain is not installed. While batches are
            taken: an image is broken.
    """

    pipeline = "stream"

    def __init__(
        self,
        dataset: Dataset,
        batch_size: int,
        mesh: Mesh,
        seed: int = 0,
        test_batch_size: int | None = None,
        augment: AugmentConfig = NO_AUGMENTATION,
        buffer: int = 2,
        workers: int | None = None,
    ) -> None:
        super().__init__(
            dataset, batch_size, mesh, seed, test_batch_size, dataclasses.replace(augment, resized_crop=0.0)
        )
        if not (isinstance(dataset.train, Encoded) and isinstance(dataset.test, Encoded)):
            raise ValueError(f'{dataset.name} is in memory already: use the pipeline "device" or "memory"')
        if importlib.util.find_spec("grain") is None:
            raise ValueError("grain, which streams images, is not installed: pip install 'shuffle_jax[tfds]' adds it")
        self._train, self._test, self._smallest = dataset.train, dataset.test, augment.resized_crop
        self._workers = default_workers() if workers is None else workers
        self._buffer = buffer

    def train(self, start: int = 0) -> Iterator[Batch]:
        """Training batches without end; the first is that of global step ``start``."""
        rows = rows_here(self.mesh, self.batch_size)
        return self._batches(
            _TrainReader(self._train, self.train_sampler, rows, start, self._smallest), self.batch_size
        )

    def test(self) -> Iterator[Batch]:
        """The test split once, in its own order; its last example at weight 0 fills up the last batch."""
        rows = rows_here(self.mesh, self.test_batch_size)
        return self._batches(_TestReader(self._test, self.test_sampler, rows), self.test_batch_size)

    def _batches(self, reader: _Reader, batch_size: int) -> Iterator[Batch]:
        def put() -> Generator[Batch]:
            for images, labels, weight in _read(reader, min(self._workers, len(reader))):
                # Copies: shared memory is given back with its array, and JAX on a CPU may keep what it is given.
                local = np.array(images), np.array(labels), np.array(weight)
                yield on_devices(local, self.mesh, batch_size)

        return prefetch(put(), self._buffer)


def default_workers() -> int:
    """Processes that decode where no number is given: a core each but for one, 0 if that leaves less than two."""
    free = min(cores() - 1, MOST_READERS)
    return free if free > 1 else 0


@dataclass(eq=False)
class _Reader:
    """Batches by position, as grain's ``RandomAccessDataSource``; goes to every worker."""

    split: Encoded
    sampler: Sampler
    rows: Int[np.ndarray, "m"]
    start: int = 0
    smallest: float = 0.0
    closed: bool = False

    def __len__(self) -> int:
        raise NotImplementedError

    def _empty(self) -> tuple[UInt8[np.ndarray, "m h w c"], Int[np.ndarray, "m"]]:
        return np.empty((len(self.rows), *self.split.image_shape), np.uint8), np.empty(len(self.rows), np.int32)


class _TrainReader(_Reader):
    """The training batches from that of step ``start``, cropped if ``smallest`` is not 0."""

    def __len__(self) -> int:
        return sys.maxsize

    def __getitem__(self, index: int) -> LocalBatch:
        epoch, places, positions = self.sampler.train(self.start + index, self.rows)
        images, labels = self._empty()
        for row, (place, position) in enumerate(zip(places.tolist(), positions.tolist(), strict=True)):
            if self.closed:
                break
            window = None
            if self.smallest:
                window = partial(random_window, self.sampler.seed, epoch, place, self.smallest)
            images[row], labels[row] = self.split.read(position, window)
        return images, labels, np.ones(len(self.rows), np.float32)


class _TestReader(_Reader):
    """The batches of a split in its own order, filled up with its last image at weight 0."""

    def __len__(self) -> int:
        return self.sampler.batches

    def __getitem__(self, index: int) -> LocalBatch:
        positions, weight = self.sampler.test(index, self.rows)
        images, labels = self._empty()
        for row, position in enumerate(positions.tolist()):
            if self.closed:
                break
            images[row], labels[row] = self.split.read(position)
        return images, labels, weight


def _read(reader: _Reader, workers: int) -> Generator[LocalBatch]:
    """What a reader reads, in order: by processes, or with 0 of them by threads of this one; in a thread of its own."""
    import grain
    from absl import flags

    if not flags.FLAGS.is_parsed():  # grain reads flags of the command line, which is not absl's here
        flags.FLAGS.mark_as_parsed()
    threads = 1 if workers else max(1, min(cores(), MOST_READERS, len(reader)))
    batches = grain.MapDataset.source(reader).to_iter_dataset(
        grain.ReadOptions(num_threads=threads, prefetch_buffer_size=threads)
    )
    if workers:
        # Processes inherit what the thread that starts them blocks: signals for the group are left to this process,
        # which may still need batches to end in good order. Where the tracker starts, it unblocks them: it goes first.
        resource_tracker.ensure_running()
        signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM))
        pixels = len(reader.rows) * int(np.prod(reader.split.image_shape))
        # Containers have little shared memory, and to run out of it kills a process. Pipes are slower.
        room = _SHARED.is_dir() and shutil.disk_usage(_SHARED).free > 4 * workers * pixels
        options = grain.experimental.DatasetOptions(min_shm_size=_LARGE if room else sys.maxsize)
        batches = grain.experimental.WithOptionsIterDataset(batches, options)
        batches = batches.mp_prefetch(
            grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=1), worker_init_fn=_begin
        )
    iterator = iter(batches)
    try:
        yield from iterator
    except ValueError as error:  # of a broken image; that of a process brings the text of its traceback
        raise ValueError(str(error)) from None
    except RuntimeError as error:
        code = re.search(r"exit code (-?\d+)", str(error))
        if code is None:
            raise
        raise ValueError(
            f"a process that decodes images ended with exit code {code[1]}; what it said stands above, and after -9 "
            "memory may have run out: use fewer workers or a smaller batch"
        ) from None
    finally:
        reader.closed = True
        iterator.close()


def _begin(index: int, workers: int) -> None:
    """Prepares a process that decodes: it ends with its parent, and never takes an accelerator."""
    from PIL import Image

    jax.config.update("jax_platforms", "cpu")
    warnings.simplefilter("error", Image.DecompressionBombWarning)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent.sentinel,), daemon=True).start()


def _end_with(sentinel: int) -> None:
    connection.wait([sentinel])
    os._exit(1)
