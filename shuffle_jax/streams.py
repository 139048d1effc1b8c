"""The random streams of a run: a key for each purpose, all from one seed.

``jax.random.split(key)[i]`` is ``jax.random.fold_in(key, i)``: what draws by the one draws the numbers of the other. So
each purpose has a key of its own, ``fold_in(key(seed), PURPOSE)``, below which steps and epochs are folded in; the
numbers of the purposes are beyond all of those. Only NumPy is needed, so that processes without a device know them.
"""

from __future__ import annotations

import numpy as np

DROPOUT, AUGMENTATION, ORDER, PARAMETERS, STATISTICS = (2**32 - number for number in range(1, 6))
"""The purposes."""

WORD = 0xFFFFFFFF

_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
_PARITY = 0x1BD11BDA

Pair = tuple[np.ndarray, np.ndarray]
"""Two arrays of 32-bit words: keys, counts, or random bits."""


def stream_seed(seed: int, purpose: int) -> int:
    """The key of a purpose as a number below 2**64: the words of ``fold_in(key(seed), purpose)``.

    >>> stream_seed(0, ORDER) == stream_seed(0, AUGMENTATION)
    False
    """
    high, low = threefry(pair(0, seed), pair(0, purpose))
    return int(high[0]) << 32 | int(low[0])


def pair(high: int, low: int) -> Pair:
    """Two words, of the last 32 bits of two numbers."""
    return np.array([high & WORD], np.uint32), np.array([low & WORD], np.uint32)


def threefry(key: Pair, count: Pair) -> Pair:
    """Threefry 2x32 in 20 rounds, on arrays of 32-bit words that wrap around.

    Source: J. K. Salmon et al., "Parallel Random Numbers: As Easy as 1, 2, 3", SC 2011.
    """
    keys = (*key, key[0] ^ key[1] ^ np.uint32(_PARITY))
    first, second = count[0] + keys[0], count[1] + keys[1]
    for number in range(5):
        for rotation in _ROTATIONS[number % 2]:
            first += second
            above = second << np.uint32(rotation)
            second >>= np.uint32(32 - rotation)
            second |= above
            second ^= first
        first += keys[(number + 1) % 3]
        second += keys[(number + 2) % 3] + np.uint32(number + 1)
    return first, second
