"""Which images are in which batch: NumPy alone, so that processes without a device know it too."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from shuffle_jax.streams import WORD, pair, threefry
from shuffle_jax.typing import Float, Int


@dataclass(frozen=True)
class Sampler:
    """The images of every batch of a split.

    Epoch e visits the split in the order ``p = epoch_order(seed, e, examples)``, of which batch i takes the places
    i b to (i + 1) b - 1; the examples mod b images left over at the end of an epoch are dropped. A batch is thus a
    function of the seed and the global step alone, on any number of devices and in any number of processes.

    Args:
        examples: images of the split.
        batch_size: b, images of a batch over all devices.
        seed: chooses the order.
    """

    examples: int
    batch_size: int
    seed: int = 0

    @property
    def steps_per_epoch(self) -> int:
        """Training batches of an epoch."""
        return self.examples // self.batch_size

    @property
    def batches(self) -> int:
        """Batches that hold every image once."""
        return -(-self.examples // self.batch_size)

    def train(self, step: int, rows: Int[np.ndarray, "m"]) -> tuple[int, Int[np.ndarray, "m"], Int[np.ndarray, "m"]]:
        """Of some rows of the training batch of global step ``step``: the epoch, their places in it, their positions.

        >>> Sampler(examples=8, batch_size=3).train(step=5, rows=np.array([0, 2]))
        (2, array([3, 5]), array([1, 0], dtype=int32))
        """
        epoch, index = divmod(step, self.steps_per_epoch)
        places = index * self.batch_size + rows
        return epoch, places, epoch_order(self.seed, epoch, self.examples)[places]

    def test(self, index: int, rows: Int[np.ndarray, "m"]) -> tuple[Int[np.ndarray, "m"], Float[np.ndarray, "m"]]:
        """Of some rows of batch ``index`` of the split in its own order: their positions and float32 weights.

        Places past the end hold the last image at weight 0.

        >>> Sampler(examples=5, batch_size=3).test(index=1, rows=np.arange(3))
        (array([3, 4, 4]), array([1., 1., 0.], dtype=float32))
        """
        places = index * self.batch_size + rows
        return np.minimum(places, self.examples - 1), (places < self.examples).astype(np.float32)


@lru_cache(maxsize=2)  # batches are made ahead, over the end of an epoch
def epoch_order(seed: int, epoch: int, examples: int) -> Int[np.ndarray, "n"]:
    """The order in which an epoch visits the images.

    These are the numbers of ``jax.random.permutation(jax.random.fold_in(key, epoch), examples)``: the threefry
    generator counts out 32 bits for every image, by which they are sorted, as often as makes a tie improbable.

    Args:
        seed: an integer below 2**64, whose two words are the key, as :func:`shuffle_jax.streams.stream_seed` gives it;
            of one below 2**32 that is ``jax.random.key(seed)``. Of a negative one the last 32 bits count.
        epoch: in [0, 2**32).
        examples: at least 1, below 2**31.

    Returns:
        int32 (examples,), each of 0 to examples - 1 once; not to be written to.

    Source: J. K. Salmon et al., "Parallel Random Numbers: As Easy as 1, 2, 3", SC 2011.
    """
    key = threefry(pair(max(seed, 0) >> 32, seed), pair(0, epoch))
    order = np.arange(examples, dtype=np.int32)
    places = np.arange(examples, dtype=np.uint64)
    for _ in range(math.ceil(3 * math.log(examples) / math.log(WORD))):
        zeros = np.zeros(2, np.uint32)
        first, second = threefry(key, (zeros, np.arange(2, dtype=np.uint32)))
        key, subkey = (first[:1], second[:1]), (first[1:], second[1:])
        high, low = threefry(subkey, (np.zeros(examples, np.uint32), places.astype(np.uint32)))
        # With the place below the bits no two keys are equal, and any sort does what a stable one would: NumPy's
        # fastest takes a third of the time of its stable one.
        keys = ((high ^ low).astype(np.uint64) << np.uint64(32)) | places
        keys.sort()
        order = order[keys & np.uint64(WORD)]
    order.setflags(write=False)
    return order
